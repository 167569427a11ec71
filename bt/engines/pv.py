# SPDX-License-Identifier: GPL-2.0-or-later
"""Engine pv: Linux becomes a Xen domain; any other kernel must declare our own interface."""

from __future__ import annotations

from bt import boot
from bt.engines.base import GuestFile
from bt.engines.unicorn import UnicornEngine
from bt.errors import InputError
from bt.machine.cpu import EngineHost


class PvEngine(UnicornEngine):
    """The core's vCPU without the translator, and one of two interfaces."""

    def extra_ram(self, ram_bytes: int) -> int:
        from bt.engines.xen import extra_ram
        return extra_ram(ram_bytes)

    def load(self, host: EngineHost, guest: GuestFile) -> boot.Loaded:
        if guest.kind == "pvh":
            raise InputError("PVH is an entry without paravirtual interfaces: not for engine pv")
        if guest.kind != "flat" and boot.is_linux(guest.path):
            from bt.engines import xen
            return xen.attach(host, guest.path, guest.cmdline, guest.initrd)
        if host.domain_disks:
            raise InputError("under pv only Linux has disks")
        loaded = super().load(host, guest)
        from bt.engines import ring1
        ring1.attach(host, guest.path)
        return loaded
