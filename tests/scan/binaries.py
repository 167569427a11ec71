# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest binaries for the scanner's tests: compiled with gcc, and a PE file written by hand."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

#: A kernel's source: what it has, by section and symbol, is known exactly.
KERNEL = """
.intel_syntax noprefix
.text
.globl _start
.type _start, @function
_start: cli
 lgdt [gdt]
 mov rax, cr3
 mov cr3, rax
 pushfq
 mov eax, eax
 xor ecx, ecx
 popfq
 hlt
.size _start, . - _start
.type table, @object
table: .byte 0xfa, 0xfb, 0xf4, 0x0f, 0x30
.size table, . - table
.globl second
.type second, @function
second: rdmsr
 int3
 cpuid
 ret
.size second, . - second
 .fill 20, 1, 0xcc
.section .init.text, "ax"
.globl setup
.type setup, @function
setup: wrmsr
 in al, dx
 swapgs
 ret
.size setup, . - setup
.data
gdt: .zero 10
"""
#: instruction -> (section, symbol, offset), in the order of a listing.
KERNEL_SITES = [
    ("CLI", ".text", "_start", 0), ("LGDT", ".text", "_start", 1),
    ("MOV_FROM_CR", ".text", "_start", 9), ("MOV_TO_CR", ".text", "_start", 12),
    ("PUSHF", ".text", "_start", 15), ("POPF", ".text", "_start", 20),
    ("HLT", ".text", "_start", 21), ("RDMSR", ".text", "second", 0),
    ("CPUID", ".text", "second", 3), ("WRMSR", ".init.text", "setup", 0),
    ("IN", ".init.text", "setup", 2), ("SWAPGS", ".init.text", "setup", 3)]
KERNEL_INSTRUCTIONS = 9 + 3 + 4         # without the INT3s


def gcc(folder: Path, source: str, *flags: str, name: str = "a.s") -> Path:
    """Compile ``source``; the test is skipped where there is no compiler."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    (folder / name).write_text(source)
    out = folder / "a.out"
    subprocess.run(["gcc", *flags, "-o", out, name], cwd=folder, check=True, capture_output=True)
    return out


def kernel(folder: Path, *flags: str) -> Path:
    """KERNEL, linked where a kernel is."""
    return gcc(folder, KERNEL, "-nostdlib", "-static", "-Wl,-Ttext=0x100000",
               "-Wl,--build-id=none", *flags)


def pe(sections: Sequence[tuple[bytes, int, bytes]], *, machine: int = 0x8664, subsystem: int = 1,
       base: int = 0x140000000, symbols: Sequence[tuple[bytes, int, int]] = ()) -> bytes:
    """A PE file. ``sections``: (name, characteristics, contents); each gets a page of addresses.

    ``symbols``: (name of up to 8 bytes, section number from 1, offset).
    """
    wide = machine != 0x14C
    optional_size = 240 if wide else 224
    headers = 0x400
    at, raw, table, body = 0x1000, headers, b"", b""
    for name, flags, data in sections:
        padded = data + bytes(-len(data) % 0x200)
        table += struct.pack("<8sIIIIIIHHI", name, len(data), at, len(padded), raw, 0, 0, 0, 0,
                             flags)
        at += 0x1000 + len(padded) // 0x1000 * 0x1000
        raw += len(padded)
        body += padded
    coff = b"".join(struct.pack("<8sIhHBB", name, value, section, 0x20, 2, 0)
                    for name, section, value in symbols)
    dos = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40)
    file = struct.pack("<HHIIIHH", machine, len(sections), 0, raw if symbols else 0, len(symbols),
                       optional_size, 0x22)
    if wide:
        optional = struct.pack("<HBBIIIIIQIIHHHHHHIIIIHHQQQQII", 0x20B, 14, 0, 0, 0, 0, 0x1000,
                               0x1000, base, 0x1000, 0x200, 6, 0, 0, 0, 6, 0, 0, at, headers, 0,
                               subsystem, 0, 1 << 20, 4096, 1 << 20, 4096, 0, 16)
    else:
        optional = struct.pack("<HBBIIIIIIIIIHHHHHHIIIIHHIIIIII", 0x10B, 14, 0, 0, 0, 0, 0x1000,
                               0x1000, 0, base, 0x1000, 0x200, 6, 0, 0, 0, 6, 0, 0, at, headers, 0,
                               subsystem, 0, 1 << 20, 4096, 1 << 20, 4096, 0, 16)
    optional += bytes(optional_size - len(optional))
    head = (dos + b"PE\0\0" + file + optional + table).ljust(headers, b"\0")
    return head + body + (coff + struct.pack("<I", 4) if symbols else b"")
