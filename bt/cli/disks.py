# SPDX-License-Identifier: GPL-2.0-or-later
"""``bt run --disk``: which images, how they are opened, and what the guest sees them as."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bt.errors import InputError

if TYPE_CHECKING:
    from bt.machine.machine import Machine

HELP = "a disk; again for more. OPTIONS: ,ro or ,overlay (writes are thrown away), ,if=ata"
_MODES = ("rw", "ro", "overlay")
_MAX_DISKS = 16
#: More command line for a guest that boots from a disk. The translations of a program are kept by
#: address; with random addresses each process of a Debian system would need its own, which costs a
#: fifth of the time to its login prompt. `sysctl kernel.randomize_va_space=2` in the guest undoes
#: it.
BOOT_CMDLINE = "norandmaps"


@dataclass(frozen=True)
class Interface:
    """What a disk can look like to a guest: modules Linux needs, the name of the first disk."""

    modules: tuple[str, ...]
    first: str
    most: int = _MAX_DISKS


INTERFACES = {
    "virtio": Interface(("virtio_pci", "virtio_blk"), "/dev/vda"),
    "xen": Interface(("xen_blkfront",), "/dev/xvda"),
    "ata": Interface(("ata_piix", "pata_legacy", "sd_mod"), "/dev/sda", most=2),
}


@dataclass(frozen=True)
class DiskOption:
    """One ``--disk``."""

    path: Path
    mode: str = "rw"
    interface: str | None = None  # what suits the engine

    def shape(self, engine: str) -> str:
        """The name of the interface: Xen's in a Xen domain, else virtio, unless one was given."""
        from bt.engines import ENGINES

        return self.interface or ("xen" if ENGINES[engine].paravirtual else "virtio")


def parse(text: str) -> DiskOption:
    """``FILE[,ro|,overlay][,if=virtio|ata|xen]``. Raises ArgumentTypeError (for argparse)."""
    words = text.split(",")
    mode, interface = None, None
    # From the end: a file name may have commas too.
    while len(words) > 1:
        word = words[-1]
        if word in _MODES and mode is None:
            mode = word
        elif word.startswith("if=") and interface is None:
            interface = word[3:]
            if interface not in INTERFACES:
                raise argparse.ArgumentTypeError(
                    f"no disk interface {interface!r}: one of {', '.join(INTERFACES)}")
        else:
            break
        words.pop()
    path = ",".join(words)
    if not path:
        raise argparse.ArgumentTypeError("--disk needs a file")
    if len(words) > 1 and not Path(path).exists():
        raise argparse.ArgumentTypeError(f"{words[-1]!r} is no option of a disk, and there is no "
                                         f"file {path!r}")
    return DiskOption(Path(path), mode or "rw", interface)


def option(text: str) -> DiskOption:
    """:func:`parse` for programs: raises InputError."""
    try:
        return parse(text)
    except argparse.ArgumentTypeError as error:
        raise InputError(str(error)) from None


def modules(disks: list[DiskOption], engine: str) -> list[str]:
    """The Linux modules for these disks, in the order to load them in."""
    return list(dict.fromkeys(module for disk in disks
                              for module in INTERFACES[disk.shape(engine)].modules))


def root_device(disks: list[DiskOption], engine: str) -> str:
    """Where Linux finds the first of these disks."""
    return INTERFACES[disks[0].shape(engine)].first


def attach(machine: Machine, disks: list[DiskOption]) -> None:
    """Give ``machine`` its disks, in this order. Raises InputError."""
    shapes = [disk.shape(machine.engine.name) for disk in disks]
    for name, interface in INTERFACES.items():
        if shapes.count(name) > interface.most:
            raise InputError(f"at most {interface.most} disks of if={name}")
    from bt.devices.disk import Disk

    for number, (option, shape) in enumerate(zip(disks, shapes, strict=True)):
        machine.add_disk(Disk(option.path, option.mode), shape, serial=f"ring1-{number}")
