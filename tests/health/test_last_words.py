"""A rank that ends the job gets its report out, and ends, whatever goes wrong."""

from __future__ import annotations

import io
import subprocess
import sys
import time

import pytest

from mnx.health import last_words
from tests.launching import alone

pytestmark = alone

ABORT = """
import sys, time
from mnx.health import last_words

class Channel:
    def abort(self, code):
        {abort}

print('before', flush=False)
last_words.say('the report\\n')
last_words.abort(Channel(), 3)
print('after')
"""


@pytest.mark.parametrize('abort', ['raise OSError', 'return', 'sys.exit(5)'])
def test_a_channel_that_does_not_end_the_job(abort: str) -> None:
    """SystemExit alone goes through: it ends the process as well."""
    result = subprocess.run(
        [sys.executable, '-c', ABORT.format(abort=abort)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=100,
        check=False,
    )
    assert result.returncode == (5 if 'exit' in abort else 3)
    assert result.stderr == 'the report\n'
    assert result.stdout == 'before\n'  # what was buffered is not lost


def test_a_standard_error_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, 'stderr', None)
    last_words.say('nobody hears it')


def test_a_standard_error_without_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    monkeypatch.setattr(sys, 'stderr', text)
    start = time.monotonic()
    last_words.say('the report')
    assert text.getvalue() == 'the report'
    assert time.monotonic() - start < 10
