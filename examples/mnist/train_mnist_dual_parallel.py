#!/usr/bin/env python3
"""Train a multi-layer perceptron that is cut in two, on many pairs of processes.

    mpiexec -n 4 python examples/mnist/train_mnist_dual_parallel.py

                   part 0          part 1
    pair 0      process 0  ◄────► process 1      a copy of the model: activations travel
                   ▲                ▲
                   │                │            copies of a part: gradients are averaged
                   ▼                ▼
    pair 1      process 2  ◄────► process 3

Each pair trains on its part of the data, as one process of train_mnist.py does: the same numbers
in each epoch as that has on half as many processes.
"""

import chainer
import chainer.links as L
import numpy as np
from train_mnist import MLP, fit, parse_arguments
from train_mnist_model_parallel import follow, part_of

import mnx
from mnx.extensions import on_root


def main():
    args = parse_arguments(__doc__)
    comm = mnx.create_communicator(args.communicator)
    if comm.size % 2:
        raise ValueError(f'Processes work in pairs, but there are {comm.size}: take an even number')
    say = on_root(print, comm)
    device = chainer.get_device(f'@cupy:{comm.intra_rank}' if args.gpu else '@numpy')
    device.use()

    # The two axes: who holds the other part of my copy, and who holds copies of my part?
    pair = comm.split(comm.rank // 2, comm.rank)
    copies = comm.split(comm.rank % 2, comm.rank)
    np.random.seed(args.seed + copies.rank)  # noqa: NPY002 - Chainer shuffles by this generator

    # The data: each pair gets its part of them, on the process that has the first layer.
    images = mnx.datasets.load_images(
        args.dataset, args.data_dir, download=args.download, comm=comm
    )
    train = test = None
    if pair.rank == 0:
        train = mnx.scatter_dataset(images.train, copies, shuffle=True, seed=args.seed)
        test = mnx.scatter_dataset(images.test, copies, force_equal_length=False)
    train, test = follow(train, pair), follow(test, pair)
    say(f'processes:    {comm.size} in {copies.size} pairs, device {device}')
    say(f'data:         {images.description}')
    say(f'batch:        {args.batchsize} per pair, {args.batchsize * copies.size} in all')

    # The model: messages within the pair, gradients averaged over the copies of each part.
    model = part_of(MLP(images.n_pixels, args.unit, images.n_classes), pair)
    if pair.rank == 0:
        model = L.Classifier(model)
    model.to_device(device)
    optimizer = mnx.create_multi_node_optimizer(chainer.optimizers.Adam(), copies)
    optimizer.setup(model)

    # The training loop: all processes take every step, and the losses are on the even ones.
    fit(args, comm, optimizer, train, test, copies)


if __name__ == '__main__':
    main()
