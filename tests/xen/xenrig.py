# SPDX-License-Identifier: GPL-2.0-or-later
"""A Xen domain without a CPU: flat guest memory, a clock that is set, and a log of what was asked.

Guest-virtual address = BASE + guest-physical address, for the domain's own pages only.
"""

from __future__ import annotations

import struct

from bt.boot.entry import EntryState
from bt.boot.xen import XenDomain
from bt.machine.ram import Ram
from bt.machine.timers import TimerQueue
from bt.xen import abi
from bt.xen.domain import XenDomainState
from bt.xen.frames import XenFrames, vmm_frames

BASE = 0xFFFF_FFFF_8000_0000
NR_PAGES = 512
CONSOLE, XENSTORE, SCRATCH = 3 << 12, 4 << 12, 16 << 12
#: Numbers of hypercalls, <xen/xen.h>.
MEMORY_OP, SET_TIMER_OP, XEN_VERSION, CONSOLE_IO, GRANT_TABLE_OP = 12, 15, 17, 18, 20
VCPU_OP, SCHED_OP, EVENT_CHANNEL_OP, PHYSDEV_OP = 24, 29, 32, 33
#: An address that no page is mapped at.
NOWHERE = 0x1234_5000


class FakeCore:
    """The vCPU's methods, over flat memory. ``readonly`` pages cannot be written or held."""

    def __init__(self, ram: Ram) -> None:
        self.ram = ram
        self.now = 1000
        self.blocked = False
        self.vcpu_info = 0
        self.held: set[int] = set()
        self.shared: dict[int, bool] = {}
        self.readonly: set[int] = set()

    def now_ns(self) -> int:
        return self.now

    def _gpa(self, gva: int, length: int) -> int | None:
        gpa = gva - BASE
        if length <= 0 or gpa < 0 or gpa + length > NR_PAGES << 12:
            return None
        return gpa

    def read_virtual(self, gva: int, length: int) -> bytes | None:
        assert 0 < length <= 1 << 20
        gpa = self._gpa(gva, length)
        return None if gpa is None else self.ram.read(gpa, length)

    def write_virtual(self, gva: int, data: bytes) -> bool:
        gpa = self._gpa(gva, len(data))
        if gpa is None:
            return False
        if not self.readonly.isdisjoint(range(gpa >> 12, (gpa + len(data) - 1 >> 12) + 1)):
            return False
        self.ram.write(gpa, data)
        return True

    def xen_set_vcpu_info(self, gpa: int) -> None:
        self.vcpu_info = gpa

    def xen_get_writable(self, pfn: int) -> bool:
        if pfn >= NR_PAGES or pfn in self.readonly:
            return False
        self.held.add(pfn)
        return True

    def xen_frame(self, pfn: int) -> tuple[int, int] | None:
        """A page that cannot be written is a page table to whoever asks."""
        if pfn >= NR_PAGES:
            return None
        return (1, 1) if pfn in self.readonly else (0, 0)

    def xen_share(self, pfn: int, writable: bool) -> None:
        self.shared[pfn] = writable

    def xen_block(self) -> None:
        self.blocked = True

    def xen_wake(self) -> None:
        self.blocked = False


class Rig:
    """A domain with its core, timers and outputs; ``call`` is the guest."""

    def __init__(self) -> None:
        self.ram = Ram(NR_PAGES + vmm_frames(NR_PAGES) << 12)
        self.core = FakeCore(self.ram)
        self.timers = TimerQueue(self)
        frames = XenFrames(self.ram, NR_PAGES)
        m2p = frames.allocate()
        for page in range(NR_PAGES):
            struct.pack_into("<Q", self.ram.view, (m2p << 12) + page * 8, page)
        self.shared_info = frames.share() << 12
        self.frames = frames
        self.domain = XenDomain(
            entry=EntryState(64, BASE), description="test", nr_pages=NR_PAGES, frames=frames,
            start_info_gva=BASE, shared_info_gpa=self.shared_info, console_gpa=CONSOLE,
            xenstore_gpa=XENSTORE, l4_gpa=0, m2p_l4_entry=0, m2p_gpa=m2p << 12, tables={})
        self.console = bytearray()
        self.raw = bytearray()
        self.reasons: list[int] = []
        self.xen = XenDomainState(
            self.domain, self.ram, self.core, self.timers, wallclock_s=1_700_000_000,
            on_console=self.console.extend, on_raw_console=self.raw.extend,
            on_shutdown=self.reasons.append)
        self.xen.attach()

    def now_ns(self) -> int:
        return self.core.now

    def advance(self, ns: int) -> None:
        """Let virtual time go on, and fire what is due."""
        self.core.now += ns
        self.timers.run_due()

    # As the guest -------------------------------------------------------------------------------

    def call(self, number: int, *arguments: int) -> int:
        return self.xen.hypercall(number, *arguments)

    def put(self, data: bytes, at: int = SCRATCH) -> int:
        """Write to guest-physical memory; gives the virtual address."""
        self.ram.write(at, data)
        return BASE + at

    def get(self, length: int, at: int = SCRATCH) -> bytes:
        return self.ram.read(at, length)

    def op(self, number: int, operation: int, data: bytes) -> int:
        """A hypercall of the shape (operation, pointer to a structure at SCRATCH)."""
        return self.call(number, operation, self.put(data))

    def event(self, operation: int, data: bytes) -> int:
        return self.op(EVENT_CHANNEL_OP, operation, data)

    def send(self, port: int) -> int:
        return self.event(abi.EVTCHNOP_send, abi.PORT.pack(port))

    def word(self, gpa: int, layout: str = "<Q") -> int:
        return struct.unpack_from(layout, self.ram.view, gpa)[0]

    def set_word(self, gpa: int, value: int, layout: str = "<Q") -> None:
        struct.pack_into(layout, self.ram.view, gpa, value)

    def pending(self) -> set[int]:
        """Ports whose pending bit is set."""
        base = self.shared_info + 2048
        return {word * 64 + bit for word in range(64) for bit in range(64)
                if self.word(base + word * 8) >> bit & 1}

    def mask(self, port: int, on: bool = True) -> None:
        at = self.shared_info + 2560 + (port >> 6) * 8
        value = self.word(at) & ~(1 << (port & 63))
        self.set_word(at, value | on << (port & 63))

    def clear(self) -> None:
        """Take all events, as a guest's upcall handler does."""
        view = self.ram.view
        view[self.shared_info + 2048:self.shared_info + 2560] = bytes(512)
        info = self.core.vcpu_info
        view[info] = 0
        view[info + 8:info + 16] = bytes(8)

    @property
    def upcall(self) -> int:
        """vcpu_info.evtchn_upcall_pending."""
        return self.ram.view[self.core.vcpu_info]
