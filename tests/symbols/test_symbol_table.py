# SPDX-License-Identifier: GPL-2.0-or-later
"""The table against a search of the whole list."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import example, given
from hypothesis import strategies as st

from bt.symbols import Section, Symbol, SymbolTable

ROWS = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 30)), max_size=40)


@given(ROWS, st.integers(-5, 500))
@example([(0, 0), (0, 2)], 1)       # the first of two at an address, if it reaches as far
def test_lookup_of_symbols_with_sizes(rows, address) -> None:
    symbols = [Symbol(at, f"s{n}", size or 1) for n, (at, size) in enumerate(rows)]
    found = SymbolTable(symbols).symbol(address)
    covering = [s for s in symbols if s.address <= address < s.address + s.size]
    if found is None:
        # Only symbols just before the address are asked.
        before = [s for s in symbols if s.address <= address]
        assert not covering or len(before) > 15
    else:
        assert found in covering
        if len(rows) <= 15:
            nearest = max(s.address for s in covering)
            assert found == next(s for s in covering if s.address == nearest)


@given(ROWS, st.integers(0, 500))
def test_lookup_of_symbols_without_sizes(rows, address) -> None:
    symbols = [Symbol(at, f"s{n}") for n, (at, _) in enumerate(rows)]
    found = SymbolTable(symbols).lookup(address)
    before = [s for s in symbols if s.address <= address]
    if not before:
        assert found is None
    else:
        nearest = max(s.address for s in before)
        first = next(s for s in symbols if s.address == nearest)
        assert found == (first.name, address - nearest)


def test_names_and_order() -> None:
    table = SymbolTable([Symbol(30, "c"), Symbol(10, "a"), Symbol(20, "b"), Symbol(5, "c")])
    assert [s.name for s in table.items()] == ["c", "a", "b", "c"]
    assert table.address("c") == 5 and table.address("nothing") is None
    assert table.describe(10) == "a" and table.describe(0x1c) == "b+0x8"
    assert len(table) == 4 and table and not SymbolTable()


def test_bounds_and_absolute_symbols() -> None:
    table = SymbolTable([Symbol(0, "number", 0, "A"), Symbol(0x1000, "text"),
                         Symbol(0x3000, "_end")], lowest=0x1000, highest=0x3000)
    assert table.lookup(0) is None and table.lookup(0xFFF) is None
    assert table.lookup(0x2FFF) == ("text", 0x1FFF)
    assert table.lookup(0x3000) is None
    assert table.address("number") == 0 and table.address("_end") == 0x3000


def test_a_label_inside_of_a_function() -> None:
    table = SymbolTable([Symbol(0x100, "f", 0x100), Symbol(0x140, "inner", 8)])
    assert table.describe(0x141) == "inner+0x1"
    assert table.describe(0x150) == "f+0x50"
    assert table.describe(0x200) is None


def test_moved() -> None:
    table = SymbolTable([Symbol(0x10, "cpu", 0, "A"), Symbol(0x1000, "f")],
                        sections=[Section(0x1000, 0x2000, ".text")], lowest=0x1000,
                        highest=0x2000).moved(0x5000)
    assert table.address("f") == 0x6000 and table.address("cpu") == 0x10
    assert table.section(0x6FFF) == ".text" and table.section(0x1000) is None
    assert table.lookup(0x1000) is None and table.lookup(0x6001) == ("f", 1)


def test_nothing_imports_unicorn() -> None:
    script = ("import sys, bt.symbols.elf, bt.symbols.guest, bt.symbols.systemmap\n"
              "sys.exit('unicorn' in sys.modules or 'bt.core.vcpu' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
