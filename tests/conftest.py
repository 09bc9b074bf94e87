"""The whole suite runs on every rank at once: ``mpiexec -n N python -m pytest tests``.

After its fixtures and after each test the ranks exchange verdicts, so a failure on one rank is a
failure on all of them and the next test starts together. A test that hangs is ended with all
ranks' stacks.
"""

from __future__ import annotations

import faulthandler
import itertools
import os
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

import mnx
from mnx import kernels, testing
from mnx.communicators import Communicator
from mnx.transports.devices import visible
from mnx.transports.mpi import MpiTransport

LIMIT_S = float(os.environ.get('MNX_TEST_LIMIT_S', '300'))

# The ranks draw alike, and a busy machine may take its time.
hypothesis.settings.register_profile(
    'mnx',
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile('mnx')

_world = mnx.create_communicator('naive')
_verdicts = mnx.create_communicator('naive')  # apart from the messages of the tests themselves
_stderr = 2  # in pytest_configure: a copy, since pytest turns 2 itself into a file during a test


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """End the whole job if fixtures and test together take too long: some rank hangs."""
    marker = item.get_closest_marker('limit')
    limit = float(marker.args[0]) if marker else LIMIT_S
    timer = threading.Timer(limit, _end_all, [item.nodeid, limit])
    timer.daemon = True
    timer.start()
    try:
        return (yield)
    finally:
        timer.cancel()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    yield from _pass_together()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    yield from _pass_together()


def _pass_together() -> Iterator[None]:
    error: BaseException | None = None
    try:
        yield
    except BaseException as e:
        error = e
        raise
    finally:
        _exchange_verdicts(error)
        if error is None:
            _check_no_message_is_left()


def _check_no_message_is_left() -> None:
    """Fail if a test has sent what nobody received: the next one would take it for its own."""
    error: BaseException | None = None
    try:
        assert not _left(), 'messages that nobody received: (source, tag, bytes)'
    except AssertionError as e:
        error = e
        raise
    finally:
        _exchange_verdicts(error)


def _left() -> list[tuple[int, int, int]]:
    found = []
    channels = [comm._channels for comm in (_world, *_kept.values())]
    for transport in (each for c in channels for each in (c.arrays, c.mail)):
        if not isinstance(transport, MpiTransport):
            continue
        mpi, status = transport._mpi, transport._mpi.Status()
        while transport._comm.Iprobe(status=status):
            place = status.Get_source(), status.Get_tag()
            nbytes = status.Get_count(mpi.BYTE)
            transport._comm.Recv([bytearray(nbytes), mpi.BYTE], *place)
            found.append((*place, nbytes))
    return found


def _exchange_verdicts(error: BaseException | None) -> None:
    """Fail here if another rank failed; rank 0 shows that rank's traceback."""
    skipped = isinstance(error, pytest.skip.Exception)
    failed = error is not None and not skipped
    text = ''.join(traceback.format_exception(error)[-12:]) if failed else ''
    verdicts = _verdicts.allgather_obj((skipped, text))
    failures = [f'rank {r}:\n{text}' for r, (_, text) in enumerate(verdicts) if text]
    if failures:
        _kept.clear()
    if failures and error is None:
        pytest.fail('\n'.join(['passed on this rank, but failed on', *failures]), pytrace=False)
    if len({skipped for skipped, _ in verdicts}) > 1 and not failures:
        pytest.fail(f'skipped on some ranks only: {verdicts}', pytrace=False)


def _end_all(nodeid: str, limit: float) -> None:
    """End the job: this rank's stack now, the others' when their timers fire a moment later."""
    place = f'[rank {_world.rank} of {_world.size}] {nodeid}'
    os.write(_stderr, f'\n{place} hangs for {limit} s. Where I am:\n'.encode())
    faulthandler.dump_traceback(file=_stderr)
    threading.Event().wait(2)
    os._exit(70)


@pytest.hookimpl(trylast=True)  # when the terminal reporter is there
def pytest_configure(config: pytest.Config) -> None:
    global _stderr
    _stderr = os.dup(2)
    config.addinivalue_line('markers', 'limit(seconds): end the job if the test takes longer')
    config.addinivalue_line('markers', 'needs_ranks(n): skip with fewer ranks')
    if _world.rank:  # rank 0 speaks
        reporter = config.pluginmanager.get_plugin('terminalreporter')
        reporter._tw._file = open(os.devnull, 'w')  # noqa: SIM115


def pytest_unconfigure(config: pytest.Config) -> None:
    _world.barrier()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    _check_same_tests(items)
    no_gpu = visible().problem
    for item in items:
        # they run by `pytest -m gpu` where there is a GPU; what they test also runs everywhere,
        # over tests/transports/nccl_on_host.py, but that is no proof that it works on a GPU
        if no_gpu and item.get_closest_marker('gpu') is not None:
            item.add_marker(
                pytest.mark.skip(reason=f'needs a GPU for NCCL (pytest -m gpu): {no_gpu}')
            )
        marker = item.get_closest_marker('needs_ranks')
        # not left out of the suite: it also runs with 2, 3 and 4 ranks
        if marker is not None and _world.size < marker.args[0]:
            reason = f'needs {marker.args[0]} ranks: the suites on more ranks run it'
            item.add_marker(pytest.mark.skip(reason=reason))


def _check_same_tests(items: list[pytest.Item]) -> None:
    collected = _verdicts.allgather_obj([item.nodeid for item in items])
    difference = first_difference(collected)
    if difference is not None:  # the same on all ranks
        pytest.exit(f'the ranks collected different tests, first {difference}', returncode=3)


def first_difference(collected: list[list[str]]) -> str | None:
    """Return what each rank has in the first place in which not all have the same."""
    for number, tests in enumerate(itertools.zip_longest(*collected)):
        if len(set(tests)) > 1:
            return f'#{number}: ' + ', '.join(f'{t} on rank {r}' for r, t in enumerate(tests))
    return None


@pytest.fixture(scope='session')
def comm() -> Communicator:
    """The communicator over all ranks of the run."""
    return _world


# Ranks on each node, as for four ranks; further ranks are on one more node.
LAYOUTS = {'1x4': [4], '2x2': [2, 2], '3+1': [3, 1], '4x1': [1, 1, 1, 1]}


def _layouts(size: int) -> list[str]:
    """Return those that differ with so many ranks: on one rank only the first."""
    found: dict[tuple[int, ...], str] = {}
    for name, sizes in LAYOUTS.items():
        nodes = [i for i, n in enumerate([*sizes, size]) for _ in range(n)]
        found.setdefault(tuple(nodes[:size]), name)
    return list(found.values())


EVERY_KIND = [
    'naive',
    'flat',
    'shared_memory',
    'auto',
    *(
        f'{name}/{nodes}'
        for name in ('hierarchical', 'two_dimensional')
        for nodes in _layouts(_world.size)
    ),
]

_kept: dict[str, Communicator] = {}  # until a test fails, which may leave messages behind


def _create(kind: str) -> Communicator:
    name, _, layout = kind.partition('/')
    if not layout:
        return mnx.create_communicator(name)
    return testing.create_on_nodes(name, LAYOUTS[layout])


def _keep(kind: str) -> Communicator:
    if kind not in _kept:
        _kept[kind] = _create(kind)
    return _kept[kind]


@pytest.fixture(params=[*EVERY_KIND, 'dummy'])
def any_comm(request: pytest.FixtureRequest) -> Communicator:
    """A communicator of each kind over all ranks, on nodes of several sizes."""
    return _keep(request.param)


@pytest.fixture(params=EVERY_KIND)
def training_comm(request: pytest.FixtureRequest) -> Communicator:
    """As `any_comm`, of those that average gradients: not 'dummy'."""
    return _keep(request.param)


@pytest.fixture(params=EVERY_KIND)
def new_comm(request: pytest.FixtureRequest) -> Iterator[Communicator]:
    """As `training_comm`, but for one test alone, which may configure and split it."""
    comm = _create(request.param)
    yield comm
    comm.finalize()


@pytest.fixture
def shared_path(comm: Communicator, tmp_path: Path) -> Path:
    """A folder that all ranks see."""
    return Path(comm.bcast_obj(str(tmp_path)))


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have NumPy do what loops in C would."""
    for name in ('add', 'addresses', 'alike', 'gather', 'scatter', 'reach'):
        monkeypatch.setattr(kernels, name, lambda *_: False)


@pytest.fixture(params=['kernels', 'numpy'])
def either_way(request: pytest.FixtureRequest) -> None:
    """Do it by loops in C (where they were built), and without them."""
    if request.param == 'numpy':
        request.getfixturevalue('without_kernels')
