"""The table finds a model's parameters and gradients as they are now, in one order."""

from __future__ import annotations

import gc
import weakref

import chainer
import chainer.links as L
import numpy as np
import pytest

from mnx.communicators.parameters import Layout, ParameterTable

pytestmark = pytest.mark.usefixtures('either_way')

F2, F4, F8 = map(np.dtype, ('f2', 'f4', 'f8'))


def net(*links: chainer.Link) -> chainer.Chain:
    return chainer.Chain(**{f'l{i}': link for i, link in enumerate(links)})


def set_gradients(model: chainer.Link) -> None:
    for i, (_, param) in enumerate(sorted(model.namedparams(include_uninit=False))):
        param.grad = np.full_like(param.array, i)


# --- the layout of some arrays -------------------------------------------------------------------


def test_a_layout_says_what_there_is() -> None:
    layout = Layout(['/W', '/b'], [np.zeros((2, 3), F4), np.zeros(2, F8)])
    assert layout.describe() == ['/W float32(2, 3)', '/b float64(2,)']
    assert layout.nbytes == 24 + 16


@pytest.mark.parametrize(
    'other',
    [
        (['/V'], [np.zeros((2, 3), F4)]),
        (['/W'], [np.zeros((3, 2), F4)]),
        (['/W'], [np.zeros((2, 3), F8)]),
        (['/W', '/b'], [np.zeros((2, 3), F4), np.zeros(0, F4)]),
        ([], []),
    ],
    ids=['name', 'shape', 'dtype', 'one more', 'none'],
)
def test_different_layouts_have_different_digests(other: tuple) -> None:
    layout = Layout(['/W'], [np.zeros((2, 3), F4)])
    assert layout.digest != Layout(*other).digest
    assert layout.describe() != Layout(*other).describe()


def test_values_and_order_in_memory_are_no_part_of_it() -> None:
    a = Layout(['/W'], [np.zeros((2, 3), F4)])
    b = Layout(['/W'], [np.asfortranarray(np.ones((2, 3), F4))])
    assert a.digest == b.digest


def test_all_ranks_have_the_same_digest_of_the_same(comm) -> None:
    layout = Layout(['/W'], [np.full((2, 3), comm.rank, F4)])
    assert set(comm.allgather_obj(layout.digest)) == {layout.digest}


def test_sums_are_planned_in_the_dtype_that_is_added_up() -> None:
    layout = Layout(['/a', '/b', '/c'], [np.zeros(2, F2), np.zeros(3, F4), np.zeros(4, F8)])
    own = layout.sum_plan(None, float('inf'))
    assert [(b.members, b.wire) for b in own] == [((0, 1), F4), ((2,), F8)]
    narrow = layout.sum_plan(F8, float('inf'))
    assert [(b.members, b.wire) for b in narrow] == [((0, 1, 2), F8)]
    assert layout.sum_plan(None, float('inf')) is own  # kept


def test_copies_are_planned_bit_by_bit() -> None:
    layout = Layout(['/a', '/b'], [np.zeros(2, F2), np.zeros(3, F4)])
    assert [b.wire for b in layout.copy_plan(float('inf'))] == [F2, F4]


# --- the table -----------------------------------------------------------------------------------


def test_parameters_are_sorted_by_name_and_those_of_now() -> None:
    model = net(L.Linear(2, 3), L.Linear(None, 1))
    table = ParameterTable(model)
    assert table.names == ['/l0/W', '/l0/b', '/l1/W', '/l1/b']
    assert all(map(lambda a, b: a is b, table.parameters(), [model.l0.W, model.l0.b,
                                                            model.l1.W, model.l1.b]))  # fmt: skip
    model.l0.W = chainer.Parameter(np.ones((3, 2), F4))
    assert table.parameters()[0] is model.l0.W
    assert table.is_current(model)


def test_gradients_that_are_there() -> None:
    model = net(L.Linear(2, 3), L.Linear(None, 1))
    set_gradients(model)
    model.l0.b.grad = None
    layout, grads = ParameterTable(model).gradients(zero_fill=False)
    assert layout.names == ['/l0/W', '/l1/b']
    assert [int(g.flat[0]) for g in grads] == [0, 2]
    assert grads[0] is model.l0.W.grad


def test_missing_gradients_become_zeros_but_not_those_of_uninitialised_parameters() -> None:
    model = net(L.Linear(2, 3), L.Linear(None, 1))
    model.cleargrads()
    layout, grads = ParameterTable(model).gradients(zero_fill=True)
    assert layout.names == ['/l0/W', '/l0/b', '/l1/b']
    assert all((g == 0).all() for g in grads)
    assert model.l1.W.grad is None
    model.l1.W.initialize((1, 3))
    model.l1.W.grad = None
    assert '/l1/W' in ParameterTable(model).gradients(zero_fill=True)[0].names


def test_a_layout_is_kept_as_long_as_it_is_right() -> None:
    model = net(L.Linear(2, 3))
    table = ParameterTable(model)
    set_gradients(model)
    first, _ = table.gradients(zero_fill=False)
    set_gradients(model)
    assert table.gradients(zero_fill=False)[0] is first
    model.l0.W = chainer.Parameter(np.ones((4, 2), F4))
    model.l0.W.grad = np.ones((4, 2), F4)
    second, _ = table.gradients(zero_fill=False)
    assert second.kinds != first.kinds
    assert second.digest != first.digest


def test_a_layout_of_gpus_is_not_that_of_arrays_on_cpus() -> None:
    model = net(L.Linear(2, 3))
    table = ParameterTable(model)
    set_gradients(model)
    layout, _ = table.gradients(zero_fill=False)
    layout.place, layout.types = 'gpu', {list}  # as of CuPy, which has NumPy's own dtypes
    assert table.gradients(zero_fill=False)[0].place == 'cpu'


def test_a_changed_structure_is_noticed() -> None:
    model = net(L.Linear(2, 3), L.Linear(3, 1))
    table = ParameterTable(model)
    assert table.is_current(model)
    with model.l0.init_scope():
        model.l0.scale = chainer.Parameter(np.ones(1, F4))
    assert not table.is_current(model)

    table = ParameterTable(model)
    model.l1 = L.Linear(3, 1)  # of the same shape, but another link
    assert not table.is_current(model)

    table = ParameterTable(model)
    with model.init_scope():
        model.l2 = L.Linear(1, 1)
    assert not table.is_current(model)


def test_a_shared_link_counts_once_and_a_shared_parameter_is_found() -> None:
    link = L.Linear(2, 2)
    model = chainer.ChainList(link, link)
    names = [name for name, _ in sorted(model.namedparams())]
    table = ParameterTable(model)
    assert table.names == names
    assert {id(p) for p in table.parameters()} == {id(link.W), id(link.b)}


def test_a_table_does_not_keep_its_model_alive() -> None:
    model = net(L.Linear(2, 3))
    table, gone = ParameterTable(model), weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert len(table.parameters()) == 2
