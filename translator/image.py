# SPDX-License-Identifier: GPL-2.0-or-later
"""ELF kernel images, 32- and 64-bit: what `patcher` reads from one, and how it adds to it.

Written with `struct` and not with an ELF library: the input is hostile, and the output must differ
from it in nothing but what was asked for. Existing bytes stay where they are; new contents and the
moved tables go to the end of the file. System V ABI, chapters 4 (Object Files) and 5.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from translator import pvabi

_ET_REL, _ET_EXEC, _ET_DYN = 1, 2, 3
_EM_386, _EM_X86_64 = 3, 62
PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE, PT_TLS = 1, 2, 3, 4, 7
_SHT_SYMTAB, _SHT_NOBITS = 2, 8
_SHF_EXECINSTR = 4
_STT_FUNC = 2
_MULTIBOOT_MAGIC = 0x1BADB002
_MULTIBOOT_SEARCH = 8192
_MAX_SYMBOLS = 1 << 20
_MAX_HEADERS = 4096


class ImageError(ValueError):
    """The file cannot be read as what it should be. One line, without the file's name."""


class Segment(NamedTuple):
    """A program header. Bytes; ``flags``: 1 executable, 2 writable, 4 readable."""

    kind: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    align: int


class Section(NamedTuple):
    """A section header, as far as it is used here."""

    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int


class Symbol(NamedTuple):
    """A symbol with an address. ``function``: its type says that it is code."""

    name: str
    value: int
    size: int
    function: bool


class Addition(NamedTuple):
    """New contents: a section and the program header that points to it."""

    name: str
    section_type: int
    section_flags: int
    segment_type: int
    segment_flags: int
    address: int
    data: bytes
    align: int


