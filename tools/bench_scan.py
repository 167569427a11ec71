#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast `bt scan` reads a kernel: instructions a second on one core, by CPU time.

Three figures of one file (default: Debian's kernel): the sweep alone, the whole scan with
unpacking, names and outcomes, and capstone's own loop over the same code for comparison. INT3 that
fills the room between functions is not counted as instructions, in none of them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import _bench

_CAPSTONE_BYTES = 2 << 20       # of the first section: it is slow


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All numbers of this script, as JSON data."""
    from bt.errors import InputError
    from bt.scan.files import open_binary
    from bt.scan.work import Options, scan_file
    from guests.linux import fetch
    from translator.scanner import disassembler, sweep

    try:
        path = options.file or fetch.kernel(fetch.KERNEL_PACKAGE)
        with open_binary(path) as binary:
            regions = binary.regions
    except InputError as error:
        raise _bench.BenchError(str(error)) from None
    counts = {}

    def sweeps() -> int:
        return sum(sweep(r.data, r.address, r.bits, r.starts).instructions for r in regions)

    def whole() -> int:
        result = scan_file(path, Options(keep_sites=False))
        counts.update(instructions=result.instructions, sites=result.total)
        return result.instructions

    def capstone() -> int:
        first = regions[0]
        lite = disassembler(first.bits).disasm_lite
        return sum(mnemonic != "int3"
                   for _, _, mnemonic, _ in lite(first.data[:_CAPSTONE_BYTES], first.address))

    rates = {}
    for name, work in (("sweep", sweeps), ("scan", whole), ("capstone", capstone)):
        _bench.progress(name)
        rates[name] = _rate(work, options.runs)
    return {"runs": options.runs, "file": str(path), **counts, "per_second": rates}


def _rate(work: Callable[[], int], runs: int) -> float:
    """Instructions a second of this process's CPU time: the median."""
    rates = []
    for _ in range(runs):
        started = time.process_time()
        done = work()
        rates.append(done / (time.process_time() - started))
    return _bench.median(rates)


def show(results: Mapping[str, Any]) -> str:
    """The table for people."""
    rates = results["per_second"]
    rows = [["million instructions a second, one core", "", "goal"],
            ["the sweep alone", f"{rates['sweep'] / 1e6:.1f}", ""],
            ["bt scan: unpacking, names and outcomes too", f"{rates['scan'] / 1e6:.1f}", "1.0"],
            ["capstone from Python, for comparison", f"{rates['capstone'] / 1e6:.2f}", ""]]
    return (f"{Path(results['file']).name}: {results['instructions']:,} instructions, "
            f"{results['sites']:,} sites\n\n{_bench.table(rows)}")


def options(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = _bench.parser("Speed of bt scan on one core.")
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE",
                        help="a guest binary (default: Debian's kernel)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(_bench.main(measure, show, options()))
