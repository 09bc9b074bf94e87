"""A script as it was written for ChainerMN; every rank takes its whole part at each iteration."""

import argparse

import chainer
import chainer.functions as F
import chainer.links as L
import chainermn
import numpy as np
from chainer import training
from chainer.training import extensions


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--communicator', '-c', default='pure_nccl')
    parser.add_argument('--epoch', '-e', type=int, default=3)
    args = parser.parse_args()
    chainer.config.dtype = np.float64

    comm = chainermn.create_communicator(args.communicator)
    np.random.seed(comm.rank)  # rank 0's parameters count
    model = L.Classifier(L.Linear(5, 3), lossfun=F.softmax_cross_entropy)
    optimizer = chainermn.create_multi_node_optimizer(chainer.optimizers.MomentumSGD(0.1), comm)
    optimizer.setup(model)

    if comm.rank == 0:
        draw = np.random.RandomState(7)
        x = draw.standard_normal((24, 5))
        data = chainer.datasets.TupleDataset(x, x[:, :3].argmax(axis=1).astype(np.int32))
    else:
        data = None
    train = chainermn.scatter_dataset(data, comm)
    test = chainermn.scatter_dataset(data, comm)
    updater = training.StandardUpdater(
        chainer.iterators.SerialIterator(train, len(train)), optimizer
    )
    trainer = training.Trainer(updater, (args.epoch, 'epoch'), out='result')
    evaluator = extensions.Evaluator(
        chainer.iterators.SerialIterator(test, 4, repeat=False, shuffle=False), model
    )
    trainer.extend(chainermn.create_multi_node_evaluator(evaluator, comm))
    if comm.rank == 0:
        trainer.extend(extensions.LogReport())
        trainer.extend(
            extensions.PrintReport(['epoch', 'validation/main/loss']), trigger=(1, 'epoch')
        )
    trainer.run()
    if comm.rank == 0:
        print('weights', *model.predictor.W.array.ravel().tolist())


if __name__ == '__main__':
    main()
