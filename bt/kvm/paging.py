# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's page tables, walked by hand (Intel SDM 3A, 4.3-4.5), for debuggers and reports.

KVM_TRANSLATE would do it too, but does not say whether a page may be written. Nothing is changed:
no accessed bits are set.
"""

from __future__ import annotations

from typing import NamedTuple

from bt.machine.ram import Ram

_PRESENT, _WRITE, _LARGE = 1, 2, 0x80
_CR0_PG, _CR4_PSE, _CR4_PAE, _EFER_LMA = 1 << 31, 1 << 4, 1 << 5, 1 << 10
_ADDRESS = 0x000F_FFFF_FFFF_F000


class Page(NamedTuple):
    """Where a linear address leads: a guest-physical one, and whether it may be written."""

    gpa: int
    writable: bool


def translate(ram: Ram, cr0: int, cr3: int, cr4: int, efer: int, linear: int) -> Page | None:
    """Walk with supervisor rights; None where nothing is mapped.

    Whether a page is writable is what the tables say, whatever CR0.WP is.
    """
    if not cr0 & _CR0_PG:
        return Page(linear & 0xFFFF_FFFF, True)
    if not efer & _EFER_LMA:
        linear &= 0xFFFF_FFFF
    if not cr4 & _CR4_PAE:
        return _walk(ram, cr3 & 0xFFFF_F000, linear, (22, 12), 10, 4, bool(cr4 & _CR4_PSE))
    if efer & _EFER_LMA:
        if linear + (1 << 47) & (1 << 64) - 1 >= 1 << 48:
            return None     # not canonical
        return _walk(ram, cr3 & _ADDRESS, linear, (39, 30, 21, 12), 9, 8, True)
    # A PDPT entry has no write bit (SDM 3A, table 4-8), and no large pages.
    top = _entry(ram, (cr3 & 0xFFFF_FFE0) + 8 * (linear >> 30), 8)
    if top is None or not top & _PRESENT:
        return None
    return _walk(ram, top & _ADDRESS, linear, (21, 12), 9, 8, True)


def _walk(ram: Ram, table: int, linear: int, shifts: tuple[int, ...], bits: int, size: int,
          large: bool) -> Page | None:
    """From ``table`` down; ``shifts`` is where each level's index begins, ``bits`` long."""
    writable = True
    for shift in shifts:
        entry = _entry(ram, table + size * (linear >> shift & (1 << bits) - 1), size)
        if entry is None or not entry & _PRESENT:
            return None
        writable = writable and bool(entry & _WRITE)
        # Large pages end the walk: 2 MB and 4 MB, and 1 GB in the third level from below.
        if shift == 12 or (entry & _LARGE and large and shift <= 30):
            offset = (1 << shift) - 1
            base = entry & _ADDRESS & ~offset
            if size == 4 and shift == 22:
                base |= (entry >> 13 & 0xFF) << 32      # PSE-36 (SDM 3A, table 4-4)
            return Page(base | linear & offset, writable)
        table = entry & _ADDRESS
    raise AssertionError("the last level ends the walk")


def _entry(ram: Ram, gpa: int, size: int) -> int | None:
    if not ram.contains(gpa, size):
        return None
    return int.from_bytes(ram.view[gpa:gpa + size], "little")
