# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading a recording: a file that anybody may have written, so that everything is checked."""

from __future__ import annotations

import bisect
import sqlite3
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from bt.errors import InputError
from bt.record import schema

_MASK = (1 << 64) - 1
_MAGIC = b"SQLite format 3\0"


@dataclass(frozen=True)
class Block:
    """One block as it was translated: ``code`` is the guest's own.

    times: how often it was translated, from first_ns to last_ns; dropped: virtual times at which
    its page was written after the first, which threw it away; kernel: virtual CPL 0.
    """

    gva: int
    gpa: int
    bits: int
    kernel: bool
    code: bytes
    first_ns: int
    last_ns: int
    times: int
    dropped: tuple[int, ...] = ()


@dataclass(frozen=True)
class Site:
    """One rewritten instruction. ``stub``: its code in the window and where, if it had one."""

    gva: int
    bits: int
    row: int
    code: bytes
    first_ns: int
    stub: bytes | None = None
    stub_at: int = 0
    region: int = 0
    taken_back: bool = False


@dataclass(frozen=True)
class Exits:
    """Exits of one reason at one address: how many, and host ns spent in the VMM for them."""

    gva: int
    reason: str
    unit: str
    count: int
    ns: int


@dataclass(frozen=True)
class Event:
    """One entry of the log: virtual ns, what (schema.KIND_NAMES), GVA and GPA."""

    ns: int
    kind: int
    gva: int
    gpa: int


@dataclass
class Recording:
    """All of a recording, in memory. Made by `read`."""

    meta: dict[str, str]
    blocks: list[Block]
    sites: dict[int, Site]
    exits: list[Exits]
    units: dict[str, str]       # of every reason: "control" or "memory"
    timeline: list[tuple[int, str, int]]
    pages: list[tuple[int, int, int, int]]      # GPN, became code, was written, last event in ns
    events: list[Event]
    symbols: list[tuple[int, int, str]] = field(default_factory=list)
    _addresses: list[int] = field(default_factory=list)

    def symbol(self, address: int) -> str | None:
        """``name+0x12`` of the symbol at or before an address, if it can belong to it."""
        found = self.symbol_of(address)
        if found is None:
            return None
        name, offset = found
        return f"{name}+{offset:#x}" if offset else name

    def symbol_of(self, address: int) -> tuple[str, int] | None:
        """(name, offset) of the symbol an address lies in."""
        if len(self._addresses) != len(self.symbols):
            self._addresses = [address for address, _, _ in self.symbols]
        at = bisect.bisect_right(self._addresses, address) - 1
        if at < 0:
            return None
        start, size, name = self.symbols[at]
        if size and address >= start + size:
            return None
        return name, address - start


