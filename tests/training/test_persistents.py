import chainer
import chainer.links as L
import numpy as np
import pytest

from mnx.errors import MismatchError
from mnx.extensions import AllreducePersistent


class Keeps(chainer.Link):
    def __init__(self, **values):
        super().__init__()
        for name, value in values.items():
            self.add_persistent(name, value)


def test_statistics_of_batch_normalization(comm):
    """The mean of what every rank has found in its own batches."""
    model = chainer.Sequential(L.Linear(2, 3), L.BatchNormalization(3, dtype=np.float64))
    means, variances = [], []
    for rank in range(comm.size):
        bn = L.BatchNormalization(3, dtype=np.float64)
        bn(np.random.RandomState(rank).rand(4, 3), finetune=True)
        means.append(bn.avg_mean)
        variances.append(bn.avg_var)
        if rank == comm.rank:
            model[1](np.random.RandomState(rank).rand(4, 3), finetune=True)
            kept = model[1].avg_mean
    AllreducePersistent(model, comm)()
    assert model[1].avg_mean is kept
    np.testing.assert_allclose(model[1].avg_mean, np.mean(means, 0), rtol=1e-15)
    np.testing.assert_allclose(model[1].avg_var, np.mean(variances, 0), rtol=1e-15)
    assert model[1].N == 1


@pytest.mark.parametrize('dtype', ['float16', 'float32', 'float64', 'complex128'])
def test_dtypes_and_layouts_are_kept(comm, dtype):
    value = np.full((4, 6), comm.rank, dtype).T[::2]
    link = Keeps(array=value, scalar=np.dtype(dtype).type(comm.rank))
    AllreducePersistent(chainer.ChainList(link), comm)(None)
    mean = np.dtype(dtype).type((comm.size - 1) / 2)
    assert link.array is value
    assert link.array.dtype == link.scalar.dtype == dtype
    np.testing.assert_array_equal(link.array, np.full((3, 4), mean))
    assert link.scalar == mean


def test_what_counts_is_left_alone(comm):
    values = {'n': comm.rank, 'array': np.arange(3) + comm.rank, 'flag': np.bool_(comm.rank % 2)}
    link = Keeps(**values, text=str(comm.rank), nothing=None)
    AllreducePersistent(link, comm)()
    assert (link.n, link.text, link.nothing) == (comm.rank, str(comm.rank), None)
    np.testing.assert_array_equal(link.array, np.arange(3) + comm.rank)
    assert link.flag == comm.rank % 2


def test_when_a_trainer_calls_it():
    assert AllreducePersistent.trigger == (1, 'epoch')
    assert AllreducePersistent.priority == chainer.training.PRIORITY_WRITER + 1


@pytest.mark.needs_ranks(2)
def test_different_values_are_named_on_all_ranks(comm):
    link = Keeps(a=np.ones(2), **({'b': np.ones(3)} if comm.rank == 1 else {}))
    with pytest.raises(MismatchError, match=r'only on rank\(s\) 1: //b float64\(3,\)'):
        AllreducePersistent(link, comm)()
    assert link.a.tolist() == [1, 1]
