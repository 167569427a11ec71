# SPDX-License-Identifier: GPL-2.0-or-later
"""When devices want to be woken: a queue of deadlines in virtual time.

Nothing here knows where time comes from. The clock is any object with ``now_ns()`` (virtual
nanoseconds since power-on), so the same devices run on the wall clock and on a deterministic one.
The run loop asks :meth:`TimerQueue.next_deadline` how long the guest may run and calls
:meth:`TimerQueue.run_due` when that time has come.

Timers of one deadline fire in the order they were made: two runs that make the same calls at the
same virtual times see the same events in the same order.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Protocol

# Cancelled timers stay in the heap until they surface. A guest that reprograms its timer in a
# loop would grow it for ever, so it is rebuilt once this many, and half of it, are dead.
_SWEEP_AT = 64


class Clock(Protocol):
    """The only thing devices know about time."""

    def now_ns(self) -> int:
        """Virtual nanoseconds since power-on; never goes back."""
        ...


class Timer:
    """One deadline. Made by :meth:`TimerQueue.at`; fires once."""

    __slots__ = ("_queue", "callback", "deadline_ns")

    def __init__(self, queue: TimerQueue, deadline_ns: int, callback: Callable[[], None]) -> None:
        self._queue = queue
        self.deadline_ns = deadline_ns
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Never fire. Does nothing to a timer that has fired or was cancelled before."""
        if self.callback is not None:
            self.callback = None
            self._queue._note_cancelled()


class TimerQueue:
    """Deadlines in order. Belongs to the vCPU's thread: no call is safe from another one.

    ``on_earlier(deadline_ns)`` is called when a new timer becomes the first to fire: a run loop
    that has already decided how long to let the guest run may want to change its mind.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._heap: list[tuple[int, int, Timer]] = []
        self._made = 0
        self._cancelled = 0
        self.on_earlier: Callable[[int], None] | None = None

    def at(self, deadline_ns: int, callback: Callable[[], None]) -> Timer:
        """Call ``callback()`` from the first :meth:`run_due` at or after ``deadline_ns``."""
        timer = Timer(self, deadline_ns, callback)
        first = self.next_deadline()
        heapq.heappush(self._heap, (deadline_ns, self._made, timer))
        self._made += 1
        if self.on_earlier is not None and (first is None or deadline_ns < first):
            self.on_earlier(deadline_ns)
        return timer

    def next_deadline(self) -> int | None:
        """The earliest deadline (virtual ns), which may have passed; None with no timer."""
        heap = self._heap
        while heap and heap[0][2].callback is None:
            heapq.heappop(heap)
            self._cancelled -= 1
        return heap[0][0] if heap else None

    def run_due(self) -> None:
        """Fire every timer whose deadline has passed, in order of deadline, then of making.

        A timer made by one of them waits for the next call even if it is due already, so a
        device that re-arms itself cannot keep the VMM here.
        """
        now = self._clock.now_ns()
        due: list[Timer] = []
        heap = self._heap
        while heap and heap[0][0] <= now:
            timer = heapq.heappop(heap)[2]
            if timer.callback is None:
                self._cancelled -= 1
            else:
                due.append(timer)
        for timer in due:
            callback, timer.callback = timer.callback, None
            if callback is not None:
                callback()
            else:
                # Cancelled by an earlier one of this batch; it had left the heap by then.
                self._cancelled -= 1

    def _note_cancelled(self) -> None:
        self._cancelled += 1
        if self._cancelled > _SWEEP_AT and self._cancelled * 2 > len(self._heap):
            # In place: run_due and next_deadline hold the list.
            self._heap[:] = [entry for entry in self._heap if entry[2].callback is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0
