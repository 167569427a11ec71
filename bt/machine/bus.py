# SPDX-License-Identifier: GPL-2.0-or-later
"""I/O ports and device memory: which device answers where, and which need not be asked.

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

Device memory (MMIO) is claimed by guest-physical range. Where RAM is, RAM answers; elsewhere the
core looks in ``mmio_ranges``, an array of 64-bit words: the number of ranges, then start and end
(exclusive) of each, sorted and disjoint. Where nobody claims anything, reads are all ones and
writes are dropped without Python.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable
from typing import Protocol

from bt.machine.fifo import Fifo

PORTS = 0x10000
#: Ranges of device memory at one time; each claim may cut an earlier one in two.
MAX_MMIO_CLAIMS = 512

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


class MmioDevice(Protocol):
    """What :meth:`Bus.claim_mmio` takes."""

    def has_mmio(self, gpa: int) -> bool:
        """Whether a device answers at ``gpa``."""
        return self._mmio_device(gpa) is not None

    def read_mmio(self, gpa: int, size: int) -> int:
        """The value at ``gpa``; only the low ``size`` (1, 2, 4 or 8) bytes of it are used."""
        ...

    def write_mmio(self, gpa: int, size: int, value: int) -> None:
        """``value`` fits in ``size`` bytes. No alignment is promised."""
        ...


class Bus:
    """Ports 0 to 0xffff, and device memory. Belongs to the vCPU's thread."""

    def __init__(self) -> None:
        self.read_kind = bytearray(PORTS)
        self.write_kind = bytearray(PORTS)
        self.value = bytearray(PORTS)
        self.fifo = Fifo()
        # Bound methods by port: one dictionary look-up on the way to a device.
        self._reader: dict[int, Callable[[int, int], int]] = {}
        self._writer: dict[int, Callable[[int, int, int], None]] = {}
        self._wide: set[int] = set()
        self.mmio_ranges = array("Q", bytes(8 * (1 + 4 * MAX_MMIO_CLAIMS)))
        self._mmio_claims: list[tuple[int, int, MmioDevice]] = []
        self._mmio_starts: list[int] = []
        self._mmio_devices: list[MmioDevice] = []

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

    def unclaim(self, device: PortDevice, first_port: int, count: int) -> None:
        """``device`` answers there no more: nothing does. Ports of other devices stay as they are.
        """
        for port in range(first_port, first_port + count):
            reader = self._reader.get(port)
            if getattr(reader, "__self__", None) is device:
                del self._reader[port], self._writer[port]
                self.read_kind[port] = self.write_kind[port] = ABSENT

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

    # Device memory ----------------------------------------------------------------------------

    def claim_mmio(self, device: MmioDevice, gpa: int, length: int) -> None:
        """``device`` answers at ``length`` bytes from ``gpa``, beside what it has already.

        Of two that claim an address the later wins; when it lets go, the earlier has it again.
        Raises ValueError for an empty range or the 513th.
        """
        if length <= 0 or gpa < 0 or len(self._mmio_claims) == MAX_MMIO_CLAIMS:
            raise ValueError(f"no device memory at {gpa:#x}+{length:#x}")
        self._mmio_claims.append((gpa, gpa + length, device))
        self._update_mmio()

    def unclaim_mmio(self, device: MmioDevice, gpa: int | None = None) -> None:
        """Undo the claim of ``device`` that starts at ``gpa``, or all of its claims."""
        self._mmio_claims = [claim for claim in self._mmio_claims
                             if claim[2] is not device or (gpa is not None and claim[0] != gpa)]
        self._update_mmio()

    def _update_mmio(self) -> None:
        """Cut the claims into disjoint ranges, and write those to the core's table."""
        edges = sorted({edge for start, end, _ in self._mmio_claims for edge in (start, end)})
        pieces: list[tuple[int, int, MmioDevice]] = []
        for start, end in zip(edges, edges[1:], strict=False):
            owner = next((device for first, last, device in reversed(self._mmio_claims)
                          if first <= start and end <= last), None)
            if owner is None:
                continue
            if pieces and pieces[-1][1] == start and pieces[-1][2] is owner:
                pieces[-1] = (pieces[-1][0], end, owner)
            else:
                pieces.append((start, end, owner))
        self._mmio_starts = [start for start, _, _ in pieces]
        self._mmio_devices = [device for _, _, device in pieces]
        table = self.mmio_ranges
        table[0] = len(pieces)
        for i, (start, end, _) in enumerate(pieces):
            table[1 + 2 * i] = start
            table[2 + 2 * i] = end

    def _mmio_device(self, gpa: int) -> MmioDevice | None:
        at = bisect_right(self._mmio_starts, gpa) - 1
        return self._mmio_devices[at] if at >= 0 and gpa < self.mmio_ranges[2 + 2 * at] else None

    def has_mmio(self, gpa: int) -> bool:
        """Whether a device answers at ``gpa``."""
        return self._mmio_device(gpa) is not None

    def read_mmio(self, gpa: int, size: int) -> int:
        """What a read of ``size`` (1, 2, 4 or 8) bytes gives where no RAM is.

        The first byte decides who is asked for all of them.
        """
        device = self._mmio_device(gpa)
        mask = (1 << (8 * size)) - 1
        return mask if device is None else device.read_mmio(gpa, size) & mask

    def write_mmio(self, gpa: int, size: int, value: int) -> None:
        """A write of the low ``size`` (1, 2, 4 or 8) bytes of ``value`` where no RAM is."""
        device = self._mmio_device(gpa)
        if device is not None:
            device.write_mmio(gpa, size, value & ((1 << (8 * size)) - 1))
