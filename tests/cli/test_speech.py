"""Rank 0 speaks, whoever started the processes; everybody ends with the same status."""

from __future__ import annotations

import sys

import pytest

from mnx.cli import speech
from mnx.errors import MissingPackageError
from tests.launching import alone, mpiexec, starts_jobs


@alone
@pytest.mark.parametrize(
    ('environ', 'speaks'),
    [
        ({}, True),
        ({'PMI_RANK': '0', 'PMI_SIZE': '3'}, True),
        ({'PMI_RANK': '2', 'PMI_SIZE': '3'}, False),
        ({'OMPI_COMM_WORLD_RANK': '1', 'OMPI_COMM_WORLD_SIZE': '2'}, False),
    ],
    ids=['no_launcher', 'first', 'last', 'open_mpi'],
)
def test_who_speaks(environ, speaks, monkeypatch, capsys):
    monkeypatch.setattr(speech.os, 'environ', environ)
    assert speech.speaks() == speaks
    speech.say('hello')
    speech.complain('no file')
    speech.print_json({'ranks': [1, 2]})
    with speech.only_one_speaks():
        print('a library')
        print('its warning', file=sys.stderr)
    out, err = capsys.readouterr()
    assert out == ('hello\n{\n  "ranks": [\n    1,\n    2\n  ]\n}\na library\n' if speaks else '')
    assert err == ('mnx: no file\nits warning\n' if speaks else '')


@alone
def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    speech.needs('json', 'numpy')
    monkeypatch.setitem(sys.modules, 'rich', None)
    with pytest.raises(MissingPackageError, match=r"needs rich.*pip install 'mnx\[cli\]'"):
        speech.needs('json', 'rich')


@alone
def test_leaving_with_0_goes_on():
    speech.leave(0)


LEAVE = """
import sys, time
from mnx.cli import speech
from mnx.transports.launch import detect
import mnx, os
if {with_mpi}:
    mnx.create_communicator()
time.sleep(0.5 * (detect(os.environ).rank == {late}))
speech.say('what there is to say')
speech.leave({code})
"""


@starts_jobs
@pytest.mark.parametrize('with_mpi', [False, True], ids=['before_mpi', 'with_mpi'])
@pytest.mark.parametrize('late', [0, 1])
@pytest.mark.parametrize('code', [speech.USAGE, speech.UNFIT])
def test_ranks_that_leave_together_have_said_all(with_mpi, code, late):
    job = mpiexec(2, LEAVE.format(with_mpi=with_mpi, code=code, late=late))
    assert job.returncode == code
    assert job.stdout.splitlines().count('what there is to say') == 1
    assert 'failed, the whole job ends' not in job.stdout
