# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's page tables walked by hand, on tables made here; then against KVM's own walk."""

from __future__ import annotations

import random
import struct
from fcntl import ioctl

import pytest

from bt.kvm import abi, paging, state
from bt.kvm.paging import Page, translate
from bt.machine.machine import Machine
from bt.machine.ram import Ram

PG, PSE, PAE, LMA = 1 << 31, 1 << 4, 1 << 5, 1 << 10
P, W, PS = 1, 2, 0x80


def ram_with(entries: dict[int, int], size: int = 8) -> Ram:
    ram = Ram(4 << 20)
    for at, entry in entries.items():
        ram.write(at, entry.to_bytes(size, "little"))
    return ram


def test_no_paging() -> None:
    assert translate(Ram(1 << 20), 0, 0, 0, 0, 0x1_2345_6789) == Page(0x2345_6789, True)


def test_four_levels() -> None:
    linear = 0xFFFF_FFFF_8020_3456
    ram = ram_with({0x1000 + 8 * 511: 0x2000 | P | W, 0x2000 + 8 * 510: 0x3000 | P | W,
                    0x3000 + 8 * 1: 0x4000 | P | W, 0x4000 + 8 * 3: 0x7000 | P | 1 << 63})
    assert translate(ram, PG, 0x1000, PAE, LMA, linear) == Page(0x7456, False)
    assert translate(ram, PG, 0x1000, PAE, LMA, linear + 0x1000) is None
    assert translate(ram, PG, 0x1000, PAE, LMA, 0x8000_0000_0000) is None       # not canonical


@pytest.mark.parametrize(("level", "entries", "gpa"), [
    (2, {0x1000: 0x2003, 0x2000: 0x3003, 0x3008: 0x60_0000 | P | W | PS}, 0x61_2345),
    (3, {0x1000: 0x2003, 0x2000: 0x4000_0000 | P | W | PS}, 0x4021_2345)])
def test_large_pages(level: int, entries: dict[int, int], gpa: int) -> None:
    assert translate(ram_with(entries), PG, 0x1000, PAE, LMA, 0x21_2345) == Page(gpa, True)


def test_pae_without_long_mode() -> None:
    ram = ram_with({0x1020 + 8 * 3: 0x2001, 0x2000: 0x3000 | P | W, 0x3008: 0x9000 | P | W})
    assert translate(ram, PG, 0x1020, PAE, 0, 0xC000_1234) == Page(0x9234, True)
    assert translate(ram, PG, 0x1020, PAE, 0, 0x4000_1234) is None


def test_two_levels() -> None:
    ram = ram_with({0x1000: 0x2003, 0x1004: 0x40_0000 | P | PS | 1 << 13, 0x2004: 0x9003}, 4)
    assert translate(ram, PG, 0x1000, 0, 0, 0x1234) == Page(0x9234, True)
    assert translate(ram, PG, 0x1000, PSE, 0, 0x40_0123) == Page(0x1_0040_0123, False)
    # Without PSE the bit means nothing: the entry is a table.
    assert translate(ram, PG, 0x1000, 0, 0, 0x40_0123) is None


def test_tables_outside_of_ram_map_nothing() -> None:
    assert translate(Ram(1 << 20), PG, 0xFFFF_F000, PAE, LMA, 0x1000) is None


def test_random_tables_never_raise() -> None:
    rng = random.Random(1)
    ram = Ram(1 << 20)
    for _ in range(300):
        ram.write(rng.randrange(0, 1 << 20, 4096), struct.pack("<512Q", *(
            rng.randrange(0, 1 << 20, 4096) | rng.choice((0, 1, 3, 0x83, 0x81 | 1 << 63))
            if rng.random() < 0.9 else rng.getrandbits(64) for _ in range(512))))
    found = 0
    for _ in range(3000):
        page = translate(ram, PG, rng.randrange(0, 1 << 21), rng.choice((0, PSE, PAE)),
                         rng.choice((0, LMA)), rng.getrandbits(64))
        found += page is not None
    assert 50 < found < 2950


@pytest.mark.kvm
def test_kvm_walks_the_same_way() -> None:
    rng = random.Random(2)
    machine = Machine(engine="kvm", ram_bytes=1 << 20)
    ram, cpu = machine.ram, machine.vcpu._cpu
    pages = list(range(0x10000, 0x30000, 0x1000))
    for at in pages:
        ram.write(at, struct.pack("<512Q", *(
            rng.choice(pages) | rng.choice((0, 1, 3)) for _ in range(512))))
    special = state.SpecialRegisters(cpu)
    special.set_control(cr0=PG | state.CR0_PE | state.CR0_ET, cr3=0x10000, cr4=PAE,
                        efer=state.EFER_LME | LMA)
    special.write()
    agreed = 0
    for _ in range(400):
        linear = rng.getrandbits(47)
        data = bytearray(abi.TRANSLATION.pack(linear, 0, 0, 0, 0))
        ioctl(cpu, abi.KVM_TRANSLATE, data)
        _, gpa, valid, _, _ = abi.TRANSLATION.unpack(data)
        mine = paging.translate(ram, PG, 0x10000, PAE, LMA, linear)
        assert (mine.gpa if mine else None) == (gpa if valid else None), hex(linear)
        agreed += mine is not None
    assert agreed > 20
