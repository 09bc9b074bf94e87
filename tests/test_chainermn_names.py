"""All public names of ChainerMN 7.8.1 are there, and take what they took there.

In mnx, and under ChainerMN's own names, as `mnx run --as-chainermn` gives them.
"""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from inspect import Parameter, Signature
from multiprocessing import spawn
from typing import Any

import chainer
import pytest
from chainer.dataset import concat_examples

import mnx
from mnx.cli import as_chainermn
from mnx.communicators import Communicator, CommunicatorBase
from mnx.errors import ArgumentError

# Each name with its parameters: `module: name(parameters)`; a name alone is no function.
NAMES = """
: CommunicatorBase
: create_communicator(communicator_name='pure_nccl', mpi_comm=None, *, allreduce_grad_dtype=None, \
batched_copy=True)
: DataSizeError
: scatter_index(n_total_samples, comm, root=0, *, force_equal_length=True)
: scatter_dataset(dataset, comm, root=0, shuffle=False, seed=None, max_buf_len=2**28, *, \
force_equal_length=True)
: create_multi_node_checkpointer(name, comm, cp_interval=5, gc_interval=5, path=None)
: create_multi_node_evaluator(actual_evaluator, communicator)
: MultiNodeChainList(comm)
: create_multi_node_optimizer(actual_optimizer, communicator, double_buffering=False, \
zero_fill=True)
: __version__
communicators: CommunicatorBase
communicators: create_communicator(communicator_name='pure_nccl', mpi_comm=None, *, \
allreduce_grad_dtype=None, batched_copy=True)
communicators.mpi_communicator_base: MpiCommunicatorBase(mpi_comm)
communicators.naive_communicator: NaiveCommunicator(mpi_comm)
communicators.flat_communicator: FlatCommunicator(mpi_comm)
communicators.pure_nccl_communicator: PureNcclCommunicator(mpi_comm)
communicators.non_cuda_aware_communicator: NonCudaAwareCommunicator(mpi_comm)
communicators.dummy_communicator: DummyCommunicator(mpi_comm)
datasets: create_empty_dataset(dataset)
datasets: DataSizeError
datasets: scatter_index(n_total_samples, comm, root=0, *, force_equal_length=True)
datasets: scatter_dataset(dataset, comm, root=0, shuffle=False, seed=None, max_buf_len=2**28, *, \
force_equal_length=True)
datasets.scatter: get_n_iterations_for_one_epoch(dataset, local_batch_size, comm)
datasets.scatter: get_epoch_trigger(n_epochs, dataset, local_batch_size, comm)
extensions: AllreducePersistent(model, comm)
extensions: create_multi_node_checkpointer(name, comm, cp_interval=5, gc_interval=5, path=None)
extensions: create_multi_node_evaluator(actual_evaluator, communicator)
extensions: GenericMultiNodeEvaluator(comm, iterator, target, device=None, \
converter=concat_examples, root=0, *, progress_hook=None)
extensions: multi_node_snapshot(comm, snapshot, replica_sets)
extensions: ObservationAggregator(comm, original_key, aggregated_key=None, *, \
comm_trigger=(1, 'iteration'), aggregator=None)
extensions: MultiNodeEarlyStoppingTrigger(comm, *, check_trigger=(1, 'epoch'), \
monitor='main/loss', patience=None, mode='auto', verbose=False, max_trigger=(100, 'epoch'), \
suffix='_aggregated', **kwargs)
functions: allgather(comm, x)
functions: alltoall(comm, xs)
functions: bcast(comm, x, root=0)
functions: gather(comm, x, root=0)
functions: scatter(comm, xs, root=0)
functions: recv(communicator, rank, delegate_variable=None, tag=0, force_tuple=False)
functions: send(x, communicator, rank, tag=0)
functions: pseudo_connect(delegate_variable, *actual_variables)
global_except_hook: add_hook()
iterators: create_multi_node_iterator(actual_iterator, communicator, rank_master=0)
iterators: create_synchronized_iterator(actual_iterator, communicator)
links: MultiNodeBatchNormalization(size, comm, decay=0.9, eps=2e-5, dtype=None, use_gamma=True, \
use_beta=True, initial_gamma=None, initial_beta=None, communication_backend='auto')
links: create_mnbn_model(link, comm, communication_backend='auto')
links: MultiNodeChainList(comm)
links: create_multi_node_n_step_rnn(actual_link, communicator, rank_in=None, rank_out=None)
nccl: _available
optimizers: create_multi_node_optimizer(actual_optimizer, communicator, double_buffering=False, \
zero_fill=True)
testing: get_device(device_id=None, use_chainerx=False)
"""

