# SPDX-License-Identifier: GPL-2.0-or-later
"""vcpu_op (24): what a vCPU is doing, where its records lie, its timers. There is one, number 0.

VCPUOP_is_up is compiled (bt/core/xen.pxi): at boot, Linux asks for each of 8192 vCPUs.
"""

from __future__ import annotations

from bt.xen import abi
from bt.xen.clock import Clock
from bt.xen.events import Events
from bt.xen.guest import Core, GuestMemory, XenError
from bt.xen.sched import Sched
from bt.xen.timer import Timers


class VcpuOps:
    """The vCPU's records and timers.

    Its run state is "running" whenever the guest can look, and nobody takes the CPU away from it:
    the record says so and needs no update, and the guest sees no stolen time.
    """

    def __init__(self, core: Core, guest: GuestMemory, nr_pages: int, events: Events,
                 clock: Clock, timers: Timers, sched: Sched) -> None:
        self._core = core
        self._guest = guest
        self._nr_pages = nr_pages
        self._events = events
        self._clock = clock
        self._timers = timers
        self._sched = sched
        self._moved = False
        self._operations = {
            abi.VCPUOP_initialise: self._initialise,
            abi.VCPUOP_up: self._up,
            abi.VCPUOP_down: self._down,
            abi.VCPUOP_get_runstate_info: self._get_runstate,
            abi.VCPUOP_register_runstate_memory_area: self._register_runstate,
            abi.VCPUOP_set_periodic_timer: self._set_periodic,
            abi.VCPUOP_stop_periodic_timer: self._stop_periodic,
            abi.VCPUOP_set_singleshot_timer: self._set_singleshot,
            abi.VCPUOP_stop_singleshot_timer: self._stop_singleshot,
            abi.VCPUOP_register_vcpu_info: self._register_vcpu_info,
            abi.VCPUOP_register_vcpu_time_memory_area: self._register_time,
        }

    def vcpu_op(self, operation: int, vcpu: int, pointer: int, *_: int) -> int:
        if vcpu & 0xFFFF_FFFF != 0:
            raise XenError(abi.XEN_ENOENT)
        handler = self._operations.get(operation)
        if handler is None:
            raise XenError(abi.XEN_ENOSYS)
        return handler(pointer)

    def _initialise(self, pointer: int) -> int:
        raise XenError(abi.XEN_EEXIST)

    def _up(self, pointer: int) -> int:
        return 0

    def _down(self, pointer: int) -> int:
        """The last vCPU goes: Xen takes that as the domain's end."""
        self._sched.shut_down(abi.SHUTDOWN_poweroff)
        return 0

    # Run state ----------------------------------------------------------------------------------

    def _write_runstate(self, gva: int) -> None:
        """Running since now, and all the time before."""
        now = self._core.now_ns()
        self._guest.pack(gva, abi.RUNSTATE_INFO, abi.RUNSTATE_running, now, now, 0, 0, 0)

    def _get_runstate(self, pointer: int) -> int:
        self._write_runstate(pointer)
        return 0

    def _register_runstate(self, pointer: int) -> int:
        (gva,) = self._guest.unpack(pointer, abi.MEMORY_AREA)
        if gva:
            self._write_runstate(gva)
        return 0

    # Timers -------------------------------------------------------------------------------------

    def _set_periodic(self, pointer: int) -> int:
        (period_ns,) = self._guest.unpack(pointer, abi.PERIODIC_TIMER)
        self._timers.start_periodic(period_ns)
        return 0

    def _stop_periodic(self, pointer: int) -> int:
        self._timers.stop_periodic()
        return 0

    def _set_singleshot(self, pointer: int) -> int:
        deadline_ns, flags = self._guest.unpack(pointer, abi.SINGLESHOT_TIMER)
        if flags & abi.VCPU_SSHOTTMR_future and deadline_ns < self._core.now_ns():
            raise XenError(abi.XEN_ETIME)
        self._timers.start_single(deadline_ns)
        return 0

    def _stop_singleshot(self, pointer: int) -> int:
        self._timers.stop_single()
        return 0

    # Places -------------------------------------------------------------------------------------

    def _register_vcpu_info(self, pointer: int) -> int:
        """Move struct vcpu_info, once, to a page of the guest's own."""
        frame, offset = self._guest.unpack(pointer, abi.REGISTER_VCPU_INFO)
        if offset > abi.PAGE_SIZE - abi.VCPU_INFO_SIZE or offset % 8 or self._moved \
                or frame >= self._nr_pages or not self._core.xen_get_writable(frame):
            raise XenError(abi.XEN_EINVAL)
        self._moved = True
        gpa = (frame << abi.PAGE_SHIFT) + offset
        self._events.move_vcpu_info(gpa)
        self._clock.write(gpa)
        return 0

    def _register_time(self, pointer: int) -> int:
        (gva,) = self._guest.unpack(pointer, abi.MEMORY_AREA)
        if gva:
            self._clock.register_area(self._guest, gva)
        return 0
