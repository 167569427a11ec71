# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels made by the tests: ELF files, bzImages with any compression, multiboot headers, cpio."""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib

import lz4.block
import zstandard

MB = 1 << 20
METHODS = ("gzip", "bzip2", "xz", "lzma", "lz4", "zstd")


def segment(paddr: int, data: bytes, memsz: int | None = None, vaddr: int | None = None,
            kind: int = 1) -> tuple:
    """A program header for elf(), with its data; memory size and virtual address follow them."""
    return (kind, paddr, paddr if vaddr is None else vaddr, data,
            len(data) if memsz is None else memsz)


def elf(segments: list[tuple], entry: int = MB, bits: int = 64, machine: int | None = None,
        kind: int = 2) -> bytes:
    """A static executable with ``segments``: (type, paddr, vaddr, data, memsz)."""
    machine = machine or {32: 3, 64: 62}[bits]
    header_size, phdr_size = {32: (52, 32), 64: (64, 56)}[bits]
    offset = header_size + phdr_size * len(segments)
    form = {32: "<HHIIIIIHHHHHH", 64: "<HHIQQQIHHHHHH"}[bits]
    out = b"\x7fELF" + bytes([bits // 32, 1, 1]) + bytes(9)
    out += struct.pack(form, kind, machine, 1, entry, header_size, 0, 0, header_size, phdr_size,
                       len(segments), 0, 0, 0)
    body = b""
    for ptype, paddr, vaddr, data, memsz in segments:
        at = offset + len(body)
        if bits == 64:
            out += struct.pack("<IIQQQQQQ", ptype, 7, at, vaddr, paddr, len(data), memsz, 4096)
        else:
            out += struct.pack("<8I", ptype, at, vaddr, paddr, len(data), memsz, 7, 4096)
        body += data
    return out + body


def pack(data: bytes, method: str) -> bytes:
    """The payload as the kernel's build makes it: the size (u32) appended, but not to gzip."""
    size = struct.pack("<I", len(data))
    if method == "gzip":
        deflate = zlib.compressobj(9, wbits=31)
        return deflate.compress(data) + deflate.flush()
    if method == "bzip2":
        return bz2.compress(data) + size
    if method == "xz":      # scripts/xz_wrap.sh: x86 BCJ filter, CRC32
        filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
        return lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=filters) + size
    if method == "lzma":
        filters = [{"id": lzma.FILTER_LZMA1, "dict_size": 1 << 20}]
        return lzma.compress(data, lzma.FORMAT_ALONE, filters=filters) + size
    if method == "lz4":     # lz4 -l: blocks of 8 MiB
        out = b"\x02\x21\x4c\x18"
        for at in range(0, len(data), 8 * MB):
            block = lz4.block.compress(data[at:at + 8 * MB], store_size=False)
            out += struct.pack("<I", len(block)) + block
        return out + size
    return zstandard.compress(data) + size


def bzimage(payload: bytes, *, init_size: int = MB, pref_address: int = MB,
            cmdline_size: int = 255, protocol: int = 0x20F, initrd_addr_max: int = 0x7FFFFFFF,
            version: bytes = b"6.1.0-test (me@here) #1") -> bytes:
    """A bzImage with one setup sector after the boot sector (setup_sects = 1)."""
    out = bytearray(1024)
    out[0x1F1] = 1
    struct.pack_into("<H", out, 0x1FE, 0xAA55)
    out[0x200:0x202] = b"\xeb\x66"
    struct.pack_into("<4sH", out, 0x202, b"HdrS", protocol)
    struct.pack_into("<H", out, 0x20E, 0x300 - 512)
    out[0x300:0x300 + len(version)] = version
    out[0x211] = 1
    struct.pack_into("<I", out, 0x22C, initrd_addr_max)
    struct.pack_into("<I", out, 0x238, cmdline_size)
    struct.pack_into("<II", out, 0x248, 64, len(payload))
    struct.pack_into("<QI", out, 0x258, pref_address, init_size)
    return bytes(out) + bytes(64) + payload


def multiboot_header(flags: int = 3, addresses: tuple[int, ...] = ()) -> bytes:
    magic = 0x1BADB002
    header = struct.pack("<III", magic, flags, -(magic + flags) & 0xFFFFFFFF)
    return header + struct.pack(f"<{len(addresses)}I", *addresses)


def cpio(*files: tuple[str, bytes]) -> bytes:
    """A newc archive."""
    out = b""
    for name, data in (*files, ("TRAILER!!!", b"")):
        fields = [0, 0o100644, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
        out += b"070701" + b"".join(b"%08x" % field for field in fields)
        out += name.encode() + b"\0"
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return out
