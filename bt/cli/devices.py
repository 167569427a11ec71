# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtio devices that ``bt run`` gives a machine beside disks: what each option means for the
machine, and for the Linux that is to find it there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from bt.cli import net, share
from bt.errors import InputError
from bt.virtio import TRANSPORTS

if TYPE_CHECKING:
    from bt.machine.machine import Machine

CONSOLES = ("serial", "virtio")


def add_arguments(add: Callable[..., Any]) -> None:
    """The options, by an argument parser's ``add_argument``."""
    add("--net", type=net.parse, action="append", default=[], metavar="NET[,OPTIONS]",
        help=net.HELP)
    add("--share", type=share.parse, action="append", default=[], metavar="DIR[,OPTIONS]",
        help=share.HELP)
    add("--console", default="serial", metavar="NAME",
        help="serial (default), or virtio: hvc0 for everything")
    add("--virtio", default="pci", choices=TRANSPORTS, metavar="BUS",
        help="what virtio devices are on: pci (default) or mmio")
    add("--rng", action="store_true", help="an entropy device, /dev/hwrng")


class Devices:
    """What the options ask for. Raises InputError for what cannot be had together."""

    def __init__(self, options: argparse.Namespace) -> None:
        if options.console not in CONSOLES:
            raise InputError(f"no console {options.console!r}: one of {', '.join(CONSOLES)}")
        self.one_console = options.console == "virtio"
        self._rng = options.rng
        self._deterministic = options.deterministic
        self._verbose = options.verbose
        self._shares = share.name_all(options.share)
        self._cards = [net.make(number, option) for number, option in
                       enumerate(net.check(options.net, options.deterministic))]

    @classmethod
    def asked_for(cls, nets: Sequence[str], shares: Sequence[str], *,
                  deterministic: bool) -> Devices:
        """For programs: network cards and folders in the words of the command line."""
        try:
            return cls(argparse.Namespace(
                net=[net.parse(text) for text in nets],
                share=[share.parse(text) for text in shares], console=CONSOLES[0], rng=False,
                deterministic=deterministic, verbose=False))
        except argparse.ArgumentTypeError as error:
            raise InputError(str(error)) from None

    @property
    def modules(self) -> list[str]:
        """The Linux modules for them, in the order to load them in."""
        wanted = [
            (self.one_console, ("virtio_pci", "virtio_console")),
            (self._rng, ("virtio_pci", "virtio_rng")),
            (self._cards, net.MODULES),
            (self._shares, share.MODULES),
        ]  # fmt: skip
        return [name for asked, names in wanted if asked for name in names]

    @property
    def kernel_package(self) -> str | None:
        """The Debian kernel that has what they need, when not every kernel has it."""
        return share.KERNEL_PACKAGE if self._shares else None

    def archives(self) -> list[bytes]:
        """What our initramfs needs besides the modules, to set them up."""
        from guests.linux import initramfs

        found = []
        if self._cards:
            found.append(initramfs.net_cpio([card.setup for card in self._cards]))
        if self._shares:
            found.append(initramfs.share_cpio())
        return found

    def attach(self, machine: Machine) -> None:
        """Give ``machine`` the devices. Raises InputError."""
        if self.one_console:
            machine.add_console(_terminal_size())
        if self._rng:
            import os

            from bt.virtio.rng import VirtioRng, seeded_source

            source = seeded_source() if self._deterministic else os.urandom
            machine.add_virtio(VirtioRng(machine.timers, machine.vcpu.now_ns, source))
        share.attach(machine, self._shares)
        net.attach(machine, self._cards)
        if self._verbose:
            for card in self._cards:
                print(f"bt: {card.said}", file=sys.stderr)

    def close(self) -> None:
        """After the run: let go of what the host's others could wait for."""
        for card in self._cards:
            card.device.close()


def _terminal_size() -> tuple[int, int] | None:
    """Columns and rows of the terminal that the console is on."""
    import os

    try:
        return os.get_terminal_size(1)
    except OSError:
        return None
