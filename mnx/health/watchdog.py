"""A job in which ranks wait for ever ends, with one report of who waits where, and for whom.

    1. a rank has waited for others for MNX_TIMEOUT seconds:   it asks all ranks what they do
    2. for GRACE seconds    the watchdogs answer, whatever their main threads do (SILENCE seconds
                            if some do not); if the wait ends meanwhile, all is well
    3. the lowest rank      of those that have waited too long prints the report and aborts the
       the next ones        job; these step in, one after the other, should that not come

A communicator over all ranks of the job brings a watchdog that joins all. Where a program makes
none, the first over some of them brings one that joins these; of several, the one that joins most
asks, and the others answer only.

A thread of each rank looks once a second. When a program ends, it stays until all have ended, so
that a rank which has left too early is named, and is gone before MPI is: MPI_Finalize must not
overlap its calls. `MNX_TIMEOUT=0` turns this off. Forked workers have no watchdog, and are none of
its business.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import math
import os
import platform
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mnx.errors import ArgumentError
from mnx.health import farewell, last_words, stacks
from mnx.health.stalls import ELSEWHERE, ENDED, WAITS, State, report
from mnx.transports import emergency, pickles, waiting
from mnx.transports.base import Channels, Pending, Transport
from mnx.transports.emergency import EmergencyChannel, SecondLine
from mnx.transports.waiting import Wait

TIMEOUT = 600.0  # seconds of waiting that are too long
INTERVAL = 1.0  # seconds between two looks
GRACE = 2.0  # seconds in which the wait may still end
SILENCE = 10.0  # seconds until a rank counts as one that does not answer
PATIENCE = 5.0  # more seconds for each lower rank to end the job

_OF_FAREWELL = b'farewell '

_is_started = False  # the one of all ranks of the job
_running: list[Watchdog] = []


def timeout_of(environ: Mapping[str, str] = os.environ) -> float:
    """Return the seconds that `MNX_TIMEOUT` allows to wait; 0 means for ever."""
    text = environ.get('MNX_TIMEOUT', '')
    try:
        timeout = float(text or TIMEOUT)
    except ValueError:
        timeout = math.nan
    if not timeout >= 0:
        raise ArgumentError(
            'create_communicator: MNX_TIMEOUT is wrong, expected a number of seconds, '
            f'0 for no watchdog, but got {text!r}. Set it anew or leave it out.'
        )
    return timeout


def start(channels: Channels, timeout: float) -> None:
    """Start this rank's watchdog, unless one runs that joins as many ranks.

    Collective over `channels`. Rank 0's `timeout` counts for all: launchers do not pass every
    variable on to other hosts. Without MPI, or if it serves one thread at a time, nothing starts.
    """
    global _is_started
    control, of_job = channels.control, emergency.current()
    joins_all = of_job is not None and of_job.size == control.size
    if _is_started or control.size == 1 or not (joins_all or _is_missed(control)):
        return
    _is_started = joins_all  # of a part others may start later, which join more
    channel = of_job if joins_all else channels.emergency()
    line = None if channel is None else channel.second_line()
    if channel is not None:
        _start(control, channel, line, timeout)


def _is_missed(control: Transport) -> bool:
    """Tell whether for any of these ranks there is no watchdog that joins as many. Collective."""
    missed = np.array([control.size > max((dog.size for dog in _running), default=1)], np.uint8)
    control.all_reduce(missed, 'max')
    return bool(missed[0])


def _start(
    control: Transport, channel: EmergencyChannel, line: SecondLine | None, timeout: float
) -> None:
    number = -1 if line is None else line.job_rank
    facts = pickles.all_gather(control, (channel.rank, number, platform.node(), timeout))
    timeout = facts[0][3]
    if line is not None and timeout > 0 and all(number >= 0 for _, number, *_ in facts):
        places = [(number, host) for _, number, host, _ in sorted(facts)]
        dog = Watchdog(channel, line, places, timeout)
        _running.append(dog)
        if channel is emergency.current():
            farewell.employ(dog)
        dog.start()


def _size(dog: Watchdog) -> int:
    return dog.size


class Inquiry:
    """What a rank that has waited too long learns of the others."""

    def __init__(self, wait: Wait) -> None:
        self.wait = wait
        self.began = time.monotonic()
        self.states: dict[int, State] = {}

    def add(self, state: State) -> None:
        """Keep a state, its seconds as they were when the inquiry began."""
        elapsed = time.monotonic() - self.began
        self.states[state.rank] = replace(state, seconds=max(state.seconds - elapsed, 0.0))

    def is_over(self, rank: int, size: int) -> bool:
        """Return whether the others had their time: to answer, and lower ranks to end the job."""
        lower = sum(state.is_overdue and state.rank < rank for state in self.states.values())
        patience = GRACE if len(self.states) == size - 1 else SILENCE
        return time.monotonic() - self.began > patience + lower * PATIENCE


class Watchdog(threading.Thread):
    """The thread that looks after its rank, and answers the others'.

    Parameters
    ----------
    channel : EmergencyChannel
        Ends the job.
    line : SecondLine
        Carries questions and answers.
    places : list of (int, str)
        Each rank's number in the job, and its host.
    timeout : float
        Seconds that a rank may wait.
    """

    def __init__(
        self,
        channel: EmergencyChannel,
        line: SecondLine,
        places: list[tuple[int, str]],
        timeout: float,
    ) -> None:
        super().__init__(name='mnx watchdog', daemon=True)
        self.size = channel.size
        self._channel, self._line = channel, line
        self._places, self._timeout = places, timeout
        self._all_leave: Pending | None = None
        self._has_said = False
        self._leavers: dict[int, list[farewell.Place]] = {}  # and what each has been told
        self._waited_at: list[farewell.Place] = []
        self._wanted: list[farewell.Place] = []
        self._inquiry: Inquiry | None = None
        self._has_ended = False
        self._may_stop = threading.Event()
        line.before_end(self._leave)

    def run(self) -> None:
        interval = min(INTERVAL, self._timeout / 4)
        # an MPI that fails is the main thread's to tell
        with contextlib.suppress(Exception):
            while not self._may_stop.wait(interval / 10 if self._is_busy() else interval):
                self._look()

    def _is_busy(self) -> bool:
        return self._inquiry is not None or self._all_leave is not None

    def leave(self) -> Pending:
        """Begin to tell the others that this rank leaves; what is returned ends when all do."""
        self._all_leave = self._line.start_barrier()
        return self._all_leave

    def wanted(self) -> list[farewell.Place]:
        """Return where others have said that they wait."""
        return self._wanted.copy()

    def _look(self) -> None:
        self._listen()
        self._invite()
        state, wait = self._state()
        if not state.is_overdue or wait is None or self is not max(_running, key=_size):
            self._inquiry = None
        elif self._inquiry is None or self._inquiry.wait != wait:
            self._inquiry = Inquiry(wait)
            self._line.notify(state.encode(asks=True), range(self._channel.size))
        elif self._inquiry.is_over(self._channel.rank, self._channel.size):
            self._end_job(self._inquiry, state)

    def _listen(self) -> None:
        """Answer who asks, keep what others answer."""
        for notice in self._line.poll():
            if notice.startswith(_OF_FAREWELL):
                self._hear(json.loads(notice.removeprefix(_OF_FAREWELL)))
                continue
            state, asks = State.decode(notice)
            if self._inquiry is not None:
                self._inquiry.add(state)
            if asks:
                self._line.notify(self._state()[0].encode(asks=False), [state.rank])

    def _hear(self, words: dict[str, Any]) -> None:
        if 'leaves' in words:
            self._leavers.setdefault(words['leaves'], [])
        else:
            self._wanted += map(tuple, words['come'])

    def _invite(self) -> None:
        """Say that this rank leaves, or tell those who do where it waits since the last look."""
        if self._all_leave is not None:
            if not self._has_said:
                self._has_said = True
                self._tell({'leaves': self._channel.rank}, range(self._channel.size))
            return
        places = farewell.waits_at() if self._leavers else []
        lasting = [place for place in places if place in self._waited_at]
        self._waited_at = places
        for rank, told in self._leavers.items():
            if lasting and lasting != told:
                self._leavers[rank] = lasting
                self._tell({'come': lasting}, [rank])

    def _tell(self, words: dict[str, Any], ranks: Iterable[int]) -> None:
        self._line.notify(_OF_FAREWELL + json.dumps(words).encode(), ranks)

    def _state(self) -> tuple[State, Wait | None]:
        rank, wait = self._channel.rank, waiting.longest()
        if any(dog._has_ended for dog in _running) or farewell.is_leaving():
            return State(rank, ENDED), None
        thread = threading.main_thread().ident if wait is None else wait.thread
        frame = sys._current_frames().get(thread or 0)
        call, site = ('', '') if frame is None else stacks.describe(frame)
        if wait is None:
            return State(rank, ELSEWHERE, call, site), None
        seconds = time.monotonic() - wait.start
        return State(rank, WAITS, call, site, seconds, seconds >= self._timeout), wait

    def _end_job(self, inquiry: Inquiry, own: State) -> None:
        # A C thread that needs neither Python nor MPI: if either hangs, the process still ends.
        with contextlib.suppress(Exception):
            faulthandler.dump_traceback_later(PATIENCE, exit=True)
        inquiry.add(own)
        numbers = [number for number, _ in self._places]
        states = [replace(state, rank=numbers[i]) for i, state in inquiry.states.items()]
        last_words.say(report(states, dict(self._places), self._timeout, self._line.job_size))
        last_words.abort(self._channel, 1)

    def _leave(self) -> None:
        """Wait until all ranks have ended their programs, as MPI_Finalize does, then stop."""
        self._has_ended = True
        try:
            if self._all_leave is None:  # MPI.Finalize comes before any farewell
                self._all_leave = self._line.start_barrier()
            barrier, pause = self._line.start_barrier(), 0.0
            while not (self._all_leave.test() and barrier.test()):
                time.sleep(pause)
                pause = min(pause + 0.001, 0.05)
        finally:
            self._may_stop.set()
            self.join()
