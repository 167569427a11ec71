# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtio over PCI (virtio 1.2, 4.1), without the legacy interface.

A driver finds four structures by vendor capabilities: common configuration, notifications,
interrupt status and the device's own configuration. All are in memory BAR 0, a page each; the
MSI-X table has BAR 1 to itself. A fifth capability is a window through which they can be reached
from configuration space.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from bt.devices.pci import CAP_VENDOR, PciFunction
from bt.machine.dma import Dma
from bt.virtio.device import VirtioDevice
from bt.virtio.registers import ISR_CONFIG, ISR_QUEUE, Registers

VENDOR = 0x1AF4
_FIRST_DEVICE = 0x1040  # + virtio device id (4.1.2.1)

# Where the structures are in BAR 0, and what the capabilities call them (4.1.4).
COMMON, ISR, DEVICE, NOTIFY = 0x0000, 0x1000, 0x2000, 0x3000
_PAGE = 0x1000
CFG_COMMON, CFG_NOTIFY, CFG_ISR, CFG_DEVICE, CFG_PCI = range(1, 6)
_NOTIFY_MULTIPLIER = 4

NO_VECTOR = 0xFFFF

# The common configuration (4.1.4.3) as one structure.
_LAYOUT = struct.Struct("<IIIIHHBBHHHHHQQQHH")
_CAPABILITY = struct.Struct("<BBBBHII")  # behind the two header bytes: length, type, bar, id, ...


