# SPDX-License-Identifier: GPL-2.0-or-later
"""Frames that belong to the VMM: shared_info, the machine-to-physical table, the grant table.

Machine frames are numbered as guest-physical pages are: the guest's own are 0 .. nr_pages-1 and the
VMM's follow, in the same mapping, so that a page-table entry can name them. Which of them a guest
may map, and how, is said here; the page-table validation asks.
"""

from __future__ import annotations

from bt.errors import InputError
from bt.machine.ram import Ram
from bt.xen import abi

#: Frames of the grant table, 512 grants each. Given out one by one, as the guest asks.
GRANT_FRAMES = 32
_ENTRIES = 512
_SMALLEST_TLB = 64      # entries: CPU_TLB_DYN_MIN_BITS of QEMU is 6


def m2p_pages(nr_pages: int) -> int:
    """Pages of the machine-to-physical table: 8 bytes a guest page."""
    return -(-nr_pages // _ENTRIES)


def m2p_window(nr_pages: int) -> int:
    """Where in its mapping the machine-to-physical table is mapped once more, in pages.

    A kernel reads ``p2m[pfn]`` and ``m2p[mfn]`` by turns. Both tables begin at a multiple of 512
    pages, and here mfn is pfn, so entries that are read together would be in pages of one slot of
    the CPU's TLB (direct mapped, a power of two in size), which throw each other out at every turn:
    2 % of a boot of Linux. 21 pages more, modulo the smallest TLB, and they never meet.
    """
    return -(-m2p_pages(nr_pages) // _SMALLEST_TLB) * _SMALLEST_TLB + 21


def table_pages(pages: int) -> list[int]:
    """Page tables, L1 first, that map ``pages`` pages from the start of an L4 slot on."""
    counts = []
    for _ in range(3):
        pages = -(-pages // _ENTRIES)
        counts.append(pages)
    return counts


def vmm_frames(nr_pages: int) -> int:
    """How many frames RAM must have behind the guest's ``nr_pages``."""
    pages = m2p_pages(nr_pages)
    return 1 + pages + sum(table_pages(m2p_window(nr_pages) + pages)) + GRANT_FRAMES


class XenFrames:
    """The VMM's frames of one domain with ``nr_pages`` pages, given out in order, never back.

    ``writable``: frame numbers the guest may map read-write (shared_info and grant table);
    ``readonly``: those it may map read-only (the machine-to-physical table). All others above
    ``nr_pages`` are nobody's business. Raises InputError if RAM is too small.
    """

    def __init__(self, ram: Ram, nr_pages: int) -> None:
        self.ram = ram
        self.nr_pages = nr_pages
        self.next = nr_pages
        self.end = nr_pages + vmm_frames(nr_pages)
        self.writable: set[int] = set()
        self.readonly: range = range(0)
        if self.end << abi.PAGE_SHIFT > ram.size:
            raise InputError(f"a Xen domain of {nr_pages} pages needs {self.end} pages of RAM")

    def allocate(self, count: int = 1) -> int:
        """``count`` zeroed frames in a row; gives the number of the first."""
        first = self.next
        if first + count > self.end:
            raise InputError("the VMM's own frames are used up")
        self.next += count
        return first

    def share(self) -> int:
        """One zeroed frame that the guest may map read-write."""
        frame = self.allocate()
        self.writable.add(frame)
        return frame
