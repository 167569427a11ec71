# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux kernels: what lies in RAM after loading, and what is refused."""

import os
import struct

import pytest
from bootimages import MB, METHODS, bzimage, cpio, elf, pack, segment

from bt.boot import load
from bt.errors import InputError
from bt.machine.ram import Ram

CODE = bytes(range(256)) * 32
VMLINUX = elf([segment(2 * MB, CODE, vaddr=0xFFFFFFFF80200000),
               segment(MB, CODE[1:], memsz=0x8000, vaddr=0xFFFFFFFF80100000)], entry=MB + 0x40)


def u32(ram, gpa):
    return struct.unpack("<I", ram.read(gpa, 4))[0]


@pytest.mark.parametrize("method", METHODS)
def test_bzimage_of_each_compression(kernel, method):
    ram = Ram(8 * MB)
    loaded = load(kernel(bzimage(pack(VMLINUX, method))), ram)
    assert loaded.kind == "linux bzImage"
    assert loaded.description == f"Linux 6.1.0-test ({method}), 64-bit"
    assert ram.read(MB, len(CODE) - 1) == CODE[1:]
    assert ram.read(2 * MB, len(CODE)) == CODE
    assert ram.read(2 * MB + len(CODE), 4096) == bytes(4096)


@pytest.mark.parametrize("method", METHODS)
def test_payload_of_many_blocks(kernel, method):
    """More than one lz4 block, and more than one step of the others."""
    data = os.urandom(MB) * 10
    ram = Ram(16 * MB)
    image = elf([segment(MB, data)])
    load(kernel(bzimage(pack(image, method), init_size=12 * MB)), ram)
    assert ram.view[MB:MB + len(data)] == data


def test_boot_params_of_a_bzimage(kernel):
    ram = Ram(8 * MB)
    disk = cpio(("init", b"#!/bin/sh\n"))
    image = bytearray(bzimage(pack(VMLINUX, "gzip")))
    image[0x211] |= 0x02        # KASLR_FLAG is for the decompressor to set, not for the file
    struct.pack_into("<I", image, 0x230, 0x200000)
    loaded = load(kernel(image), ram, cmdline="console=ttyS0 é", initrd=disk)
    params = loaded.entry.regs["rsi"]
    assert ram.read(params + 0x202, 4) == b"HdrS"
    assert u32(ram, params + 0x230) == 0x200000             # kept from the file
    assert ram.read(params + 0x210, 2) == b"\xff\x01"       # loader; LOADED_HIGH and no KASLR
    assert ram.read(u32(ram, params + 0x228), 18) == "console=ttyS0 é\0".encode() + b"\0"
    start, size = u32(ram, params + 0x218), u32(ram, params + 0x21C)
    assert (start % 4096, size, ram.read(start, size)) == (0, len(disk), disk)
    assert start + size + 4096 > ram.size                   # as high as it goes
    count = ram.read(params + 0x1E8, 1)[0]
    regions = [struct.unpack("<QQI", ram.read(params + 0x2D0 + 20 * i, 20)) for i in range(count)]
    assert regions == [(0, 0x9FC00, 1), (0x9FC00, 0x60400, 2), (MB, 7 * MB, 1)]
    assert ram.read(params, 0x1E8) == bytes(0x1E8)          # no screen, no ext_ halves, no EFI


def test_initrd_stays_below_initrd_addr_max(kernel):
    ram = Ram(16 * MB)
    image = bzimage(pack(VMLINUX, "gzip"), initrd_addr_max=6 * MB - 1)
    loaded = load(kernel(image), ram, initrd=cpio(("a", b"b" * 5000)))
    params = loaded.entry.regs["rsi"]
    end = u32(ram, params + 0x218) + u32(ram, params + 0x21C)
    assert 6 * MB - 4096 < end <= 6 * MB


def test_initrd_from_a_file(kernel, tmp_path):
    ram = Ram(8 * MB)
    disk = cpio(("a", b"b"))
    (tmp_path / "initrd").write_bytes(disk)
    params = load(kernel(VMLINUX), ram, initrd=tmp_path / "initrd").entry.regs["rsi"]
    assert ram.read(u32(ram, params + 0x218), len(disk)) == disk


def test_entry_of_a_64_bit_kernel(kernel):
    ram = Ram(8 * MB)
    entry = load(kernel(VMLINUX), ram).entry
    assert (entry.bits, entry.rip, entry.cs, entry.ds) == (64, MB + 0x40, 0x10, 0x18)
    assert entry.gdt_limit == 31
    gdt = struct.unpack("<4Q", ram.read(entry.gdt_base, 32))
    assert gdt[2:] == (0x00AF9B000000FFFF, 0x00CF93000000FFFF)


