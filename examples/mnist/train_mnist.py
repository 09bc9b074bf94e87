#!/usr/bin/env python3
"""Train a multi-layer perceptron on pictures of digits, on as many processes as you like.

    mpiexec -n 4 python examples/mnist/train_mnist.py

Every process runs this same script on its own part of the data. The lines that make it many
processes instead of one are those with `mnx` or `comm` in them.
"""

import argparse
import importlib.util

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
from chainer import training
from chainer.training import extensions

import mnx
from mnx.extensions import on_root


class MLP(chainer.Chain):
    """Two hidden layers of rectified linear units."""

    def __init__(self, n_in, n_units, n_out):
        super().__init__()
        with self.init_scope():
            self.l1 = L.Linear(n_in, n_units)
            self.l2 = L.Linear(n_units, n_units)
            self.l3 = L.Linear(n_units, n_out)

    def forward(self, x):
        """Return one score for each class, (n, n_out), for images (n, n_in)."""
        h1 = F.relu(self.l1(x))
        h2 = F.relu(self.l2(h1))
        return self.l3(h2)


def main():
    args = parse_arguments()
    comm = mnx.create_communicator(args.communicator)
    say = on_root(print, comm)
    device = chainer.get_device(f'@cupy:{comm.intra_rank}' if args.gpu else '@numpy')
    device.use()
    np.random.seed(args.seed + comm.rank)  # noqa: NPY002 - Chainer shuffles by this generator

    # The data: process 0 reads them, and every process gets its part.
    images = mnx.datasets.load_images(
        args.dataset, args.data_dir, download=args.download, comm=comm
    )
    train = mnx.scatter_dataset(images.train, comm, shuffle=True, seed=args.seed)
    test = mnx.scatter_dataset(images.test, comm)
    say(f'processes:    {comm.size}, device {device}')
    say(f'communicator: {comm.describe()}')
    say(f'data:         {images.description}')
    say(f'batch:        {args.batchsize} per process, {args.batchsize * comm.size} in all')

    # The model: equal on all processes from setup() on. Gradients are averaged over all of them.
    model = L.Classifier(MLP(images.n_pixels, args.unit, images.n_classes))
    model.to_device(device)
    optimizer = mnx.create_multi_node_optimizer(chainer.optimizers.Adam(), comm)
    optimizer.setup(model)

    fit(args, comm, optimizer, train, test)


def fit(args, comm, optimizer, train, test, copies=None):
    """Train the target of `optimizer`, with everything around it, as all these examples do.

    All processes of `comm` evaluate and take snapshots together; process 0 reports. Each of
    `copies` (default: `comm`) evaluates another part of the test data.
    """
    say = on_root(print, comm)
    model = optimizer.target
    device = model.device
    train_iter = chainer.iterators.SerialIterator(train, args.batchsize)
    test_iter = chainer.iterators.SerialIterator(test, args.batchsize, repeat=False, shuffle=False)
    updater = training.updaters.StandardUpdater(train_iter, optimizer, device=device)
    trainer = training.Trainer(updater, (args.epoch, 'epoch'), out=args.out)
    evaluator = mnx.create_multi_node_evaluator(
        extensions.Evaluator(test_iter, model, device=device), copies or comm
    )
    trainer.extend(evaluator)
    for report in reports(say):
        trainer.extend(on_root(report, comm))
    trainer.extend(mnx.extensions.snapshot(comm, 'snapshot'))
    if args.resume:
        mnx.extensions.resume(args.resume, trainer, comm)
    if args.checkpoint:
        checkpoint = mnx.extensions.Checkpoint(comm)
        trainer.extend(checkpoint)
        checkpoint.resume(trainer)
    trainer.run()

    accuracy = evaluator().get('validation/main/accuracy', np.nan)  # known where the loss is
    say(f'test accuracy {accuracy:.4f}; log, plots and snapshot are in {args.out}/')


def reports(say):
    """Return what is to be printed and drawn. Losses of the training are process 0's own."""
    columns = ['epoch', 'main/loss', 'validation/main/loss']
    columns += ['main/accuracy', 'validation/main/accuracy', 'elapsed_time']
    bar = extensions.ProgressBar(update_interval=10)
    found = [extensions.LogReport(), extensions.PrintReport(columns), bar]
    if importlib.util.find_spec('matplotlib') is None:
        say('plots:        none, since matplotlib is missing (pip install matplotlib)')
        return found
    for what in ('loss', 'accuracy'):
        keys = [f'main/{what}', f'validation/main/{what}']
        found.append(extensions.PlotReport(keys, 'epoch', filename=f'{what}.png'))
    return found


def count(text):
    if int(text) < 1:
        raise argparse.ArgumentTypeError('must be at least 1')
    return int(text)


def add_data_arguments(add):
    add('--dataset', choices=mnx.datasets.IMAGES, default='auto', help="'auto' takes what is there")
    add('--data-dir', metavar='DIR', help='folder with the files of MNIST or Fashion-MNIST')
    add('--download', action='store_true', help='fetch the files, if they are not there')
    add('--seed', type=int, default=0, help='makes two runs equal')


def parse_arguments(doc=__doc__):
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    add = parser.add_argument
    add('--batchsize', '-b', type=count, default=100, help='images per process and update')
    add('--epoch', '-e', type=count, default=20, help='sweeps over the training data')
    add('--unit', '-u', type=count, default=1000, help='units in each hidden layer')
    add('--gpu', '-g', action='store_true', help='one GPU for each process of a machine')
    add('--out', '-o', default='result', help='folder for log, plots and snapshot')
    add('--resume', '-r', metavar='FILE', help='go on from a snapshot, such as result/snapshot')
    add('--checkpoint', '-c', action='store_true', help='go on from the newest in OUT, if any')
    add('--communicator', default='auto', help="how gradients travel; 'auto' chooses")
    add_data_arguments(add)
    return parser.parse_args()


if __name__ == '__main__':
    main()
