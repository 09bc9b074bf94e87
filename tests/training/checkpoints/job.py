"""A checkpointing training on all ranks of a job, which tests kill: job.py OUT ITERATIONS."""

import hashlib
import os
import sys
from pathlib import Path

import numpy as np

import mnx
from tests.training.checkpoints.training import build, parameters


def main(out: Path, iterations: int) -> None:
    comm = mnx.create_communicator()
    trainer = build(comm, out, until=(iterations, 'iteration'), keep=2)
    pids = comm.gather_obj(os.getpid())
    if comm.rank == 0:
        print('STARTED', *pids, flush=True)
    trainer.checkpoint.resume(trainer)
    trainer.run()
    digests = comm.gather_obj((digest_of(parameters(trainer)), float(np.random.rand())))
    if comm.rank == 0:
        print('FINISHED', digests, flush=True)


def digest_of(values: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name in sorted(values):
        digest.update(name.encode() + values[name])
    return digest.hexdigest()


if __name__ == '__main__':
    main(Path(sys.argv[1]), int(sys.argv[2]))
