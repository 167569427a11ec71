# SPDX-License-Identifier: GPL-2.0-or-later
"""One running domain: its parts, and the dispatch of the hypercalls that are not compiled.

A domain has one vCPU, number 0, and the number 1; what it talks to (console, xenstore) is domain 0,
which does not exist otherwise. The compiled core calls :meth:`XenDomainState.hypercall`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from bt.boot.xen import CONSOLE_PORT, STORE_PORT, XenDomain
from bt.errors import InputError
from bt.machine.ram import Ram
from bt.machine.timers import TimerQueue
from bt.xen import abi
from bt.xen.clock import Clock
from bt.xen.console import Console
from bt.xen.events import Events
from bt.xen.grants import Grants
from bt.xen.guest import Core, GuestMemory, XenError
from bt.xen.memory import Memory
from bt.xen.physdev import PhysDev
from bt.xen.sched import Sched
from bt.xen.store import domain_store
from bt.xen.timer import Timers
from bt.xen.vcpu import VcpuOps
from bt.xen.version import Version
from bt.xen.xenstore import StoreRing

if TYPE_CHECKING:
    from bt.devices.disk import Disk
    from bt.machine.dma import Dma
    from bt.xen.blkback import BlockBackend

_MASK = (1 << 64) - 1
_SIGN = 1 << 63
_SET_TIMER_OP = 15


def _ignore(data: bytes) -> None:
    """Where output goes that nobody wants."""


class XenDomainState:
    """The part of a Xen domain that lives in Python.

    ``core`` is the vCPU, ``domain`` what bt.boot.xen built, ``wallclock_s`` seconds since 1970 at
    power-on. ``on_console`` takes what the guest writes to its console (hvc0); ``on_raw_console``
    what it writes by console_io, which early boot messages use; ``on_shutdown(reason)`` is told
    one of abi.SHUTDOWN_... and must stop the run.

    Make it, give :meth:`hypercall` to the core, then call :meth:`attach`.
    """

    def __init__(self, domain: XenDomain, ram: Ram, core: Core, timers: TimerQueue, *,
                 wallclock_s: int = 0, name: str = "ring1",
                 on_console: Callable[[bytes], None] = _ignore,
                 on_raw_console: Callable[[bytes], None] = _ignore,
                 on_shutdown: Callable[[int], None] = lambda reason: None) -> None:
        self._core = core
        self._shared = (domain.console_gpa, domain.xenstore_gpa)
        guest = GuestMemory(core)
        self.clock = Clock(ram, domain.shared_info_gpa, wallclock_s)
        self.events = Events(core, guest, ram, domain.shared_info_gpa)
        self.timers = Timers(core, timers, self.events)
        self.sched = Sched(core, guest, timers, self.events, on_shutdown)
        self.vcpu = VcpuOps(core, guest, domain.nr_pages, self.events, self.clock, self.timers,
                            self.sched)
        self.console = Console(ram, domain.console_gpa, guest, on_console, on_raw_console)
        self.console.raise_event = self.events.connect(CONSOLE_PORT, self.console.notified)
        self.store = domain_store(name, domain.nr_pages, domain.console_gpa >> abi.PAGE_SHIFT,
                                  CONSOLE_PORT)
        self.xenstore = StoreRing(ram, domain.xenstore_gpa, self.store)
        self.xenstore.raise_event = self.events.connect(STORE_PORT, self.xenstore.notified)
        self.memory = Memory(guest, ram, domain)
        self.grants = Grants(core, guest, domain.frames)
        self.physdev = PhysDev(guest)
        self.disks: list[BlockBackend] = []
        self.version = Version(guest)
        #: Calls that we do not have, by hypercall name and sub-operation.
        self.refused: Counter[str] = Counter()
        self._table: dict[int, Callable[..., int]] = {
            12: self.memory.memory_op,
            _SET_TIMER_OP: self.timers.set_timer_op,
            17: self.version.xen_version,
            18: self.console.console_io,
            20: self.grants.grant_table_op,
            24: self.vcpu.vcpu_op,
            29: self.sched.sched_op,
            32: self.events.event_channel_op,
            33: self.physdev.physdev_op,
        }

    def add_disk(self, disk: Disk, dma: Dma, report: Callable[[str], None]) -> None:
        """One more virtual disk (xvda, xvdb, ...). Before the guest runs. Raises InputError."""
        from bt.xen.blkback import MAX_DISKS, BlockBackend  # costs what only such domains need
        if len(self.disks) == MAX_DISKS:
            raise InputError(f"a domain has room for {MAX_DISKS} disks")
        self.disks.append(BlockBackend(
            len(self.disks), disk, store=self.store, events=self.events, grants=self.grants,
            dma=dma, core=self._core, report=report))

    def attach(self) -> None:
        """Hold the pages that guest and VMM share, once the core knows the domain.

        Raises InputError if it will not give them.
        """
        for gpa in self._shared:
            if not self._core.xen_get_writable(gpa >> abi.PAGE_SHIFT):
                raise InputError(f"page {gpa:#x} cannot be shared with the VMM")
        self._core.xen_set_vcpu_info(self.events.vcpu_info)

    def hypercall(self, number: int, a1: int = 0, a2: int = 0, a3: int = 0, a4: int = 0,
                  a5: int = 0) -> int:
        """Do a hypercall with unsigned 64-bit arguments; signed 64-bit result, -errno on failure.

        Nothing that a guest passes raises. One that we do not have gives -ENOSYS.
        """
        number &= 0xFFFF_FFFF       # the hypercall number is EAX
        handler = self._table.get(number)
        if handler is None:
            return self._refuse(number, a1)
        # A sub-operation is an unsigned int; only set_timer_op has 64 bits there.
        first = a1 & (_MASK if number == _SET_TIMER_OP else 0xFFFF_FFFF)
        try:
            result = handler(first, a2 & _MASK, a3 & _MASK, a4 & _MASK, a5 & _MASK)
        except XenError as error:
            if error.errno == abi.XEN_ENOSYS:
                return self._refuse(number, a1)
            return -error.errno
        return (result & _MASK) - ((result & _SIGN) << 1)

    def _refuse(self, number: int, operation: int) -> int:
        name = abi.HYPERCALLS.get(number, "unknown")
        # Only small numbers are told apart, so that a guest cannot fill our memory with them.
        self.refused[f"{name} {operation}" if operation < 64 else name] += 1
        return -abi.XEN_ENOSYS
