# SPDX-License-Identifier: GPL-2.0-or-later
"""``bt run GUEST``: build the machine, connect it to the terminal, run, say how it ended.

Without a command the guest's first serial port is the terminal. With ``-- CMD`` (linux only) the
command has two ports of its own: COM2 is its input and output, COM3 its errors. The console's
messages are then kept back and shown only when the guest dies, or at once with ``-v``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bt.cli import devices, disks, gdb
from bt.cli import options as values
from bt.cli.stdin import END, READY, encode, for_hvc
from bt.errors import EXIT_GUEST_DIED, EXIT_TIME_LIMIT, InputError
from bt.machine.terminal import STATUS_INTERNAL, Terminal, has_input, write_all

if TYPE_CHECKING:
    from bt.machine.machine import Machine, Outcome
    from bt.machine.sampler import Sampler

LINUX = "linux"
LINUX_CMDLINE = "console=ttyS0 panic=-1"
_INPUT_AHEAD = 64 * 1024  # bytes of piped input to read before the guest has
_KEPT_CONSOLE = 64 * 1024  # bytes of console kept back for a report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``bt run``."""
    parser.usage = "bt run [options] GUEST [-- CMD ARG...]"
    parser.epilog = (
        "Ctrl-A x leaves, Ctrl-A h helps. Exit status: 0 the guest powered off (or CMD's status), "
        "2 bad input, 3 the guest died, 124 time limit."
    )
    add = parser.add_argument
    add("guest", metavar="GUEST", help="a name from `bt guests`, or a file: Linux, multiboot, flat")
    add("--engine", default="bt", metavar="NAME", help="one of `bt engines` (default: bt)")
    add("--machine", metavar="NAME", help="the board: pc (default) or legacy")
    add("--mem", type=values.size, default=256 << 20, metavar="SIZE", help="RAM (default: 256M)")
    add("--kernel", type=Path, metavar="FILE", help="linux: this kernel, nothing is fetched")
    add("--initrd", type=Path, metavar="FILE", help="this initrd in place of the busybox one")
    add("--append", default="", metavar="TEXT", help="more kernel command line")
    add("--disk", type=disks.parse, action="append", default=[], metavar="FILE[,OPTIONS]",
        help=disks.HELP)
    devices.add_arguments(add)
    add("--package", metavar="NAME", help="linux: this Debian kernel package")
    add("--boot", choices=("pvh",), help="enter a Linux or other ELF kernel by this protocol")
    add("--flat", type=values.address, metavar="BASE", help="GUEST is a flat binary, loaded there")
    add("--bits", type=int, choices=(16, 32, 64), help="a flat binary's mode (default: 16)")
    add("--stats", metavar="FILE", help="write counters as JSON at the end; - is stdout")
    add("--sample", action="store_true",
        help="with --stats: also where the processor's time went, by 2,000 samples a second")
    add("--intercept", default="", metavar="LIST",
        help="engine hvm: what exits besides the minimum: cpuid,pushf,exceptions,... or all")
    add("--deterministic", action="store_true", help="virtual time by work done, not by the clock")
    add("--record", type=Path, metavar="DIR", help="keep what `bt inspect` shows in the new DIR")
    add("--timeout", type=values.seconds, metavar="SECONDS", help="stop after so long, status 124")
    add("--trace", action="store_true", help="write every exit to stderr")
    gdb.add_arguments(add)
    add("-v", "--verbose", action="store_true", help="say more; with CMD, show the console too")


@dataclass(frozen=True)
class Plan:
    """What to load and how, after the command line has been understood."""

    path: Path
    cmdline: str = ""
    initrd: Path | bytes | None = None
    kind: str | None = None
    base: int | None = None
    bits: int | None = None
    announces_input: bool = False  # our /init is in it: it says when input may come
    passes_stdin: bool = False  # CMD reads bt's standard input


