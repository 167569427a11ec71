# SPDX-License-Identifier: GPL-2.0-or-later
"""What people see of a scan: tables, ruled in a terminal and plain where the output goes elsewhere.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from bt.scan.work import CLASSES, Key, Result, Site, text_of
from translator.outcome import BT, PV
from translator.sensitive import TABLE, Row

#: Results that fit beside one another.
SIDE_BY_SIDE = 6


@dataclass(frozen=True)
class Table:
    """Cells as text. ``left``: how many columns are words; the others are numbers.

    ``rows``: None is a rule.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str] | None]
    left: int = 1

    def write(self, out: TextIO, rich: bool) -> None:
        """Print it."""
        if rich:
            self._write_rich(out)
            return
        lines = [self.head, *(row for row in self.rows if row is not None)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            cells = [cell.ljust(width) if at < self.left else cell.rjust(width)
                     for at, (cell, width) in enumerate(zip(line, widths, strict=True))]
            out.write(f"  {'  '.join(cells)}".rstrip() + "\n")
        out.write("\n")

    def _write_rich(self, out: TextIO) -> None:
        from rich import box
        from rich.console import Console
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False,
                          padding=(0, 1, 0, 0))
        for at, name in enumerate(self.head):
            words = at < self.left
            # In two lines, so that eleven columns fit: "pv" over "hypercall".
            head = name if words else name.replace(" ", "\n", 1)
            table.add_column(Text(head), justify="left" if words else "right", overflow="fold",
                             no_wrap=not words)
        for row in self.rows:
            if row is None:
                table.add_section()
            else:
                # Text and not str: names from a file are no markup.
                table.add_row(*map(Text, row))
        console = Console(file=out, highlight=False)
        console.print(table)
        console.print()


def number(value: int) -> str:
    """With commas; nothing for 0."""
    return f"{value:,}" if value else ""


def headline(result: Result) -> str:
    """Two or three lines: what the file is, how much code it has, and how much of it matters."""
    names = f"; names from {result.symbols}" if result.symbols else "; no names"
    lines = [f"{result.name}: {result.description}{names}"]
    if not result.code_bytes:
        return "\n".join([*lines, "  no code in it"])
    share = ""
    if result.total:
        share = f", one in {round(result.instructions / result.total):,}"
    lines.append(f"  {result.instructions:,} instructions in {size(result.code_bytes)} of code, "
                 f"{result.total:,} of the sensitive table{share}")
    holes = sum(n for key, n in result.counts.items() if is_hole(TABLE[key.row]))
    if result.user:
        held = sum(n for key, n in result.counts.items() if key.bt != "untouched")
        lines.append(f"  a user program: {held:,} of them would be translated in ring 3; the "
                     "others fault or reach the kernel by themselves")
    elif result.total:
        lines.append(f"  {holes:,} do not fault outside ring 0: the holes of trap-and-emulate")
    return "\n".join(lines)


def is_hole(row: Row) -> bool:
    """Whether trap-and-emulate gets it wrong: it runs outside ring 0, and shows or changes state.
    """
    return not row.traps and row.instr_class == "sensitive"


def size(value: int) -> str:
    """Bytes for people."""
    if value < 10 << 10:
        return f"{value:,} bytes"
    return f"{value / 1024:,.0f} KB" if value < 10 << 20 else f"{value / (1 << 20):,.1f} MB"


def by_instruction(results: Iterable[Result]) -> Table:
    """A row an instruction, in the order of the table, under a row with its class and totals."""
    results = list(results)
    user = all(result.user for result in results)
    counts = merged(results)
    head = ["", "faults", "sites", *(_heading("bt", how) for how in BT)]
    if not user:
        head += [_heading("pv", how) for how in PV]

    def cells(keys: dict[Key, int]) -> list[str]:
        found = [number(sum(keys.values()))]
        found += [number(sum(n for k, n in keys.items() if k.bt == how)) for how in BT]
        if not user:
            found += [number(sum(n for k, n in keys.items() if k.pv == how)) for how in PV]
        return found

    rows: list[Sequence[str] | None] = []
    for name in CLASSES:
        of_class = {k: n for k, n in counts.items() if TABLE[k.row].instr_class == name}
        if not of_class:
            continue
        rows.append([name, "", *cells(of_class)])
        for row in sorted({TABLE[k.row] for k in of_class}, key=lambda row: row.id):
            of_row = {k: n for k, n in of_class.items() if k.row == row.id}
            rows.append([f"  {row.name}", _faults(row), *cells(of_row)])
        rows.append(None)
    rows.append(["all", "", *cells(counts)])
    return Table(head, rows, 2)


def _heading(engine: str, how: str) -> str:
    """Short enough that eleven columns fit in 80 characters."""
    return f"{engine} {'left' if how == 'untouched' else how}"


def _faults(row: Row) -> str:
    return "yes" if row.traps else "hole" if is_hole(row) else "no"


