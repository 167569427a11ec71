# SPDX-License-Identifier: GPL-2.0-or-later
"""``bt run GUEST``: build the machine, connect it to the terminal, run, say how it ended."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bt.cli import devices, disks, gdb
from bt.cli import options as values
from bt.cli.plan import make_plan
from bt.cli.session import Session
from bt.errors import InputError

if TYPE_CHECKING:
    from bt.machine.sampler import Sampler


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

    session = Session(options, plan, extras)
    machine = Machine(
        engine=options.engine,
        machine=options.machine,
        intercept=options.intercept,
        virtio=options.virtio,
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
