# SPDX-License-Identifier: GPL-2.0-or-later
"""What a hypercall needs of the compiled core, and the guest's pointers, which nobody trusts.

Handlers raise :class:`XenError` for whatever the guest did wrong; the dispatch turns it into the
negative error number that the guest sees. :class:`Fault` is the one for pointers.
"""

from __future__ import annotations

from struct import Struct
from typing import Protocol

from bt.xen import abi


class Core(Protocol):
    """The vCPU, as far as hypercalls in Python use it. Called on the vCPU's thread only."""

    def now_ns(self) -> int:
        """Virtual nanoseconds since power-on: also the guest's TSC (1 GHz)."""
        ...

    def read_virtual(self, gva: int, length: int, /) -> bytes | None:
        """Memory with the rights of the guest's kernel, 1 MB at most; None if not all mapped."""
        ...

    def write_virtual(self, gva: int, data: bytes, /) -> bool:
        """The same for writing; False if not all is mapped writable (the start may be written)."""
        ...

    def xen_set_vcpu_info(self, gpa: int, /) -> None:
        """Where struct vcpu_info lies from now on: its first two bytes gate the event upcall."""
        ...

    def xen_get_writable(self, pfn: int, /) -> bool:
        """Keep one of the guest's pages from ever becoming a page table: the VMM writes there.

        False if the page is not the guest's, or is a page table or descriptor table already.
        """
        ...

    def xen_share(self, pfn: int, writable: bool, /) -> None:
        """Let the guest map a frame of the VMM's."""
        ...

    def xen_block(self) -> None:
        """Halt after this hypercall, until an event can be delivered or :meth:`xen_wake`."""
        ...

    def xen_wake(self) -> None:
        """Go on after :meth:`xen_block`. Does nothing to a vCPU that runs."""
        ...


class XenError(Exception):
    """The hypercall fails: it returns -``errno`` (one of abi.XEN_E...)."""

    def __init__(self, errno: int) -> None:
        super().__init__(errno)
        self.errno = errno


class Fault(XenError):
    """A pointer from the guest leads nowhere: -EFAULT."""

    def __init__(self) -> None:
        super().__init__(abi.XEN_EFAULT)


class GuestMemory:
    """Reads and writes through guest-virtual addresses. Raises Fault."""

    def __init__(self, core: Core) -> None:
        self._read = core.read_virtual
        self._write = core.write_virtual

    def read(self, gva: int, length: int) -> bytes:
        """``length`` bytes (0 to 1 MB)."""
        if length == 0:
            return b""
        _check(gva, length)
        data = self._read(gva, length)
        if data is None:
            raise Fault
        return data

    def write(self, gva: int, data: bytes) -> None:
        """Write ``data``; with a Fault, its first pages may have been written."""
        if not data:
            return
        _check(gva, len(data))
        if not self._write(gva, data):
            raise Fault

    def unpack(self, gva: int, layout: Struct) -> tuple:
        """The fields of the structure at ``gva``."""
        return layout.unpack(self.read(gva, layout.size))

    def pack(self, gva: int, layout: Struct, *fields: int | bytes) -> None:
        """Write a structure. Padding becomes zero."""
        self.write(gva, layout.pack(*fields))


def _check(gva: int, length: int) -> None:
    """Canonical, no wrap, and not in the part of the address space that is Xen's own."""
    end = gva + length
    if end > 1 << 47 and not (abi.HYPERVISOR_VIRT_END <= gva and end <= 1 << 64):
        raise Fault
