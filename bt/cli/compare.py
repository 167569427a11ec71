# SPDX-License-Identifier: GPL-2.0-or-later
"""``bt compare [WORKLOAD]``: the same work under several engines, in one table."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bt.errors import InputError

_ENGINES = "trap,bt,pv,hvm"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``bt compare``."""
    parser.epilog = (
        "Workloads: nano (the seven nanobenchmarks of Adams and Agesen, or one by its name: "
        "syscall, in, cr8wr, callret, pgfault, divzero, ptemod, and pteflush), forkwait, boot, "
        "gzip, disk, disk-ata (these five in Linux), tasks, net (two Linux guests on a cable)."
    )
    add = parser.add_argument
    add("workload", nargs="?", default="nano", metavar="WORKLOAD", help="default: nano")
    add("--engines", type=engine_list, default=_ENGINES, metavar="A,B,...",
        help=f"which, in the order of the columns (default: {_ENGINES})")
    add("--runs", type=count, default=3, metavar="N", help="runs of each that count (default: 3)")
    add("--count", type=count, metavar="N",
        help="forkwait: forks (default: 1000); nano: operations in a pass (default: 4096)")
    add("--patched", action="store_true",
        help="nano, tasks: under pv the native build after bt patch, not the one built for pv")
    add("--json", action="store_true", help="print one JSON object for programs")
    add("--chart", type=Path, metavar="FILE.svg", help="write a bar chart too")


def engine_list(text: str) -> list[str]:
    """An argparse type: names of engines with commas between them, each once. Raises InputError."""
    from bt.engines import ENGINES

    found = text.split(",")
    for name in found:
        # The default is the question even where this build lacks an engine: its column says so.
        if name not in ENGINES and name not in _ENGINES.split(","):
            raise InputError(f"no engine {name!r}: one of {', '.join(ENGINES)}")
        if found.count(name) > 1:
            raise InputError(f"engine {name} is named twice")
    return found


def count(text: str) -> int:
    """An argparse type: a whole number from 1 on."""
    if not (text.isascii() and text.isdigit() and 0 < int(text[:10]) and len(text) < 10):
        raise argparse.ArgumentTypeError(f"not a number from 1 on: {text!r}")
    return int(text)


def run(options: argparse.Namespace) -> int:
    """Compare and print; 0 even when an engine could not run it (its cell says why)."""
    if options.command is not None:
        raise InputError("bt compare takes no command: its workloads have their own")
    from bt.compare import chart, runner, table, workloads

    workload = workloads.get(options.workload, options.count, patched=options.patched)
    if options.chart is not None:
        _check_chart(options.chart)
    results = runner.compare(workload, options.engines, options.runs, _progress)
    _progress("")
    if options.json:
        print(json.dumps(results, indent=2))
    else:
        print(table.render(results))
    if options.chart is not None:
        try:
            options.chart.write_text(chart.render(results), encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write {options.chart}: {error.strerror}") from None
    return 0


def _check_chart(path: Path) -> None:
    """Know what is wrong with the file before the minutes that the runs take."""
    if path.suffix.lower() != ".svg":
        raise InputError(f"{path}: the chart is an SVG: a name that ends in .svg")
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}")


def _progress(line: str) -> None:
    """What is going on, on stderr, where a person looks and a pipe does not."""
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
