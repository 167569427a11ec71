#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks: how fast they are, what a megabyte costs in exits, and Debian from one to its prompt.

    python tools/bench_disk.py [--runs N] [--json] [--engine NAME] [--root IMAGE] [--mem SIZE]

The first part is `bt compare disk` and `bt compare disk-ata`. With ``--root`` (an image by
tools/make_rootfs.py) bt and QEMU TCG with virtio-blk boot it in turns, from the start of the
process to ``login:`` on the serial port, each with a throw-away overlay; medians are compared.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _bench
from _bench import MB

PROMPT = b"login: "
_LIMIT_S = 300.0


@dataclass(frozen=True)
class Boot:
    """Seconds from the start of the process to the prompt, and processor seconds of that."""

    wall_s: float
    cpu_s: float


def until_prompt(argv: Sequence[str]) -> Boot:
    """Run ``argv`` until PROMPT is on its standard output, then end it."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(
        [*_bench.import_path(), *filter(None, [os.environ.get("PYTHONPATH")])]))
    start = time.perf_counter()
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, env=environment)
    limit = threading.Timer(_LIMIT_S, process.kill)
    limit.daemon = True
    limit.start()
    seen, wall = b"", None
    try:
        assert process.stdout is not None
        while data := os.read(process.stdout.fileno(), 65536):
            seen = seen[-100:] + data
            if PROMPT in seen:
                wall = time.perf_counter() - start
                break
    finally:
        limit.cancel()
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0
    if wall is None:
        raise _bench.BenchError(f"{argv[0]}: no login prompt: {seen[-80:]!r}")
    return Boot(wall, usage.ru_utime + usage.ru_stime)


@contextlib.contextmanager
def boots(root: Path, engine: str, mem: int) -> Iterator[dict[str, list[str]]]:
    """The command lines of both for the same kernel, initramfs, disk, memory and command line."""
    from bt.cli import disks
    from bt.cli.plan import LINUX_CMDLINE
    from guests.linux import fetch, initramfs
    from guests.linux.modules import Modules

    kernel = fetch.kernel()
    disk = disks.DiskOption(root, "overlay")
    initrd = initramfs.initramfs(fetch.busybox(), [
        initramfs.root_cpio(disks.root_device([disk], engine)),
        Modules(*fetch.modules(kernel)).archive(disks.modules([disk], engine))])
    cmdline = f"{LINUX_CMDLINE} {disks.BOOT_CMDLINE}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "initrd")
        path.write_bytes(initrd)
        yield {
            "bt": _bench.bt_command("run", "linux", "--machine", "pc", "--engine", engine, "--mem",
                                    str(mem), "--disk", f"{root},overlay"),
            "qemu": [_bench.QEMU, "-accel", "tcg", "-m", f"{mem // MB}M", "-display", "none",
                     "-no-reboot", "-nodefaults", "-kernel", str(kernel), "-initrd", str(path),
                     "-append", cmdline, "-serial", "stdio", "-snapshot",
                     "-drive", f"file={root},format=raw,if=virtio"]}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All numbers of this script, as JSON data."""
    from bt.compare import runner, workloads

    found: dict[str, Any] = {"engine": options.engine, "runs": options.runs}
    for name in ("disk", "disk-ata"):
        compared = runner.compare(workloads.get(name), [options.engine], options.runs,
                                  _bench.progress)
        result = compared["engines"][options.engine]
        if "error" in result:
            raise _bench.BenchError(result["error"])
        found[name] = {"mb_per_s": result["mb_per_s"], "mb_per_s_runs": result["mb_per_s_runs"],
                       "exits_per_mb": sum(result["exits_per_mb"].values())}
    if options.root is not None:
        version = _bench.qemu_version()
        with boots(options.root, options.engine, options.mem) as commands:
            taken = _bench.alternate({name: lambda argv=argv: until_prompt(argv)
                                      for name, argv in commands.items()}, options.runs,
                                     _bench.progress)
        found |= {"qemu": version, "mem_mb": options.mem // MB,
                  "boot": summary(taken["bt"], taken["qemu"])}
    return found


def summary(bt: Sequence[Boot], qemu: Sequence[Boot]) -> dict[str, Any]:
    """Medians and their ratios."""
    result: dict[str, Any] = {}
    for name, runs in (("bt", bt), ("qemu", qemu)):
        result |= {f"{name}_s": _bench.median([run.wall_s for run in runs]),
                   f"{name}_cpu_s": _bench.median([run.cpu_s for run in runs]),
                   f"{name}_runs_s": [run.wall_s for run in runs]}
    result["ratio"] = result["bt_s"] / result["qemu_s"]
    result["cpu_ratio"] = result["bt_cpu_s"] / result["qemu_cpu_s"]
    return result


def show(results: Mapping[str, Any]) -> str:
    """The tables for people."""
    virtio, ata = results["disk"], results["disk-ata"]
    ratio = ata["exits_per_mb"] / max(virtio["exits_per_mb"], 1e-9)
    text = _bench.table([
        [f"disk, engine {results['engine']}", "virtio", "ATA PIO", "ratio", "goal"],
        ["sequential read, MB/s", f"{virtio['mb_per_s']:.0f}", f"{ata['mb_per_s']:.0f}",
         f"{virtio['mb_per_s'] / ata['mb_per_s']:.1f}", "200 by virtio"],
        ["exits a MB", f"{virtio['exits_per_mb']:.0f}", f"{ata['exits_per_mb']:.0f}",
         f"{ratio:.0f}", "20"]])
    boot = results.get("boot")
    if boot is None:
        return text
    return f"{text}\n\n{results['qemu']}, {results['mem_mb']} MB\n" + _bench.table([
        ["Debian to its login prompt, s", "bt", "QEMU TCG", "ratio", "goal"],
        ["process start to prompt", f"{boot['bt_s']:.2f}", f"{boot['qemu_s']:.2f}",
         f"{boot['ratio']:.2f}", "1.2"],
        ["processor time", f"{boot['bt_cpu_s']:.2f}", f"{boot['qemu_cpu_s']:.2f}",
         f"{boot['cpu_ratio']:.2f}", ""]])


def options(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = _bench.parser("Measure disks, and the boot of a root file system on one.")
    parser.add_argument("--engine", default="bt", help="bt's engine (default: bt)")
    parser.add_argument("--root", type=Path, metavar="IMAGE",
                        help="boot this one too, against QEMU")
    parser.add_argument("--mem", type=_bench.size, default=512 * MB, metavar="SIZE",
                        help="guest RAM of the boots (default: 512M)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(_bench.main(measure, show, options()))
