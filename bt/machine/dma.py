# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest RAM as a device on the bus reaches it: by guest-physical address, every range checked.

A page that was executed is cached in translated form by the vCPU. Before a device writes to RAM the
vCPU must be told, or the guest would go on running the old bytes: ``writable`` does that. A view
that it gave is good until the guest runs again, no longer.
"""

from __future__ import annotations

from collections.abc import Callable

from bt.machine.ram import Ram


class DmaError(Exception):
    """A range that is not all RAM. The device that was given it decides what that means."""


class Dma:
    """Views of guest RAM for devices; belongs to the vCPU's thread.

    ``write_begin(gpa, length)``: the vCPU's ``dma_write_begin``, called with ranges inside RAM.
    ``contains`` and ``low_end`` are the RAM's.
    """

    def __init__(self, ram: Ram, write_begin: Callable[[int, int], None]) -> None:
        self.low_end = ram.low_end
        self.contains = ram.contains
        self.ram = ram.view
        self.write_begin = write_begin

    def check(self, gpa: int, length: int) -> None:
        """Raise DmaError unless ``length`` bytes from ``gpa`` are RAM (none at all are not)."""
        if length <= 0 or not self.contains(gpa, length):
            raise DmaError(f"{gpa:#x}+{length:#x} is not RAM")

    def readable(self, gpa: int, length: int) -> memoryview:
        """The guest's own bytes, not a copy. Raises DmaError."""
        self.check(gpa, length)
        return self.ram[gpa:gpa + length]

    def writable(self, gpa: int, length: int) -> memoryview:
        """The same, to be written before the guest runs again. Raises DmaError."""
        self.check(gpa, length)
        self.write_begin(gpa, length)
        return self.ram[gpa:gpa + length]
