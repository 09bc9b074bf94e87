"""Data parallel training as it was written for ChainerMN, with most of what it had for that."""

import argparse
import os

import chainer
import chainer.functions as F
import chainer.links as L
import chainermn
import chainermn.extensions
import chainermn.links
import numpy as np
from chainer import training
from chainer.training import extensions
from chainermn import global_except_hook
from chainermn.datasets import create_empty_dataset


class MLP(chainer.Chain):
    def __init__(self, n_units, n_out):
        super().__init__()
        with self.init_scope():
            self.l1 = L.Linear(None, n_units)
            self.bn = L.BatchNormalization(n_units)
            self.l2 = L.Linear(n_units, n_out)

    def forward(self, x):
        return self.l2(F.relu(self.bn(self.l1(x))))


def get_images(n, seed):
    """In the place of MNIST: a picture for each class, and noise on it."""
    pictures = np.random.RandomState(0).standard_normal((10, 64))
    draw = np.random.RandomState(seed)
    label = draw.randint(10, size=n).astype(np.int32)
    x = pictures[label] + draw.standard_normal((n, 64))
    return chainer.datasets.TupleDataset(x.astype(np.float32), label)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--communicator', default='pure_nccl')
    parser.add_argument('--batchsize', '-b', type=int, default=20)
    parser.add_argument('--epoch', '-e', type=int, default=2)
    parser.add_argument('--out', '-o', default='result')
    args = parser.parse_args()

    global_except_hook.add_hook()
    comm = chainermn.create_communicator(args.communicator)
    assert comm.intra_rank == comm.rank
    if comm.mpi_comm is not None:
        comm.mpi_comm.Barrier()
    if comm.rank == 0 and not os.path.isdir(args.out):
        os.mkdir(args.out)

    model = chainermn.links.create_mnbn_model(L.Classifier(MLP(30, 10)), comm)
    optimizer = chainermn.create_multi_node_optimizer(chainer.optimizers.Adam(0.01), comm)
    optimizer.setup(model)
    optimizer.add_hook(chainer.optimizer_hooks.WeightDecay(1e-4))

    train, test = (get_images(400, 1), get_images(101, 2)) if comm.rank == 0 else (None, None)
    train = chainermn.scatter_dataset(train, comm, shuffle=True, seed=3)
    test = chainermn.scatter_dataset(test, comm)
    assert create_empty_dataset(train) == [()] * len(train)
    train_iter = chainer.iterators.SerialIterator(train, args.batchsize)
    test_iter = chainer.iterators.SerialIterator(test, 50, repeat=False, shuffle=False)

    updater = training.StandardUpdater(train_iter, optimizer)
    stop = chainermn.extensions.MultiNodeEarlyStoppingTrigger(
        comm, monitor='main/loss', patients=5, max_trigger=(args.epoch, 'epoch')
    )
    trainer = training.Trainer(updater, stop, out=args.out)
    evaluator = extensions.Evaluator(test_iter, model)
    trainer.extend(chainermn.create_multi_node_evaluator(evaluator, comm))
    trainer.extend(chainermn.extensions.AllreducePersistent(model, comm))
    trainer.extend(chainermn.extensions.ObservationAggregator(comm, 'main/accuracy'))
    snapshot = extensions.snapshot(autoload=True)
    trainer.extend(
        chainermn.extensions.multi_node_snapshot(comm, snapshot, []), trigger=(1, 'epoch')
    )
    if comm.rank == 0:
        trainer.extend(extensions.LogReport())
        columns = ['epoch', 'main/loss', 'main/accuracy', 'validation/main/accuracy']
        trainer.extend(extensions.PrintReport(columns))
    trainer.run()
    if comm.rank == 0:
        accuracy = trainer.observation['validation/main/accuracy']
        print(f'\niterations {updater.iteration} t {optimizer.t} accuracy {accuracy:.4f}')


if __name__ == '__main__':
    main()
