# SPDX-License-Identifier: GPL-2.0-or-later
"""What the benchmark scripts share: running bt and QEMU side by side, statistics, output.

The method is the same everywhere. The two VMMs take turns (bt, QEMU, bt, QEMU, ...), so that a
machine that gets slower half way slows both; one run of each before that is not counted, because
it fills the caches on disk; what is compared is medians.

Both get the same kernel file, the same initramfs bytes, the same memory and the same kernel command
line, and neither gets a CPU model: each VMM's default is part of what it is.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parent.parent
QEMU = "qemu-system-x86_64"
MEM = 256 << 20  # bytes; what bt run gives a guest by default
MB = 1 << 20
_LIMIT_S = 300.0  # no run here takes a tenth of it

T = TypeVar("T")


class BenchError(Exception):
    """The benchmark cannot be run, or a run of it failed: one line for the user."""


def import_path() -> list[str]:
    """Folders to import bt from: the clone when it is built in place, else what is installed."""
    return [str(ROOT)] if any((ROOT / "bt" / "core").glob("vcpu*.so")) else []


sys.path[:0] = import_path()


# One run ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timed:
    """One run of a program. Times in seconds, ``rss`` (peak, ru_maxrss) in bytes.

    ``lines`` is standard output with the time each line arrived, in seconds since the start.
    """

    wall_s: float
    rss: int
    status: int
    lines: tuple[tuple[float, str], ...]
    errors: str

    @property
    def output(self) -> list[str]:
        """Standard output, by line."""
        return [line for _, line in self.lines]


def run_timed(argv: Sequence[str], *, on_start: Callable[[int], None] | None = None) -> Timed:
    """Run ``argv`` with no input, from before the process is made until it has been waited for.

    ``on_start`` gets the process id. The peak memory comes from wait4(2); the kernel carries the
    parent's into it across exec, so this process must stay smaller than what it measures.
    """
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(
        [*import_path(), *filter(None, [os.environ.get("PYTHONPATH")])]))
    lines = []
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        try:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                       stderr=errors, env=environment)
        except OSError as error:
            raise BenchError(f"cannot run {argv[0]}: {error.strerror}") from None
        if on_start is not None:
            on_start(process.pid)
        limit = threading.Timer(_LIMIT_S, process.kill)
        limit.daemon = True
        limit.start()
        try:
            assert process.stdout is not None
            with process.stdout:
                for line in process.stdout:
                    lines.append((time.perf_counter() - start, line.decode("utf-8", "replace")))
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.perf_counter() - start
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            limit.cancel()
            if process.returncode is None:  # Ctrl-C
                process.kill()
                process.wait()
        errors.seek(0)
        text = errors.read().decode("utf-8", "replace")
    return Timed(wall, usage.ru_maxrss * 1024, process.returncode,
                 tuple((at, line.rstrip("\n")) for at, line in lines), text)


def check(run: Timed, expected: int, what: str) -> Timed:
    """``run``, if it ended with ``expected``; else BenchError with its last words."""
    if run.status != expected:
        said = run.errors.strip().splitlines() or run.output or ["it said nothing"]
        raise BenchError(f"{what} ended with status {run.status}: {said[-1]}")
    return run


def alternate(subjects: Mapping[str, Callable[[], T]], runs: int,
              progress: Callable[[str], None] = lambda line: None) -> dict[str, list[T]]:
    """Run the subjects in turns, ``runs`` times each, after one turn that does not count."""
    results: dict[str, list[T]] = {name: [] for name in subjects}
    for number in range(runs + 1):
        for name, subject in subjects.items():
            progress(f"{name}: {f'run {number} of {runs}' if number else 'warm-up'}")
            result = subject()
            if number:
                results[name].append(result)
    return results


# The two VMMs -----------------------------------------------------------------------------------


def bt_command(*arguments: str) -> list[str]:
    """``bt ARGUMENTS`` of the tree or the package under test."""
    return [sys.executable, "-P", "-m", "bt", *arguments]


def bt_linux(argv: Sequence[str], *, mem: int, engine: str = "bt",
             stats: Path | None = None) -> list[str]:
    """The command line of ``bt run linux -- ARGV``."""
    options = ["--engine", engine, "--mem", str(mem)]
    if stats is not None:
        options += ["--stats", str(stats)]
    return bt_command("run", "linux", *options, "--", *argv)


@dataclass(frozen=True)
class Boot:
    """What QEMU needs in order to boot what ``bt run linux -- ARGV`` boots."""

    kernel: Path
    initrd: bytes
    cmdline: str


def linux_boot(argv: Sequence[str]) -> Boot:
    """The kernel, initramfs and command line that bt uses for ``argv``. May fetch packages."""
    plan = importlib.import_module("bt.cli.plan")
    fetch = importlib.import_module("guests.linux.fetch")
    initramfs = importlib.import_module("guests.linux.initramfs")
    initrd = initramfs.initramfs(fetch.busybox(), [initramfs.command_cpio(list(argv))])
    return Boot(fetch.kernel(), initrd, f"{plan.LINUX_CMDLINE} quiet")


@contextmanager
def qemu_linux(argv: Sequence[str], *, mem: int) -> Iterator[list[str]]:
    """QEMU's command line for the same guest; its files last as long as the context.

    Serial ports as /init wants them: COM1 the console, COM2 the command's output, COM3 its errors.
    """
    boot = linux_boot(argv)
    with tempfile.TemporaryDirectory() as folder:
        initrd = Path(folder, "initrd")
        initrd.write_bytes(boot.initrd)
        yield [QEMU, "-accel", "tcg", "-m", f"{mem // MB}M", "-display", "none", "-no-reboot",
               "-nodefaults", "-device", "isa-debug-exit,iobase=0x501,iosize=1",
               "-kernel", str(boot.kernel), "-initrd", str(initrd), "-append", boot.cmdline,
               "-serial", f"file:{folder}/console", "-serial", "stdio", "-serial", "null"]


def qemu_status(status: int) -> int:
    """QEMU's exit status when the guest writes ``status`` to the exit device."""
    return status << 1 | 1