def run(options: argparse.Namespace) -> int:
    """Run the guest; the exit status."""
    from bt.engines import ENGINES

    if options.engine not in ENGINES:
        raise InputError(f"no engine {options.engine!r}: one of {', '.join(ENGINES)}")
    extras = devices.Devices(options)
    try:
        return _run(options, extras)
    finally:
        extras.close()


def _run(options: argparse.Namespace, extras: devices.Devices) -> int:
    from bt.engines import ENGINES

    _check_sample(options)
    stats = _open_stats(options.stats)
    plan = make_plan(options, extras)
    from bt.machine.machine import Machine  # the CPU: the one large import

    session = _Session(options, plan, extras)
    machine = Machine(
        engine=options.engine,
        machine=options.machine,
        intercept=options.intercept,
        ram_bytes=options.mem,
        deterministic=options.deterministic,
        trace=sys.stderr if options.trace else None,
        console=session.console,
        channels=session.channels,
    )
    disks.attach(machine, options.disk)
    extras.attach(machine)
    if options.verbose:
        machine.on_report = lambda text: print(f"bt: {text}", file=sys.stderr)
    loaded = machine.load(
        plan.path,
        cmdline=plan.cmdline,
        initrd=plan.initrd,
        kind=options.boot or plan.kind,
        base=plan.base,
        bits=plan.bits,
    )
    if options.verbose:
        print(f"bt: {loaded.description}, engine {options.engine}", file=sys.stderr)
    remark = ENGINES[options.engine].open().remark()
    if remark:
        print(f"bt: {remark}", file=sys.stderr)
    recorder = None
    if options.record is not None:
        from bt.record.writer import Recorder

        recorder = Recorder(options.record, machine, {
            "guest": options.guest, "engine": options.engine, "image": str(plan.path),
            "cmdline": plan.cmdline, "kind": loaded.kind})
    door = None if options.gdb is None else gdb.Door(options.gdb, plan.path)
    sampler = _sampler() if options.sample else None
    with sampler or nullcontext():
        outcome = session.run(machine, options.timeout, door)
    if recorder is not None:
        recorder.close({"outcome": outcome.kind, "status": str(outcome.status)},
                       machine.symbols())
    if stats is not None:
        stats(machine.stats.to_json() | ({"sampled": sampler.to_json()} if sampler else {}))
    return session.finish(outcome)


def _check_sample(options: argparse.Namespace) -> None:
    from bt.engines import ENGINES

    if options.sample and options.stats is None:
        raise InputError("--sample goes with --stats FILE: there it says where the time went")
    if options.sample and not ENGINES[options.engine].emulated:
        raise InputError(f"engine {options.engine} cannot be sampled: the host's kernel is a part "
                         "of its VMM, and samples do not see inside")


def _sampler() -> Sampler:
    from bt.machine.sampler import Sampler  # costs what only who measures needs
    return Sampler()


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
        wanted = [*disks.modules(options.disk, options.engine), *extras.modules]
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


def _open_stats(target: str | None) -> Callable[[Mapping[str, Any]], None] | None:
    """A writer for --stats; the file is opened now, so that a bad path is known before the run."""
    if target is None:
        return None
    if target == "-":
        return lambda stats: _write_json(stats, sys.stdout)
    try:
        file = open(target, "w", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror}") from None

    def write(stats: Mapping[str, Any]) -> None:
        with file:
            _write_json(stats, file)

    return write


def _write_json(stats: Mapping[str, Any], file: Any) -> None:
    import json

    json.dump(stats, file, indent=2)
    file.write("\n")


