"""Models and losses whose gradients must be those of one process, on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np

import mnx
from mnx.communicators import Communicator

Arrays = tuple[np.ndarray, np.ndarray]
Loss = Callable[..., chainer.Variable]

UNITS = 5


def batch(rank: int, n: int = 4, seed: int = 0) -> Arrays:
    rng = np.random.RandomState(100 * seed + rank)
    return rng.standard_normal((n, 6)), rng.randint(0, 3, n).astype('i4')


def whole_batch(size: int, n: int = 4, seed: int = 0) -> Arrays:
    parts = [batch(rank, n, seed) for rank in range(size)]
    return np.concatenate([x for x, _ in parts]), np.concatenate([t for _, t in parts])


class MLP(chainer.Chain):
    def __init__(self) -> None:
        super().__init__()
        with self.init_scope():
            self.l1 = L.Linear(6, UNITS)
            self.l2 = L.Linear(UNITS, UNITS)
            self.l3 = L.Linear(UNITS, 3)
            self.left = L.Linear(UNITS, UNITS)
            self.right = L.Linear(UNITS, UNITS)

    def hidden(self, x: np.ndarray) -> chainer.Variable:
        return F.tanh(self.l2(F.tanh(self.l1(x))))


class Convnet(chainer.Chain):
    """A convolution and a batch normalisation, over all ranks if there is a communicator."""

    def __init__(self) -> None:
        super().__init__()
        with self.init_scope():
            self.conv = L.Convolution2D(1, 4, 2)
            self.bn = L.BatchNormalization(4)
            self.depthwise = L.DepthwiseConvolution2D(4, 1, 1)
            self.out = L.Linear(8, 3)

    def forward(self, x: np.ndarray) -> chainer.Variable:
        h = F.tanh(self.bn(self.conv(x.reshape(len(x), 1, 2, 3))))
        return self.out(self.depthwise(h))


class Recurrent(chainer.Chain):
    def __init__(self) -> None:
        super().__init__()
        with self.init_scope():
            self.lstm = L.LSTM(2, UNITS)
            self.out = L.Linear(UNITS, 3)


class Sequences(chainer.Chain):
    """Its LSTM uses the parameters of child links that are never called."""

    def __init__(self) -> None:
        super().__init__()
        with self.init_scope():
            self.lstm = L.NStepLSTM(2, 2, UNITS, 0.0)
            self.out = L.Linear(UNITS, 3)


class Tied(chainer.Chain):
    """An embedding whose matrix is the one of the output, too, and a link used three times."""

    def __init__(self) -> None:
        super().__init__()
        with self.init_scope():
            self.embed = L.EmbedID(3, UNITS)
            self.again = L.Linear(UNITS, UNITS)
            self.out = L.Linear(UNITS, 3)
            self.out.W = self.embed.W


def mlp(model: MLP, x: np.ndarray, t: np.ndarray, rank: int) -> chainer.Variable:
    return F.softmax_cross_entropy(model.l3(model.right(model.left(model.hidden(x)))), t)


def convnet(model: Convnet, x: np.ndarray, t: np.ndarray, rank: int) -> chainer.Variable:
    return F.softmax_cross_entropy(model(x), t)


def lstm(model: Recurrent, x: np.ndarray, t: np.ndarray, rank: int) -> chainer.Variable:
    model.lstm.reset_state()
    steps = [model.out(model.lstm(x[:, 2 * i : 2 * i + 2])) for i in range(3)]
    return sum(F.softmax_cross_entropy(y, t) for y in steps)


def n_step_lstm(model: Sequences, x: np.ndarray, t: np.ndarray, rank: int) -> chainer.Variable:
    hs, _, _ = model.lstm(None, None, [row.reshape(3, 2) for row in x])
    return F.softmax_cross_entropy(model.out(hs[-1]), t)


def tied(model: Tied, x: np.ndarray, t: np.ndarray, rank: int) -> chainer.Variable:
    h = model.embed(np.roll(t, 1))
    for _ in range(3):
        h = F.tanh(model.again(h))
    return F.softmax_cross_entropy(model.out(h), t)


def branch_on_one_rank(model: MLP, x: np.ndarray, t: np.ndarray, rank: int) -> chainer.Variable:
    h = model.hidden(x)
    return F.softmax_cross_entropy(model.l3(model.left(h) if rank == 0 else h), t)


def opposite_orders(model: MLP, x: np.ndarray, t: np.ndarray, rank: int) -> chainer.Variable:
    h = model.hidden(x)
    first, second = (model.left, model.right)[:: 1 if rank % 2 else -1]
    return F.softmax_cross_entropy(model.l3(F.tanh(second(F.tanh(first(h))))), t)


def parallel_branches(model: MLP, x: np.ndarray, t: np.ndarray, rank: int) -> chainer.Variable:
    """Branches beside each other, the deeper one another on each rank."""
    h = model.hidden(x)
    deep, flat = (model.left, model.right)[:: 1 if rank % 2 else -1]
    y = model.l3(F.tanh(F.tanh(F.tanh(deep(h)))) + flat(h))
    return F.softmax_cross_entropy(y, t)


def outside_its_link(model: MLP, x: np.ndarray, t: np.ndarray, rank: int) -> chainer.Variable:
    """One parameter also used on every rank, one on the last, one nowhere else."""
    loss = mlp(model, x, t, rank) + F.sum(model.l2.W**2) + F.sum(model.l1.b * model.l1.b)
    if rank == 0:
        loss += F.sum(F.tanh(model.left.W) * 3)
    return loss


def shallow_after_deep(model: MLP, x: np.ndarray, t: np.ndarray, rank: int) -> chainer.Variable:
    """A link that is used far from the data first, and near to it then."""
    h = model.hidden(x)
    y = model.right(F.tanh(F.tanh(model.right(F.tanh(h)))))
    return F.softmax_cross_entropy(model.l3(y + model.right(np.ones_like(h.array))), t)


def parts_of_the_model(model: MLP, x: np.ndarray, t: np.ndarray, rank: int) -> chainer.Variable:
    """Every rank uses another layer alone."""
    links = [model.left, model.right, model.l2]
    y = links[rank % 3](np.tile(x, (1, 2))[:, :UNITS])
    return F.sum(y * y)


@dataclass(frozen=True)
class Case:
    make: Callable[[], chainer.Chain]
    loss: Loss
    over_all_ranks: bool = False

    def model(self, seed: int = 0) -> chainer.Chain:
        np.random.seed(seed)
        with chainer.using_config('dtype', np.dtype('f8')):
            return self.make()

    def distributed(self, comm: Communicator, seed: int = 0) -> chainer.Chain:
        made = self.model(seed)
        return mnx.links.create_mnbn_model(made, comm) if self.over_all_ranks else made

    def serial_loss(self, model: chainer.Chain, size: int, seed: int = 0) -> chainer.Variable:
        """Return what one process would minimise: the mean of the ranks' losses."""
        if self.over_all_ranks:
            return self.loss(model, *whole_batch(size, seed=seed), 0)
        return sum(self.loss(model, *batch(r, seed=seed), r) for r in range(size)) / size


CASES = {
    'mlp': Case(MLP, mlp),
    'convnet with batch normalisation': Case(Convnet, convnet, over_all_ranks=True),
    'lstm': Case(Recurrent, lstm),
    'n-step lstm': Case(Sequences, n_step_lstm),
    'tied weights': Case(Tied, tied),
    'branch on one rank': Case(MLP, branch_on_one_rank),
    'opposite orders': Case(MLP, opposite_orders),
    'parallel branches': Case(MLP, parallel_branches),
    'outside its link': Case(MLP, outside_its_link),
    'shallow after deep': Case(MLP, shallow_after_deep),
    'parts of the model': Case(MLP, parts_of_the_model),
}


def gradients(model: chainer.Link) -> dict[str, np.ndarray | None]:
    return {name: param.grad for name, param in sorted(model.namedparams())}
