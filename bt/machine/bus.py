# SPDX-License-Identifier: GPL-2.0-or-later
"""The x86 I/O port space: which device answers at which port, and which need not be asked.

A port access costs the guest an exit, and entering Python costs ten times that again. Most
accesses do not need it: polled status registers whose value changes only when the device changes
it, and ports where nothing is. Three tables therefore say for each port what the compiled core
may do by itself. It holds their addresses, so they are made once and never resized.

=========  =====================================================================
read_kind  0 nothing there: all ones. 1 ask the device. 2 published: byte reads
           are answered with ``value[port]``, wider ones ask the device.
write_kind 0 nothing there: dropped. 1 tell the device.
=========  =====================================================================

Devices are byte-wide unless they say otherwise with a true attribute ``wide``. A 2- or 4-byte
access to a byte-wide device becomes as many byte accesses at ascending ports, low byte first, as
an ISA bridge does it. The port an access starts at decides: where nothing is, the whole access
meets nothing, even if a device sits at the next port. (So does a PC's bridge for the one case that
matters: a 4-byte write at 0xcf8 is a PCI address, not a write to the reset register 0xcf9.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

PORTS = 0x10000

ABSENT = 0
ASK = 1
PUBLISHED = 2


class PortDevice(Protocol):
    """What :meth:`Bus.claim` takes."""

    def read_port(self, port: int, size: int) -> int:
        """The value at ``port``; only the low ``size`` bytes of it are used."""
        ...

    def write_port(self, port: int, size: int, value: int) -> None:
        """``value`` fits in ``size`` bytes; size is 1 unless the device is ``wide``."""
        ...


class Bus:
    """Ports 0 to 0xffff. Belongs to the vCPU's thread."""

    def __init__(self) -> None:
        self.read_kind = bytearray(PORTS)
        self.write_kind = bytearray(PORTS)
        self.value = bytearray(PORTS)
        # Bound methods by port: one dictionary look-up on the way to a device.
        self._reader: dict[int, Callable[[int, int], int]] = {}
        self._writer: dict[int, Callable[[int, int, int], None]] = {}
        self._wide: set[int] = set()

    def claim(self, device: PortDevice, first_port: int, count: int) -> None:
        """``device`` answers at ``count`` ports from ``first_port``; a later claim wins."""
        for port in range(first_port, first_port + count):
            self._reader[port] = device.read_port
            self._writer[port] = device.write_port
            self.read_kind[port] = ASK
            self.write_kind[port] = ASK
            if getattr(device, "wide", False):
                self._wide.add(port)
            else:
                self._wide.discard(port)

    def publish(self, port: int, value: int | None) -> None:
        """Answer byte reads of ``port`` with ``value`` until told otherwise; None: ask again.

        Only for a claimed port, and only while a read has no side effect.
        """
        if value is None:
            self.read_kind[port] = ASK
        else:
            self.value[port] = value
            self.read_kind[port] = PUBLISHED

    def read(self, port: int, size: int) -> int:
        """What the guest's IN of ``size`` (1, 2 or 4) bytes gives."""
        if size == 1:
            kind = self.read_kind[port]
            if kind == PUBLISHED:
                return self.value[port]
            return self._reader[port](port, 1) & 0xFF if kind else 0xFF
        mask = (1 << (8 * size)) - 1
        if not self.read_kind[port]:
            return mask
        if port in self._wide:
            return self._reader[port](port, size) & mask
        value = 0
        for i in range(size):
            value |= self.read((port + i) & 0xFFFF, 1) << (8 * i)
        return value

    def write(self, port: int, size: int, value: int) -> None:
        """The guest's OUT of the low ``size`` (1, 2 or 4) bytes of ``value``."""
        if not self.write_kind[port]:
            return
        if size == 1:
            self._writer[port](port, 1, value & 0xFF)
        elif port in self._wide:
            self._writer[port](port, size, value & ((1 << (8 * size)) - 1))
        else:
            for i in range(size):
                self.write((port + i) & 0xFFFF, 1, value >> (8 * i))
