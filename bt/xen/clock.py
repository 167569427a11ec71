# SPDX-License-Identifier: GPL-2.0-or-later
"""The paravirtual clock: how the guest makes system time and wall-clock time out of its TSC.

The guest's TSC counts virtual nanoseconds, so the scale is exactly 1 and one record stays right for
ever: mul / 2^32 << shift = 2^31 / 2^32 * 2 = 1.
"""

from __future__ import annotations

from bt.machine.ram import Ram
from bt.xen import abi
from bt.xen.guest import Core, GuestMemory

TSC_TO_SYSTEM_MUL = 1 << 31
TSC_SHIFT = 1


class Clock:
    """Writes struct vcpu_time_info and the wall clock of shared_info.

    ``wallclock_s``: seconds since 1970 at power-on.
    """

    def __init__(self, core: Core, ram: Ram, shared_info: int, wallclock_s: int) -> None:
        self._core = core
        self._view = ram.view
        self._version = 0
        self._write_wallclock(shared_info + abi.SHARED_WC_VERSION, wallclock_s)
        self.update(shared_info)

    def update(self, vcpu_info: int) -> None:
        """Write the time into the struct vcpu_info at the guest-physical address ``vcpu_info``."""
        at = vcpu_info + abi.VCPU_INFO_TIME
        data = self._record()
        # Readers of the same vCPU cannot run meanwhile, so the odd version is never seen.
        self._view[at:at + len(data)] = data

    def register_area(self, guest: GuestMemory, gva: int) -> None:
        """Keep a copy at ``gva`` for the guest's programs (vDSO). Raises Fault."""
        guest.write(gva, self._record())

    def _record(self) -> bytes:
        now = self._core.now_ns()
        self._version = self._version + 2 & 0xFFFF_FFFF
        return abi.VCPU_TIME_INFO.pack(self._version, now, now, TSC_TO_SYSTEM_MUL, TSC_SHIFT,
                                       abi.XEN_PVCLOCK_TSC_STABLE_BIT)

    def _write_wallclock(self, at: int, wallclock_s: int) -> None:
        """The wall clock at system time 0, which is power-on."""
        seconds = max(wallclock_s, 0)
        abi.WALLCLOCK.pack_into(self._view, at, 2, seconds & 0xFFFF_FFFF, 0,
                                seconds >> 32 & 0xFFFF_FFFF)
