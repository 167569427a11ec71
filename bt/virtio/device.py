# SPDX-License-Identifier: GPL-2.0-or-later
"""What every virtio device has, whatever it does and whatever bus it is on (virtio 1.2, 2).

A device says what it is by class attributes and takes its requests from ``queues`` when it is
notified. The transport (pci.py) does the status byte, features and interrupts, and calls the
methods here; a device never sees a register of it.
"""

from __future__ import annotations

from typing import Protocol

from bt.machine.dma import Dma
from bt.virtio.queue import Virtqueue

# Reserved feature bits (6): the transport's and the queue's own.
F_INDIRECT_DESC = 1 << 28
F_EVENT_IDX = 1 << 29
F_VERSION_1 = 1 << 32
QUEUE_FEATURES = F_INDIRECT_DESC | F_EVENT_IDX | F_VERSION_1


class Transport(Protocol):
    """What a device asks of the bus it is on."""

    def queue_interrupt(self, index: int) -> None:
        """Used buffers are in queue ``index``."""

    def config_interrupt(self) -> None:
        """The configuration has changed."""

    def needs_reset(self, why: str) -> None:
        """The device cannot go on: DEVICE_NEEDS_RESET, and a report for the user."""


class VirtioDevice:
    """Base class. ``features`` are offered to the driver; the transport adds QUEUE_FEATURES.

    ``queue_sizes``: one number a queue, each a power of 2 up to 1024. The methods that come first
    are for devices to override; all run on the vCPU's thread, and none may raise for anything that
    a driver does.
    """

    name = "virtio"
    device_id = 0
    pci_class = 0xFF0000  # base class, sub-class, interface; this one is "none of the others"
    features = 0
    queue_sizes: tuple[int, ...] = ()

    def __init__(self) -> None:
        self.queues: list[Virtqueue] = []
        self.driver_features = 0  # agreed on; 0 until the driver has said FEATURES_OK
        self.why_broken: str | None = None
        self._transport: Transport | None = None

    # For devices to override ------------------------------------------------------------------

    def config_read(self, offset: int, length: int) -> bytes:
        """``length`` (1, 2, 4 or 8) bytes of the configuration; zeroes where there is none."""
        return bytes(length)

    def config_write(self, offset: int, data: bytes) -> None:
        """The driver wrote to the configuration."""

    def notify(self, index: int) -> None:
        """The driver has put chains into queue ``index``, or says so."""

    def reset(self) -> None:
        """The driver resets the device: forget what it asked for. The queues are reset already."""

    # What the transport calls -----------------------------------------------------------------

    def attach(self, transport: Transport, dma: Dma) -> None:
        """Make the queues. Once, before the guest runs."""
        self._transport = transport
        self.queues = [
            Virtqueue(dma, size, lambda why, index=index: self.broken(f"queue {index}: {why}"))
            for index, size in enumerate(self.queue_sizes)
        ]

    def agree(self, driver_features: int) -> None:
        """The driver's choice among the features offered is final."""
        self.driver_features = driver_features
        for queue in self.queues:
            queue.event_index = bool(driver_features & F_EVENT_IDX)
            queue.indirect = bool(driver_features & F_INDIRECT_DESC)

    def full_reset(self) -> None:
        """The driver wrote 0 to the status."""
        self.driver_features = 0
        self.why_broken = None
        for queue in self.queues:
            queue.reset()
        self.reset()

    # What devices call ------------------------------------------------------------------------

    def interrupt(self, index: int) -> None:
        """Chains were pushed to queue ``index``: interrupt the driver if it wants to hear of it."""
        if self._transport is not None and self.queues[index].wants_interrupt():
            self._transport.queue_interrupt(index)

    def config_changed(self) -> None:
        """Tell the driver to read the configuration again."""
        if self._transport is not None:
            self._transport.config_interrupt()

    def broken(self, why: str) -> None:
        """The driver broke a rule: the device does nothing more until it is reset."""
        if self.why_broken is not None:
            return
        self.why_broken = why
        for queue in self.queues:
            queue.ready = False
        if self._transport is not None:
            self._transport.needs_reset(why)
