#!/usr/bin/env python3
"""Train with all-reduces in the graph, and a plain Chainer optimizer.

    mpiexec -n 2 python examples/mnist/train_mnist_allreduce.py

What nGraph's example dist_mnist_mlp did: one hidden layer of 600 units, stochastic gradient
descent, and gradients that are reduced over all processes inside of the backward pass. Other than
there, each process has its own part of the data, and gradients are averaged, not summed.
"""

import argparse

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
from chainer.training import extensions
from train_mnist import add_data_arguments, count

import mnx
from mnx.extensions import on_root


class MLP(chainer.Chain):
    """One hidden layer of rectified linear units."""

    def __init__(self, n_in, n_units, n_out):
        super().__init__()
        with self.init_scope():
            self.hidden = L.Linear(n_in, n_units)
            self.out = L.Linear(n_units, n_out)

    def forward(self, x):
        """Return one score for each class, (n, n_out), for images (n, n_in)."""
        return self.out(F.relu(self.hidden(x)))


def main():
    args = parse_arguments()
    with mnx.Distributed(args.backend) as job:
        train(args, job.comm, on_root(print, job.comm))


def train(args, comm, say):
    np.random.seed(args.seed + comm.rank)  # noqa: NPY002 - Chainer shuffles by this generator
    images = mnx.datasets.load_images(
        args.dataset, args.data_dir, download=args.download, comm=comm
    )
    part = mnx.scatter_dataset(images.train, comm, shuffle=True, seed=args.seed)
    batches = chainer.iterators.SerialIterator(part, args.batchsize)
    say(f'communicator: {comm.describe()}')
    say(f'data:         {images.description}')
    say(f'batch:        {args.batchsize} per process, {args.batchsize * comm.size} in all')

    model = L.Classifier(MLP(images.n_pixels, args.unit, images.n_classes))
    mnx.inject_allreduce(model, comm, args.op)  # the one line; all the rest is for one process
    optimizer = chainer.optimizers.SGD(args.lr).setup(model)
    accuracy = accuracy_on(images.test, model, args.batchsize, comm)

    while batches.epoch < args.epoch:
        x, t = chainer.dataset.concat_examples(next(batches))
        model.cleargrads()
        model(x, t).backward()
        optimizer.update()
        if batches.is_new_epoch:
            say(f'epoch {batches.epoch}: test accuracy {accuracy():.4f}')


def accuracy_on(test, model, batchsize, comm):
    """Return a function that returns the accuracy over all test images. Collective."""
    part = mnx.scatter_dataset(test, comm)
    batches = chainer.iterators.SerialIterator(part, batchsize, repeat=False, shuffle=False)
    evaluator = mnx.create_multi_node_evaluator(extensions.Evaluator(batches, model), comm)
    return lambda: evaluator()['main/accuracy']


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--batchsize', '-b', type=count, default=128, help='images per process and update')
    add('--epoch', '-e', type=count, default=5, help='sweeps over the training data')
    add('--unit', '-u', type=count, default=600, help='units in the hidden layer')
    add('--lr', type=float, default=0.3, help='learning rate')
    add('--op', choices=('mean', 'sum'), default='mean', help="'sum' is what nGraph did")
    add('--backend', help='a communicator; default: MNX_COMMUNICATOR, or the fastest')
    add_data_arguments(add)
    return parser.parse_args()


if __name__ == '__main__':
    main()
