# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``bt run GUEST`` is to load: the guest's name and the options that depend on it."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from bt.cli import devices, disks, virtio
from bt.engines.base import GuestFile
from bt.errors import InputError
from bt.machine.terminal import has_input

LINUX = "linux"
LINUX_CMDLINE = "console=ttyS0 panic=-1"


@dataclass(frozen=True)
class Plan(GuestFile):
    """What to load and how, after the command line has been understood."""

    announces_input: bool = False  # our /init is in it: it says when input may come
    passes_stdin: bool = False  # CMD reads bt's standard input


def make_plan(options: argparse.Namespace, extras: devices.Devices) -> Plan:
    """Understand GUEST and the options that depend on it. May fetch; raises InputError."""
    if options.guest == LINUX:
        return _plan_linux(options, extras)
    if options.command is not None:
        raise InputError("a command after -- needs the guest linux")
    if options.kernel or options.package:
        raise InputError("--kernel and --package go with the guest linux")
    import guests

    if options.guest in (guest.name for guest in guests.all_guests()):
        _refuse_flat(options)
        try:
            return Plan(guests.image(options.guest), options.append, options.initrd)
        except OSError as error:
            raise InputError(f"cannot build the guest {options.guest}: {error}") from None
    return _plan_file(options, extras)


def _refuse_flat(options: argparse.Namespace) -> None:
    if options.flat is not None or options.bits is not None:
        raise InputError("--flat and --bits go with a file")


def _plan_linux(options: argparse.Namespace, extras: devices.Devices) -> Plan:
    from guests.linux import fetch, initramfs

    _refuse_flat(options)
    if options.kernel and options.package:
        raise InputError("--kernel and --package exclude each other")
    extra = []
    passes_stdin = options.command is not None and has_input()
    if options.command is not None:
        # First: a missing command should not cost a download.
        extra.append(initramfs.command_cpio(options.command, stdin=passes_stdin))
    elif os.isatty(0) and os.isatty(1):
        size = os.get_terminal_size(1)
        kind = os.environ.get("TERM", "dumb")
        extra.append(initramfs.terminal_cpio(size.lines, size.columns, kind))
    path = options.kernel or fetch.kernel(
        options.package or extras.kernel_package or fetch.KERNEL_PACKAGE)
    if options.initrd is None:
        if options.disk and options.command is None:
            extra.append(initramfs.root_cpio(disks.root_device(options.disk, options.engine)))
        extra += extras.archives()
        wanted = virtio.modules(
            [*disks.modules(options.disk, options.engine), *extras.modules], options.virtio)
        if wanted and not options.kernel:  # a kernel of one's own has its drivers built in
            from guests.linux.modules import Modules

            extra.append(Modules(*fetch.modules(path)).archive(wanted))
        initrd = initramfs.initramfs(fetch.busybox(), extra)
    else:
        initrd = options.initrd
        if options.command is not None:
            # For an initrd with our /init in it, or one that does what it does.
            initrd = _read(options.initrd) + b"".join(extra)
    boots_disk = options.disk and options.command is None and options.initrd is None
    words = [_linux_cmdline(options, extras), disks.BOOT_CMDLINE if boots_disk else "",
             options.append]
    return Plan(
        path,
        " ".join(word for word in words if word),
        initrd,
        announces_input=options.initrd is None,
        passes_stdin=passes_stdin,
    )


def _linux_cmdline(options: argparse.Namespace, extras: devices.Devices) -> str:
    """The default command line: where the console is, and that a panic ends the machine."""
    from bt.engines import ENGINES

    quiet = options.command is not None and not options.verbose
    if ENGINES[options.engine].paravirtual or extras.one_console:
        # The console is the command's output too: nothing but a panic may mix with it.
        return "console=hvc0 panic=-1" + (" quiet loglevel=1" if quiet else "")
    return LINUX_CMDLINE + (" quiet" if quiet else "")


def _plan_file(options: argparse.Namespace, extras: devices.Devices) -> Plan:
    path = Path(options.guest)
    if not path.exists():
        raise InputError(f"no guest and no file {options.guest!r} (bt guests lists the guests)")
    if options.flat is not None:
        if options.boot is not None:
            raise InputError("--boot and --flat exclude each other")
        return Plan(path, options.append, options.initrd, "flat", options.flat, options.bits or 16)
    if options.bits is not None:
        raise InputError("--bits goes with --flat")
    from bt.boot import is_linux

    # A Linux kernel gets the default command line.
    words = [_linux_cmdline(options, extras) if is_linux(path) else "", options.append]
    return Plan(path, " ".join(word for word in words if word), options.initrd)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