def test_identity_tables_cover_ram_and_4_gib(kernel):
    for size in (8 * MB, (5 << 30) + MB):
        ram = Ram(size)
        cr3 = load(kernel(VMLINUX), ram).entry.cr3
        for gpa in (0, MB, size - 1, (4 << 30) - 1):
            table = cr3
            for shift in (39, 30, 21):
                entry = struct.unpack("<Q", ram.read(table + (gpa >> shift & 511) * 8, 8))[0]
                assert entry & 3 == 3
                table = entry & ~0xFFF
            assert entry & 0x80 and table == gpa & ~0x1FFFFF


def test_bare_elf_gets_a_setup_header(kernel):
    ram = Ram(8 * MB)
    loaded = load(kernel(VMLINUX), ram, cmdline="x" * 2047)
    params = loaded.entry.regs["rsi"]
    assert loaded.kind == "linux ELF"
    assert ram.read(params + 0x1FE, 2) == b"\x55\xaa"
    assert ram.read(params + 0x202, 6) == b"HdrS\x0f\x02"
    assert ram.read(u32(ram, params + 0x228), 2048) == b"x" * 2047 + b"\0"


def test_32_bit_kernel_starts_with_paging_off(kernel):
    ram = Ram(8 * MB)
    vmlinux = elf([segment(MB, CODE, vaddr=0xC0100000)], entry=MB, bits=32)
    entry = load(kernel(bzimage(pack(vmlinux, "xz"))), ram).entry
    assert (entry.bits, entry.rip, entry.cr3, entry.regs) == (32, MB, 0, {"rsi": 0x1000})
    assert struct.unpack("<4Q", ram.read(entry.gdt_base, 32))[2] == 0x00CF9B000000FFFF


def test_virtual_entry_point_becomes_physical(kernel):
    vmlinux = elf([segment(MB, CODE, vaddr=0xFFFFFFFF80000000)], entry=0xFFFFFFFF80000123)
    assert load(kernel(vmlinux), Ram(8 * MB)).entry.rip == MB + 0x123


