# SPDX-License-Identifier: GPL-2.0-or-later
"""The vCPU's timers, one-shot and periodic: VIRQ_TIMER. Also set_timer_op (15)."""

from __future__ import annotations

from bt.machine.timers import Timer, TimerQueue
from bt.xen import abi
from bt.xen.events import Events
from bt.xen.guest import Core, XenError

#: Shortest period a guest may ask for, as in Xen.
MIN_PERIOD_NS = 1_000_000
#: Deadlines from here on (146 years) never come.
NEVER_NS = 1 << 62


class Timers:
    """Single-shot and periodic timer; all times are system time in nanoseconds."""

    def __init__(self, core: Core, timers: TimerQueue, events: Events) -> None:
        self._core = core
        self._timers = timers
        self._events = events
        self._single: Timer | None = None
        self._periodic: Timer | None = None

    def set_timer_op(self, deadline_ns: int, *_: int) -> int:
        """Hypercall 15: fire at ``deadline_ns``; 0 stops."""
        self.stop_single()
        if deadline_ns:
            self.start_single(deadline_ns)
        return 0

    def start_single(self, deadline_ns: int) -> None:
        """Fire once at ``deadline_ns``; at once if that has passed."""
        self.stop_single()
        if deadline_ns <= self._core.now_ns():
            self._events.raise_virq(abi.VIRQ_TIMER)
        elif deadline_ns < NEVER_NS:
            self._single = self._timers.at(deadline_ns, self._fire)

    def stop_single(self) -> None:
        if self._single is not None:
            self._single.cancel()
            self._single = None

    def start_periodic(self, period_ns: int) -> None:
        """Fire every ``period_ns``. Raises XenError EINVAL for less than a millisecond."""
        if not MIN_PERIOD_NS <= period_ns < NEVER_NS:
            raise XenError(abi.XEN_EINVAL)
        self.stop_periodic()
        self._arm_periodic(period_ns)

    def stop_periodic(self) -> None:
        if self._periodic is not None:
            self._periodic.cancel()
            self._periodic = None

    def _fire(self) -> None:
        self._single = None
        self._events.raise_virq(abi.VIRQ_TIMER)

    def _arm_periodic(self, period_ns: int) -> None:
        def tick() -> None:
            self._events.raise_virq(abi.VIRQ_TIMER)
            self._arm_periodic(period_ns)

        self._periodic = self._timers.at(self._core.now_ns() + period_ns, tick)
