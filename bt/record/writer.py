# SPDX-License-Identifier: GPL-2.0-or-later
"""Recording a run: ``bt run --record DIR``.

The core keeps the log and the counts (bt/core/record.pxi); every few milliseconds of virtual time
the log is taken from it, and the counters are read for the timeline. All is written to the file
when the run ends, in one transaction: a recording is whole, or it says that the run has not ended.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bt.core import counters
from bt.core.vcpu import PSEUDO_EXITS, Vcpu
from bt.errors import InputError
from bt.record import schema

if TYPE_CHECKING:
    from bt.machine.machine import Machine
    from bt.symbols.table import SymbolTable

#: Virtual time between two looks at the counters.
SAMPLE_NS = 10_000_000
_SIGN = 1 << 63
_MASK = (1 << 64) - 1


def signed(address: int) -> int:
    """An address as SQLite keeps it: a signed 64-bit number."""
    return (address ^ _SIGN) - _SIGN


class Recorder:
    """Records one machine into ``folder``, from before its run until `close`.

    Raises InputError if the folder cannot be used or has a recording already.
    """

    def __init__(self, folder: Path, machine: Machine, meta: Mapping[str, str]) -> None:
        if not isinstance(machine.vcpu, Vcpu):
            raise InputError("this engine cannot be recorded: the CPU does not say what it runs")
        self._machine, self._vcpu = machine, machine.vcpu
        self._meta = {"ram_bytes": str(machine.ram.size), **meta}
        self._batches: list[tuple[bytes, bytes]] = []
        self._timeline: list[tuple[int, str, int]] = []
        self._last: dict[str, int] = {}
        self._lost = 0
        self._db = _create(folder)
        self._vcpu.record()
        self._sample()

    def _sample(self) -> None:
        now = self._vcpu.now_ns()
        self._take(now)
        self._machine.timers.at(now + SAMPLE_NS, self._sample)

    def _take(self, now: int) -> None:
        entries, heap, self._lost = self._vcpu.recorded()
        if entries:
            self._batches.append((entries, heap))
        exits = self._machine.stats.exits
        for family in exits.values():
            for reason, count in family.items():
                if count != self._last.get(reason, 0):
                    self._timeline.append((now, reason, count - self._last.get(reason, 0)))
                    self._last[reason] = count

    def close(self, outcome: Mapping[str, str], symbols: SymbolTable) -> None:
        """Write everything. Of ``symbols``, those that name something recorded."""
        self._take(self._vcpu.now_ns())
        db = self._db
        meta = self._meta | dict(outcome) | {
            "wall_s": f"{self._machine.stats.wall_s:.6f}", "lost": str(self._lost),
            "complete": "1"}
        with db:
            db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", meta.items())
            db.executemany("INSERT INTO kinds VALUES (?, ?)", schema.KIND_NAMES.items())
            db.executemany("INSERT INTO reasons VALUES (?, ?, ?)",
                           counters.reasons(PSEUDO_EXITS))
            db.executemany(
                "INSERT INTO log (ns, kind, gva, gpa, cpl, bits, row, region, code) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", self._rows())
            db.executemany("INSERT INTO exits VALUES (?, ?, ?, ?)",
                           ((signed(gva), reason, count, ns) for gva, reason, count, ns
                            in self._vcpu.exit_places()))
            db.executemany("INSERT OR REPLACE INTO timeline VALUES (?, ?, ?)", self._timeline)
            db.executemany("INSERT OR REPLACE INTO symbols VALUES (?, ?, ?)",
                           self._named(symbols))
            for index in schema.INDEXES:
                db.execute(index)
        db.close()

    def _named(self, symbols: SymbolTable) -> Iterator[tuple[int, int, str]]:
        if not symbols:
            return
        addresses = {entry[1] & _MASK for entries, _ in self._batches
                     for entry in schema.LOG_ENTRY.iter_unpack(entries)}
        addresses.update(place[0] for place in self._vcpu.exit_places())
        for symbol in {symbols.symbol(address) for address in addresses} - {None}:
            yield signed(symbol.address), symbol.size, symbol.name

    def _rows(self) -> Iterator[tuple[int, int, int, int, int, int, int, int, bytes | None]]:
        for entries, heap in self._batches:
            for ns, gva, gpa, at, size, region, kind, cpl, bits, row in \
                    schema.LOG_ENTRY.iter_unpack(entries):
                code = heap[at:at + size] if size else None
                yield ns, kind, gva, gpa, cpl, bits, row, region, code


def _create(folder: Path) -> sqlite3.Connection:
    path = folder / schema.FILE_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Not through SQLite, which would open, and go on with, what is there already.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError:
        raise InputError(f"{folder} has a recording already") from None
    except OSError as error:
        raise InputError(f"cannot record into {folder}: {error.strerror}") from None
    db = sqlite3.connect(path)
    # Nobody needs half a recording: no journal to recover one from, and no waiting for the disk.
    db.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;"
                     + schema.TABLES + schema.VIEWS)
    with db:
        db.execute("INSERT INTO meta VALUES ('version', ?)", (str(schema.VERSION),))
    return db
