# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest-physical RAM: one anonymous mapping, shared with the CPU without a copy.

The host gives a page only when it is first touched, so a 2 GB guest that uses 60 MB costs 60 MB.
Nothing here may therefore clear memory: the kernel already hands out zeroes.
"""

from __future__ import annotations

import mmap

from bt.errors import InputError

PAGE = 4096
MIN_BYTES = 1 << 20
MAX_BYTES = 64 << 30
# <bits/mman-map-flags-generic.h>; Python's mmap module has the name from 3.13 on only.
_MAP_NORESERVE = 0x4000


class Ram:
    """RAM at guest-physical addresses ``0 .. size-1`` (bytes; a multiple of 4 KiB).

    Raises InputError when the size is unreasonable or the host cannot map it.
    """

    def __init__(self, size: int) -> None:
        if not MIN_BYTES <= size <= MAX_BYTES:
            raise InputError(f"guest memory must be between 1M and 64G, not {size} bytes")
        self.size = size & ~(PAGE - 1)
        try:
            self._map = mmap.mmap(-1, self.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
                                  | _MAP_NORESERVE)
        except (OSError, ValueError, OverflowError) as err:
            raise InputError(f"cannot map {self.size >> 20} MB of guest memory: {err}") from None
        self.view = memoryview(self._map)

    def _check(self, gpa: int, length: int) -> None:
        if gpa < 0 or length < 0 or gpa + length > self.size:
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
