# SPDX-License-Identifier: GPL-2.0-or-later
"""What every transport has registers for (virtio 1.2, 2 and 3.1): status, features, queues.

A transport (pci.py, mmio.py) says where they are, and how an interrupt gets to the driver.
"""

from __future__ import annotations

from collections.abc import Callable

from bt.machine.dma import Dma
from bt.virtio.device import F_VERSION_1, QUEUE_FEATURES, VirtioDevice
from bt.virtio.queue import Virtqueue

# Device status bits (2.1).
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 64, 128
#: Bits of the interrupt status: used buffers, configuration.
ISR_QUEUE, ISR_CONFIG = 1, 2


class Registers:
    """The registers of one device, and the `Transport` that the device is given.

    ``report(text)`` is told, in one line, when the driver breaks a rule.
    """

    def __init__(self, device: VirtioDevice, dma: Dma, report: Callable[[str], None]) -> None:
        self.device = device
        self._report = report
        device.attach(self, dma)
        self._offered = device.features | QUEUE_FEATURES
        self._generation = 0
        self._clear()

    def _clear(self) -> None:
        """Everything that a reset clears."""
        self._status = 0
        self._device_select = self._driver_select = self._queue_select = 0
        self._driver_features = 0
        self._isr = 0

    # For transports -----------------------------------------------------------------------------

    def _raise(self, queue: int | None) -> None:
        """Interrupt the driver for a queue, or (None) for the configuration."""
        raise NotImplementedError

    def _lower(self) -> None:
        """No interrupt is to be seen any more."""
        raise NotImplementedError

    # What the device calls ----------------------------------------------------------------------

    def queue_interrupt(self, index: int) -> None:
        self._raise(index)

    def config_interrupt(self) -> None:
        self._generation = (self._generation + 1) & 0xFF
        if self._status & DRIVER_OK:
            self._raise(None)

    def needs_reset(self, why: str) -> None:
        self._report(f"{self.device.name}: the driver broke a rule, device stopped: {why}")
        self._status |= NEEDS_RESET
        self.config_interrupt()

    # What the driver does -----------------------------------------------------------------------

    def _queue(self) -> Virtqueue | None:
        """The queue that is selected."""
        queues = self.device.queues
        return queues[self._queue_select] if self._queue_select < len(queues) else None

    @staticmethod
    def _half(features: int, select: int) -> int:
        return features >> 32 * select & 0xFFFF_FFFF if select < 2 else 0

    def _notify(self, index: int) -> None:
        # Nothing is taken from a queue before DRIVER_OK (2.1.2).
        if self._status & DRIVER_OK and index < len(self.device.queues) and \
                self.device.queues[index].ready:
            self.device.notify(index)

    def _write_device_select(self, value: int) -> None:
        self._device_select = value

    def _write_driver_select(self, value: int) -> None:
        self._driver_select = value

    def _write_driver_features(self, value: int) -> None:
        if self._driver_select < 2 and not self._status & FEATURES_OK:
            shift = 32 * self._driver_select
            self._driver_features &= ~(0xFFFF_FFFF << shift)
            self._driver_features |= value << shift

    def _write_status(self, value: int) -> None:
        if value == 0:
            self._clear()
            self.device.full_reset()
            self._lower()
            return
        new = value & ~self._status
        if new & FEATURES_OK:
            if self._driver_features & ~self._offered or not self._driver_features & F_VERSION_1:
                value &= ~FEATURES_OK  # the driver looks whether it stayed (3.1.1)
            else:
                self.device.agree(self._driver_features)
        # A driver may not take bits back but by a reset; it cannot clear NEEDS_RESET.
        self._status |= value & (ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED)

    def _write_queue_select(self, value: int) -> None:
        self._queue_select = value

    def _write_queue_size(self, value: int) -> None:
        queue = self._queue()
        if queue is not None and not queue.enabled:
            queue.size = value

    def _write_queue_enable(self, value: int) -> None:
        queue = self._queue()
        if queue is not None and value == 1 and not queue.enabled and self._status & FEATURES_OK \
                and not self._status & NEEDS_RESET:
            queue.enable()

    def _write_address(self, field: str, shift: int, size: int, value: int) -> None:
        """``size`` bytes of a queue's address, from bit ``shift``. field: its name in Virtqueue."""
        queue = self._queue()
        if queue is not None and not queue.enabled:
            mask = ((1 << 8 * size) - 1) << shift
            setattr(queue, field, getattr(queue, field) & ~mask | value << shift)
