#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Time of a whole boot: from starting the process until `true` has run in the guest and it ended.

    python tools/bench_boot.py [--runs N] [--json] [--mem SIZE] [--engine NAME]

bt and QEMU TCG take turns; medians are compared. Also what memory bt needs, and how long
`bt run hello` takes, which is start-up time and little else.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

import _bench
from _bench import MB, Timed

COMMAND = ["true"]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All numbers of this script, as JSON data."""
    version = _bench.qemu_version()
    watch = _bench.RssWatch(options.mem)
    bt = _bench.bt_linux(COMMAND, mem=options.mem, engine=options.engine)
    # Not one of the timed runs: it is watched, and it fetches what is not there yet.
    _bench.progress("bt: memory")
    _bench.check(_bench.run_timed(bt, on_start=watch.start), 0, "bt run linux")
    with _bench.qemu_linux(COMMAND, mem=options.mem) as qemu:
        runs = _bench.alternate({
            "bt": lambda: _bench.check(_bench.run_timed(bt), 0, "bt run linux"),
            "qemu": lambda: _bench.check(_bench.run_timed(qemu), _bench.qemu_status(0), "QEMU"),
        }, options.runs, _bench.progress)
    hello = _bench.bt_command("run", "hello", "--engine", options.engine)
    hellos = _bench.alternate({
        "hello": lambda: _bench.check(_bench.run_timed(hello), 0, "bt run hello"),
    }, options.runs, _bench.progress)["hello"]
    return {"qemu": version, "engine": options.engine, "mem_mb": options.mem // MB,
            "runs": options.runs,
            **summary(runs["bt"], runs["qemu"], hellos, options.mem, watch.peak_rest)}


def summary(bt: list[Timed], qemu: list[Timed], hello: list[Timed], mem: int,
            rest: int) -> dict[str, Any]:
    """The numbers out of the runs.

    ``rss_overhead_mb`` is bt's peak resident memory minus the guest RAM it was given: below zero
    when the guest has not touched all of that. ``rss_vmm_mb`` is what was resident besides guest
    RAM, the worst of the looks at one untimed run; it bounds the overhead for any guest that boots
    like this one, however much RAM it touches.
    """
    bt_s = _bench.median([run.wall_s for run in bt])
    qemu_s = _bench.median([run.wall_s for run in qemu])
    peak = max(run.rss for run in bt)
    return {
        "ratio": bt_s / qemu_s,
        "bt_s": bt_s,
        "qemu_s": qemu_s,
        "hello_s": _bench.median([run.wall_s for run in hello]),
        "rss_overhead_mb": (peak - mem) / MB,
        "rss_peak_mb": peak / MB,
        "rss_vmm_mb": rest / MB,
        "qemu_rss_peak_mb": max(run.rss for run in qemu) / MB,
        "bt_runs_s": [run.wall_s for run in bt],
        "qemu_runs_s": [run.wall_s for run in qemu],
        "hello_runs_s": [run.wall_s for run in hello],
    }


def show(results: Mapping[str, Any]) -> str:
    """The table for people."""
    rows = [
        ["", "median", "min-max", "goal"],
        [f"bt, engine {results['engine']}, s", f"{results['bt_s']:.2f}",
         _bench.spread(results["bt_runs_s"]), ""],
        ["QEMU TCG, s", f"{results['qemu_s']:.2f}", _bench.spread(results["qemu_runs_s"]), ""],
        ["bt / QEMU", f"{results['ratio']:.2f}", "", "0.90"],
        ["bt run hello, s", f"{results['hello_s']:.2f}", _bench.spread(results["hello_runs_s"]),
         "0.60"],
        [f"peak RSS - {results['mem_mb']} MB of RAM, MB", f"{results['rss_overhead_mb']:.0f}", "",
         "150"],
        ["RSS besides guest RAM, MB", f"{results['rss_vmm_mb']:.0f}", "", "150"],
        ["peak RSS, MB", f"{results['rss_peak_mb']:.0f}", "", ""],
        ["QEMU's peak RSS, MB", f"{results['qemu_rss_peak_mb']:.0f}", "", ""],
    ]
    return (f"process start to the end of `true` in the guest, {results['runs']} alternating runs, "
            f"{results['qemu']}\n{_bench.table(rows)}")


def options(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = _bench.parser("Boot Linux on bt and on QEMU TCG, and compare.")
    parser.add_argument("--mem", type=_bench.size, default=_bench.MEM, metavar="SIZE",
                        help="guest RAM of both (default: 256M)")
    parser.add_argument("--engine", default="bt", help="bt's engine (default: bt)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(_bench.main(measure, show, options()))