class VirtioPci(Registers, PciFunction):
    """One virtio device as a function to put on a PciHost.

    ``report(text)`` is told, in one line, when the driver breaks a rule. ``msix``: offer MSI-X
    beside the interrupt pin.
    """

    def __init__(self, device: VirtioDevice, dma: Dma,
                 report: Callable[[str], None] = lambda text: None, *,
                 msix: bool = True) -> None:
        # Revision 1 and the transitional devices' subsystem rule: 4.1.2.1.
        PciFunction.__init__(self, VENDOR, _FIRST_DEVICE + device.device_id, device.pci_class,
                             revision=1, subsystem_vendor=VENDOR,
                             subsystem_id=0x40 + device.device_id, interrupt_pin=1)
        Registers.__init__(self, device, dma, report)
        self.add_bar(0, "mem32", 4 * _PAGE)
        for kind, offset, length in ((CFG_COMMON, COMMON, _LAYOUT.size), (CFG_ISR, ISR, 1),
                                     (CFG_DEVICE, DEVICE, _PAGE)):
            self._structure(kind, offset, length)
        self._structure(CFG_NOTIFY, NOTIFY, _NOTIFY_MULTIPLIER * max(len(device.queues), 1),
                        struct.pack("<I", _NOTIFY_MULTIPLIER))
        # The window: bar, offset, length and data are the driver's to write (4.1.4.9).
        self._window = self._structure(CFG_PCI, 0, 0, bytes(4),
                                       writable=bytes((0, 0, 0xFF, 0, 0, 0)) + b"\xff" * 12)
        self._vectors = 0
        if msix:
            self._vectors = len(device.queues) + 1
            self.add_bar(1, "mem32", _PAGE)
            self.add_msix(self._vectors, 1)

    def _structure(self, kind: int, offset: int, length: int, more: bytes = b"",
                   writable: bytes = b"") -> int:
        size = 2 + _CAPABILITY.size + len(more)
        return self.add_capability(
            CAP_VENDOR, _CAPABILITY.pack(size, kind, 0, 0, 0, offset, length) + more, writable)

    def _clear(self) -> None:
        super()._clear()
        self._config_vector = NO_VECTOR
        self._queue_vectors = [NO_VECTOR] * len(self.device.queues)

    def _raise(self, queue: int | None) -> None:
        if self.msix_enabled:
            vector = self._config_vector if queue is None else self._queue_vectors[queue]
            if vector != NO_VECTOR:
                self.msix_notify(vector)
            return
        self._isr |= ISR_CONFIG if queue is None else ISR_QUEUE
        self.set_irq(True)

    def _lower(self) -> None:
        self.set_irq(False)

    # BAR 0 ------------------------------------------------------------------------------------

    def read_bar(self, bar: int, offset: int, size: int) -> int:
        if bar != 0:
            return 0
        page, at = offset & ~(_PAGE - 1), offset & (_PAGE - 1)
        if page == COMMON:
            return int.from_bytes(self._common()[at:at + size], "little")
        if page == ISR:
            if at:
                return 0
            isr, self._isr = self._isr, 0  # reading acknowledges (4.1.4.5)
            self.set_irq(False)
            return isr
        if page == DEVICE:
            return int.from_bytes(self.device.config_read(at, size), "little")
        return 0

    def write_bar(self, bar: int, offset: int, size: int, value: int) -> None:
        if bar != 0:
            return
        page, at = offset & ~(_PAGE - 1), offset & (_PAGE - 1)
        if page == NOTIFY:
            self._notify(at // _NOTIFY_MULTIPLIER)
        elif page == COMMON:
            write = self._WRITERS.get((at, size))
            if write is not None:
                write(self, value)
        elif page == DEVICE:
            self.device.config_write(at, value.to_bytes(size, "little"))

    # The window in configuration space ---------------------------------------------------------

    def config_read(self, offset: int, size: int) -> int:
        if self._window + 16 <= offset < self._window + 20:
            bar, at, length = self._window_target()
            if length:
                value = self.bar_read(bar, at, length) & ((1 << 8 * length) - 1)
                struct.pack_into("<I", self.config, self._window + 16, value)
        return super().config_read(offset, size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        super().config_write(offset, size, value)
        if self._window + 16 <= offset < self._window + 20:
            bar, at, length = self._window_target()
            if length:
                data = self.config[self._window + 16:self._window + 16 + length]
                self.bar_write(bar, at, length, int.from_bytes(data, "little"))

    def _window_target(self) -> tuple[int, int, int]:
        """(BAR, offset, length) as the driver wrote them; length 0 if they are not good."""
        bar = self.config[self._window + 4]
        at, length = struct.unpack_from("<II", self.config, self._window + 8)
        if bar not in self.bars or length not in (1, 2, 4) or at % length or \
                at + length > self.bars[bar].size:
            return 0, 0, 0
        return bar, at, length

    # Common configuration ----------------------------------------------------------------------

    def _common(self) -> bytes:
        queue = self._queue()
        fields: tuple[int, ...] = (0,) * 7
        vector = NO_VECTOR
        if queue is not None:
            vector = self._queue_vectors[self._queue_select]
            fields = (queue.size, queue.enabled, self._queue_select, queue.descriptors,
                      queue.driver, queue.device, self._queue_select)
        size, enabled, notify_off, descriptors, driver, device, data = fields
        return _LAYOUT.pack(
            self._device_select, self._half(self._offered, self._device_select),
            self._driver_select, self._half(self._driver_features, self._driver_select),
            self._config_vector, len(self.device.queues), self._status, self._generation,
            self._queue_select, size, vector, enabled, notify_off, descriptors, driver, device,
            data, 0)

    def _write_config_vector(self, value: int) -> None:
        self._config_vector = value if value < self._vectors else NO_VECTOR

    def _write_queue_vector(self, value: int) -> None:
        if self._queue() is not None:
            self._queue_vectors[self._queue_select] = value if value < self._vectors else NO_VECTOR

    #: (offset, size) of a field, as drivers must access it (4.1.3.1): what a write does.
    _WRITERS: dict[tuple[int, int], Callable[[VirtioPci, int], None]] = {
        (0, 4): Registers._write_device_select,
        (8, 4): Registers._write_driver_select,
        (12, 4): Registers._write_driver_features,
        (16, 2): _write_config_vector,
        (20, 1): Registers._write_status,
        (22, 2): Registers._write_queue_select,
        (24, 2): Registers._write_queue_size,
        (26, 2): _write_queue_vector,
        (28, 2): Registers._write_queue_enable,
    }


def _address_writer(field: str, shift: int, size: int) -> Callable[[VirtioPci, int], None]:
    return lambda self, value: self._write_address(field, shift, size, value)


for _at, _field in ((32, "descriptors"), (40, "driver"), (48, "device")):
    for _shift, _size in ((0, 8), (0, 4), (32, 4)):
        VirtioPci._WRITERS[_at + _shift // 8, _size] = _address_writer(_field, _shift, _size)
