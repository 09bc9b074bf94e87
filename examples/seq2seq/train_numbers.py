#!/usr/bin/env python3
"""Learn to read numbers, with encoder and decoder on two processes.

    mpiexec -n 2 python examples/seq2seq/train_numbers.py

    process 0    two hundred six  ─►  encoder
                                        │ states of the recurrent layers; their gradients come back
    process 1                           └─►  decoder  ─►  2 0 6

It learns from 900 of the numbers below 1000, and is asked for the other 100.
"""

import argparse
import time

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np

import mnx
from mnx.extensions import on_root
from mnx.links import create_multi_node_n_step_rnn

SMALL = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
    fifteen sixteen seventeen eighteen nineteen""".split()  # noqa: SIM905
TENS = 'twenty thirty forty fifty sixty seventy eighty ninety'.split()  # noqa: SIM905
WORDS = [*SMALL, *TENS, 'hundred']
END = 10  # closes a number, and opens the decoder's; below are the digits
LIMIT = 1000
N_DIGITS = 3


class Encoder(chainer.Chain):
    """Reads numbers in words; its final states go to the decoder."""

    def __init__(self, comm, n_units):
        super().__init__()
        with self.init_scope():
            self.embed = L.EmbedID(len(WORDS), n_units)
            rnn = L.NStepLSTM(1, n_units, n_units, 0.0)
            self.rnn = create_multi_node_n_step_rnn(rnn, comm, rank_out=1)

    def forward(self, numbers):
        """Return the delegate variable: backward begins with it on this process."""
        words = [np.array([WORDS.index(word) for word in in_words(n)], 'i') for n in numbers]
        *_, delegate = self.rnn([self.embed(x) for x in words])
        return delegate

    read = forward


class Decoder(chainer.Chain):
    """Writes numbers in digits; its initial states come from the encoder."""

    def __init__(self, comm, n_units):
        super().__init__()
        with self.init_scope():
            self.embed = L.EmbedID(END + 1, n_units)
            rnn = L.NStepLSTM(1, n_units, n_units, 0.0)
            self.rnn = create_multi_node_n_step_rnn(rnn, comm, rank_in=0)
            self.score = L.Linear(n_units, END + 1)

    def forward(self, numbers):
        """Return the mean cross entropy of the digits, each from those before it."""
        digits = [list(map(int, str(n))) for n in numbers]
        given = [np.array([END, *x], 'i') for x in digits]
        wanted = [np.array([*x, END], 'i') for x in digits]
        *_, hs, _ = self.rnn([self.embed(x) for x in given])
        return F.softmax_cross_entropy(self.score(F.concat(hs, axis=0)), np.concatenate(wanted))

    def read(self, numbers):
        """Return what the decoder writes, always taking the most likely digit."""
        x = np.full((len(numbers), 1), END, 'i')
        h, c, hs, _ = self.rnn(list(self.embed(x)))
        found = []
        for _ in range(N_DIGITS):
            x = self.score(F.concat(hs, axis=0)).array.argmax(axis=1).astype('i')[:, None]
            found.append(x)
            h, c, hs = self.rnn.actual_rnn(h, c, list(self.embed(x)))
        rows = np.hstack(found).tolist()
        return [''.join(map(str, row[: [*row, END].index(END)])) for row in rows]


def main():
    args = parse_arguments()
    comm = mnx.create_communicator()
    if comm.size != 2:
        raise ValueError(
            f'The model is cut in 2, but there are {comm.size} processes: mpiexec -n 2'
        )
    say = on_root(print, comm, root=1)
    np.random.seed(args.seed + comm.rank)  # noqa: NPY002 - Chainer initialises by this generator

    # Both processes read the same batches: by a generator that draws nothing else.
    order = np.random.RandomState(args.seed)
    numbers = order.permutation(LIMIT)
    train, test = numbers[LIMIT // 10 :], numbers[: LIMIT // 10]
    sampler = chainer.iterators.ShuffleOrderSampler(order)
    batches = chainer.iterators.SerialIterator(train, args.batchsize, order_sampler=sampler)

    model = Encoder(comm, args.unit) if comm.rank == 0 else Decoder(comm, args.unit)
    optimizer = chainer.optimizers.Adam(0.01).setup(model)
    optimizer.add_hook(chainer.optimizer_hooks.GradientClipping(5))
    start = time.monotonic()
    while batches.epoch < args.epoch:
        optimizer.update(model, batches.next())
        if batches.is_new_epoch:
            right = np.mean(
                [a == str(b) for a, b in zip(read(model, comm, test), test, strict=True)]
            )
            seconds = time.monotonic() - start
            say(f'epoch {batches.epoch:2}: {right:4.0%} of the test right, {seconds:.1f} s')
    for n, found in zip(test[:4], read(model, comm, test[:4]), strict=True):
        say(f'{" ".join(in_words(n))} -> {found}')


def read(model, comm, numbers):
    """Return the digits that the model reads from numbers in words, on both processes."""
    with chainer.no_backprop_mode(), chainer.using_config('train', False):
        found = model.read(numbers)
    return comm.bcast_obj(found if comm.rank == 1 else None, root=1)


def in_words(n):
    """Return the words of a number: 206 is two hundred six."""
    hundreds, rest = divmod(n, 100)
    words = [SMALL[hundreds], 'hundred'] if hundreds else []
    if rest >= 20:
        words.append(TENS[rest // 10 - 2])
        rest %= 10
    return [*words, SMALL[rest]] if rest or not words else words


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--batchsize', '-b', type=int, default=50, help='numbers per update')
    add('--epoch', '-e', type=int, default=6, help='sweeps over the numbers')
    add('--unit', '-u', type=int, default=64, help='units of each recurrent layer')
    add('--seed', type=int, default=0, help='makes two runs equal')
    return parser.parse_args()


if __name__ == '__main__':
    main()
