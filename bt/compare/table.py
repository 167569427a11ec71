# SPDX-License-Identifier: GPL-2.0-or-later
"""The results of a comparison as one table of text: a column an engine, a row a number."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bt.machine.sampler import VMM

NATIVE = "native"
_REASON_WIDTH = 26  # of a cell that says why an engine cannot run the workload
#: What the translator counts: title and key.
_WORK = (("instructions scanned", "instructions_scanned"), ("blocks scanned", "block_scanned"),
         ("sites", "sites"), ("stubs installed", "stub_installed"),
         ("stubs taken back", "stub_taken_back"))
#: Where a sampled run's processor time went: title and the sampler's parts (bt.machine.sampler).
_PLACES = (("time in the VMM", VMM), ("  compiled", ("core",)), ("  Python", ("python",)),
           ("the CPU's, in Unicorn", ("unicorn",)), ("guest's code", ("guest",)),
           ("elsewhere", ("elsewhere",)))

Result = Mapping[str, Any]
Row = list[str]


def columns(results: Result) -> dict[str, Result]:
    """{column: its result}: the baseline first, where there is one, then the engines."""
    native = results["native"]
    return {**({NATIVE: native} if native is not None else {}), **results["engines"]}


def render(results: Result) -> str:
    """The table, with a head line on the machine and the method."""
    subjects = columns(results)
    rows: list[Row] = [[results["workload"], *subjects]]
    failed = {name: one["error"] for name, one in subjects.items() if "error" in one}
    if failed:
        rows += _wrapped("cannot", [failed.get(name, "") for name in subjects])
    rows += _nano(subjects)
    rows += _times(subjects)
    rows += _sampled(subjects)
    rows += _throughput(subjects)
    rows += _counts("exits, control unit", subjects, lambda one: one["exits"]["control"])
    rows += _counts("exits, memory unit", subjects, lambda one: one["exits"]["memory"])
    rows += _counts("hypercalls", subjects, lambda one: one["hypercalls"])
    rows += _translator(subjects)
    facts = results["machine"]
    return (f"{results['what']}; {facts['cpu']}, {facts['cores']} cores, load {facts['load']}, "
            f"Python {facts['python']}\n"
            f"medians of {results['runs']} alternating runs; counts of the last\n\n"
            f"{_aligned(rows)}")


def _measured(subjects: Mapping[str, Result]) -> dict[str, Result]:
    return {name: one for name, one in subjects.items() if "error" not in one}


def _line(title: str, subjects: Mapping[str, Result], cell: Callable[[str, Result], str]) -> Row:
    return [title, *("" if "error" in one else cell(name, one) for name, one in subjects.items())]


def _section(title: str, rows: Iterable[Row]) -> list[Row]:
    """``rows`` under a line with the title alone; nothing when there are none."""
    found = list(rows)
    return [[title, *[""] * (len(found[0]) - 1)], *found] if found else []


def _nano(subjects: Mapping[str, Result]) -> list[Row]:
    """ns an operation, and how many times native."""
    measured = _measured(subjects)
    names: Mapping[str, float] = next((one["ns"] for one in measured.values() if one["ns"]), {})
    native = measured.get(NATIVE, {}).get("ns", {})

    def row(operation: str) -> Row:
        base = native.get(operation)

        def cell(name: str, one: Result) -> str:
            ns = one["ns"][operation]
            return f"{ns:.1f}" if name == NATIVE or not base else f"{ns:.1f} ({_ratio(ns / base)})"

        return _line(f"  {operation}", subjects, cell)

    return _section("ns an operation (times native)", map(row, names))


def _ratio(ratio: float) -> str:
    return f"{ratio:.1f}x" if ratio >= 1 else f"{ratio:.2f}x"


def _times(subjects: Mapping[str, Result]) -> list[Row]:
    def seconds(key: str) -> Callable[[str, Result], str]:
        return lambda name, one: "" if one.get(key) is None else f"{one[key]:.3f}"

    rows = [_line("  start of bt to its end", subjects, seconds("wall_s")),
            _line("  processor time of that", subjects, seconds("cpu_s"))]
    if any(one.get("guest_s") is not None for one in subjects.values()):
        rows.append(_line("  workload, guest's clock", subjects, seconds("guest_s")))
    return _section("time, s", rows)


def _sampled(subjects: Mapping[str, Result]) -> list[Row]:
    """Seconds and shares of one more run's processor time; "-" where nobody could look."""
    seconds = {name: one["sampled"].get("seconds") for name, one in _measured(subjects).items()
               if "sampled" in one}
    if not any(seconds.values()):
        return []

    def row(text: str, parts: Iterable[str]) -> Row:
        def cell(name: str, one: Result) -> str:
            if not seconds.get(name):
                return "-" if name in seconds else ""
            spent, whole = sum(seconds[name][part] for part in parts), sum(seconds[name].values())
            return f"{spent:.3f} ({spent / whole if whole else 0:.0%})"

        return _line(f"  {text}", subjects, cell)

    return _section("processor time while the guest ran, sampled, s",
                    [row(text, parts) for text, parts in _PLACES
                     if parts != ("elsewhere",) or any(one and one["elsewhere"]
                                                       for one in seconds.values())])


