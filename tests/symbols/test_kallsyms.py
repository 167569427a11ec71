# SPDX-License-Identifier: GPL-2.0-or-later
"""kallsyms tables of every layout are found and read; damaged ones do no harm."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kallsymsmaker import BASE, FORMS, Form, table

from bt.symbols import kallsyms

NAME = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ_0123456789.", min_size=1, max_size=40)


def some_symbols(form: Form, count: int, seed: int, longest: int = 40):
    rng = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz_0123456789."
    symbols, address = [], form.base
    if form.addresses == "percpu":
        symbols = [(16 * n, "A", f"percpu_{n}") for n in range(5)]
    while len(symbols) < count:
        size = rng.randint(1, longest)
        symbols.append((address, rng.choice("tTdDbBrR"), "".join(rng.choices(letters, k=size))))
        address += rng.choice((0, 16, 64, 4096))
    return symbols


def decoded(data: bytes):
    found = kallsyms.decode(data)
    return None if found is None else [(s.address, s.kind, s.name) for s in found.items()]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("count", [20, 256, 257, 3000])
def test_layouts(name: str, count: int) -> None:
    form = FORMS[name]
    symbols = some_symbols(form, count, count)
    data = bytes(4096) + table(symbols, form) + bytes(4096)
    assert decoded(data) == symbols


@pytest.mark.parametrize("name", FORMS)
def test_names_of_hundreds_of_characters(name: str) -> None:
    """A length of more than 127 tokens takes two bytes (Rust's names do)."""
    form = FORMS[name]
    symbols = some_symbols(form, 600, 3, longest=400)
    assert decoded(bytes(64) + table(symbols, form) + bytes(64)) == symbols


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.sampled_from("tTdDbBrR"), NAME),
                min_size=4, max_size=700),
       st.sampled_from(sorted(FORMS)), st.binary(max_size=200))
def test_any_symbols(rows, name, before) -> None:
    form = FORMS[name]
    symbols = sorted(((form.base + offset, kind, text) for offset, kind, text in rows),
                     key=lambda row: row[0])
    data = before + bytes(-len(before) % 8) + table(symbols, form) + bytes(16)
    assert decoded(data) == symbols


def test_a_moved_kernel_has_its_addresses_moved() -> None:
    """KASLR relocates the base in memory and nothing else."""
    form, slide = FORMS["6.1"], 0x1220_0000
    symbols = some_symbols(form, 1000, 1)
    found = kallsyms.decode(bytes(4096) + table(symbols, form, slide) + bytes(4096))
    assert found is not None
    assert [s.address for s in found.items()] == [
        address + slide if address >= BASE else address for address, _, _ in symbols]
    name = symbols[500][2]
    assert found.lookup(found.address(name) + 1)[1] >= 1
    assert found.lookup(0x10) is None       # per-CPU offsets name no address


def test_a_decoy_is_passed_over() -> None:
    """The digits' pattern alone, and a table whose index is wrong, before the true one."""
    form = FORMS["6.1"]
    symbols = some_symbols(form, 500, 2)
    good = table(symbols, form)
    broken = bytearray(good)
    broken[-2:] = b"\xff\xff"
    decoy = b"".join(b"%d\0" % n for n in range(10)) * 50
    data = decoy + bytes(-len(decoy) % 8) + broken + bytes(64) + good
    assert decoded(data) == symbols


@pytest.mark.parametrize("name", FORMS)
def test_damage(name: str) -> None:
    form = FORMS[name]
    symbols = some_symbols(form, 600, 5)
    data = bytes(64) + table(symbols, form) + bytes(64)
    rng = random.Random(name)
    for _ in range(60):
        broken = bytearray(data)
        for _ in range(rng.choice((1, 4, 64))):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        kallsyms.decode(bytes(broken[:rng.randrange(len(broken))]))
        found = kallsyms.decode(bytes(broken))
        if found is not None:
            for symbol in found.items():
                assert symbol.name.isprintable() and symbol.kind.isascii()


def test_a_hostile_guest_costs_seconds_at_most() -> None:
    """Markers and counts that lead nowhere, many times over, before many token tables."""
    form = FORMS["6.1"]
    good = table(some_symbols(form, 300, 6), form)
    tail = good[good.rindex(b"0\x001\x00") - 4096:]
    trap = b"".join(b"\0\0\0\0" + (600).to_bytes(4, "little") + (300).to_bytes(4, "little")
                    for _ in range(20000))
    started = time.process_time()
    kallsyms.decode((trap + tail) * 20)
    assert time.process_time() - started < 60
