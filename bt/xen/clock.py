# SPDX-License-Identifier: GPL-2.0-or-later
"""The paravirtual clock: how the guest makes system time and wall-clock time out of its TSC.

The guest's TSC counts virtual nanoseconds from power-on, so system time is the TSC and one record,
TSC 0 at time 0, stays right for ever: mul / 2^32 << shift = 2^31 / 2^32 * 2 = 1. It must be that
one: a guest that finds its TSC before the record's takes the difference for some 2^63 ns, and what
the clock said while the machine was made is later than what it says when the guest starts.
"""

from __future__ import annotations

from bt.machine.ram import Ram
from bt.xen import abi
from bt.xen.guest import GuestMemory

TSC_TO_SYSTEM_MUL = 1 << 31
TSC_SHIFT = 1
#: The one struct vcpu_time_info. The version is even (not being written) and not 0 (never written).
_RECORD = abi.VCPU_TIME_INFO.pack(2, 0, 0, TSC_TO_SYSTEM_MUL, TSC_SHIFT,
                                  abi.XEN_PVCLOCK_TSC_STABLE_BIT)


class Clock:
    """Writes struct vcpu_time_info and the wall clock of shared_info.

    ``wallclock_s``: seconds since 1970 at power-on.
    """

    def __init__(self, ram: Ram, shared_info: int, wallclock_s: int) -> None:
        self._view = ram.view
        self._write_wallclock(shared_info + abi.SHARED_WC_VERSION, wallclock_s)
        self.write(shared_info)

    def write(self, vcpu_info: int) -> None:
        """Write the time into the struct vcpu_info at the guest-physical address ``vcpu_info``."""
        at = vcpu_info + abi.VCPU_INFO_TIME
        self._view[at:at + len(_RECORD)] = _RECORD

    def register_area(self, guest: GuestMemory, gva: int) -> None:
        """Keep a copy at ``gva`` for the guest's programs (vDSO). Raises Fault."""
        guest.write(gva, _RECORD)

    def _write_wallclock(self, at: int, wallclock_s: int) -> None:
        """The wall clock at system time 0, which is power-on."""
        seconds = max(wallclock_s, 0)
        abi.WALLCLOCK.pack_into(self._view, at, 2, seconds & 0xFFFF_FFFF, 0,
                                seconds >> 32 & 0xFFFF_FFFF)
