# SPDX-License-Identifier: GPL-2.0-or-later
"""Engine pv for Linux: the kernel becomes a Xen PV domain of this machine.

The domain builder lays it out, the compiled core gets the page tables and the hot hypercalls, and
bt.xen the rest. Of the PC only the exit device stays: a PV domain has no other ports, as under Xen.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from bt.boot import Loaded
from bt.boot.xen import load_xen
from bt.devices.reset import EXIT
from bt.machine.cpu import EngineHost
from bt.machine.cpuid import xen_cpuid
from bt.xen import abi
from bt.xen.domain import XenDomainState
from bt.xen.frames import vmm_frames

_PAGE = 4096
#: Reasons of SCHEDOP_shutdown that are an orderly end, and the kind of outcome each is.
_ORDERLY = {abi.SHUTDOWN_poweroff: "powered-off", abi.SHUTDOWN_reboot: "reset"}


def extra_ram(ram_bytes: int) -> int:
    """Bytes of RAM the VMM needs behind the ``ram_bytes`` of a domain."""
    return vmm_frames(ram_bytes // _PAGE) * _PAGE


def attach(host: EngineHost, path: Path, cmdline: str, initrd: Path | bytes | None) -> Loaded:
    """Build the domain in the machine's fresh RAM and give it the vCPU, which is the core's.

    Raises InputError if the kernel is none for Xen.
    """
    domain = load_xen(path, host.ram, nr_pages=host.guest_bytes // _PAGE, cmdline=cmdline,
                      initrd=initrd)
    state = XenDomainState(
        domain, host.ram, host.vcpu, host.timers, wallclock_s=host.wallclock_s,
        on_console=host.channel_output, on_raw_console=host.console_output,
        on_shutdown=partial(shutdown, host))
    bus = host.bus
    bus.read_kind[:] = bytes(len(bus.read_kind))
    bus.write_kind[:] = bytes(len(bus.write_kind))
    bus.claim(host.power, EXIT, 1)
    host.vcpu.enter_xen(domain, state.hypercall, xen_cpuid, partial(io_allowed, host.vcpu, state))
    state.attach()
    for disk in host.domain_disks:
        state.add_disk(disk, host.dma, host.device_report)
    # One console for everything: what is COM2 elsewhere, a command's channel, is the same.
    host.use_console(state.console)
    return Loaded(domain.entry, "xen pv", domain.description)


def shutdown(host: EngineHost, reason: int) -> None:
    """SCHEDOP_shutdown."""
    kind = _ORDERLY.get(reason)
    if kind is not None:
        host.end(kind)
    else:
        host.died("it crashed by its own word")


def io_allowed(vcpu, state: XenDomainState, port: int, size: int) -> bool:
    """Whether user code may access a port: by its IOPL, or by the kernel's I/O bitmap."""
    physdev = state.physdev
    if physdev.iopl == 3:
        return True
    address, ports = physdev.bitmap
    if port + size > ports:
        return False
    bits = vcpu.xen_read_kernel(address + port // 8 & (1 << 64) - 1, 2)
    return bits is not None and \
        not int.from_bytes(bits, "little") >> port % 8 & (1 << size) - 1