def is_recording(path: Path) -> bool:
    """Whether a path looks like a recording: its folder, or the file in it."""
    file = path / schema.FILE_NAME if path.is_dir() else path
    try:
        with open(file, "rb") as stream:
            return stream.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def read(path: Path) -> Recording:
    """Read a recording, by its folder or its file. Raises InputError."""
    file = path / schema.FILE_NAME if path.is_dir() else path
    if not is_recording(path):
        raise InputError(f"{path} is no recording (bt run --record makes one)")
    try:
        # immutable: a recording does not change, and reading it must not leave files beside it.
        db = sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
        try:
            return _read(db, path)
        finally:
            db.close()
    except (sqlite3.Error, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: the recording is damaged: {error}") from None


def _read(db: sqlite3.Connection, path: Path) -> Recording:
    meta = {str(key): str(value) for key, value in db.execute("SELECT key, value FROM meta")}
    if meta.get("version") != str(schema.VERSION):
        raise InputError(f"{path}: a recording of version {meta.get('version')}; "
                         f"this is version {schema.VERSION}")
    if meta.get("complete") != "1":
        raise InputError(f"{path}: the run it records has not ended, or ended badly")
    pages = [(int(gpn), int(code), int(written), int(last)) for gpn, code, written, last in
             db.execute("SELECT gpn, became_code, written, last_ns FROM pages")]
    events = [Event(int(ns), int(kind), gva & _MASK, gpa & _MASK) for ns, kind, gva, gpa in
              db.execute("SELECT ns, kind, gva, gpa FROM log WHERE kind != ? ORDER BY id",
                         (schema.BLOCK,))]
    sites = _sites(db)
    return Recording(
        meta, _blocks(db, events, sites), sites,
        [Exits(gva & _MASK, str(name), str(unit), int(count), int(ns))
         for gva, name, unit, count, ns in db.execute(
             "SELECT gva, name, unit, count, e.ns FROM exits AS e JOIN reasons USING (reason) "
             "ORDER BY count DESC, gva")],
        {str(name): str(unit) for name, unit in db.execute("SELECT name, unit FROM reasons")},
        [(int(ns), str(reason), int(count)) for ns, reason, count in
         db.execute("SELECT ns, reason, count FROM timeline ORDER BY ns")],
        pages, events,
        sorted((address & _MASK, int(size), str(name)) for address, size, name in
               db.execute("SELECT address, size, name FROM symbols")))


def _blocks(db: sqlite3.Connection, events: list[Event], sites: dict[int, Site]) -> list[Block]:
    """Blocks by address. A piece of a longer block (behind a trap in it, say) is left out."""
    stubs = {site.gva + at: site for site in sites.values() if site.stub is not None
             for at in range(len(site.code) + 1, site.region)}
    writes: dict[int, list[int]] = defaultdict(list)
    again: dict[int, int] = defaultdict(int)
    for event in events:
        if event.kind == schema.DATA:
            writes[event.gpa >> 12].append(event.ns)
        elif event.kind == schema.AGAIN:
            again[event.gva] += 1
    blocks: list[Block] = []
    ends: dict[tuple[int, bool], list[Block]] = defaultdict(list)
    rows = db.execute("SELECT gva, gpa, bits, cpl, code, first_ns, last_ns, times FROM blocks "
                      "WHERE code IS NOT NULL ORDER BY gpa >> 12, gva, size DESC")
    for gva, gpa, bits, cpl, code, first, last, times in rows:
        gva, code = gva & _MASK, bytes(code)
        stub = stubs.get(gva + len(code))
        if stub is not None and stub.gva >= gva:
            # Translated when the jump was there already, it ends with the jump: five bytes on.
            code = code[:stub.gva + len(stub.code) - gva]
        code = _whole(gva, code, sites)
        around = ends[bits, cpl == 0]
        while around and around[-1].gva + len(around[-1].code) <= gva:
            around.pop()
        if around and _is_piece(around[-1], gva, code):
            continue
        block = Block(gva, gpa, int(bits), cpl == 0, code, int(first), int(last),
                      max(1, int(times) - again.get(gva, 0)),
                      tuple(ns for ns in writes.get(gpa >> 12, ()) if ns >= first))
        blocks.append(block)
        around.append(block)
    blocks.sort(key=lambda block: (block.gva, not block.kernel))
    return blocks


def _whole(gva: int, code: bytes, sites: dict[int, Site]) -> bytes:
    """A block's bytes with all of its last instruction.

    Unicorn ends a block inside an instruction that it refuses to translate, which is one that
    became a site.
    """
    for back in range(1, min(len(code), 14) + 1):
        site = sites.get(gva + len(code) - back)
        if site is not None and len(site.code) > back and site.code[:back] == code[-back:]:
            return code[:-back] + site.code
    return code


def _is_piece(whole: Block, gva: int, code: bytes) -> bool:
    at = gva - whole.gva
    return 0 <= at and whole.code[at:at + len(code)] == code


def _sites(db: sqlite3.Connection) -> dict[int, Site]:
    stubs = {gva & _MASK: (bytes(code or b""), at & _MASK, int(region)) for gva, at, region, code in
             db.execute("SELECT gva, gpa, region, code FROM log WHERE kind = ? ORDER BY id",
                        (schema.STUB,))}
    back = {gva & _MASK for gva, in
            db.execute("SELECT DISTINCT gva FROM log WHERE kind = ?", (schema.UNSTUB,))}
    sites = {}
    for gva, bits, row, code, first in db.execute(
            "SELECT gva, bits, row, code, first_ns FROM sites WHERE code IS NOT NULL "
            "ORDER BY first_ns"):
        gva &= _MASK
        stub, at, region = stubs.get(gva, (None, 0, 0))
        sites[gva] = Site(gva, int(bits), int(row), bytes(code), int(first), stub, at, region,
                          gva in back)
    return sites
