"""Which of two ways to the same bits is the quicker one, by what each took lately.

It depends on what no program can ask for: whether the cores of two ranks share a cache, who else
uses the memory, how far the arrays are from the cores just now. So both are tried, and the one
that lost is tried again now and then. All ranks must be told the same times, so that they choose
alike; it does not matter for the result.
"""

from __future__ import annotations

from collections import deque

WARM_UP = 1  # calls of each way that are not counted: they make what the next ones use
TRIALS = 3  # calls of each way before there is a choice, and how many of the last ones count
PATIENCE = 32  # calls until a way is tried again that took as long; in proportion, if longer


class Trials:
    """What each of several ways has taken.

    >>> trials = Trials(2)
    >>> for _ in range(8):
    ...     way = trials.choose()
    ...     trials.tell(way, 1.0 if way == 0 else 2.0)
    >>> trials.choose()
    0
    """

    def __init__(self, ways: int) -> None:
        self._times: list[deque[float]] = [deque(maxlen=TRIALS) for _ in range(ways)]
        self._calls = [0] * ways
        self._idle = [0] * ways  # calls of others since its last one

    def choose(self) -> int:
        """Return the number of the way to go now."""
        ways = range(len(self._calls))
        least = min(ways, key=self._calls.__getitem__)
        if self._calls[least] < WARM_UP + TRIALS:
            return least
        scores = [min(times) for times in self._times]  # what delays a call has not to do with it
        best = min(ways, key=scores.__getitem__)
        due = [w for w in ways if self._idle[w] * scores[best] > PATIENCE * scores[w]]
        return due[0] if due else best

    def tell(self, way: int, took: float) -> None:
        """Note how long a call by that way took, in whatever unit."""
        self._calls[way] += 1
        if self._calls[way] > WARM_UP:
            self._times[way].append(took)
        for other in range(len(self._idle)):
            self._idle[other] = 0 if other == way else self._idle[other] + 1
