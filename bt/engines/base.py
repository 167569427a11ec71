# SPDX-License-Identifier: GPL-2.0-or-later
"""What an engine is to the machine: it makes the vCPU, and sets up what its guests need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bt import boot
from bt.engines import EngineInfo
from bt.machine.cpu import CpuParts, EngineHost, VirtualCpu


@dataclass(frozen=True)
class GuestFile:
    """A kernel to load, in the words of bt.boot.load."""

    path: Path
    cmdline: str = ""
    initrd: Path | bytes | None = None
    kind: str | None = None
    base: int | None = None
    bits: int | None = None


class Engine:
    """One machine's engine. A subclass makes the vCPU; the rest suits unmodified kernels."""

    def __init__(self, info: EngineInfo) -> None:
        self.info = info

    def unusable(self) -> str | None:
        """Why this engine cannot run here, in a few words; None: it can."""
        return None

    def remark(self) -> str:
        """What a user should know before believing what a guest prints; "" if nothing."""
        return self.info.caveat

    def extra_ram(self, ram_bytes: int) -> int:
        """Bytes of RAM the VMM needs behind the guest's ``ram_bytes``."""
        return 0

    def make_vcpu(self, parts: CpuParts) -> VirtualCpu:
        """The vCPU. Raises InputError, one line, if it cannot be had or cannot do what is asked."""
        raise NotImplementedError

    def load(self, host: EngineHost, guest: GuestFile) -> boot.Loaded:
        """Put the guest into RAM and the vCPU at its first instruction. Raises InputError."""
        loaded = boot.load(guest.path, host.ram, cmdline=guest.cmdline, initrd=guest.initrd,
                           kind=guest.kind, base=guest.base, bits=guest.bits,
                           rsdp=host.install_firmware())
        host.vcpu.enter(loaded.entry)
        return loaded
