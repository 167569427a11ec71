# SPDX-License-Identifier: GPL-2.0-or-later
"""Descriptors of the host that devices wait for: sockets, a TAP.

One thread sleeps in epoll(7) for all of them and posts what comes to the vCPU's thread, where
devices live. Each watch fires once and must be armed again, so a descriptor that stays ready while
the guest has no room for its data costs nothing. The thread starts with the first watch and has no
time-outs: it does nothing unless something happens.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
#: Reported whether asked for or not: the other side is gone.
GONE = select.EPOLLHUP | select.EPOLLERR


class Watch:
    """One descriptor. ``ready(events)`` is called on the vCPU's thread, once for each ``arm``."""

    def __init__(self, watcher: HostWatcher, fd: int, ready: Callable[[int], None]) -> None:
        self._watcher = watcher
        self._fd = fd
        self._ready = ready
        self._alive = True

    def arm(self, events: int) -> None:
        """Wait for READ and WRITE as given; with neither, for GONE alone."""
        if self._alive:
            self._watcher._epoll.modify(self._fd, events | select.EPOLLONESHOT)

    def stop(self) -> None:
        """Forget the descriptor; before it is closed. Nothing more is called."""
        if self._alive:
            self._alive = False
            self._watcher._forget(self._fd)

    def _fire(self, events: int) -> None:
        # Posted some time ago: it may have been stopped since.
        if self._alive:
            self._ready(events)


class HostWatcher:
    """``post(call)``: Machine.post. Everything but the waiting happens on the vCPU's thread."""

    def __init__(self, post: Callable[[Callable[[], None]], None]) -> None:
        self._post = post
        self._epoll = select.epoll()
        self._watches: dict[int, Watch] = {}
        self._thread: threading.Thread | None = None
        self._wake_fd = -1

    def watch(self, fd: int, ready: Callable[[int], None]) -> Watch:
        """Watch ``fd``; not armed yet."""
        watch = self._watches[fd] = Watch(self, fd, ready)
        # With no events and one shot, nothing but GONE could be reported, and that only once.
        self._epoll.register(fd, select.EPOLLONESHOT)
        if self._thread is None:
            self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC)
            self._epoll.register(self._wake_fd, READ)
            self._thread = threading.Thread(target=self._wait, name="host-watcher", daemon=True)
            self._thread.start()
        return watch

    def close(self) -> None:
        """End the thread. Watches are of no use afterwards."""
        if self._thread is not None:
            os.eventfd_write(self._wake_fd, 1)
            self._thread.join()
            self._thread = None
            os.close(self._wake_fd)
        self._epoll.close()

    def _forget(self, fd: int) -> None:
        del self._watches[fd]
        self._epoll.unregister(fd)

    def _wait(self) -> None:
        while True:
            for fd, events in self._epoll.poll():
                if fd == self._wake_fd:
                    return
                watch = self._watches.get(fd)
                if watch is not None:
                    self._post(lambda watch=watch, events=events: watch._fire(events))
