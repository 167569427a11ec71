# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest-physical RAM: one anonymous mapping, shared with the CPU without a copy.

The host gives a page only when it is first touched, so a 2 GB guest that uses 60 MB costs 60 MB.
Nothing here may therefore clear memory: the kernel already hands out zeroes.

A PC with PCI has no RAM in the top of the first 4 GB: device registers are there, and the RAM that
would have been goes on at 4 GB. Here that *hole* is a part of the mapping that nobody touches.
"""

from __future__ import annotations

import mmap

from bt.errors import InputError

PAGE = 4096
MIN_BYTES = 1 << 20
MAX_BYTES = 64 << 30
#: Guest-physical addresses that are never RAM on a machine with PCI.
HOLE_START, HOLE_END = 0xC000_0000, 0x1_0000_0000
# <bits/mman-map-flags-generic.h>; Python's mmap module has the name from 3.13 on only.
_MAP_NORESERVE = 0x4000


class Ram:
    """``size`` bytes of RAM (a multiple of 4 KiB) at guest-physical addresses from 0 on.

    With ``hole``, none of it is between HOLE_START and HOLE_END. ``size`` is the first address
    above all RAM, ``low_end`` the first one that is not RAM, ``hole`` the hole's start and length
    (0, 0 if there is none), ``regions`` the RAM as (start, length). Raises InputError when the
    size is unreasonable or the host cannot map it.
    """

    def __init__(self, size: int, *, hole: bool = False) -> None:
        if not MIN_BYTES <= size <= MAX_BYTES:
            raise InputError(f"guest memory must be between 1M and 64G, not {size} bytes")
        self.size = self.low_end = size & ~(PAGE - 1)
        self.hole = (0, 0)
        if hole and self.size > HOLE_START:
            self.hole = (HOLE_START, HOLE_END - HOLE_START)
            self.low_end = HOLE_START
            self.size += HOLE_END - HOLE_START
        self.regions: tuple[tuple[int, int], ...] = ((0, self.low_end),)
        if self.size > self.low_end:
            self.regions += ((HOLE_END, self.size - HOLE_END),)
        try:
            self._map = mmap.mmap(-1, self.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
                                  | _MAP_NORESERVE)
        except (OSError, ValueError, OverflowError) as err:
            raise InputError(f"cannot map {self.size >> 20} MB of guest memory: {err}") from None
        self.view = memoryview(self._map)

    def contains(self, gpa: int, length: int) -> bool:
        """Whether all of ``gpa .. gpa+length-1`` is RAM. For addresses that a guest gives."""
        end = gpa + length
        return 0 <= gpa <= end and (end <= self.low_end or
                                    (self.hole[1] > 0 and HOLE_END <= gpa and end <= self.size))

    def _check(self, gpa: int, length: int) -> None:
        if not self.contains(gpa, length):
            raise InputError(
                f"guest-physical range {gpa:#x}+{length:#x} is outside {self.size >> 20} MB of RAM")

    def read(self, gpa: int, length: int) -> bytes:
        """Copy out ``length`` bytes. Raises InputError outside RAM."""
        self._check(gpa, length)
        return bytes(self.view[gpa:gpa + length])

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Copy ``data`` in. For loaders, before the guest runs. Raises InputError outside RAM."""
        self._check(gpa, len(data))
        self.view[gpa:gpa + len(data)] = data
