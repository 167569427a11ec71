# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs one workload under several engines in turns, and puts the results together.

Every run is a process of its own, ``bt run``: a machine that the last run warmed up, or one that a
guest took down, has no part in the next. Engines take turns, so that a host that gets slower half
way slows all of them; what is compared is medians.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bt
from bt.compare.workloads import Reading, Workload, WorkloadFailed
from bt.engines import ENGINES
from bt.errors import BtError

TIME_LIMIT_S = 300


@dataclass(frozen=True)
class Run:
    """One run: seconds from the start of the process to its end, its counters, its own words.

    ``cpu_s``: processor seconds of the process, in it and in the kernel for it.
    """

    wall_s: float
    cpu_s: float
    stats: dict[str, Any]
    reading: Reading


def run_once(workload: Workload, engine: str) -> Run:
    """Run ``workload`` under ``engine``. Raises WorkloadFailed with the reason in one line."""
    guest, *rest = workload.arguments(engine)
    at = rest.index("--") if "--" in rest else len(rest)
    root = str(Path(bt.__file__).parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as folder:
        stats = Path(folder, "stats")
        command = [sys.executable, "-P", "-m", "bt", "run", guest, "--engine", engine,
                   "--stats", str(stats), "--timeout", str(TIME_LIMIT_S), *rest[:at], *rest[at:]]
        used, start = _children_s(), time.perf_counter()
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False,
                              env=dict(os.environ, PYTHONPATH=path))
        wall, used = time.perf_counter() - start, _children_s() - used
        if done.returncode != 0:
            raise WorkloadFailed(_reason(done.stderr.decode("utf-8", "replace"), engine)
                                 or f"ended with status {done.returncode}")
        return Run(wall, used, json.loads(stats.read_text()),
                   workload.read(done.stdout.decode("utf-8", "replace")))


def _children_s() -> float:
    """Processor seconds of all children that have been waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _reason(errors: str, engine: str) -> str:
    """What `bt run` said was wrong: its first line that is not what it always says."""
    remark = ENGINES[engine].open().remark()
    for line in errors.splitlines():
        if line.startswith("bt: ") and line[4:] != remark:
            return line[4:]
    return ""


def compare(workload: Workload, engines: Sequence[str], runs: int,
            progress: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Everything `bt compare` knows, as JSON data.

    ``engines``: {name: {"error": reason} or times in seconds (medians, and every run's), ns an
    operation, counters of the last run}; ``native``: the same for ring 0 on plain Unicorn, or null.
    """
    taken: dict[str, list[Run]] = {name: [] for name in engines}
    errors = {name: "not available yet" for name in engines if name not in ENGINES}
    baseline: list[dict[str, float]] = []
    native_error = None
    for number in range(0 if workload.warm_up else 1, runs + 1):
        turn = f"run {number} of {runs}" if number else "warm-up"
        if workload.nano is not None and native_error is None:
            progress(f"native: {turn}")
            try:
                baseline.append(_native(workload))
            except BtError as error:
                native_error = str(error)
        for engine in engines:
            if engine in errors:
                continue
            progress(f"{engine}: {turn}")
            try:
                run = run_once(workload, engine)
            except WorkloadFailed as error:
                errors[engine] = str(error)
                continue
            if number:
                taken[engine].append(run)
    return {
        "workload": workload.name, "what": workload.what, "runs": runs, "machine": machine(),
        "native": _baseline(baseline, native_error) if workload.nano is not None else None,
        "engines": {name: {"error": errors[name]} if name in errors else _summary(taken[name])
                    for name in engines},
    }


def _native(workload: Workload) -> dict[str, float]:
    """ns an operation, in ring 0 on plain Unicorn."""
    import guests

    try:
        from bt.compare import native
        scale = native.ns_per_tick()
        assert workload.nano is not None
        output = native.run(guests.image("nano"), workload.nano)
    except ImportError as error:
        raise BtError(f"not built: {error}") from None
    return {name: ticks * scale for name, ticks in workload.read(output).ticks.items()}


def _baseline(taken: Sequence[dict[str, float]], error: str | None) -> dict[str, Any]:
    if error is not None:
        return {"error": error}
    return {"ns": _medians(taken), "ns_runs": list(taken)}


def _medians(taken: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(one[name] for one in taken) for name in taken[0]}


def _summary(runs: Sequence[Run]) -> dict[str, Any]:
    """One engine's results. Ticks are of its TSC, which the statistics give the frequency of."""
    walls, cpus = [run.wall_s for run in runs], [run.cpu_s for run in runs]
    guests = [run.reading.guest_s for run in runs if run.reading.guest_s is not None]
    stats = runs[-1].stats
    nanoseconds = [{name: ticks * 1e9 / run.stats["tsc_hz"]
                    for name, ticks in run.reading.ticks.items()} for run in runs]
    return {
        "wall_s": statistics.median(walls), "wall_runs_s": walls,
        "cpu_s": statistics.median(cpus), "cpu_runs_s": cpus,
        "guest_s": statistics.median(guests) if guests else None, "guest_runs_s": guests,
        "ns": _medians(nanoseconds),
        "ns_runs": nanoseconds,
        "exits": stats["exits"], "hypercalls": stats["hypercalls"],
        "translator": stats["translator"],
    }


def machine() -> dict[str, Any]:
    """What the numbers were measured on: processor model, cores, load at the end, Python."""
    model = "unknown processor"
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass  # not Linux: the numbers are worth having all the same
    return {"cpu": model, "cores": os.cpu_count() or 0, "load": round(os.getloadavg()[0], 2),
            "python": sys.version.split()[0]}
