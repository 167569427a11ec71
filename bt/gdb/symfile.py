# SPDX-License-Identifier: GPL-2.0-or-later
"""Symbols for gdb: an ELF file with a kernel's names, and no code, made of any kernel file.

Debian's kernels are stripped; their names are in their kallsyms (bt.symbols). The file made here
has the kernel's sections without their contents, a symbol table, and, where the kernel says how its
stack is laid out (ORC), the same as DWARF call frame information, so that gdb can walk it.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bt.boot.image import FileImage
from bt.errors import InputError
from bt.gdb import unwind
from bt.gdb.session import Segment
from bt.symbols import of_elf
from bt.symbols.elf import MAGIC, SHF_ALLOC, SHT_NOBITS, SHT_SYMTAB, ElfFile, ElfSection
from bt.symbols.table import SymbolTable

_MAX_KERNEL = 1 << 30
_SHT_PROGBITS, _SHT_STRTAB = 1, 3
_ET_EXEC = 2
_SHN_ABS = 0xFFF1
_STT_NOTYPE, _STT_OBJECT, _STT_FUNC = 0, 1, 2
_HEADER = {32: struct.Struct("<16sHHIIIIIHHHHHH"), 64: struct.Struct("<16sHHIQQQIHHHHHH")}
_SECTION = {32: struct.Struct("<10I"), 64: struct.Struct("<IIQQQQIIQQ")}
_SYMBOL_BYTES = {32: 16, 64: 24}


@contextmanager
def kernel_elf(path: Path) -> Iterator[ElfFile]:
    """The ELF file that a kernel file is, or holds. Raises InputError."""
    from bt.boot import linux

    with FileImage(path) as image:
        head = image.head(0x2000)
        if head.startswith(MAGIC):
            yield ElfFile(image)
        elif linux.is_bzimage(head):
            with linux.open_kernel(image, linux.Room(_MAX_KERNEL)).image as vmlinux:
                yield ElfFile(vmlinux)
        else:
            raise InputError(f"{path.name}: has no symbols: not an ELF file or a bzImage")


def segments(elf: ElfFile) -> tuple[Segment, ...]:
    """Where the parts of the kernel are before it has mapped itself."""
    return tuple(Segment(part.vaddr, part.paddr, part.filesz) for part in elf.segments)


def symbol_file(elf: ElfFile) -> bytes:
    """The file for gdb."""
    table = of_elf(elf)
    parts = [section for section in elf.sections if section.flags & SHF_ALLOC and section.size]
    symbols, names = _symbol_table(elf.bits, table, parts)
    own = [(".symtab", SHT_SYMTAB, symbols), (".strtab", _SHT_STRTAB, names)]
    frames = unwind.debug_frame(elf, table)
    if frames:
        own.append((".debug_frame", _SHT_PROGBITS, frames))
    return _assemble(elf, parts, own)


def cached_symbol_file(path: Path, elf: ElfFile, folder: Path) -> Path:
    """``symbol_file`` in a file of the cache, made if it is not there."""
    stat = path.stat()
    cached = folder / f"{path.name}-{stat.st_size:x}-{stat.st_mtime_ns:x}.{unwind.VERSION}.sym"
    if not cached.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = cached.with_suffix(f".{os.getpid()}")
        part.write_bytes(symbol_file(elf))
        part.replace(cached)
    return cached


def _symbol_table(bits: int, table: SymbolTable,
                  parts: list[ElfSection]) -> tuple[bytes, bytes]:
    """(.symtab, .strtab). Every symbol is local: their order is then free."""
    placed = sorted((part.address, part.address + part.size, number)
                    for number, part in enumerate(parts, 1))
    starts, ends, numbers = ([one[i] for one in placed] for i in range(3))
    names = bytearray(1)
    out = bytearray(_SYMBOL_BYTES[bits])
    for symbol in table.items():
        # A section of the file, by number; per-CPU offsets and plain numbers have none.
        index = _SHN_ABS
        if symbol.kind not in "Aa":
            place = bisect_right(starts, symbol.address) - 1
            if place >= 0 and symbol.address < ends[place]:
                index = numbers[place]
        kind = _STT_FUNC if symbol.kind in "tTwW" else _STT_OBJECT
        if index == _SHN_ABS:
            kind = _STT_NOTYPE
        at = len(names)
        names += symbol.name.encode("utf-8", "replace") + b"\0"
        address = symbol.address & (1 << bits) - 1
        if bits == 64:
            out += struct.pack("<IBBHQQ", at, kind, 0, index, address, symbol.size)
        else:
            out += struct.pack("<IIIBBH", at, address, symbol.size, kind, 0, index)
    return bytes(out), bytes(names)


def _assemble(elf: ElfFile, parts: list[ElfSection], own: list[tuple[str, int, bytes]]) -> bytes:
    header, form = _HEADER[elf.bits], _SECTION[elf.bits]
    titles = bytearray(1)

    def title(name: str) -> int:
        titles.extend(name.encode("utf-8", "replace") + b"\0")
        return len(titles) - len(name.encode("utf-8", "replace")) - 1

    rows = [(0,) * 10]
    body = bytearray(header.size)
    for part in parts:
        rows.append((title(part.name), SHT_NOBITS, part.flags, part.address, header.size,
                     part.size, 0, 0, 1, 0))
    first = len(rows)
    for name, kind, data in own:
        body += bytes(-len(body) % 8)
        is_table = kind == SHT_SYMTAB
        count = len(data) // _SYMBOL_BYTES[elf.bits]
        rows.append((title(name), kind, 0, 0, len(body), len(data), first + 1 if is_table else 0,
                     count if is_table else 0, 8, _SYMBOL_BYTES[elf.bits] if is_table else 0))
        body += data
    last = title(".shstrtab")
    rows.append((last, _SHT_STRTAB, 0, 0, len(body), len(titles), 0, 0, 1, 0))
    body += titles
    body += bytes(-len(body) % 8)
    at = len(body)
    for row in rows:
        body += form.pack(*row)
    wide = elf.bits == 64
    ident = MAGIC + bytes((2 if wide else 1, 1, 1)) + bytes(9)
    header.pack_into(body, 0, ident, _ET_EXEC, elf.machine, 1, elf.entry, 0, at, 0, header.size,
                     56 if wide else 32, 0, form.size, len(rows), len(rows) - 1)
    return bytes(body)
