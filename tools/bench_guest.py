#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Six workloads inside the Linux guest, on bt and on QEMU TCG.

    python tools/bench_guest.py [--runs N] [--json] [--mem SIZE] [--engine NAME] [WORKLOAD...]

One boot runs them all and prints, for each, the time by the guest's own clock. That clock is wall
time on both VMMs; this is checked: the span it shows for the whole script is compared with the
host's (``clock_error``, relative), and the results are refused when they disagree.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import _bench
from _bench import BenchError, Timed

#: name -> (goal as a ratio to QEMU or None, what it is, shell commands)
WORKLOADS: dict[str, tuple[float | None, str, str]] = {
    "loop": (1.5, "shell loop of 20,000",
             "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"),
    "gzip": (1.5, "gzip of 4 MB", "gzip -c /tmp/4m >/dev/null"),
    "sha256": (1.5, "sha256 of 4 MB", "sha256sum /tmp/4m >/dev/null"),
    "dd": (2.0, "1-byte dd, 100,000 reads and writes",
           "dd if=/dev/zero of=/dev/null bs=1 count=100000 2>/dev/null"),
    # By its path: a plain `true` would be the shell's own, with no exec.
    "fork": (2.0, "200 fork+exec",
             "i=0; while [ $i -lt 200 ]; do /bin/busybox true; i=$((i+1)); done"),
    "find": (None, "find /sys", "find /sys >/dev/null"),
}
#: Four megabytes of real machine code; the same bytes in both guests, since busybox is.
_PREPARE = "cat /bin/busybox /bin/busybox /bin/busybox | head -c 4194304 >/tmp/4m"
#: Difference between guest clock and host clock over the script above which results are refused.
_CLOCK_LIMIT = 0.02


def script(names: Sequence[str]) -> str:
    """The shell script for the guest: ``NAME START`` and ``NAME END`` around each workload.

    EPOCHREALTIME is the shell's own: reading it costs one system call and no process.
    """
    lines = [_PREPARE, "echo clock $EPOCHREALTIME"]
    for name in names:
        lines += ["t=$EPOCHREALTIME", WORKLOADS[name][2], f"echo {name} $t $EPOCHREALTIME"]
    lines += ["echo clock $EPOCHREALTIME"]
    return "\n".join(lines)


def parse(run: Timed, names: Sequence[str]) -> tuple[dict[str, float], float]:
    """({workload: seconds}, relative error of the guest clock) from one run's output."""
    seconds: dict[str, float] = {}
    clock: list[tuple[float, float]] = []  # (host, guest)
    for at, line in run.lines:
        word, *numbers = line.split()
        try:
            if word == "clock":
                clock.append((at, float(numbers[0])))
            elif word in names:
                seconds[word] = float(numbers[1]) - float(numbers[0])
        except (ValueError, IndexError):
            raise BenchError(f"the guest printed {line!r}") from None
    if set(seconds) != set(names) or len(clock) != 2:
        raise BenchError(f"the guest did not finish: {' / '.join(run.output) or 'no output'}")
    host = clock[1][0] - clock[0][0]
    guest = clock[1][1] - clock[0][1]
    return seconds, (guest - host) / host


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All numbers of this script, as JSON data."""
    version = _bench.qemu_version()
    names = options.workloads or list(WORKLOADS)
    command = ["sh", "-c", script(names)]
    bt = _bench.bt_linux(command, mem=options.mem, engine=options.engine)
    with _bench.qemu_linux(command, mem=options.mem) as qemu:
        runs = _bench.alternate({
            "bt": lambda: parse(_bench.check(_bench.run_timed(bt), 0, "bt run linux"), names),
            "qemu": lambda: parse(
                _bench.check(_bench.run_timed(qemu), _bench.qemu_status(0), "QEMU"), names),
        }, options.runs, _bench.progress)
    return {"qemu": version, "engine": options.engine, "mem_mb": options.mem // _bench.MB,
            "runs": options.runs, **summary(runs, names)}


def summary(runs: Mapping[str, list[tuple[dict[str, float], float]]],
            names: Sequence[str]) -> dict[str, Any]:
    """Medians and ratios out of the parsed runs."""
    errors = {vmm: max((error for _, error in results), key=abs) for vmm, results in runs.items()}
    for vmm, error in errors.items():
        if abs(error) > _CLOCK_LIMIT:
            raise BenchError(f"the guest clock under {vmm} is off by {error:+.1%}: no times")
    workloads = {}
    for name in names:
        bt = [seconds[name] for seconds, _ in runs["bt"]]
        qemu = [seconds[name] for seconds, _ in runs["qemu"]]
        workloads[name] = {"ratio": _bench.median(bt) / _bench.median(qemu),
                           "bt_s": _bench.median(bt), "qemu_s": _bench.median(qemu),
                           "bt_runs_s": bt, "qemu_runs_s": qemu}
    return {"workloads": workloads, "clock_error": errors}


def show(results: Mapping[str, Any]) -> str:
    """The table for people."""
    rows = [["in the guest", "bt, s", "QEMU, s", "bt / QEMU", "goal", "bt min-max"]]
    for name, numbers in results["workloads"].items():
        goal, what, _ = WORKLOADS[name]
        rows.append([what, f"{numbers['bt_s']:.3f}", f"{numbers['qemu_s']:.3f}",
                     f"{numbers['ratio']:.2f}", f"{goal:.1f}" if goal else "",
                     _bench.spread(numbers["bt_runs_s"])])
    errors = ", ".join(f"{vmm} {error:+.2%}" for vmm, error in results["clock_error"].items())
    return (f"medians of {results['runs']} alternating boots, {results['qemu']}; guest clock "
            f"against the host's at worst: {errors}\n{_bench.table(rows)}")


def options(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = _bench.parser("Run workloads in the Linux guest on bt and on QEMU TCG, and compare.")
    parser.add_argument("--mem", type=_bench.size, default=_bench.MEM, metavar="SIZE",
                        help="guest RAM of both (default: 256M)")
    parser.add_argument("--engine", default="bt", help="bt's engine (default: bt)")
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD",
                        help=f"only these: {', '.join(WORKLOADS)}")
    result = parser.parse_args(argv)
    for name in result.workloads:
        if name not in WORKLOADS:
            parser.error(f"no workload {name!r}: one of {', '.join(WORKLOADS)}")
    return result


if __name__ == "__main__":
    sys.exit(_bench.main(measure, show, options()))