# Memory -----------------------------------------------------------------------------------------


def split_rss(smaps: str, ram: int) -> tuple[int, int]:
    """(resident bytes of guest RAM, of everything else) from the text of /proc/PID/smaps (proc(5)).

    Guest RAM is the one mapping of exactly ``ram`` bytes.
    """
    guest = total = size = 0
    for field, value in re.findall(r"^(Size|Rss): +(\d+) kB$", smaps, re.MULTILINE):
        if field == "Size":
            size = int(value) * 1024
        else:
            total += int(value) * 1024
            if size == ram:
                guest += int(value) * 1024
    return guest, total - guest


class RssWatch:
    """Looks every 50 ms at what of a process is resident that is not guest RAM.

    It takes processor time, so it belongs on a run that is not timed.
    """

    def __init__(self, ram: int) -> None:
        self.ram = ram
        self.peak_rest = 0  # bytes

    def start(self, pid: int) -> None:
        """Watch ``pid`` until it is gone."""
        threading.Thread(target=self._watch, args=(pid,), daemon=True).start()

    def _watch(self, pid: int) -> None:
        while True:
            try:
                smaps = Path(f"/proc/{pid}/smaps").read_text()
            except OSError:
                return
            if not smaps:  # a zombie has no memory
                return
            self.peak_rest = max(self.peak_rest, split_rss(smaps, self.ram)[1])
            time.sleep(0.05)


# The scripts' frame -----------------------------------------------------------------------------


def median(values: Sequence[float]) -> float:
    """The median; BenchError when there is nothing."""
    if not values:
        raise BenchError("no runs to take a median of")
    return statistics.median(values)


def spread(values: Sequence[float]) -> str:
    """``min-max`` for the human table."""
    return f"{min(values):.2f}-{max(values):.2f}"


def machine() -> dict[str, Any]:
    """The machine the numbers were measured on: processor model, cores, load, Python."""
    from bt.compare.runner import machine as facts

    found: dict[str, Any] = facts()
    return found


def machine_line(facts: Mapping[str, Any]) -> str:
    """:func:`machine` as the head line of a table."""
    return (f"{facts['cpu']}, {facts['cores']} cores, load {facts['load']}, "
            f"Python {facts['python']}")


def qemu_version() -> str:
    """QEMU's version line; BenchError when there is no QEMU to compare with."""
    if shutil.which(QEMU) is None:
        raise BenchError(f"{QEMU} is not installed (Debian: apt install qemu-system-x86)")
    said = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=False).stdout
    return said.splitlines()[0] if said else QEMU


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned columns, the first to the left; the first row is the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]),
                 *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def count(text: str) -> int:
    """An argparse type: a whole number from 1 on."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"not a number of runs: {text!r}")
    return value


def size(text: str) -> int:
    """An argparse type: bytes, as bt's --mem reads them, in whole megabytes (QEMU's unit)."""
    try:
        value = int(importlib.import_module("bt.cli.options").size(text))
    except (ValueError, argparse.ArgumentTypeError):
        value = 0
    if value <= 0 or value % MB:
        raise argparse.ArgumentTypeError(f"not a size in whole megabytes: {text!r}")
    return value


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options every script has."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--runs", type=count, default=5, metavar="N",
                        help="runs that count, of each (default: 5)")
    result.add_argument("--json", action="store_true", help="JSON on stdout in place of the table")
    return result


def progress(line: str) -> None:
    """What is going on, on stderr, where it does not get into the results."""
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)


def main(measure: Callable[[argparse.Namespace], dict[str, Any]],
         show: Callable[[Mapping[str, Any]], str], options: argparse.Namespace) -> int:
    """Measure and print. Exit status 2 with one line when it cannot be done."""
    try:
        importlib.import_module("bt")
        results = {"machine": machine(), **measure(options)}
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        # bt.errors is not imported at the top: --help must work before anything is built.
        if not isinstance(error, BenchError | ImportError) and type(error).__name__ != "InputError":
            raise
        progress("")
        if isinstance(error, ImportError):
            error = BenchError(f"{error}: build it (make test), then run with .venv/bin/python")
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return 2
    progress("")
    if options.json:
        print(json.dumps(results, indent=2))
    else:
        print(machine_line(results["machine"]))
        print(show(results))
    return 0
