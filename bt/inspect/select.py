# SPDX-License-Identifier: GPL-2.0-or-later
"""Which blocks and places of a recording somebody asked for."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from bt.errors import InputError
from bt.record.reader import Block, Exits, Recording
from translator.sensitive import BY_NAME


@dataclass(frozen=True)
class Filter:
    """Blocks by symbol (a pattern), by address (first, last), by an instruction rewritten in them.

    ``user``: True only user code, False only the kernel, None both; ``changed``: only blocks in
    which something was rewritten; ``exits``: only blocks that were left for the VMM so often.
    """

    symbol: str | None = None
    address: tuple[int, int] | None = None
    instruction: str | None = None
    user: bool | None = None
    changed: bool = False
    exits: int = 0

    def blocks(self, recording: Recording) -> Iterator[Block]:
        """The recording's blocks that fit, by address."""
        row = None
        if self.instruction is not None:
            name = self.instruction.upper()
            if name not in BY_NAME:
                raise InputError(f"no sensitive instruction {self.instruction!r}: "
                                 f"one of {', '.join(sorted(BY_NAME))}")
            row = BY_NAME[name].id
        sites = sorted(gva for gva, site in recording.sites.items()
                       if row is None or site.row == row)
        counts: Counter[int] = Counter()
        for entry in recording.exits if self.exits else ():
            counts[entry.gva] += entry.count
        for block in recording.blocks:
            if self.exits and sum(counts[address] for address in range(
                    block.gva, block.gva + len(block.code)) if address in counts) < self.exits:
                continue
            if self.user is not None and block.kernel == self.user:
                continue
            if self.address is not None and not (
                    block.gva <= self.address[1] and
                    self.address[0] < block.gva + len(block.code)):
                continue
            if (row is not None or self.changed) and not _any_in(
                    sites, block.gva, block.gva + len(block.code)):
                continue
            if self.symbol is not None:
                found = recording.symbol_of(block.gva)
                if found is None or not fnmatch.fnmatchcase(found[0], self.symbol):
                    continue
            yield block


def _any_in(places: list[int], first: int, end: int) -> bool:
    from bisect import bisect_left

    at = bisect_left(places, first)
    return at < len(places) and places[at] < end


def hottest(recording: Recording, count: int) -> list[Exits]:
    """The ``count`` places with most exits."""
    return [entry for entry in recording.exits if entry.gva][:count]


def by_reason(recording: Recording) -> list[tuple[str, str, int, int]]:
    """(reason, unit, exits, host ns), most exits first; what has no place counts from the timeline.
    """
    totals: Counter[str] = Counter()
    for _, reason, count in recording.timeline:
        totals[reason] += count
    spent: Counter[str] = Counter()
    for entry in recording.exits:
        spent[entry.reason] += entry.ns
    return [(reason, recording.units.get(reason, "control"), count, spent[reason])
            for reason, count in totals.most_common()]


def by_symbol(recording: Recording) -> list[tuple[str, int, int]]:
    """(symbol, exits, host ns), most exits first; places without a symbol by their page."""
    counts: Counter[str] = Counter()
    spent: Counter[str] = Counter()
    for entry in recording.exits:
        found = recording.symbol_of(entry.gva)
        name = found[0] if found else f"page {entry.gva & ~0xFFF:#x}"
        counts[name] += entry.count
        spent[name] += entry.ns
    return [(name, count, spent[name]) for name, count in counts.most_common()]