# Attributes of what these return or are: `class: name(parameters)`.
MEMBERS = """
: CommunicatorBase: rank
: CommunicatorBase: size
: CommunicatorBase: intra_rank
: CommunicatorBase: intra_size
: CommunicatorBase: inter_rank
: CommunicatorBase: inter_size
: CommunicatorBase: mpi_comm
: CommunicatorBase: set_config(name, value=True)
: CommunicatorBase: get_config(name=None)
: CommunicatorBase: split(color, key)
: CommunicatorBase: finalize()
: CommunicatorBase: send(data, dest, tag)
: CommunicatorBase: recv(source, tag)
: CommunicatorBase: bcast(x, root=0)
: CommunicatorBase: gather(x, root=0)
: CommunicatorBase: allgather(x)
: CommunicatorBase: alltoall(xs)
: CommunicatorBase: allreduce(x)
: CommunicatorBase: scatter(xs, root=0)
: CommunicatorBase: send_obj(obj, dest, tag=0)
: CommunicatorBase: recv_obj(source, status=None, tag=ANY_TAG)
: CommunicatorBase: bcast_obj(obj, max_buf_len=2**28, root=0)
: CommunicatorBase: gather_obj(obj, root=0)
: CommunicatorBase: allreduce_obj(obj)
: CommunicatorBase: bcast_data(model)
: CommunicatorBase: broadcast_data(model)
: CommunicatorBase: multi_node_mean_grad(model, zero_fill=False)
: CommunicatorBase: allreduce_grad(model, zero_fill=False)
: MultiNodeChainList: add_link(link, rank_in=None, rank_out=None)
links: MultiNodeBatchNormalization: forward(x, finetune=False)
links: MultiNodeBatchNormalization: start_finetuning()
extensions: GenericMultiNodeEvaluator: calc_local(*args, **kwargs)
extensions: GenericMultiNodeEvaluator: aggregate(results)
extensions: GenericMultiNodeEvaluator: __call__(trainer)
extensions: AllreducePersistent: __call__(trainer=None)
extensions: ObservationAggregator: __call__(trainer)
extensions: MultiNodeEarlyStoppingTrigger: __call__(trainer)
extensions: MultiNodeEarlyStoppingTrigger: get_training_length()
"""

# What is under ChainerMN's names only: mnx has its own layout and default.
_OLD_LAYOUT = ('communicators.', 'nccl')
_OLD_DEFAULT = 'create_communicator'


def lines(text: str) -> list[tuple[str, ...]]:
    return [tuple(line.split(': ')) for line in text.strip().splitlines()]


def wanted(words: str) -> tuple[str, Signature | None]:
    """Return a name and its signature; None if it is no function."""
    name, bracket, parameters = words.partition('(')
    if not bracket:
        return name, None
    names = {'concat_examples': concat_examples, 'ANY_TAG': -1}
    return name, inspect.signature(eval(f'lambda {parameters[:-1]}: None', names))


def differences(old: Signature, new: Signature, *, ignore: str = '') -> list[str]:
    """Return what a caller of `old` may do that `new` does not take, or takes otherwise."""
    found = []
    kinds = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    order = [p.name for p in new.parameters.values() if p.kind in kinds]
    catch_all = any(p.kind is Parameter.VAR_KEYWORD for p in new.parameters.values())
    for place, (name, before) in enumerate(old.parameters.items()):
        now = new.parameters.get(name)
        if now is None:
            if not (catch_all and before.kind is Parameter.KEYWORD_ONLY):
                found.append(f'no {name}')
        elif before.kind in kinds and (place >= len(order) or order[place] != name):
            found.append(f'{name} is not number {place}')
        elif now.kind is not before.kind and before.kind not in (*kinds, Parameter.KEYWORD_ONLY):
            found.append(f'{name} is {now.kind.description}')
        elif before.default not in (Parameter.empty, now.default) and name != ignore:
            found.append(f'{name}={now.default!r}, not {before.default!r}')
    for name, now in new.parameters.items():
        required = now.default is Parameter.empty and now.kind in (*kinds, Parameter.KEYWORD_ONLY)
        if required and name not in old.parameters:
            found.append(f'{name} is new and required')
    return found


def signature(value: Any, *, bound: bool) -> Signature:
    found = inspect.signature(value)
    return found.replace(parameters=list(found.parameters.values())[int(bound) :])


