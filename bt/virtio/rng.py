# SPDX-License-Identifier: GPL-2.0-or-later
"""Entropy device (virtio 1.2, 5.4): one queue of buffers to fill with random bytes.

What it gives is bounded, so that a guest cannot make the host do nothing else: BURST bytes at once,
refilled every PERIOD of virtual time.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

from bt.machine.timers import TimerQueue
from bt.virtio.device import VirtioDevice

BURST = 64 * 1024
PERIOD_NS = 50_000_000


def seeded_source() -> Callable[[int], bytes]:
    """The same bytes in each run, for machines that repeat: nothing a guest may keep secrets by."""
    return random.Random(0).randbytes


class VirtioRng(VirtioDevice):
    """``source(length)`` gives random bytes; ``now_ns`` is virtual time."""

    name = "virtio-rng"
    device_id = 4
    pci_class = 0x100000  # encryption controller
    queue_sizes = (64,)

    def __init__(self, timers: TimerQueue, now_ns: Callable[[], int],
                 source: Callable[[int], bytes] = os.urandom) -> None:
        super().__init__()
        self._timers = timers
        self._now_ns = now_ns
        self._source = source
        self._left = BURST
        self._refilling = False

    def notify(self, index: int) -> None:
        queue = self.queues[0]
        while self._left and (chain := queue.pop()) is not None:
            if chain.readable_bytes or not chain.writable_bytes:
                self.broken("a buffer for random bytes that cannot be filled")
                return
            length = min(chain.writable_bytes, self._left)
            self._left -= length
            chain.write(self._source(length))
            queue.push(chain, length)
        self.interrupt(0)
        if self._left < BURST and not self._refilling:
            self._refilling = True
            self._timers.at(self._now_ns() + PERIOD_NS, self._refill)

    def _refill(self) -> None:
        self._refilling = False
        self._left = BURST
        self.notify(0)
