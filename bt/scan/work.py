# SPDX-License-Identifier: GPL-2.0-or-later
"""One file scanned: its findings and their totals, as plain data that can go between processes.

What is code is what the file calls code: sections with SHF_EXECINSTR or IMAGE_SCN_CNT_CODE,
executable segments where there are no sections. Each is swept linearly, and anew from each symbol.
What symbols call data is left out; so is what a relocation shows to be no opcode. Approximate it
stays: data that nothing marks is read as code, code in data sections (a 16-bit trampoline, say) is
not looked at, all of a section is read with the file's code size, and what a kernel writes into
its own code at run time (alternatives, paravirt calls) is not there yet.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from bt.errors import InputError
from bt.scan.files import Binary, NotCode, Region, open_binary
from translator.outcome import LOOK_AHEAD, outcome
from translator.scanner import Finding, Sweep, sweep
from translator.sensitive import TABLE

#: The version of what `Result.to_json` gives. A change of meaning is a new number.
SCHEMA = "ring1-scan/1"
#: nm's letters for symbols that may name code.
_CODE_KINDS = "TtWwiu"
CLASSES = ("sensitive", "privileged", "wanted")
# Capstone's handles are one for the process; a cluster's worker may have several threads.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Options:
    """What to look for, and how to read a file.

    ``bits`` and ``base``: the file is a flat binary. ``ring``: the code is meant for ring 0 or 3;
    None: by the file's looks. The rest are filters, empty = all: classes, instructions by the
    table's names, and shell patterns for symbols and sections. ``keep_sites``: results carry every
    site and not only the counts.
    """

    bits: int | None = None
    base: int = 0
    ring: int | None = None
    system_map: Path | None = None
    classes: tuple[str, ...] = ()
    instructions: tuple[str, ...] = ()
    symbols: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()
    keep_sites: bool = True


class Site(NamedTuple):
    """A sensitive instruction. ``row``: id in the table; bt, pv: translator.outcome.Outcome."""

    address: int
    bits: int
    section: str
    symbol: str | None
    offset: int
    row: int
    code: bytes
    operand: str
    bt: str
    pv: str


class Key(NamedTuple):
    """What sites are counted by."""

    row: int
    bits: int
    section: str
    bt: str
    pv: str


@dataclass(frozen=True)
class SectionTotals:
    """A code section: bytes, and what a sweep of it met (translator.scanner.Sweep).

    data: bytes in it that symbols or relocations show to be data.
    """

    name: str
    bits: int
    address: int
    size: int
    instructions: int
    fillers: int
    skipped: int
    dropped: int
    data: int


_SUMMED = ("size", "instructions", "fillers", "skipped", "dropped", "data")


@dataclass(frozen=True)
class Result:
    """One file scanned. ``error``: why it was not; ``no_code``: it is no guest binary at all."""

    path: str
    kind: str = ""
    description: str = ""
    bits: int = 0
    user: bool = False
    symbols: str = ""
    size: int = 0
    sections: tuple[SectionTotals, ...] = ()
    counts: dict[Key, int] = field(default_factory=dict)
    by_symbol: dict[str, int] = field(default_factory=dict)
    sites: tuple[Site, ...] = ()
    error: str = ""
    no_code: bool = False

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return Path(self.path).name

    @property
    def instructions(self) -> int:
        """Instructions looked at, without INT3 that fills room."""
        return sum(section.instructions for section in self.sections)

    @property
    def code_bytes(self) -> int:
        """Bytes in code sections."""
        return sum(section.size for section in self.sections)

    @property
    def total(self) -> int:
        """Sensitive instructions."""
        return sum(self.counts.values())

    def to_json(self) -> dict[str, Any]:
        """Plain data for json: docs/scan.md describes it."""
        if self.error:
            return {"path": self.path, "error": self.error}
        return {
            "path": self.path, "kind": self.kind, "description": self.description,
            "bits": self.bits, "user": self.user, "symbols": self.symbols or None,
            "size": self.size, "code_bytes": self.code_bytes, "instructions": self.instructions,
            "total": self.total,
            "sections": [asdict(section) for section in self.sections],
            "counts": [
                {"instruction": TABLE[key.row].name, "class": TABLE[key.row].instr_class,
                 "category": TABLE[key.row].category, "traps": TABLE[key.row].traps,
                 "mode": key.bits, "section": key.section, "bt": key.bt, "pv": key.pv,
                 "count": count} for key, count in sorted(self.counts.items())],
            "by_symbol": dict(sorted(self.by_symbol.items(), key=lambda row: (-row[1], row[0]))),
            "sites": [site_json(site) for site in self.sites],
        }


def site_json(site: Site) -> dict[str, Any]:
    """A site as plain data; addresses are numbers."""
    row = TABLE[site.row]
    return {"address": site.address, "mode": site.bits, "section": site.section,
            "symbol": site.symbol, "offset": site.offset, "instruction": row.name,
            "class": row.instr_class, "traps": row.traps, "bytes": site.code.hex(),
            "text": text_of(site), "bt": site.bt, "pv": site.pv}


def text_of(site: Site) -> str:
    """The disassembly, with what a relocation puts into it."""
    text = Finding(0, site.address, TABLE[site.row], site.code, site.bits).text
    return f"{text}  # {site.operand}" if site.operand else text


def scan_file(path: Path, options: Options) -> Result:
    """Scan one file. Never raises for what is wrong with the file: ``Result.error`` says it."""
    with _ONE_AT_A_TIME:
        try:
            names = None
            if options.system_map is not None:
                from bt.symbols import of_file
                names = of_file(options.system_map)
            with open_binary(path, options.bits, options.base, names) as binary:
                return _scanned(path, binary, options)
        except InputError as error:
            return Result(str(path), error=str(error), no_code=isinstance(error, NotCode))
        except MemoryError:
            return Result(str(path), error=f"{path}: takes more memory than there is")


def _scanned(path: Path, binary: Binary, options: Options) -> Result:
    user = binary.user if options.ring is None else options.ring == 3
    counts: Counter[Key] = Counter()
    by_symbol: Counter[str] = Counter()
    sites: list[Site] = []
    sections = []
    for region in binary.regions:
        if not _matches(region.section, options.sections):
            continue
        totals, found = _sweep(region)
        relocations = region.relocations() if found else {}
        for finding in found:
            if not _wanted(finding, options):
                continue
            if _is_data(finding, relocations):
                totals = _as_data(totals, finding.length)
                continue
            site = _site(region, finding, relocations, user)
            if not _matches(site.symbol or "", options.symbols):
                continue
            counts[Key(site.row, site.bits, site.section, site.bt, site.pv)] += 1
            by_symbol[site.symbol or ""] += 1
            if options.keep_sites:
                sites.append(site)
        sections.append(totals)
    by_symbol.pop("", None)
    return Result(str(path), binary.kind, binary.description, binary.bits, user, binary.symbols,
                  path.stat().st_size, _merged(sections), dict(counts), dict(by_symbol),
                  tuple(sites))


def _merged(parts: Iterable[SectionTotals]) -> tuple[SectionTotals, ...]:
    """One for a section and code size, in the order of their addresses."""
    total: dict[tuple[str, int], SectionTotals] = {}
    for part in parts:
        first = total.get((part.name, part.bits))
        if first is not None:
            part = SectionTotals(first.name, first.bits, first.address,
                                 *(getattr(first, name) + getattr(part, name)
                                   for name in _SUMMED))
        total[part.name, part.bits] = part
    return tuple(total.values())


def _sweep(region: Region) -> tuple[SectionTotals, list[Finding]]:
    """Sweep a region between its holes."""
    found: list[Finding] = []
    done: list[Sweep] = []
    data = 0
    for start, end in _between(region.holes, len(region.data)):
        part = sweep(region.data[start:end], region.address + start, region.bits,
                     (at - start for at in region.starts if start < at < end))
        found += [Finding(f.offset + start, f.address, f.row, f.code, f.bits)
                  for f in part.findings]
        done.append(part)
        data += end - start
    return SectionTotals(
        region.section, region.bits, region.address, len(region.data),
        sum(part.instructions for part in done), sum(part.fillers for part in done),
        sum(part.skipped for part in done), sum(part.dropped for part in done),
        len(region.data) - data), found


def _between(holes: Iterable[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    at = 0
    for start, end in holes:
        if start > at:
            yield at, start
        at = max(at, end)
    if at < size:
        yield at, size


def _wanted(finding: Finding, options: Options) -> bool:
    return (not options.classes or finding.row.instr_class in options.classes) and \
        (not options.instructions or finding.row.name in options.instructions)


def _matches(text: str, patterns: tuple[str, ...]) -> bool:
    return not patterns or any(fnmatchcase(text, pattern) for pattern in patterns)


def _is_data(finding: Finding, relocations: dict[int, str]) -> bool:
    """Whether a relocation changes the first byte: then this is an address, read as code.

    Every relocation of code is 4 bytes or more, and changes an instruction's operand.
    """
    return any(finding.offset - at in relocations for at in range(4))


def _as_data(totals: SectionTotals, length: int) -> SectionTotals:
    return SectionTotals(**{**asdict(totals), "data": totals.data + length,
                            "instructions": totals.instructions - 1})


def _site(region: Region, finding: Finding, relocations: dict[int, str], user: bool) -> Site:
    code = region.data[finding.offset:finding.offset + LOOK_AHEAD]
    following = region.table.between(finding.address + 1, finding.address + LOOK_AHEAD)
    room = following[0].address - finding.address if following else LOOK_AHEAD
    becomes = outcome(finding, code, user=user, room=room)
    symbol = region.table.symbol(finding.address)
    if symbol is not None and symbol.kind not in _CODE_KINDS:
        symbol = None       # the end of some table before this section
    inside = range(finding.offset + 1, finding.offset + finding.length)
    operand = next((relocations[at] for at in inside if at in relocations), "")
    return Site(finding.address, finding.bits, region.section,
                symbol.name if symbol else None,
                finding.address - symbol.address if symbol else 0,
                finding.row.id, finding.code, operand, becomes.bt, becomes.pv)
