#!/usr/bin/env python3
"""Train a small convolutional network whose channels are split over processes.

    mpiexec -n 3 python examples/parallel_convolution/train_parallel_convolution.py

The network is written in plain Chainer; `mnx.parallelize` splits it.
"""

import argparse

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np

import mnx
from mnx.extensions import on_root
from mnx.links import save_npz


def network(n_classes):
    """Return plain Chainer's network of two convolutions and two linear layers.

    Of each two layers with only F.relu between them, the first leaves its channels (or units)
    split over the processes, and the second takes them so.
    """
    return chainer.Sequential(
        L.Convolution2D(1, 20, 3, pad=1),
        F.relu,
        L.Convolution2D(20, 30, 3, pad=1),
        halve,
        L.Linear(None, 100),
        F.relu,
        L.Linear(100, n_classes),
    )


def halve(x):
    return F.max_pooling_2d(F.relu(x), 2)


def main():
    args = parse_arguments()
    comm = mnx.create_communicator()
    say = on_root(print, comm)
    np.random.seed(args.seed)  # noqa: NPY002 - Chainer's generator; the same on all processes

    images = mnx.datasets.load_images(args.dataset, args.data_dir, comm=comm)
    train, test = comm.bcast_obj((images.train, images.test))
    side = int(images.n_pixels**0.5)
    model = L.Classifier(mnx.parallelize(network(images.n_classes), comm))
    optimizer = chainer.optimizers.Adam().setup(model)
    say(f'processes: {comm.size}; data: {images.description}')

    iterator = chainer.iterators.SerialIterator(train, args.batchsize)
    while iterator.epoch < args.epoch:
        optimizer.update(model, *as_pictures(iterator.next(), side))
        if iterator.is_new_epoch:
            say(f'epoch {iterator.epoch:2}  loss {float(model.loss.array):.6f}')

    with chainer.using_config('train', False), chainer.no_backprop_mode():
        model(*as_pictures(test[:], side))
    save_npz(args.out, model, comm)
    say(f'test accuracy {float(model.accuracy.array):.4f}; the model is in {args.out}')


def as_pictures(examples, side):
    """Return arrays (n, 1, side, side) and (n,)."""
    x, t = chainer.dataset.concat_examples(examples)
    return x.reshape(-1, 1, side, side), t


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--batchsize', '-b', type=int, default=100, help='images per update')
    add('--epoch', '-e', type=int, default=8, help='sweeps over the training data')
    add('--out', '-o', default='model.npz', help='file for the model, as of one process')
    add('--dataset', choices=mnx.datasets.IMAGES, default='digits')
    add('--data-dir', metavar='DIR', help='folder with the files of MNIST or Fashion-MNIST')
    add('--seed', type=int, default=0, help='makes two runs equal')
    return parser.parse_args()


if __name__ == '__main__':
    main()
