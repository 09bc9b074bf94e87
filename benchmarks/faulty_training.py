"""A small training in which one rank fails, in a given way at a given place.

    mpiexec -n 2 python benchmarks/faulty_training.py forward SIGKILL --rank 1 --out folder

The first checkpoint is complete before anything fails, except at `start`. In the folder the
program leaves `failed`, the moment of the failure, and `pid.N`, the process of rank N.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
from chainer import training

import mnx
from mnx.transports.launch import detect

PLACES = {
    'start': 'before the first communicator',
    'forward': 'in the forward pass',
    'backward': 'in the backward pass',
    'collective': 'waiting inside a collective',
    'extension': 'in an extension of the trainer',
    'checkpoint': 'while a checkpoint is written',
}
SECOND_UPDATE = 2  # when the first checkpoint is there
N_UNITS = 1500  # so that a checkpoint takes some milliseconds


def raise_error() -> None:
    raise ValueError('the fault')


WAYS: dict[str, Callable[[], None]] = {
    'exception': raise_error,
    'SystemExit': lambda: sys.exit(3),
    'SIGKILL': lambda: os.kill(os.getpid(), signal.SIGKILL),
    'SIGSTOP': lambda: os.kill(os.getpid(), signal.SIGSTOP),
}


class Fault:
    """What happens to one rank, once, at one place."""

    def __init__(self, options: argparse.Namespace, rank: int) -> None:
        self.way, self.place, self.out = options.way, options.place, options.out
        self.is_mine = rank == options.rank
        self.passed = dict.fromkeys(PLACES, 0)

    def is_due(self, place: str) -> bool:
        """Tell whether the job has come to where the fault is."""
        self.passed[place] += 1
        return self.place == place and self.passed[place] == (place == 'start' or SECOND_UPDATE)

    def at(self, place: str) -> None:
        """Fail here, if it is the place, the rank and the time."""
        if self.is_due(place) and self.is_mine:
            self.fail()

    def fail(self) -> None:
        (self.out / 'failed').write_text(repr(time.time()))
        WAYS[self.way]()

    def while_it_waits(self, communicate: Callable[[], object]) -> None:
        """Let the others come late to a collective, and fail inside it."""
        if not self.is_due('collective'):
            pass
        elif self.is_mine:
            self.from_a_thread(lambda: time.sleep(0.3))
        else:
            time.sleep(1)
        communicate()

    def from_a_thread(self, wait: Callable[[], object]) -> None:
        """Fail when `wait` is over, whatever the main thread does then."""

        def strike() -> None:
            wait()
            if self.way.startswith('SIG'):
                self.fail()
            else:
                os.kill(os.getpid(), signal.SIGUSR1)  # the main thread is to raise

        signal.signal(signal.SIGUSR1, lambda *_: self.fail())
        threading.Thread(target=strike, daemon=True).start()


class Model(chainer.Chain):
    """A layer, a loss, and the places in between."""

    def __init__(self, fault: Fault, comm: Any) -> None:
        super().__init__()
        self.fault, self.comm = fault, comm
        with self.init_scope():
            self.layer = L.Linear(N_UNITS, N_UNITS)

    def forward(self, x: Any) -> Any:
        self.fault.at('forward')
        self.fault.while_it_waits(lambda: self.comm.allreduce(np.ones(3)))
        return F.mean_squared_error(PassedBackward(self.fault).apply((self.layer(x),))[0], x)


class PassedBackward(chainer.FunctionNode):
    """The identity, at whose backward pass something may happen."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    def forward(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return inputs

    def backward(self, indexes: Any, gradients: Any) -> Any:
        self.fault.at('backward')
        return gradients


class CheckpointWatch:
    """Fails as soon as the second checkpoint has begun to be written."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    def __call__(self, trainer: Any) -> None:
        if self.fault.is_due('checkpoint') and self.fault.is_mine:
            self.fault.from_a_thread(self.has_begun)

    def has_begun(self) -> None:
        while not any(map(is_begun, self.fault.out.glob('.*checkpoint*'))):
            pass


def is_begun(file: Path) -> bool:
    """Tell whether something is written; a file bears a name of its own until it is complete."""
    try:
        return file.stat().st_size > 0
    except FileNotFoundError:  # it was complete
        return False


def checkpoint(comm: Any) -> Any:
    """Return the extension that is to be interrupted; rank 0 writes its file."""
    return mnx.extensions.snapshot(comm, 'checkpoint')


def train(fault: Fault, out: Path) -> None:
    comm = mnx.create_communicator()
    model = Model(fault, comm)
    optimizer = mnx.create_multi_node_optimizer(chainer.optimizers.SGD(0.01), comm).setup(model)
    iterator = chainer.iterators.SerialIterator(np.ones((16, N_UNITS), np.float32), 2)
    updater = training.StandardUpdater(iterator, optimizer, loss_func=model)
    trainer = training.Trainer(updater, (8, 'iteration'), out=str(out))
    every = (1, 'iteration')
    trainer.extend(lambda _: fault.at('extension'), name='extension', trigger=every)
    trainer.extend(CheckpointWatch(fault), name='watch', trigger=every)
    trainer.extend(checkpoint(comm), trigger=every)
    trainer.run()


def wait_for_all(out: Path, size: int) -> None:
    """Wait until all ranks are here: they start far apart, but are to wait for the one together."""
    while len(list(out.glob('pid.*'))) < size:
        time.sleep(0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('place', choices=PLACES)
    parser.add_argument('way', choices=WAYS)
    parser.add_argument('--rank', type=int, required=True, help='who fails')
    parser.add_argument('--out', type=Path, required=True, help='an empty folder')
    options = parser.parse_args()
    launched = detect(os.environ)
    rank = 0 if launched is None else launched.rank
    (options.out / f'pid.{rank}').write_text(str(os.getpid()))
    fault = Fault(options, rank)
    if (options.place, options.way) == ('start', 'SIGSTOP'):
        wait_for_all(options.out, 1 if launched is None else launched.size)
    fault.at('start')
    train(fault, options.out)


if __name__ == '__main__':
    main()
