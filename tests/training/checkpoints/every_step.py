"""Kill a checkpointing training at each of its steps on the disk: every_step.py FOLDER STRIDE.

One process forks children, so that each costs a tenth of a second. A child that is to die kills
itself by SIGKILL right before the n-th time it opens, makes, renames or removes something.
"""

import os
import shutil
import signal
import sys
from pathlib import Path

import mnx
from tests.training.checkpoints.job import digest_of
from tests.training.checkpoints.training import build, parameters

STEPS = {'open', 'os.mkdir', 'os.rename', 'os.remove', 'os.rmdir'}


def train(out: Path, dies_at: int | None) -> str:
    """Return a digest of what is trained in the end."""
    with mnx.create_communicator('local') as comm:
        trainer = build(comm, out, until=(3, 'iteration'), keep=1)
        if dies_at is not None:
            die_before_step(dies_at, str(out / 'checkpoint'))
        trainer.checkpoint.resume(trainer)
        trainer.run()
        return digest_of(parameters(trainer))


def die_before_step(number: int, folder: str) -> None:
    left = number

    def count(event: str, args: tuple[object, ...]) -> None:
        nonlocal left
        if event in STEPS and isinstance(args[0], str | Path) and str(args[0]).startswith(folder):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def in_a_child(out: Path, dies_at: int | None = None) -> tuple[int, str]:
    """Return the signal that ended it and the digest."""
    sys.stdout.flush()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.write(write, train(out, dies_at).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    with open(read) as pipe:
        digest = pipe.read()
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return (os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0), digest


def main(folder: Path, stride: int) -> None:
    _, expected = in_a_child(folder / 'whole')
    step, n_kills, sign = 1, 0, int(signal.SIGKILL)
    has_begun = False
    while sign == signal.SIGKILL:
        out = folder / str(step)
        sign, _ = in_a_child(out, dies_at=step)
        is_safe = any(out.glob('checkpoint/*/manifest.json'))
        assert is_safe or not has_begun, f'killed before step {step}, nothing is left'
        has_begun = is_safe
        again, digest = in_a_child(out)
        assert again == 0, f'killed before step {step}, it does not go on'
        assert digest == expected, f'killed before step {step}, it goes on with other bits'
        shutil.rmtree(out)
        step, n_kills = step + stride, n_kills + (sign == signal.SIGKILL)
    print('KILLS', n_kills)


if __name__ == '__main__':
    main(Path(sys.argv[1]), int(sys.argv[2]))