def merged(results: Iterable[Result]) -> dict[Key, int]:
    """The counts of several files together."""
    total: Counter[Key] = Counter()
    for result in results:
        total.update(result.counts)
    return dict(total)


def by_section(result: Result) -> Table:
    """A row a section."""
    found = Counter[tuple[str, int]]()
    for key, n in result.counts.items():
        found[key.section, key.bits] += n
    rows = [[s.name, str(s.bits), f"{s.size:,}", f"{s.instructions:,}",
             number(found[s.name, s.bits]),
             number(s.fillers), number(s.data), number(s.skipped)] for s in result.sections]
    return Table(["section", "mode", "bytes", "instructions", "sites", "INT3 filling", "data bytes",
                  "not decoded"], rows)


def by_symbol(result: Result, top: int) -> Table | None:
    """The symbols with most sites."""
    ranked = sorted(result.by_symbol.items(), key=lambda row: (-row[1], row[0]))
    if not ranked:
        return None
    shown = ranked[:top or None]
    rows: list[Sequence[str] | None] = [[name, f"{n:,}"] for name, n in shown]
    if len(shown) < len(ranked):
        rest = sum(n for _, n in ranked[len(shown):])
        rows.append([f"{len(ranked) - len(shown):,} more symbols", f"{rest:,}"])
    return Table(["symbol", "sites"], rows)


def side_by_side(results: Sequence[Result]) -> Table:
    """A row an instruction, a column a file."""
    names = [result.name for result in results]
    if len(set(names)) < len(names):
        names = [result.path for result in results]
    totals = [Counter[int]() for _ in results]
    for total, result in zip(totals, results, strict=True):
        for key, n in result.counts.items():
            total[key.row] += n
    rows: list[Sequence[str] | None] = [
        ["instructions", *(f"{r.instructions:,}" for r in results)],
        ["code, bytes", *(f"{r.code_bytes:,}" for r in results)], None]
    for name in CLASSES:
        ids = sorted({id for total in totals for id in total if TABLE[id].instr_class == name})
        if ids:
            rows.append([name, *(number(sum(total[id] for id in ids)) for total in totals)])
            rows += [[f"  {TABLE[id].name}", *(number(total[id]) for total in totals)]
                     for id in ids]
            rows.append(None)
    rows.append(["all", *(number(result.total) for result in results)])
    rows.append(["holes", *(number(sum(n for id, n in total.items() if is_hole(TABLE[id])))
                            for total in totals)])
    for engine, ways in (("bt", BT), ("pv", PV)):
        rows += [[_heading(engine, how), *(number(_how(r, engine, how)) for r in results)]
                 for how in ways]
    return Table(["", *names], rows)


def _how(result: Result, engine: str, how: str) -> int:
    return sum(n for key, n in result.counts.items() if getattr(key, engine) == how)


def by_file(results: Sequence[Result], top: int) -> Table:
    """A row a file, those with most sites first."""
    ranked = sorted(results, key=lambda r: (-r.total, r.path))
    shown = ranked[:top or None]
    # What all paths begin with is said once, above the column.
    paths = [Path(r.path).absolute() for r in results]
    folder = os.path.commonpath([path.parent for path in paths])
    rows: list[Sequence[str] | None] = [
        _cells(os.path.relpath(r.path, folder), r.kind, [r]) for r in shown]
    rest = ranked[len(shown):]
    if rest:
        rows.append(_cells(f"{len(rest):,} more files", "", rest))
    rows += [None, _cells("all", "", ranked)]
    return Table([f"in {folder}", "kind", "instructions", *CLASSES, "holes",
                  "sites"], rows, 2)


def _cells(name: str, kind: str, results: Sequence[Result]) -> list[str]:
    counts = merged(results)
    return [name, kind, f"{sum(r.instructions for r in results):,}",
            *(number(sum(n for k, n in counts.items() if TABLE[k.row].instr_class == c))
              for c in CLASSES),
            number(sum(n for k, n in counts.items() if is_hole(TABLE[k.row]))),
            number(sum(counts.values()))]


def listing(result: Result, with_path: bool) -> Iterator[str]:
    """A line a site: address, where it is, what it is, what becomes of it, bytes, disassembly."""
    wide = 16 if result.bits == 64 and any(s.address >> 32 for s in result.sites) else 8
    for site in result.sites:
        row = TABLE[site.row]
        where = f"{result.path}: " if with_path else ""
        yield (f"{where}{site.address:0{wide}x} {site.section:<14} {place(site):<36} "
               f"{row.name:<12} {row.instr_class:<10} {'faults' if row.traps else 'no fault':<8} "
               f"bt {site.bt:<9} pv {site.pv:<9} {site.code.hex():<20} {text_of(site)}")


def place(site: Site) -> str:
    """``symbol+0x12``, or - without a symbol."""
    if site.symbol is None:
        return "-"
    return f"{site.symbol}+{site.offset:#x}" if site.offset else site.symbol
