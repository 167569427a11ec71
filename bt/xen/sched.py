# SPDX-License-Identifier: GPL-2.0-or-later
"""sched_op (29): wait for an event channel, and the end of the domain.

SCHEDOP_block, which ends every idle moment of a guest, is compiled (bt/core/xen.pxi).
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from bt.machine.timers import Timer, TimerQueue
from bt.xen import abi
from bt.xen.events import Events
from bt.xen.guest import Core, GuestMemory, XenError
from bt.xen.timer import NEVER_NS

#: Ports one SCHEDOP_poll may name, as in Xen.
MAX_POLL = 128


class Sched:
    """Polling and shutdown."""

    def __init__(self, core: Core, guest: GuestMemory, timers: TimerQueue, events: Events,
                 on_shutdown: Callable[[int], None]) -> None:
        self._core = core
        self._guest = guest
        self._timers = timers
        self._events = events
        self._on_shutdown = on_shutdown
        self._polled: frozenset[int] | None = None
        self._timeout: Timer | None = None
        events.on_pending = self._pending

    def sched_op(self, operation: int, pointer: int, *_: int) -> int:
        if operation == abi.SCHEDOP_yield:
            return 0
        if operation == abi.SCHEDOP_shutdown:
            (reason,) = self._guest.unpack(pointer, abi.SCHED_SHUTDOWN)
            return self._shutdown(reason & 0xFF)
        if operation == abi.SCHEDOP_poll:
            return self._poll(pointer)
        raise XenError(abi.XEN_ENOSYS)

    def shut_down(self, reason: int) -> None:
        """End the domain for ``reason``, one of abi.SHUTDOWN_..."""
        self._on_shutdown(reason)

    def _shutdown(self, reason: int) -> int:
        if reason == abi.SHUTDOWN_suspend:
            # Nothing here can save a domain; 1 tells it that the suspend was cancelled.
            return 1
        self.shut_down(reason)
        return 0

    def _poll(self, pointer: int) -> int:
        """Sleep until one of the ports is pending, masked or not, or until the timeout."""
        address, count, timeout = self._guest.unpack(pointer, abi.SCHED_POLL)
        if count > MAX_POLL:
            raise XenError(abi.XEN_EINVAL)
        ports = struct.unpack(f"<{count}I", self._guest.read(address, 4 * count))
        if any(port >= abi.EVTCHN_2L_NR_CHANNELS for port in ports):
            raise XenError(abi.XEN_EINVAL)
        if any(self._events.is_pending(port) for port in ports) or \
                self._events.upcall_pending and not self._events.upcall_masked:
            return 0
        if timeout and timeout <= self._core.now_ns():
            return 0
        self._polled = frozenset(ports)
        if 0 < timeout < NEVER_NS:
            self._timeout = self._timers.at(timeout, self._wake)
        self._core.xen_block()
        return 0

    def _pending(self, port: int) -> None:
        if self._polled is not None and (port in self._polled or self._events.upcall_pending):
            self._wake()

    def _wake(self) -> None:
        self._polled = None
        if self._timeout is not None:
            self._timeout.cancel()
            self._timeout = None
        self._core.xen_wake()
