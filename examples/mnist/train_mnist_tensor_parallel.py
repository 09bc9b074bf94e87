#!/usr/bin/env python3
"""Train a multi-layer perceptron whose weights are split over processes.

    mpiexec -n 4 python examples/mnist/train_mnist_tensor_parallel.py

Every process sees every image, but holds only its part of each weight matrix. The model, the
losses and the file it leaves behind are those of one process.
"""

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
from train_mnist import fit, parse_arguments

import mnx
from mnx.extensions import on_root
from mnx.links import ParallelLinear, save_npz


class MLP(chainer.Chain):
    """Two hidden layers of rectified linear units."""

    def __init__(self, comm, n_in, n_units, n_out):
        super().__init__()
        with self.init_scope():
            # A pair: each process computes its part of the first hidden layer, and what that
            # part adds to the second. One sum over the processes, and nothing in between.
            self.l1 = ParallelLinear(n_in, n_units, comm, 'output', gather_output=False)
            self.l2 = ParallelLinear(n_units, n_units, comm, 'input', input_is_split=True)
            # Each process computes the scores of some classes, and all get all of them.
            self.l3 = ParallelLinear(n_units, n_out, comm, 'output')

    def forward(self, x):
        """Return one score for each class, (n, n_out), for images (n, n_in)."""
        h1 = F.relu(self.l1(x))
        h2 = F.relu(self.l2(h1))
        return self.l3(h2)


def main():
    args = parse_arguments(__doc__)
    comm = mnx.create_communicator(args.communicator)
    say = on_root(print, comm)
    device = chainer.get_device(f'@cupy:{comm.intra_rank}' if args.gpu else '@numpy')
    device.use()
    # The same seed on all processes: they draw the same weights, and shuffle alike.
    device.xp.random.seed(args.seed)
    np.random.seed(args.seed)  # noqa: NPY002 - Chainer shuffles by this generator

    # The data: process 0 reads them, and every process gets all of them.
    images = mnx.datasets.load_images(
        args.dataset, args.data_dir, download=args.download, comm=comm
    )
    train, test = comm.bcast_obj((images.train, images.test))

    # The model: a part of it on each process. The optimizer is plain Chainer's.
    model = L.Classifier(MLP(comm, images.n_pixels, args.unit, images.n_classes))
    model.to_device(device)
    optimizer = chainer.optimizers.Adam().setup(model)
    say(f'processes:    {comm.size}, device {device}')
    say(f'data:         {images.description}')
    say(f'batch:        {args.batchsize}, on every process the same')
    sizes = comm.allgather_obj(sum(p.size for p in model.params()))
    say(f'parameters:   {", ".join(map(str, sizes))} on processes 0 to {comm.size - 1}')

    # The training loop: all processes do the same, so each one evaluates by itself.
    fit(args, comm, optimizer, train, test, mnx.create_communicator('local'))
    save_npz(f'{args.out}/model.npz', model, comm)
    say('model.npz is there for any number of processes, and for plain Chainer')


if __name__ == '__main__':
    main()
