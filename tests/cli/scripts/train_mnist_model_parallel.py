"""Model parallel training as it was written for ChainerMN: the first layer here, the rest there."""

import argparse

import chainer
import chainer.functions as F
import chainer.links as L
import chainermn
import chainermn.datasets
import chainermn.functions
import chainermn.iterators
import numpy as np
from chainermn.links import MultiNodeChainList
from train_mnist import get_images


class First(chainer.Sequential):
    def __init__(self, n_units):
        super().__init__(L.Linear(None, n_units), F.relu)


class Rest(chainer.Sequential):
    def __init__(self, n_units):
        super().__init__(L.Linear(n_units, n_units), F.relu, L.Linear(n_units, 10))


class Model(MultiNodeChainList):
    """From the first rank to the last one, which may be the same."""

    def __init__(self, comm, n_units):
        super().__init__(comm=comm)
        last = comm.size - 1
        if comm.rank == 0:
            self.add_link(First(n_units), rank_in=None, rank_out=last)
        if comm.rank == last:
            self.add_link(Rest(n_units), rank_in=[0], rank_out=None)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--steps', type=int, default=60)
    args = parser.parse_args()
    comm = chainermn.create_communicator('naive')
    last = comm.size - 1

    data = get_images(400, 1) if comm.rank == 0 else None
    batches = chainer.iterators.SerialIterator(data, 40) if comm.rank == 0 else None
    batches = chainermn.iterators.create_multi_node_iterator(batches, comm)
    model = Model(comm, 30)
    optimizer = chainer.optimizers.Adam(0.01)
    optimizer.setup(model)
    for _ in range(args.steps):
        x, t = chainer.dataset.concat_examples(batches.next())
        model.cleargrads()
        y = model(x) if comm.rank == 0 else model()
        loss = F.softmax_cross_entropy(y, t) if comm.rank == last else y
        loss.backward()
        optimizer.update()

    x, t = chainer.dataset.concat_examples(get_images(200, 2))
    with chainer.using_config('train', False):
        y = model(x) if comm.rank == 0 else model()
        if comm.size > 1:  # the result comes back to rank 0
            if comm.rank == last:
                chainermn.functions.send(y, comm, rank=0, tag=1)
            if comm.rank == 0:
                y = chainermn.functions.recv(comm, rank=last, delegate_variable=y, tag=1)
    if comm.rank == 0:
        print('accuracy', float(F.accuracy(y, t).array), 'epoch', batches.epoch)
    assert comm.allreduce_obj(np.array(1)) == comm.size


if __name__ == '__main__':
    main()