GZIP = pack(VMLINUX, "gzip")
REFUSED = {
    # Found before anything is unpacked: the payload is damaged too, and that is not what it says.
    "too little RAM": (bzimage(GZIP[:200] + b"!" * 8 + GZIP[208:], init_size=9 * MB),
                       "needs at least 10M of RAM.* has 8M"),
    "too little RAM for an ELF": (elf([segment(MB, b"", memsz=20 * MB)]), "at least 21M of RAM"),
    "old protocol": (bzimage(GZIP, protocol=0x207), "protocol 2.07 is too old"),
    "payload cut": (bzimage(GZIP)[:-20], "cut short"),
    "payload not there": (bzimage(b""), "compressed kernel has only 0 bytes"),
    "payload unknown": (bzimage(b"unknown compression"), r"unsupported compression \(bytes 75"),
    "lzo": (bzimage(b"\x89LZO\0\x0d\x0a\x1a\x0a" + bytes(20)), "unsupported lzo"),
    "payload not ELF": (bzimage(pack(b"x" * 100, "zstd")), "not an ELF kernel"),
    "payload damaged": (bzimage(GZIP[:200] + b"!" * 8 + GZIP[208:]), "gzip kernel is damaged"),
    "payload too large": (bzimage(pack(bytes(2 * MB), "xz")), "unpack to 2097152 bytes"),
    "payload longer than said": (bzimage(pack(VMLINUX, "xz")[:-4] + b"\x40\0\0\0"), "more bytes"),
    "payload shorter than said": (bzimage(pack(VMLINUX, "xz")[:-4] + b"\0\0\2\0"), "instead of"),
    "header cut": (bzimage(GZIP)[:0x210], "cut short"),
    "aarch64 ELF": (elf([segment(MB, CODE)], machine=183), "is for aarch64, not for x86"),
    "aarch64 in a bzImage": (bzimage(pack(elf([segment(MB, CODE)], machine=183), "lz4")),
                             "is for aarch64"),
    "aarch64 Image": (b"MZ" + bytes(0x36) + b"ARM\x64" + bytes(64), "for aarch64"),
    "big-endian": (VMLINUX[:5] + b"\2" + VMLINUX[6:], "not little-endian"),
    "x32": (elf([segment(MB, CODE)], bits=32, machine=62), "is not a Linux kernel"),
    "program": (elf([segment(MB, CODE), segment(MB, b"/lib", kind=3)]), "program for an operating"),
    "shared object": (elf([segment(MB, CODE)], kind=3), "ELF type 3"),
    "no program headers": (elf([]), "no program headers"),
    "no segments": (elf([segment(MB, CODE, kind=4)]), "no segment to load"),
    "ELF header cut": (VMLINUX[:30], "cut short"),
    "ELF cut": (VMLINUX[:-1], "cut short"),
    "low segment": (elf([segment(0x8000, CODE)], entry=0x8000), "below 1 MB"),
    "overlap": (elf([segment(MB, CODE), segment(MB + 4096, CODE)]), "overlaps"),
    "entry outside": (elf([segment(MB, CODE)], entry=5 * MB), "entry point 0x500000 is outside"),
    "filesz > memsz": (elf([segment(MB, CODE, memsz=5)]), "more bytes in the file"),
    "huge e_phnum": (VMLINUX[:56] + b"\xff\xff" + VMLINUX[58:], "65535 program headers"),
    "odd e_phentsize": (VMLINUX[:54] + b"\x39" + VMLINUX[55:], "57 bytes instead of 56"),
    "lz4 block cut": (bzimage(pack(VMLINUX, "lz4")[:60] + b"\0\2\0\0"), "after the end of"),
    "p_offset overflow": (VMLINUX[:72] + b"\xff" * 8 + VMLINUX[80:], "cut short"),
    "empty": (b"", "is empty"),
    "random": (bytes(range(7, 256)) * 40, "not a kernel"),
    "gzip file": (GZIP, "is a gzip file"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_refused_with_one_line_that_names_the_file(kernel, why):
    data, message = REFUSED[why]
    path = kernel(data)
    with pytest.raises(InputError, match=message) as caught:
        load(path, Ram(8 * MB))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


INITRDS = {
    "empty": (b"", "initrd is empty"),
    "random": (b"random" * 1000, "not an initrd"),
    "cut short": (cpio(("file", b"x" * 1000))[:700], "cut short at byte 700"),
    "cut in a header": (cpio(("file", b"x" * 1000))[:-60], "cut short"),
    "damaged": (cpio(("file", b"x" * 1000)).replace(b"070701", b"0707zz", 2)[2:], "not an initrd"),
    "bad size": (b"070701" + b"zzzzzzzz" * 13 + bytes(99), "damaged at byte 0"),
    "too large": (cpio(("file", bytes(8 * MB))), "needs at least .* for initrd"),
}


@pytest.mark.parametrize("why", INITRDS)
def test_initrd_refused(kernel, why):
    data, message = INITRDS[why]
    with pytest.raises(InputError, match=message):
        load(kernel(VMLINUX), Ram(8 * MB), initrd=data)


@pytest.mark.parametrize("data", [b"\x1f\x8b" + bytes(9), b"BZh9" + bytes(9), b"hsqs" + bytes(9),
                                  bytes(0x438) + b"\x53\xef" + bytes(9)])
def test_other_initrds_are_left_to_the_kernel(kernel, data):
    load(kernel(VMLINUX), Ram(8 * MB), initrd=data)


def test_initrd_has_no_room_below_its_limit(kernel):
    image = bzimage(pack(VMLINUX, "gzip"), initrd_addr_max=2 * MB + 0x8000)
    with pytest.raises(InputError, match="the initrd has 1M, but only 0M are free"):
        load(kernel(image), Ram(8 * MB), initrd=cpio(("file", bytes(100000))))


def test_command_line_limits(kernel):
    path = kernel(bzimage(GZIP, cmdline_size=20))
    load(path, Ram(8 * MB), cmdline="x" * 20)
    for text, message in (("x" * 21, "has 21 bytes, but this kernel takes 20"),
                          ("a\0b", "NUL"), ("\ud800", "not valid Unicode")):
        with pytest.raises(InputError, match=message):
            load(path, Ram(8 * MB), cmdline=text)


def test_files_that_cannot_be_read(kernel, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name, message in ((".", "is a directory"), ("none", "No such file"),
                          ("fifo", "special file"), ("x\0y", "null"), ("x" * 300, "too long")):
        with pytest.raises(InputError, match=message):
            load(tmp_path / name, Ram(MB))
        with pytest.raises(InputError, match=message):
            load(kernel(VMLINUX), Ram(8 * MB), initrd=tmp_path / name)


def test_a_bomb_costs_no_memory(kernel):
    """64 MB of zeroes behind a size of 1 MB: unpacking stops at the size."""
    import tracemalloc
    for method in METHODS:
        path = kernel(bzimage(pack(bytes(64 * MB), method)[:-4] + struct.pack("<I", MB // 2)))
        ram = Ram(8 * MB)
        tracemalloc.start()
        with pytest.raises(InputError, match="damaged"):
            load(path, ram)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 32 * MB, method
