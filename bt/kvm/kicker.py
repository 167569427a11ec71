# SPDX-License-Identifier: GPL-2.0-or-later
"""Getting a vCPU out of the guest, from any thread and at a given time; no kick is ever lost.

KVM_RUN ends early in two ways. ``immediate_exit``, a byte of the shared page, stops it on the way
in. A signal stops it when it is in. Both are needed: the byte alone does not reach a guest that
runs, and a signal alone comes to nothing just before the call. The signal is blocked in the vCPU's
thread, and KVM_SET_SIGNAL_MASK lets it through during KVM_RUN only; nobody handles it, it stays
pending and is taken by sigtimedwait. So no handler is installed, which only the main thread could
do, and run() may be called on any thread. SIGURG it is: outside of run() it is ignored by default.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable

from bt.kvm import abi

SIGNAL = signal.SIGURG
_ONLY = frozenset({SIGNAL})


class Kicker:
    """Kicks for one vCPU. ``run_page``: struct kvm_run.

    ``set_mask(signals)`` tells KVM what is blocked while the guest runs. ``kicked`` says that the
    vCPU should come out, until :meth:`taken`.
    """

    def __init__(self, run_page: memoryview, set_mask: Callable[[set[int]], None]) -> None:
        self.kicked = False
        self._page = run_page
        self._set_mask = set_mask
        self._told: set[int] | None = None
        self._mask: set[int] = set()
        self._thread: int | None = None
        # Reentrant: a Python signal handler may kick while its thread is in here.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._deadline: int | None = None
        self._timer: threading.Thread | None = None
        self._closed = False

    # On the vCPU's thread

    def enter(self) -> None:
        """The calling thread runs the vCPU, or sleeps for it, until :meth:`leave`."""
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ONLY)
        if self._mask != self._told:
            self._set_mask({int(number) for number in self._mask} - {int(SIGNAL)})
            self._told = self._mask
        with self._lock:
            self._thread = threading.get_ident()

    def leave(self) -> None:
        """Undo :meth:`enter`. After this no signal is sent to the thread."""
        with self._lock:
            self._thread = None
        self.drain()
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def drain(self) -> None:
        """Take what signals are pending, so that the next KVM_RUN does not end at once."""
        while signal.sigtimedwait(_ONLY, 0) is not None:
            pass

    def taken(self) -> None:
        """The vCPU is out: the kick has been heard."""
        with self._lock:
            self.kicked = False
            self._page[abi.RUN_IMMEDIATE_EXIT] = 0

    def arm(self, host_ns: int | None) -> None:
        """Kick when time.monotonic_ns() is ``host_ns``; None: no more."""
        with self._lock:
            sooner = host_ns is not None and (self._deadline is None or host_ns < self._deadline)
            self._deadline = host_ns
            if sooner:
                if self._timer is None:
                    self._timer = threading.Thread(target=self._sleep, name="kvm timer",
                                                   daemon=True)
                    self._timer.start()
                self._changed.notify()

    def wait(self, host_ns: int | None) -> None:
        """Sleep until time.monotonic_ns() is ``host_ns`` or a kick, which is then taken."""
        self.enter()
        try:
            while not self.kicked:
                if host_ns is None:
                    signal.sigwaitinfo(_ONLY)
                else:
                    left = host_ns - time.monotonic_ns()
                    if left <= 0:
                        break
                    signal.sigtimedwait(_ONLY, left / 1e9)
            self.taken()
        finally:
            self.leave()

    # From any thread

    def kick(self) -> None:
        """Get the vCPU out of run or wait: this one, or the next."""
        with self._lock:
            self.kicked = True
            self._page[abi.RUN_IMMEDIATE_EXIT] = 1
            if self._thread is not None:
                signal.pthread_kill(self._thread, SIGNAL)

    def close(self) -> None:
        """End the timer's thread."""
        with self._lock:
            self._closed = True
            self._changed.notify()

    def _sleep(self) -> None:
        """The timer's thread."""
        with self._changed:
            while not self._closed:
                if self._deadline is None:
                    self._changed.wait()
                    continue
                left = self._deadline - time.monotonic_ns()
                if left > 0:
                    self._changed.wait(left / 1e9)
                    continue
                self._deadline = None
                self.kick()
