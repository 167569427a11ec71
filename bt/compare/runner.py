# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs one workload under several engines in turns, and puts the results together.

Every run is a process of its own, ``bt run``: a machine that the last run warmed up, or one that a
guest took down, has no part in the next. Engines take turns, so that a host that gets slower half
way slows all of them; what is compared is medians.

Where the time goes is asked in one more run of each (``bt run --sample``), which is not timed.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bt
from bt.compare.workloads import FOLDER, Reading, Workload, WorkloadFailed
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


def run_once(workload: Workload, engine: str, *, idle: bool = False, sample: bool = False) -> Run:
    """Run ``workload`` under ``engine``, or with ``idle`` all of it but the work, which has no
    reading. ``sample``: its statistics say where the time went. Raises WorkloadFailed with the
    reason in one line.
    """
    arguments = workload.idle if idle and workload.idle is not None else workload.arguments
    with tempfile.TemporaryDirectory() as folder, _companion(workload, engine, folder):
        stats = Path(folder, "stats")
        used, start = _children_s(), time.perf_counter()
        done = subprocess.run(
            _command(arguments(engine), engine, folder, "--stats", str(stats),
                     *["--sample"] * sample),
            stdin=subprocess.DEVNULL, capture_output=True, check=False, env=_environment())
        wall, used = time.perf_counter() - start, _children_s() - used
        if done.returncode != 0:
            raise _failed(done.stderr, done.returncode, engine)
        output = done.stdout.decode("utf-8", "replace")
        return Run(wall, used, json.loads(stats.read_text()),
                   Reading() if idle else workload.read(output))


def _command(arguments: Sequence[str], engine: str, folder: str, *options: str) -> list[str]:
    guest, *rest = (word.replace(FOLDER, folder) for word in arguments)
    return [sys.executable, "-P", "-m", "bt", "run", guest, "--engine", engine, *options,
            "--timeout", str(TIME_LIMIT_S), *rest]


def _environment() -> dict[str, str]:
    """For a child that is to run this same tree."""
    root = str(Path(bt.__file__).parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return dict(os.environ, PYTHONPATH=path)


@contextmanager
def _companion(workload: Workload, engine: str, folder: str) -> Iterator[None]:
    """The second machine, from when it is ready. Raises WorkloadFailed."""
    if workload.companion is None:
        yield
        return
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            _command(workload.companion(engine), engine, folder), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=errors, env=_environment())
        try:
            while not Path(folder, workload.ready).exists():
                if process.poll() is not None:
                    errors.seek(0)
                    raise _failed(errors.read(), process.returncode, engine)
                time.sleep(0.02)
            yield
        finally:
            process.terminate()
            process.wait()


def _failed(errors: bytes, status: int, engine: str) -> WorkloadFailed:
    return WorkloadFailed(_reason(errors.decode("utf-8", "replace"), engine)
                          or f"ended with status {status}")


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
    operation, counters of the last run, "sampled": where the time went}; ``native``: the same for
    ring 0 on plain Unicorn, or null.
    """
    taken: dict[str, list[Run]] = {name: [] for name in engines}
    idle: dict[str, Run] = {}
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
                if not number and workload.idle is not None:
                    idle[engine] = run_once(workload, engine, idle=True)
            except WorkloadFailed as error:
                errors[engine] = str(error)
                continue
            if number:
                taken[engine].append(run)
    sampled: dict[str, Any] = {}
    for engine in engines:
        if engine not in errors:
            progress(f"{engine}: sampled run")
            sampled[engine] = _sampled(workload, engine)
    return {
        "workload": workload.name, "what": workload.what, "runs": runs, "machine": machine(),
        "native": _baseline(baseline, native_error) if workload.nano is not None else None,
        "engines": {name: {"error": errors[name]} if name in errors
                    else _summary(taken[name], workload.megabytes, idle.get(name))
                    | {"sampled": sampled[name]}
                    for name in engines},
    }


def _sampled(workload: Workload, engine: str) -> dict[str, Any]:
    """Where one run's time went (Sampler.to_json), or {"error": why that is not known}."""
    if not ENGINES[engine].emulated:
        return {"error": "guest code runs outside of this process"}
    try:
        sampled: dict[str, Any] = run_once(workload, engine, sample=True).stats["sampled"]
    except WorkloadFailed as error:
        return {"error": str(error)}
    return sampled


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


def _throughput(runs: Sequence[Run], megabytes: float, idle: Run | None) -> dict[str, Any]:
    """MB a second by the guest's clock; exits by reason, above those of an idle run, for each MB.
    """
    speeds = [megabytes / run.reading.guest_s for run in runs if run.reading.guest_s]
    if not speeds or idle is None:
        return {}
    exits = {}
    for unit, counts in runs[-1].stats["exits"].items():
        without = idle.stats["exits"].get(unit, {})
        for reason, count in counts.items():
            exits[reason] = max(0, count - without.get(reason, 0)) / megabytes
    return {"mb_per_s": statistics.median(speeds), "mb_per_s_runs": speeds, "exits_per_mb": exits}


def _summary(runs: Sequence[Run], megabytes: float, idle: Run | None) -> dict[str, Any]:
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
        "translator": stats["translator"], **_throughput(runs, megabytes, idle),
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
