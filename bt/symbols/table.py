# SPDX-License-Identifier: GPL-2.0-or-later
"""The symbol table: sorted arrays, and the two questions asked of them.

It does not know where its symbols come from; `elf`, `systemmap` and `kallsyms` make the lists.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

_MASK = (1 << 64) - 1
#: How many symbols before the nearest one are asked whether they reach an address.
_LOOK_BACK = 16
#: What the last symbol of a table is taken to cover if nothing says where it ends, in bytes.
_LAST = 1 << 16


class Symbol(NamedTuple):
    """A name for an address.

    size: bytes, 0 if the source does not say. kind: the letter nm(1) prints ("T" global code, "t"
    local code, "D" data, "A" a number that is no address, ...).
    """

    address: int
    name: str
    size: int = 0
    kind: str = "T"


class Section(NamedTuple):
    """A named range of addresses: ``start <= address < end``."""

    start: int
    end: int
    name: str


class SymbolTable:
    """Symbols by address and by name. Immutable.

    ``symbols`` in any order; of several at one address the first given names it. ``source`` says
    where they come from, for people. ``lowest`` and ``highest`` (exclusive, None: no limit) bound
    the addresses that ``lookup`` gives a name to: a kernel's table does not name a user's code.
    """

    def __init__(self, symbols: Iterable[Symbol] = (), *, source: str = "",
                 sections: Iterable[Section] = (), lowest: int = 0,
                 highest: int | None = None) -> None:
        self.source = source
        self.sections: tuple[Section, ...] = tuple(sorted(sections))
        self._symbols: Sequence[Symbol] = sorted(symbols, key=_address)
        self.lowest = lowest
        self.highest = highest
        placed = [s for s in self._symbols
                  if s.kind not in "Aa" and s.address >= lowest
                  and (highest is None or s.address <= highest)]
        self._placed = placed
        self._addresses = array("Q", [s.address & _MASK for s in placed])
        self._by_name: dict[str, Symbol] | None = None
        self._starts = array("Q", [s.start & _MASK for s in self.sections])

    def __len__(self) -> int:
        return len(self._symbols)

    def __bool__(self) -> bool:
        return bool(self._symbols)

    def items(self) -> Iterator[Symbol]:
        """Every symbol, by rising address."""
        return iter(self._symbols)

    def symbol(self, address: int) -> Symbol | None:
        """The symbol that covers an address; None if there is none.

        A symbol of unknown size reaches to the next one. Where a symbol has ended, an earlier one
        that encloses it is found too (a function with labels in it).
        """
        if address < self.lowest or (self.highest is not None and address >= self.highest):
            return None
        after = bisect_right(self._addresses, address) if 0 <= address <= _MASK else 0
        if not after:
            return None
        start = self._addresses[after - 1]
        at = after
        while at and after - at < _LOOK_BACK:
            at -= 1
            found = self._placed[at]
            if found.size:
                reaches = address < found.address + found.size
            else:
                # Its end is the next symbol's start, so only the nearest address can reach.
                reaches = found.address == start and (
                    after < len(self._placed) or self.highest is not None
                    or address < start + _LAST)
            if reaches:
                return self._first_alias(at, address)
        return None

    def _first_alias(self, at: int, address: int) -> Symbol:
        """The first of those where symbol ``at`` is that reach to ``address`` as it does."""
        first = found = self._placed[at]
        while at and self._addresses[at - 1] == found.address:
            at -= 1
            other = self._placed[at]
            if address < other.address + other.size if found.size else not other.size:
                first = other
        return first

    def lookup(self, address: int) -> tuple[str, int] | None:
        """(name, offset in bytes) of the symbol that covers an address, or None."""
        found = self.symbol(address)
        return None if found is None else (found.name, address - found.address)

    def describe(self, address: int) -> str | None:
        """``name+0x12`` (``name`` alone at its start), or None."""
        found = self.symbol(address)
        if found is None:
            return None
        offset = address - found.address
        return f"{found.name}+{offset:#x}" if offset else found.name

    def between(self, start: int, end: int) -> Sequence[Symbol]:
        """The symbols at addresses ``start <= address < end`` that are places, by rising address.
        """
        first = bisect_left(self._addresses, max(start, 0)) if start <= _MASK else len(self._placed)
        last = bisect_left(self._addresses, end) if end <= _MASK else len(self._placed)
        return self._placed[first:last]

    def named(self, name: str) -> Symbol | None:
        """The symbol of a name; of several, the one with the lowest address."""
        if self._by_name is None:
            self._by_name = {}
            for symbol in self._symbols:
                self._by_name.setdefault(symbol.name, symbol)
        return self._by_name.get(name)

    def address(self, name: str) -> int | None:
        """The address of a name, or None."""
        found = self.named(name)
        return None if found is None else found.address

    def section(self, address: int) -> str | None:
        """The name of the section that an address lies in, or None."""
        at = bisect_right(self._starts, address) if 0 <= address <= _MASK else 0
        if at and address < self.sections[at - 1].end:
            return self.sections[at - 1].name
        return None

    def moved(self, by: int) -> SymbolTable:
        """The same symbols ``by`` bytes further up (a kernel that KASLR has moved)."""
        if not by:
            return self

        def up(address: int) -> int:
            return address + by & _MASK

        return SymbolTable(
            (s if s.kind in "Aa" or s.address < self.lowest
             else s._replace(address=up(s.address)) for s in self._symbols),
            source=self.source,
            sections=(Section(up(s.start), up(s.end), s.name) for s in self.sections),
            lowest=up(self.lowest) if self.lowest else 0,
            highest=None if self.highest is None else up(self.highest))


def _address(symbol: Symbol) -> int:
    return symbol.address