class _Session:
    """The streams between one machine and this process, while it runs and after.

    What feeds the guest, and when: a person's typing at once, to a guest that still boots too.
    Piped input to our own /init waits for its READY on COM2, and so does a command's input, since
    a port that is being opened loses what it holds. Others' guests get theirs at once.
    """

    def __init__(self, options: argparse.Namespace, plan: Plan, extras: devices.Devices) -> None:
        from bt.engines import ENGINES

        # A Xen domain has no serial ports: everything goes over its console.
        self._one_console = ENGINES[options.engine].paravirtual or extras.one_console
        self._has_command = options.command is not None
        self._verbose = options.verbose
        self._kept = bytearray()  # console not shown
        self._at_line_start = True
        self._left: tuple[int, str] | None = None
        self._machine: Machine | None = None
        self._door: gdb.Door | None = None
        self.channels: dict[int, Callable[[bytes], None]] = {}
        if self._has_command:
            self._awaits_ready = plan.passes_stdin
            self.channels = {2: self._command_output, 3: self._command_errors}
        else:
            self._awaits_ready = plan.announces_input
            if self._awaits_ready:
                ready = self._domain_console if self._one_console else self._console_ready
                self.channels = {2: ready}
        self._terminal = Terminal(
            self._feed,
            self._leave,
            on_end=self._end_of_input,
            accepts=self._accepts,
            raw=not self._has_command,
            hold=self._has_command or (self._awaits_ready and not os.isatty(0)),
        )

    def run(self, machine: Machine, timeout: float | None, door: gdb.Door | None) -> Outcome:
        """Run ``machine`` (with this object's sinks) while the terminal is connected to it."""
        self._machine = machine
        self._door = door
        with self._terminal:
            return machine.run(timeout=timeout) if door is None else door.run(machine, timeout)

    def finish(self, outcome: Outcome) -> int:
        """Say how it ended where that needs words; the exit status."""
        if outcome.kind == "died":
            self._show_kept_console()
            self._say(outcome.report or "the guest died")
            return EXIT_GUEST_DIED
        if outcome.kind == "timeout":
            self._say("bt: time limit")
            return EXIT_TIME_LIMIT
        if outcome.kind == "stopped" and self._left is not None:
            status, reason = self._left
            if status == STATUS_INTERNAL:
                self._say(f"bt: {reason}")
            return status
        return outcome.status

    def console(self, data: bytes) -> None:
        """Sink of COM1."""
        if not self._has_command:
            self._terminal.write(data)
        elif self._verbose:
            self._command_errors(data)
        else:
            self._kept += data
            if len(self._kept) > 2 * _KEPT_CONSOLE:
                del self._kept[:-_KEPT_CONSOLE]
            return
        self._at_line_start = data.endswith(b"\n")

    def _command_output(self, data: bytes) -> None:
        if self._awaits_ready:
            self._awaits_ready = False
            self._terminal.release()
            data = data.removeprefix(READY)
        self._terminal.write(data)

    def _command_errors(self, data: bytes) -> None:
        with suppress(OSError):  # a closed stderr is no reason to stop
            write_all(2, data)

    def _console_ready(self, _: bytes) -> None:
        self._terminal.release()

    def _domain_console(self, data: bytes) -> None:
        """A Xen domain has one console: READY comes in the middle of what it shows."""
        if self._awaits_ready and READY in data:
            self._awaits_ready = False
            self._terminal.release()
            data = data.replace(READY, b"", 1)
        self.console(data)

    def _feed(self, data: bytes) -> None:
        assert self._machine is not None
        if self._has_command:
            coded = encode(data)
            self._machine.feed(for_hvc(coded) if self._one_console else coded, port=2)
        else:
            self._machine.feed(data, port=1)

    def _accepts(self) -> bool:
        assert self._machine is not None
        return self._machine.pending_input(2 if self._has_command else 1) < _INPUT_AHEAD

    def _end_of_input(self) -> None:
        # A console has no end of input: the guest goes on until it powers off.
        if self._has_command:
            assert self._machine is not None
            self._machine.feed(END, port=2)

    def _leave(self, status: int, reason: str) -> None:
        assert self._machine is not None
        self._left = (status, reason)
        self._machine.stop(reason)
        if self._door is not None:
            self._door.leave()

    def _show_kept_console(self) -> None:
        self._command_errors(bytes(self._kept[-_KEPT_CONSOLE:]).replace(b"\r\n", b"\n"))
        if self._kept:
            self._at_line_start = self._kept.endswith(b"\n")

    def _say(self, text: str) -> None:
        if not self._at_line_start:
            text = "\n" + text
        print(text, file=sys.stderr)
