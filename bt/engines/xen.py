# SPDX-License-Identifier: GPL-2.0-or-later
"""Engine pv for Linux: the kernel becomes a Xen PV domain of this machine.

The domain builder lays it out, the compiled core gets the page tables and the hot hypercalls, and
bt.xen the rest. Of the PC only the exit device stays: a PV domain has no other ports, as under Xen.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bt.boot import Loaded
from bt.boot.xen import load_xen
from bt.devices.reset import EXIT
from bt.machine.cpuid import xen_cpuid
from bt.xen import abi
from bt.xen.domain import XenDomainState
from bt.xen.frames import vmm_frames

if TYPE_CHECKING:
    from bt.machine.machine import Machine

_PAGE = 4096


def extra_ram(ram_bytes: int) -> int:
    """Bytes of RAM the VMM needs behind the ``ram_bytes`` of a domain."""
    return vmm_frames(ram_bytes // _PAGE) * _PAGE


def attach(machine: Machine, path: Path, ram_bytes: int, cmdline: str,
           initrd: Path | bytes | None, wallclock_s: int) -> tuple[Loaded, XenDomainState]:
    """Build the domain of ``ram_bytes`` in the machine's fresh RAM and give it the vCPU.

    Raises InputError if the kernel is none for Xen.
    """
    domain = load_xen(path, machine.ram, nr_pages=ram_bytes // _PAGE, cmdline=cmdline,
                      initrd=initrd)
    state = XenDomainState(
        domain, machine.ram, machine.vcpu, machine.timers, wallclock_s=wallclock_s,
        on_console=machine.hvc_output, on_raw_console=machine.console_output,
        on_shutdown=machine.xen_shutdown)
    bus = machine.bus
    bus.read_kind[:] = bytes(len(bus.read_kind))
    bus.write_kind[:] = bytes(len(bus.write_kind))
    bus.claim(machine.pc.power, EXIT, 1)
    machine.vcpu.enter_xen(domain, state.hypercall, xen_cpuid)
    state.attach()
    return Loaded(domain.entry, "xen pv", domain.description), state


#: Reasons of SCHEDOP_shutdown that are an orderly end, and the kind of outcome each is.
ORDERLY = {abi.SHUTDOWN_poweroff: "powered-off", abi.SHUTDOWN_reboot: "reset"}