def _throughput(subjects: Mapping[str, Result]) -> list[Row]:
    """MB a second, and exits for each MB: all, then the reasons with one or more."""
    measured = {name: one for name, one in subjects.items() if "mb_per_s" in one}
    if not measured:
        return []
    reasons = {reason for one in measured.values() for reason, count in one["exits_per_mb"].items()
               if count >= 1}

    def row(text: str, numbers: Mapping[str, float]) -> Row:
        return [f"  {text}", *(f"{numbers[name]:.1f}" if name in numbers else ""
                               for name in subjects)]

    def each(reason: str) -> dict[str, float]:
        return {name: one["exits_per_mb"].get(reason, 0.0) for name, one in measured.items()}

    order = sorted(reasons, key=lambda reason: (-max(each(reason).values()), reason))
    rows = [row("MB/s, guest's clock", {name: one["mb_per_s"] for name, one in measured.items()}),
            row("exits a MB", {name: sum(one["exits_per_mb"].values())
                               for name, one in measured.items()})]
    return _section("throughput", [*rows, *(row(f"  {reason}", each(reason)) for reason in order)])


def _counts(title: str, subjects: Mapping[str, Result],
            pick: Callable[[Result], Mapping[str, int]]) -> list[Row]:
    """A row a name, the most frequent first; a total when there is more than one.

    A name in brackets is a remark that is no part of the total.
    """
    counts = {name: pick(one) for name, one in _measured(subjects).items() if name != NATIVE}
    reasons = {reason for one in counts.values() for reason in one}
    order = sorted(reasons, key=lambda reason: (-max(
        one.get(reason, 0) for one in counts.values()), reason))

    def row(text: str, numbers: Mapping[str, int]) -> Row:
        return [f"  {text}", *(_count(numbers[name]) if name in numbers else ""
                               for name in subjects)]

    rows = [row(reason, {name: one.get(reason, 0) for name, one in counts.items()})
            for reason in order]
    if len(rows) > 1:
        rows.insert(0, row("all", {name: sum(n for reason, n in one.items() if reason[0] != "(")
                                   for name, one in counts.items()}))
    return _section(title, rows)


def _translator(subjects: Mapping[str, Result]) -> list[Row]:
    counted = [one.get("translator", {}) for one in subjects.values()]
    if not any(counted):
        return []
    seconds = ["  seconds", *(f"{one['seconds']:.3f} ({one['share']:.0%})" if one else ""
                              for one in counted)]
    return _section("translator", [seconds, *(
        [f"  {text}", *(_count(one[key]) if key in one else "" for one in counted)]
        for text, key in _WORK)])


def _count(value: int) -> str:
    return f"{value:,}".replace(",", " ") if value else "-"


def _wrapped(title: str, cells: Iterable[str]) -> list[Row]:
    """One row of texts as several lines."""
    parts = [textwrap.wrap(cell, _REASON_WIDTH) for cell in cells]
    height = max(len(part) for part in parts)
    return [[title if i == 0 else "", *(part[i] if i < len(part) else "" for part in parts)]
            for i in range(height)]


def _aligned(rows: list[Row]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]),
                        *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:],
                                                                   strict=True))]).rstrip()
             for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
