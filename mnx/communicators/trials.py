"""Which of two ways to the same bits is the quicker one, by what each took lately.

It depends on what no program can ask for: whether the cores of two ranks share a cache, who else
uses the memory, how far the arrays are from the cores just now. So both are tried, and the one
that lost is tried again now and then. All ranks must be told the same times, so that they choose
alike; it does not matter for the result.
"""

from __future__ import annotations

from collections import deque

WARM_UP = 1  # calls of each way that are not timed: they make what the next ones use
TRIALS = 3  # calls of each way before there is a choice, and how many of the last ones count
EVERY = 4  # of so many calls of the quickest way, one is timed: that takes a meeting
PATIENCE = 32  # calls until a way is tried again that took as long; in proportion, if longer


class Trials:
    """What each of several ways has taken.

    >>> trials = Trials(2)
    >>> for _ in range(8):
    ...     way, is_timed = trials.choose()
    ...     if is_timed:
    ...         trials.tell(way, 1.0 if way == 0 else 2.0)
    >>> trials.choose()[0]
    0
    """

    def __init__(self, ways: int) -> None:
        self._times: list[deque[float]] = [deque(maxlen=TRIALS) for _ in range(ways)]
        self._scores = [0.0] * ways
        self._calls = [0] * ways
        self._idle = [0] * ways  # calls of others since its last one

    def choose(self) -> tuple[int, bool]:
        """Return the number of the way to go now, and whether `tell` has to know of this call."""
        way, is_steady = self._next()
        self._calls[way] += 1
        self._idle = [idle + 1 for idle in self._idle]
        self._idle[way] = 0
        calls = self._calls[way]
        return way, calls % EVERY == 0 if is_steady else calls > WARM_UP

    def tell(self, way: int, took: float) -> None:
        """Note how long a call by that way took, in whatever unit."""
        self._times[way].append(took)
        self._scores[way] = min(self._times[way])  # what delays a call has not to do with its way

    def _next(self) -> tuple[int, bool]:
        """Return the way to go, and whether that is so because it is the quickest."""
        fewest = min(self._calls)
        if fewest < WARM_UP + TRIALS:
            return self._calls.index(fewest), False
        least = min(self._scores)
        for way, score in enumerate(self._scores):
            if self._idle[way] * least > PATIENCE * score:
                return way, False
        return self._scores.index(least), True