class KernelImage:
    """An executable ELF file for x86. Raises ImageError if ``data`` is not one."""

    def __init__(self, data: bytes) -> None:
        if data[:4] != b"\x7fELF":
            raise ImageError("is not an ELF file")
        if len(data) < 52 or (data[4] == 2 and len(data) < 64):
            raise ImageError("its ELF header is cut short")
        if data[4] not in (1, 2) or data[5] != 1:
            raise ImageError("is not an ELF file for x86")
        self.data = data
        self.bits = 32 * data[4]
        wide = self.bits == 64
        (kind, machine, _, self.entry, self.phoff, self.shoff, _, _, self.phentsize, self.phnum,
         self.shentsize, self.shnum, self.shstrndx) = struct.unpack_from(
            "<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH", data, 16)
        if machine not in (_EM_386, _EM_X86_64) or (machine == _EM_386) == wide:
            raise ImageError("is not an ELF file for x86")
        if kind == _ET_REL:
            raise ImageError("is an object file, not a linked kernel")
        if kind == _ET_DYN:
            raise ImageError("is a shared object or a position-independent program, not a kernel")
        if kind != _ET_EXEC:
            raise ImageError(f"is an ELF file of type {kind}, not a kernel")
        self.segments = self._segments()
        if any(s.kind in (PT_INTERP, PT_DYNAMIC, PT_TLS) for s in self.segments):
            raise ImageError("is a program for an operating system, not a kernel")
        self.loads = tuple(s for s in self.segments if s.kind == PT_LOAD and s.memsz)
        if not self.loads:
            raise ImageError("has no segment to load")
        for load in self.loads:
            if load.filesz > load.memsz:
                raise ImageError(f"its segment at {load.vaddr:#x} has more bytes than memory")
        self.sections = self._sections()
        self.symbols = self._symbols()
        self.multiboot = self._multiboot()

    def _table(self, offset: int, entry: int, count: int, smallest: int, what: str) -> bytes:
        if count > _MAX_HEADERS:
            raise ImageError(f"has {count} {what}s")
        if count and entry < smallest:
            raise ImageError(f"its {what}s are of {entry} bytes")
        table = self.data[offset:offset + entry * count]
        if len(table) < entry * count:
            raise ImageError(f"is cut short: its {what}s are not all there")
        return table

    def _segments(self) -> tuple[Segment, ...]:
        wide = self.bits == 64
        table = self._table(self.phoff, self.phentsize, self.phnum, 56 if wide else 32,
                            "program header")
        found = []
        for at in range(0, len(table), self.phentsize or 1):
            if wide:
                kind, flags, *rest = struct.unpack_from("<IIQQQQQQ", table, at)
            else:
                kind, *head, flags, align = struct.unpack_from("<8I", table, at)
                rest = [*head, align]
            found.append(Segment(kind, flags, *rest))
            if found[-1].kind in (PT_LOAD, PT_NOTE) and \
                    found[-1].offset + found[-1].filesz > len(self.data):
                raise ImageError(f"is cut short: the segment at {found[-1].vaddr:#x} is not all "
                                 "there")
        return tuple(found)

    def _sections(self) -> tuple[Section, ...]:
        if not self.shnum:
            return ()
        wide = self.bits == 64
        table = self._table(self.shoff, self.shentsize, self.shnum, 64 if wide else 40,
                            "section header")
        found = []
        for at in range(0, len(table), self.shentsize):
            _, kind, flags, address, offset, size, link = struct.unpack_from(
                "<IIQQQQI" if wide else "<7I", table, at)
            found.append(Section(kind, flags, address, offset, size, link))
        return tuple(found)

    def _contents(self, section: Section) -> bytes:
        data = self.data[section.offset:section.offset + section.size]
        if len(data) < section.size:
            raise ImageError("is cut short: a section is not all there")
        return data

    def _symbols(self) -> tuple[Symbol, ...]:
        wide = self.bits == 64
        entry = struct.Struct("<IBBHQQ" if wide else "<IIIBBH")
        found = []
        for section in self.sections:
            if section.kind != _SHT_SYMTAB or section.link >= len(self.sections):
                continue
            table = self._contents(section)
            names = self._contents(self.sections[section.link])
            if len(table) // entry.size > _MAX_SYMBOLS:
                raise ImageError("has too many symbols")
            for at in range(0, len(table) - entry.size + 1, entry.size):
                if wide:
                    name, info, _, index, value, size = entry.unpack_from(table, at)
                else:
                    name, value, size, info, _, index = entry.unpack_from(table, at)
                if 0 < index < 0xFF00 and info & 15 <= _STT_FUNC:
                    end = names.find(b"\0", name)
                    text = names[name:end if end >= 0 else None][:200]
                    found.append(Symbol(text.decode("ascii", "replace"), value, size,
                                        info & 15 == _STT_FUNC))
        return tuple(found)

    def _multiboot(self) -> range | None:
        """File offsets of a multiboot header: data, whatever section it is in."""
        for at in range(0, min(len(self.data), _MULTIBOOT_SEARCH) - 12, 4):
            magic, flags, checksum = struct.unpack_from("<III", self.data, at)
            if magic == _MULTIBOOT_MAGIC and (magic + flags + checksum) & 0xFFFFFFFF == 0:
                return range(at, at + (48 if flags & 1 << 16 or flags & 4 else 12))
        return None

    def notes(self) -> dict[int, bytes]:
        """Our notes in the file, by type."""
        return {kind: desc for s in self.segments if s.kind == PT_NOTE
                for kind, desc in pvabi.notes(self.data[s.offset:s.offset + s.filesz])}

    def code_ranges(self) -> list[tuple[int, int]]:
        """(first, past the last) address of what may be code and is in the file.

        Sections say it best; without them executable segments do.
        """
        loads = [(s.vaddr, s.vaddr + s.filesz) for s in self.loads if s.flags & 1 and s.filesz]
        marked = [(s.address, s.address + s.size) for s in self.sections
                  if s.flags & _SHF_EXECINSTR and s.kind != _SHT_NOBITS and s.size]
        if not marked:
            return loads
        return [(max(a, c), min(b, d)) for a, b in loads for c, d in marked
                if max(a, c) < min(b, d)]

    def offset(self, address: int) -> int | None:
        """File offset of the byte at a virtual address; None if it is not in the file."""
        for s in self.loads:
            if s.vaddr <= address < s.vaddr + s.filesz:
                return s.offset + address - s.vaddr
        return None

    def read(self, address: int, length: int) -> bytes:
        """Up to ``length`` bytes at a virtual address, as far as they are in the file."""
        for s in self.loads:
            if s.vaddr <= address < s.vaddr + s.filesz:
                start = s.offset + address - s.vaddr
                return self.data[start:min(start + length, s.offset + s.filesz)]
        return b""

    def with_additions(self, data: bytes, additions: Sequence[Addition]) -> bytes:
        """``data`` (this image, its code changed) with new sections and program headers."""
        wide = self.bits == 64
        out = bytearray(data)
        placed = []
        for addition in additions:
            out += bytes(-len(out) % addition.align)
            placed.append(len(out))
            out += addition.data
        out += bytes(-len(out) % 8)
        phoff = len(out)
        out += self._table(self.phoff, self.phentsize, self.phnum, 0, "program header")
        for new, at in zip(additions, placed, strict=True):
            size = len(new.data)
            if wide:
                header = struct.pack("<IIQQQQQQ", new.segment_type, new.segment_flags, at,
                                     new.address, new.address, size, size, new.align)
            else:
                header = struct.pack("<8I", new.segment_type, at, new.address, new.address, size,
                                     size, new.segment_flags, new.align)
            out += header.ljust(self.phentsize, b"\0")
        struct.pack_into("<Q" if wide else "<I", out, 32 if wide else 28, phoff)
        struct.pack_into("<H", out, 56 if wide else 44, self.phnum + len(additions))
        if self.sections and self.shstrndx < len(self.sections):
            self._add_sections(out, additions, placed)
        return bytes(out)

    def _add_sections(self, out: bytearray, additions: Sequence[Addition],
                      placed: Sequence[int]) -> None:
        wide = self.bits == 64
        names = bytearray(self._contents(self.sections[self.shstrndx]))
        headers = bytearray(self._table(self.shoff, self.shentsize, self.shnum, 0,
                                        "section header"))
        for new, at in zip(additions, placed, strict=True):
            headers += struct.pack("<IIQQQQIIQQ" if wide else "<10I", len(names),
                                   new.section_type, new.section_flags, new.address, at,
                                   len(new.data), 0, 0, new.align, 0).ljust(self.shentsize, b"\0")
            names += new.name.encode() + b"\0"
        names_at = len(out)
        out += names
        out += bytes(-len(out) % 8)
        at = self.shentsize * self.shstrndx
        struct.pack_into("<QQ" if wide else "<II", headers, at + (24 if wide else 16), names_at,
                         len(names))
        shoff = len(out)
        out += headers
        struct.pack_into("<Q" if wide else "<I", out, 40 if wide else 32, shoff)
        struct.pack_into("<H", out, 60 if wide else 48, self.shnum + len(additions))
