# SPDX-License-Identifier: GPL-2.0-or-later
"""The file that gives gdb a kernel's names: read back, and against the kernel it is made of."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

import guests
from bt.errors import InputError
from bt.gdb import symfile, unwind
from bt.symbols import of_file
from bt.symbols.elf import SHT_NOBITS


def made(path: Path, folder: Path) -> Path:
    with symfile.kernel_elf(path) as elf:
        return symfile.cached_symbol_file(path, elf, folder)


@pytest.mark.parametrize("name", ["hello", "hello32", "tasks"])
def test_a_sample_guest(name: str, tmp_path: Path) -> None:
    path = guests.image(name)
    out = made(path, tmp_path)
    assert {s.name: s.address for s in of_file(out).items()} == \
        {s.name: s.address for s in of_file(path).items()}
    assert out == made(path, tmp_path), "made once"


@pytest.mark.slow
def test_debians_kernel(tmp_path: Path) -> None:
    from guests.linux import fetch
    path = fetch.kernel()
    out = made(path, tmp_path)
    names, own = of_file(out), of_file(path)
    assert len(names) == len(own) > 80_000
    for name in ("start_kernel", "do_sys_openat2", "linux_banner"):
        assert names.address(name) == own.address(name)
    with symfile.kernel_elf(out) as elf, symfile.kernel_elf(path) as kernel:
        assert [(s.name, s.address, s.size) for s in elf.sections if s.kind == SHT_NOBITS] == \
            [(s.name, s.address, s.size) for s in kernel.sections if s.address and s.size
             or s.name == ".data..percpu"]
        frames = next(s for s in elf.sections if s.name == ".debug_frame")
        start, end = described(elf.image.read(frames.offset, frames.size),
                               own.address("start_kernel"))
        assert start == own.address("start_kernel") < end


def described(data: bytes, address: int) -> tuple[int, int]:
    """The range of the FDE that covers an address (DWARF 4, 6.4.1), each record checked."""
    at, found = 0, None
    while at < len(data):
        length, cie = struct.unpack_from("<II", data, at)
        assert length % 8 == 4 and at + 4 + length <= len(data)
        if cie != 0xFFFFFFFF:
            start, size = struct.unpack_from("<QQ", data, at + 8)
            if start <= address < start + size:
                found = start, start + size
        at += 4 + length
    assert found is not None
    return found


def test_orc_entries_in_dwarf() -> None:
    # sp_reg SP (5), bp_reg PREV_SP (1): CFA = rsp + 16, the caller's RBP at CFA - 16.
    assert unwind._rules(16, -16, 5 | 1 << 4) == bytes((0x0C, 7, 16, 0x90, 1, 0x86, 2))
    # sp_reg BP (4): CFA = rbp + 16; bp_reg undefined: RBP is the caller's.
    assert unwind._rules(16, 0, 4) == bytes((0x0C, 6, 16, 0x90, 1, 0x08, 6))
    # Nothing known: no return address, so a debugger stops.
    assert unwind._rules(0, 0, 0) == bytes((0x07, 16))
    assert unwind._uleb(300) == b"\xac\x02"
    assert [len(unwind._advance(by)) for by in (0, 1, 0x3F, 0x40, 0x100, 0x10000)] == \
        [0, 1, 1, 2, 3, 5]


def test_no_symbols_in_what_is_no_kernel(tmp_path: Path) -> None:
    flat = tmp_path / "flat.bin"
    flat.write_bytes(b"\xf4" * 64)
    with pytest.raises(InputError, match="no symbols"), symfile.kernel_elf(flat):
        pass
