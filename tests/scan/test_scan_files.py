# SPDX-License-Identifier: GPL-2.0-or-later
"""What `bt scan` finds in each kind of file, and what it says of files that are none."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
import subprocess
from pathlib import Path

import pytest
import zstandard
from binaries import KERNEL, KERNEL_INSTRUCTIONS, KERNEL_SITES, gcc, kernel, pe

import guests
from bt.scan.files import listed
from bt.scan.work import Options, Result, scan_file
from translator.sensitive import TABLE

CODE, DATA = 0x60000020, 0xC0000040


def scan(path: Path, **options) -> Result:
    return scan_file(path, Options(**options))


def sites(result: Result) -> list[tuple]:
    assert not result.error, result.error
    return [(TABLE[s.row].name, s.section, s.symbol, s.offset) for s in result.sites]


def check_totals(result: Result) -> None:
    """Counts are those of the sites."""
    assert result.total == len(result.sites) == sum(result.counts.values())
    for key, count in result.counts.items():
        assert count == sum((s.row, s.bits, s.section, s.bt, s.pv) == key for s in result.sites)


def test_a_kernel(tmp_path) -> None:
    """Every instruction is found, data among the code is left out, INT3 filling is not counted."""
    result = scan(kernel(tmp_path))
    assert sites(result) == KERNEL_SITES
    assert (result.kind, result.bits, result.symbols) == ("kernel", 64, "ELF")
    assert result.instructions == KERNEL_INSTRUCTIONS
    text = next(s for s in result.sections if s.name == ".text")
    assert (text.fillers, text.data, text.skipped) == (21, 5, 0)
    check_totals(result)
    first = result.sites[0]
    assert (first.address, first.bits, first.code) == (0x100000, 64, b"\xfa")


def test_addresses_are_objdumps(tmp_path) -> None:
    path = kernel(tmp_path)
    dump = subprocess.run(["objdump", "-d", path], capture_output=True, text=True).stdout
    at = {int(line.split(":")[0], 16) for line in dump.splitlines() if line.startswith(" ")}
    assert {site.address for site in scan(path).sites} <= at


def test_a_stripped_kernel_without_sections(tmp_path) -> None:
    """Only program headers: no names, and the data in it is read as code."""
    path = kernel(tmp_path)
    subprocess.run(["strip", path], check=True)
    data = bytearray(path.read_bytes())
    data[0x28:0x30] = bytes(8)          # e_shoff
    data[0x3C:0x40] = bytes(4)          # e_shnum, e_shstrndx
    path.write_bytes(data)
    result = scan(path)
    names = [name for name, *_ in sites(result)]
    assert names[:7] == [name for name, *_ in KERNEL_SITES][:7]
    assert result.symbols == "" and all(s.symbol is None for s in result.sites)


def test_an_object_file(tmp_path) -> None:
    """A section is an address space of its own; an operand that is relocated has its name."""
    result = scan(gcc(tmp_path, KERNEL.replace("[gdt]", "[rip + gdt]"), "-c"))
    assert [row[:3] for row in sites(result)] == [row[:3] for row in KERNEL_SITES]
    assert {s.section: s.address for s in result.sites if s.symbol in ("_start", "setup")
            and s.offset == 0} == {".text": 0, ".init.text": 0}
    lgdt = next(s for s in result.sites if TABLE[s.row].name == "LGDT")
    assert lgdt.operand in ("gdt", ".data")
    assert (result.kind, result.instructions) == ("object", KERNEL_INSTRUCTIONS)


def test_a_relocated_opcode_is_data(tmp_path) -> None:
    """A 32-bit relocation keeps its addend in place, where it looks like CLI and STI."""
    source = ".text\nf: ret\n.long f + 0xfbfa\ng: hlt\nret\n"
    result = scan(gcc(tmp_path, source, "-m32", "-c"))
    assert sites(result) == [("HLT", ".text", "g", 0)]
    assert result.sections[0].data == 2


@pytest.mark.parametrize(("suffix", "pack"), [
    (".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress),
    (".zst", lambda data: zstandard.ZstdCompressor().compress(data))])
def test_a_packed_module(tmp_path, suffix, pack) -> None:
    plain = gcc(tmp_path, KERNEL.replace("[gdt]", "[rip + gdt]")
                + '.section .modinfo,"a"\n.asciz "license=GPL"\n', "-c")
    packed = tmp_path / f"a.ko{suffix}"
    packed.write_bytes(pack(plain.read_bytes()))
    result = scan(packed)
    assert result.kind == "module"
    assert result.sites == scan(plain).sites and len(result.sites) == 12


@pytest.mark.parametrize("damage", ["short", "wrong", "huge"])
def test_a_damaged_packed_file(tmp_path, monkeypatch, damage) -> None:
    monkeypatch.setattr("bt.scan.files._MAX_PACKED", 1 << 20)
    path = tmp_path / "a.ko.xz"
    data = lzma.compress(bytes(30 << 20) if damage == "huge" else b"\x7fELF" + bytes(5000))
    if damage == "short":
        data = data[:40]
    if damage == "wrong":
        data = data[:30] + b"\xff" * 20 + data[50:]
    path.write_bytes(data)
    assert scan(path).error


def test_a_32_bit_kernel_and_its_rings(tmp_path) -> None:
    result = scan(guests.image("hello32"))
    assert result.bits == 32 and result.kind == "kernel" and result.total > 5
    assert {site.bits for site in result.sites} == {32}
    as_user = scan(guests.image("hello32"), ring=3)
    assert as_user.total == result.total and as_user.user
    assert {site.pv for site in as_user.sites} == {"untouched"}


@pytest.mark.parametrize("name", ["nano-pv", "tasks-pv"])
def test_64_bit_code_in_a_32_bit_file_that_cannot_be_followed(name) -> None:
    """They reach long mode by a hypercall."""
    result = scan(guests.image(name))
    assert result.bits == 32 and max(result.sections, key=lambda s: s.size).bits == 64
    assert sum(TABLE[s.row].name == "INT_N" for s in result.sites) > 20


def test_a_user_program() -> None:
    result = scan(Path("/bin/true"))
    assert result.kind == "program" and result.user
    assert result.total < 20 and result.instructions > 1000


def test_flat(tmp_path) -> None:
    path = tmp_path / "boot"
    path.write_bytes(bytes.fromhex("fa 0f01e0 90 fb f4"))       # cli; smsw ax; nop; sti; hlt
    result = scan(path, bits=16, base=0x7C00)
    assert [(TABLE[s.row].name, s.address) for s in result.sites] == [
        ("CLI", 0x7C00), ("SMSW", 0x7C01), ("STI", 0x7C05), ("HLT", 0x7C06)]
    assert result.instructions == 5
    assert "does not fit" in scan(path, bits=32, base=1 << 32).error


@pytest.mark.parametrize(("machine", "bits"), [(0x8664, 64), (0x14C, 32)])
def test_pe(tmp_path, machine, bits) -> None:
    path = tmp_path / "x.sys"
    code = bytes.fromhex("fa fb c3 cccccc 0f32 c3")
    path.write_bytes(pe([(b".text", CODE, code), (b"INIT", CODE, b"\x0f\x30\xc3"),
                         (b".data", DATA, b"\xfa" * 16)], machine=machine, base=0x400000,
                        symbols=[(b"Entry", 1, 0), (b"ReadMsr", 1, 6), (b"Init", 2, 0)]))
    result = scan(path)
    assert sites(result) == [("CLI", ".text", "Entry", 0), ("STI", ".text", "Entry", 1),
                             ("RDMSR", ".text", "ReadMsr", 0), ("WRMSR", "INIT", "Init", 0)]
    assert [s.address for s in result.sites] == [0x401000, 0x401001, 0x401006, 0x402000]
    assert (result.kind, result.bits, result.instructions) == ("driver", bits, 7)
    assert result.sections[0].fillers == 3


@pytest.mark.parametrize(("data", "words"), [
    (b"", "empty"), (b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(500), "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"), (b"#!/bin/sh\n", "script"), (b"hello", "no code"),
    (b"\x7fELF", "cut short"), (Path("/bin/true").read_bytes()[:3000], "cut short"),
    (pe([], machine=0xAA64), "aarch64"), (b"MZ" + bytes(300), "DOS"),
    (b"!<arch>\ndebian-binary", "archive"), (bytes(0x38) + b"ARM\x64", "aarch64"),
])
def test_what_is_no_guest_binary(tmp_path, data, words) -> None:
    path = tmp_path / "x"
    path.write_bytes(data)
    result = scan(path)
    assert words in result.error and "\n" not in result.error and result.error.startswith(str(path))


def test_the_wrong_architecture(tmp_path) -> None:
    data = bytearray(Path("/bin/true").read_bytes())
    data[18] = 40                       # EM_ARM
    path = tmp_path / "x"
    path.write_bytes(data)
    assert scan(path).error == f"{path}: is for ARM, not for x86"


def test_filters(tmp_path) -> None:
    path = kernel(tmp_path)
    assert {TABLE[s.row].name for s in scan(path, classes=("wanted",)).sites} == {"CPUID"}
    assert len(scan(path, instructions=("CLI", "HLT")).sites) == 2
    assert {s.symbol for s in scan(path, symbols=("sec*",)).sites} == {"second"}
    only = scan(path, sections=(".init*",))
    assert len(only.sites) == 3 and len(only.sections) == 1
    assert not scan(path, keep_sites=False).sites and scan(path, keep_sites=False).total == 12


def test_names_from_a_system_map(tmp_path) -> None:
    path = kernel(tmp_path)
    subprocess.run(["strip", path], check=True)
    (tmp_path / "map").write_text("0000000000100000 T other_name\n")
    assert scan(path, system_map=tmp_path / "map").sites[0].symbol == "other_name"


def test_folders_are_listed_without_following_loops(tmp_path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_text("x")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "z").write_text("x")
    (tmp_path / "dangling").symlink_to("/nonexistent")
    (tmp_path / "another-name").symlink_to(tmp_path / "z")
    (tmp_path / "zz").hardlink_to(tmp_path / "z")
    assert [str(p.relative_to(tmp_path)) for p in listed(tmp_path)] == ["z", "a/b/file"]


def test_damaged_files(tmp_path) -> None:
    """Whatever is damaged, there is a result or one line, and no traceback."""
    linked = kernel(tmp_path).read_bytes()
    plain = gcc(tmp_path, KERNEL.replace("[gdt]", "[rip + gdt]"), "-c").read_bytes()
    driver = pe([(b".text", CODE, b"\xfa\xc3" * 300), (b".rdata", DATA, bytes(100))],
                symbols=[(b"Entry", 1, 0), (b"More", 1, 8)])
    rng = random.Random(11)
    path = tmp_path / "damaged"
    for good in (linked, plain, driver):
        for _ in range(300):
            data = bytearray(good)
            for _ in range(rng.choice((1, 2, 8, 40))):
                at = rng.choice((rng.randrange(min(len(data), 1024)), rng.randrange(len(data)),
                                 max(0, len(data) - 1 - rng.randrange(1500))))
                data[at] = rng.choice((0, 0xFF, 0x7F, rng.randrange(256)))
            path.write_bytes(data[:rng.choice((len(data), rng.randrange(1, len(data))))])
            result = scan(path)
            assert "\n" not in result.error
            if not result.error:
                check_totals(result)
