# SPDX-License-Identifier: GPL-2.0-or-later
"""memory_op (12): the memory map, the balloon, and where the machine-to-physical table is.

A page's machine frame always has the number of the page, so giving memory back and taking it again
returns the same frame: ballooning is bookkeeping here. A released frame stays out of everybody
else's hands, so a mapping that the guest keeps of it harms nobody.
"""

from __future__ import annotations

import struct

from bt.boot.xen import XenDomain
from bt.machine.ram import Ram
from bt.xen import abi
from bt.xen.frames import m2p_window
from bt.xen.guest import GuestMemory, XenError
from bt.xen.store import DOMAIN_ID

_INVALID_M2P = (1 << 64) - 1
#: Largest extent of an unprivileged domain: 2 MB (Xen: CONFIG_DOMU_MAX_ORDER).
MAX_ORDER = 9
# Extents of one list that are read at a time.
_CHUNK = 512


class Memory:
    """What memory_op knows of a domain. ``released`` holds the page frames it gave back."""

    def __init__(self, guest: GuestMemory, ram: Ram, domain: XenDomain) -> None:
        self._guest = guest
        self._ram = ram
        self._nr_pages = domain.nr_pages
        self._m2p = domain.m2p_gpa
        self.released: set[int] = set()
        self._operations = {
            abi.XENMEM_increase_reservation: self._increase,
            abi.XENMEM_decrease_reservation: self._decrease,
            abi.XENMEM_maximum_ram_page: lambda pointer: self._nr_pages - 1,
            abi.XENMEM_current_reservation: self._current,
            abi.XENMEM_maximum_reservation: self._maximum,
            abi.XENMEM_populate_physmap: self._populate,
            abi.XENMEM_memory_map: self._memory_map,
            abi.XENMEM_exchange: self._exchange,
            abi.XENMEM_machphys_mapping: self._machphys_mapping,
            abi.XENMEM_maximum_gpfn: self._maximum_gpfn,
        }

    def memory_op(self, operation: int, pointer: int, *_: int) -> int:
        handler = self._operations.get(operation)
        if handler is None:
            raise XenError(abi.XEN_ENOSYS)
        return handler(pointer)

    # Questions ----------------------------------------------------------------------------------

    def _check_domain(self, pointer: int) -> None:
        (domid,) = struct.unpack("<H", self._guest.read(pointer, 2))
        if not _is_self(domid):
            raise XenError(abi.XEN_EPERM if domid == 0 else abi.XEN_ESRCH)

    def _current(self, pointer: int) -> int:
        self._check_domain(pointer)
        return self._nr_pages - len(self.released)

    def _maximum(self, pointer: int) -> int:
        self._check_domain(pointer)
        return self._nr_pages

    def _maximum_gpfn(self, pointer: int) -> int:
        self._check_domain(pointer)
        return self._nr_pages - 1

    def _memory_map(self, pointer: int) -> int:
        entries, buffer = self._guest.unpack(pointer, abi.MEMORY_MAP)
        if entries:
            self._guest.pack(buffer, abi.E820_ENTRY, 0, self._nr_pages << abi.PAGE_SHIFT,
                             abi.E820_RAM)
        self._guest.pack(pointer, abi.MEMORY_MAP, min(entries, 1), buffer)
        return 0

    def _machphys_mapping(self, pointer: int) -> int:
        start = abi.MACH2PHYS_VIRT_START + (m2p_window(self._nr_pages) << abi.PAGE_SHIFT)
        self._guest.pack(pointer, abi.MACHPHYS_MAPPING, start, abi.MACH2PHYS_VIRT_END,
                         self._nr_pages - 1)
        return 0

    # The balloon: each returns how many extents it did ----------------------------------------

    def _reservation(self, pointer: int) -> tuple[int, int, int]:
        """(list address, extents, order); no extents if the request makes no sense, as in Xen."""
        start, extents, order, _flags, domid = self._guest.unpack(pointer, abi.MEMORY_RESERVATION)
        if not _is_self(domid) or order > MAX_ORDER:
            extents = 0
        # More cannot succeed, so looking at them would be work for nothing.
        return start, min(extents, self._nr_pages + 1), order

    def _extents(self, start: int, extents: int):
        """(index, value) of the entries of a list; ends where the list cannot be read."""
        for first in range(0, extents, _CHUNK):
            count = min(_CHUNK, extents - first)
            try:
                values = struct.unpack(f"<{count}Q",
                                       self._guest.read(start + first * 8, count * 8))
            except XenError:
                # A list may end before the memory does: the entries that can be read still count.
                for index in range(first, first + count):
                    try:
                        data = self._guest.read(start + index * 8, 8)
                    except XenError:
                        return
                    yield index, int.from_bytes(data, "little")
                continue
            yield from enumerate(values, first)

    def _increase(self, pointer: int) -> int:
        """Frames without a place to appear at: there are none beyond the domain's own."""
        self._reservation(pointer)
        return 0

    def _decrease(self, pointer: int) -> int:
        start, extents, order = self._reservation(pointer)
        done = 0
        for _index, frame in self._extents(start, extents):
            pages = range(frame, frame + (1 << order))
            if pages.stop > self._nr_pages or not self.released.isdisjoint(pages):
                break
            self.released.update(pages)
            for page in pages:
                self._set_m2p(page, _INVALID_M2P)
            done += 1
        return done

    def _populate(self, pointer: int) -> int:
        start, extents, order = self._reservation(pointer)
        done = 0
        for index, page in self._extents(start, extents):
            pages = range(page, page + (1 << order))
            if not self.released.issuperset(pages):
                break
            try:
                # The answer is where the machine frames are: at the same numbers.
                self._guest.write(start + index * 8, page.to_bytes(8, "little"))
            except XenError:
                break
            self.released.difference_update(pages)
            for number in pages:
                self._set_m2p(number, number)
            done += 1
        return done

    def _exchange(self, pointer: int) -> int:
        """Trade frames for ones that are contiguous: all are, so the same ones come back.

        Anything that would move a page to another frame is refused with -ENOMEM.
        """
        data = self._guest.read(pointer, abi.MEMORY_EXCHANGE_SIZE)
        size = abi.MEMORY_RESERVATION.size
        given = abi.MEMORY_RESERVATION.unpack_from(data, 0)
        wanted = abi.MEMORY_RESERVATION.unpack_from(data, size)
        (exchanged,) = struct.unpack_from("<Q", data, abi.MEMORY_EXCHANGE_NR)
        in_start, in_extents, in_order, _in_flags, in_domid = given
        out_start, out_extents, out_order, out_flags, out_domid = wanted
        if in_order > MAX_ORDER or out_order > MAX_ORDER:
            raise XenError(abi.XEN_EPERM)
        total = in_extents << in_order
        if (exchanged > in_extents or in_domid != out_domid
                or total != out_extents << out_order or total > self._nr_pages):
            raise XenError(abi.XEN_EINVAL)
        if not _is_self(in_domid):
            raise XenError(abi.XEN_EPERM)
        frames = self._pages(in_start, in_extents, in_order)
        pages = self._pages(out_start, out_extents, out_order)
        bits = out_flags & 0xFF
        top = 1 << (bits - abi.PAGE_SHIFT) if abi.PAGE_SHIFT < bits < 64 else self._nr_pages
        own = frames and max(frames) < min(self._nr_pages, top)
        if total and (not own or set(frames) != set(pages) or len(set(frames)) != total
                      or not self.released.isdisjoint(frames)):
            raise XenError(abi.XEN_ENOMEM)
        self._guest.write(pointer + abi.MEMORY_EXCHANGE_NR, struct.pack("<Q", in_extents))
        return 0

    def _pages(self, start: int, extents: int, order: int) -> list[int]:
        found = [page for _index, first in self._extents(start, extents)
                 for page in range(first, first + (1 << order))]
        if len(found) != extents << order:
            raise XenError(abi.XEN_EFAULT)
        return found

    def _set_m2p(self, frame: int, page: int) -> None:
        struct.pack_into("<Q", self._ram.view, self._m2p + frame * 8, page)


def _is_self(domid: int) -> bool:
    return domid in (abi.DOMID_SELF, DOMAIN_ID)