def test_differences_are_found():
    def of(parameters: str) -> Signature:
        return inspect.signature(eval(f'lambda {parameters}: None'))

    old = of('a, b=1, *, c=None')
    assert differences(old, of('a, b=1, c=None, d=2, **more')) == []
    assert differences(old, of('a, b=1, **kwargs')) == []
    assert differences(old, of('b=1, a=0, *, c=None')) == ['a is not number 0', 'b is not number 1']
    assert differences(old, of('a, b=2, *, c=None')) == ['b=2, not 1']
    assert differences(old, of('a, *, b=1, c=None')) == ['b is not number 1']
    assert differences(old, of('a, b=1, *, d')) == ['no c', 'd is new and required']
    assert differences(of('*xs'), of('xs')) == ['xs is positional or keyword']


def _check(package: str, module: str, words: str, *, ignore: str = '') -> None:
    name, old = wanted(words)
    value = getattr(importlib.import_module(f'{package}.{module}'.strip('.')), name)
    if old is not None:
        assert differences(old, signature(value, bound=False), ignore=ignore) == []


def _cases(rows: list[tuple[str, ...]]) -> list[Any]:
    return [pytest.param(*row, id='.'.join(row).lstrip('.').partition('(')[0]) for row in rows]


@pytest.mark.parametrize(
    ('module', 'words'), _cases([r for r in lines(NAMES) if not r[0].startswith(_OLD_LAYOUT)])
)
def test_a_name_is_in_mnx(module: str, words: str):
    _check(
        'mnx',
        module,
        words,
        ignore='communicator_name' if words.startswith(_OLD_DEFAULT) else '',
    )


@pytest.fixture
def alias(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`import chainermn` gives mnx, in this test."""
    before = list(sys.meta_path)
    monkeypatch.setattr(spawn, 'get_preparation_data', spawn.get_preparation_data)
    as_chainermn.install()
    yield
    sys.meta_path[:] = before
    for name in [name for name in sys.modules if name.split('.')[0] == 'chainermn']:
        del sys.modules[name]


@pytest.mark.usefixtures('alias')
@pytest.mark.parametrize(('module', 'words'), _cases(lines(NAMES)))
def test_a_name_is_there_under_the_old_one(module: str, words: str):
    _check('chainermn', module, words)


@pytest.mark.usefixtures('alias')
def test_all_packages_come_with_the_first_import():
    chainermn = importlib.import_module('chainermn')
    assert chainermn.__version__ == chainer.__version__
    for module in {module.split('.')[0] for module, _ in lines(NAMES)} - {''}:
        assert inspect.ismodule(getattr(chainermn, module)), module


@pytest.mark.parametrize(('module', 'cls', 'words'), _cases(lines(MEMBERS)))
def test_a_member(module: str, cls: str, words: str):
    name, old = wanted(words)
    value = getattr(importlib.import_module(f'mnx.{module}'.strip('.')), cls)
    if old is None:
        assert hasattr(mnx.create_communicator('local'), name)
    else:
        assert differences(old, signature(getattr(value, name), bound=True)) == []


@pytest.mark.usefixtures('alias')
@pytest.mark.parametrize('name', ['naive', 'flat', 'dummy'])
def test_a_class_of_communicators_makes_one(name: str, comm: Communicator):
    module = importlib.import_module(f'chainermn.communicators.{name}_communicator')
    cls = getattr(module, f'{name.title()}Communicator')
    mpi_comm = pytest.importorskip('mpi4py.MPI').COMM_WORLD
    with cls(mpi_comm) as made:
        assert (made.name, made.size, made.rank) == (name, comm.size, comm.rank)
        assert isinstance(made, cls)
        assert isinstance(made, CommunicatorBase)
        base = importlib.import_module('chainermn.communicators.mpi_communicator_base')
        assert isinstance(made, base.MpiCommunicatorBase)
    assert not isinstance(mnx.create_communicator('local'), cls)


@pytest.mark.usefixtures('alias')
def test_what_is_derived_from_a_class_of_communicators_says_that_it_is_not_made():
    module = importlib.import_module('chainermn.communicators.naive_communicator')

    class Own(module.NaiveCommunicator):
        pass

    with pytest.raises(ArgumentError, match='Own: a subclass'):
        Own(None)


PLAIN_IMPORT = """
import sys
import mnx

mnx.testing.get_device, mnx.extensions.snapshot, mnx.optimizers.MultiNodeOptimizer
mnx.communicators.Communicator, mnx.datasets.scatter, mnx.iterators, mnx.links, mnx.functions
assert 'mpi4py' not in sys.modules
"""


def test_packages_are_there_after_a_plain_import_without_mpi():
    subprocess.run([sys.executable, '-c', PLAIN_IMPORT], check=True, timeout=200)
