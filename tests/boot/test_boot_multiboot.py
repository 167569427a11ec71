# SPDX-License-Identifier: GPL-2.0-or-later
"""Multiboot 1: information structure, both kinds of addresses, and what is refused."""

import struct

import pytest
from bootimages import MB, elf, multiboot_header, segment

from bt.boot import load
from bt.errors import InputError
from bt.machine.ram import Ram

CODE = multiboot_header(3) + bytes(range(256)) * 8


def u32(ram, gpa, count=1):
    values = struct.unpack(f"<{count}I", ram.read(gpa, 4 * count))
    return values if count > 1 else values[0]


@pytest.mark.parametrize("bits", [32, 64])
def test_elf(kernel, bits):
    ram = Ram(4 * MB)
    loaded = load(kernel(elf([segment(MB, CODE, vaddr=0xC0100000)], entry=0xC0100010, bits=bits)),
                  ram)
    entry = loaded.entry
    assert loaded.kind == "multiboot"
    assert (entry.bits, entry.rip, entry.cr3) == (32, MB + 0x10, 0)
    assert entry.regs == {"rax": 0x2BADB002, "rbx": 0x1000}
    assert ram.read(MB, len(CODE)) == CODE
    assert struct.unpack("<4Q", ram.read(entry.gdt_base, 32))[2] == 0x00CF9B000000FFFF


def test_information_structure(kernel):
    ram = Ram(4 * MB)
    module = b"any bytes" * 1000
    path = kernel(elf([segment(MB, CODE, memsz=0x5000)], bits=32))
    info = load(path, ram, cmdline="a=1 b", initrd=module).entry.regs["rbx"]
    flags, lower, upper, _, cmdline, count, modules = u32(ram, info, 7)
    assert flags == 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9
    assert (lower, upper, count) == (639, 3 * 1024, 1)
    assert ram.read(cmdline, 6) == b"a=1 b\0"
    start, end, text, zero = u32(ram, modules, 4)
    assert ram.read(start, end - start) == module
    assert start % 4096 == 0 and start >= MB + 0x5000
    assert (ram.read(text, 1), zero) == (b"\0", 0)
    length, at = u32(ram, info + 44, 2)
    regions = []
    end = at + length
    while at < end:
        size, *region = struct.unpack("<IQQI", ram.read(at, 24))
        regions.append(tuple(region))
        at += size + 4
    assert regions == [(0, 0x9FC00, 1), (0x9FC00, 0x60400, 2), (MB, 3 * MB, 1)]
    assert ram.read(u32(ram, info + 64), 6) == b"ring1\0"


def kludge(load_end: int = 0, bss_end: int = 0, entry: int = MB + 0x40, load_addr: int = MB,
           header_addr: int = MB + 0x20) -> bytes:
    header = multiboot_header(1 << 16, (header_addr, load_addr, load_end, bss_end, entry))
    return b"skipped!" + bytes(0x20) + header + b"data" * 100


def test_addresses_in_the_header(kernel):
    ram = Ram(4 * MB)
    data = kludge(load_end=MB + 0x80, bss_end=MB + 0x3000)
    loaded = load(kernel(data), ram, initrd=b"m" * (3 * MB - 0x3000))
    assert (loaded.entry.bits, loaded.entry.rip) == (32, MB + 0x40)
    assert ram.read(MB, 0x80) == data[8:0x88]
    assert ram.read(MB + 0x80, 8) == bytes(8)
    assert u32(ram, u32(ram, 0x1000 + 24)) == MB + 0x3000      # the module fits behind bss
    with pytest.raises(InputError, match="initrd has 3M, but only 2M are free"):
        load(kernel(data), Ram(4 * MB), initrd=b"m" * (3 * MB - 0x2FFF))


def test_load_end_0_is_the_whole_file(kernel):
    ram = Ram(4 * MB)
    data = kludge()
    load(kernel(data), ram)
    assert ram.read(MB, len(data) - 8) == data[8:]


def test_addresses_win_over_elf(kernel):
    header = multiboot_header(1 << 16, (2 * MB + 84, 2 * MB, 0, 0, 2 * MB + 4))
    image = elf([segment(MB, header + bytes(100))], bits=32)
    assert image.find(header) == 84
    assert load(kernel(image), Ram(4 * MB)).entry.rip == 2 * MB + 4


REFUSED = {
    "unknown requirement": (elf([segment(MB, multiboot_header(1 << 3))]), r"features \(0x8\)"),
    "load_addr after header": (kludge(load_addr=MB + 0x100), "does not suit"),
    "before the file": (kludge(header_addr=MB + 0x100), "does not suit"),
    "load_end not in the file": (kludge(load_end=MB + 0x10000), "cut short"),
    "load_end before load": (kludge(load_end=0x1000), "not in the file"),
    "bss_end before data": (kludge(bss_end=MB + 1), "before the end of the data"),
    "too low": (kludge(load_addr=0x8000, header_addr=0x8020, entry=0x8040), "below 1 MB"),
    "entry outside": (kludge(entry=7 * MB), "outside of the kernel"),
    "too large": (kludge(bss_end=60 * MB), "needs at least 60M"),
    "ELF too large": (elf([segment(MB, CODE, memsz=9 * MB)]), "needs at least 10M"),
    "above 4 GB": (elf([segment(5 << 30, CODE)], entry=5 << 30), "above 4 GB"),
    "neither": (b"text" + multiboot_header(0), "not an ELF file"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_refused_with_one_line_that_names_the_file(kernel, why):
    data, message = REFUSED[why]
    path = kernel(data)
    with pytest.raises(InputError, match=message) as caught:
        load(path, Ram(4 * MB))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_header_that_does_not_count(kernel):
    """Wrong checksum, not aligned, or beyond 8192 bytes: not a multiboot kernel."""
    good = multiboot_header(0)
    for data in (good[:-1] + b"\0", b"x" + good, bytes(8192) + good, good[:11]):
        with pytest.raises(InputError, match="no multiboot header"):
            load(kernel(data), Ram(4 * MB), kind="multiboot")


def test_module_too_large(kernel):
    with pytest.raises(InputError, match="initrd has 4M, but only 2M are free"):
        load(kernel(elf([segment(MB, CODE)])), Ram(4 * MB), initrd=bytes(4 * MB))
