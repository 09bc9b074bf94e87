#!/usr/bin/env python3
"""Train a multi-layer perceptron that is cut in two, on two processes.

    mpiexec -n 2 python examples/mnist/train_mnist_model_parallel.py

    process 0    images ─► layer 1 ─┐                     ┌─► scores ─► loss
    process 1                       └► layer 2 ─► layer 3 ┘

It trains the same model as train_mnist.py does on one process: the same numbers in each epoch.
"""

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
from train_mnist import MLP, fit, parse_arguments

import mnx
from mnx.extensions import on_root


def main():
    args = parse_arguments(__doc__)
    comm = mnx.create_communicator(args.communicator)
    if comm.size != 2:
        raise ValueError(
            f'The model is cut in 2, but there are {comm.size} processes: mpiexec -n 2'
        )
    say = on_root(print, comm)
    device = chainer.get_device(f'@cupy:{comm.intra_rank}' if args.gpu else '@numpy')
    device.use()
    np.random.seed(args.seed)  # noqa: NPY002 - Chainer shuffles by this generator

    # The data: process 0 has them, process 1 follows with as many empty examples.
    images = mnx.datasets.load_images(
        args.dataset, args.data_dir, download=args.download, comm=comm
    )
    alone = mnx.create_communicator('local')
    train, test = images.train, images.test
    if comm.rank == 0:
        train = mnx.scatter_dataset(train, alone, shuffle=True, seed=args.seed)
    train, test = follow(train, comm), follow(test, comm)
    say(f'data:         {images.description}')

    # The model: each process keeps its part, and updates it by an optimizer of its own.
    model = part_of(MLP(images.n_pixels, args.unit, images.n_classes), comm)
    say(f'model:\n{model.describe()}')
    if comm.rank == 0:
        model = L.Classifier(model)
    model.to_device(device)
    optimizer = chainer.optimizers.Adam().setup(model)

    # The training loop: both processes take every step, and the loss is on process 0.
    fit(args, comm, optimizer, train, test, alone)


def part_of(mlp, comm):
    """Return this process's part of the model.

    Both processes have drawn the numbers of the whole, to start as train_mnist.py does. A model
    that is too large for that is made part by part.
    """
    model = mnx.MultiNodeChainList(comm)
    if comm.rank == 0:
        model.add_link(chainer.Sequential(mlp.l1, F.relu), rank_in=None, rank_out=1)
        model.add_link(chainer.Sequential(F.identity), rank_in=1, rank_out=None)
    else:
        model.add_link(chainer.Sequential(mlp.l2, F.relu, mlp.l3), rank_in=0, rank_out=0)
    return model


def follow(dataset, comm):
    """Return the data of process 0, and as many empty examples on the others."""
    n = comm.bcast_obj(None if dataset is None else len(dataset))
    return mnx.datasets.create_empty_dataset(range(n)) if dataset is None else dataset


if __name__ == '__main__':
    main()
