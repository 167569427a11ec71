# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtio over MMIO (virtio 1.2, 4.2), without the legacy interface: a window of registers and one
level-triggered interrupt line for each device, which the kernel is told of by ACPI.
"""

from __future__ import annotations

from collections.abc import Callable

from bt.machine.dma import Dma
from bt.virtio.device import VirtioDevice
from bt.virtio.registers import ISR_CONFIG, ISR_QUEUE, Registers

#: Bytes of a window: the registers, and the device's configuration from CONFIG on.
SIZE, CONFIG = 0x200, 0x100
_MAGIC, _VERSION, _VENDOR = 0x7472_6976, 2, 0x3149_4E52    # "virt"; "RNI1"
_NOTHING = 0xFFFF_FFFF      # length and address of a shared memory region there is none of


class VirtioMmio(Registers):
    """One virtio device at ``base``. ``line(level)`` is its interrupt line.

    ``report(text)`` is told, in one line, when the driver breaks a rule.
    """

    def __init__(self, device: VirtioDevice, dma: Dma, line: Callable[[bool], None],
                 report: Callable[[str], None] = lambda text: None, *, base: int) -> None:
        super().__init__(device, dma, report)
        self._line = line
        self._base = base

    def _raise(self, queue: int | None) -> None:
        self._isr |= ISR_CONFIG if queue is None else ISR_QUEUE
        self._line(True)

    def _lower(self) -> None:
        self._line(False)

    # Registers: 32 bits, at multiples of 4. Other accesses read as zero and change nothing. -------

    def read_mmio(self, gpa: int, size: int) -> int:
        offset = gpa - self._base
        if offset >= CONFIG:
            return int.from_bytes(self.device.config_read(offset - CONFIG, size), "little")
        if size != 4:
            return 0
        return self._read(offset)

    def _read(self, offset: int) -> int:
        queue = self._queue()
        match offset:
            case 0x000:
                return _MAGIC
            case 0x004:
                return _VERSION
            case 0x008:
                return self.device.device_id
            case 0x00C:
                return _VENDOR
            case 0x010:
                return self._half(self._offered, self._device_select)
            case 0x034:
                return queue.max_size if queue is not None else 0
            case 0x044:
                return int(queue is not None and queue.enabled)
            case 0x060:
                return self._isr
            case 0x070:
                return self._status
            case 0x0B0 | 0x0B4 | 0x0B8 | 0x0BC:
                return _NOTHING
            case 0x0FC:
                return self._generation
        return 0

    def write_mmio(self, gpa: int, size: int, value: int) -> None:
        offset = gpa - self._base
        if offset >= CONFIG:
            self.device.config_write(offset - CONFIG, value.to_bytes(size, "little"))
        elif size == 4:
            write = self._WRITERS.get(offset)
            if write is not None:
                write(self, value)

    def _write_acknowledge(self, value: int) -> None:
        self._isr &= ~value
        if not self._isr:
            self._lower()

    def _write_queue_ready(self, value: int) -> None:
        queue = self._queue()
        if value == 0 and queue is not None:
            # The driver takes its memory back (4.2.2.2); what the device still holds goes nowhere.
            queue.enabled = queue.ready = False
            return
        self._write_queue_enable(value)

    #: What a write to a register does, by offset.
    _WRITERS: dict[int, Callable[[VirtioMmio, int], None]] = {
        0x014: Registers._write_device_select,
        0x020: Registers._write_driver_features,
        0x024: Registers._write_driver_select,
        0x030: Registers._write_queue_select,
        0x038: Registers._write_queue_size,
        0x044: _write_queue_ready,
        0x050: Registers._notify,
        0x064: _write_acknowledge,
        0x070: Registers._write_status,
    }


def _address_writer(field: str, shift: int) -> Callable[[VirtioMmio, int], None]:
    return lambda self, value: self._write_address(field, shift, 4, value)


for _at, _field in ((0x080, "descriptors"), (0x090, "driver"), (0x0A0, "device")):
    for _shift in (0, 32):
        VirtioMmio._WRITERS[_at + _shift // 8] = _address_writer(_field, _shift)
