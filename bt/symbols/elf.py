# SPDX-License-Identifier: GPL-2.0-or-later
"""ELF files, 32- and 64-bit: sections and symbols (System V ABI, chapter 4, Object Files).

Written with `struct` and not with an ELF library, for two reasons: the files are hostile input, and
a vmlinux with its symbols is read by `bt run`, where start-up time counts. Only headers and symbol
tables are read, not the sections' contents.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from bt.boot.image import Image
from bt.errors import InputError
from bt.symbols.table import Section, Symbol, SymbolTable

MAGIC = b"\x7fELF"
ET_REL, ET_EXEC, ET_DYN, ET_CORE = 1, 2, 3, 4
EM_386, EM_X86_64 = 3, 62
SHT_SYMTAB, SHT_RELA, SHT_NOBITS, SHT_REL, SHT_DYNSYM = 2, 4, 8, 9, 11
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR = 1, 2, 4
PF_X = 1
PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_TLS = 1, 2, 3, 7
_SHN_LORESERVE, _SHN_ABS, _SHN_COMMON = 0xFF00, 0xFFF1, 0xFFF2
_STT_OBJECT, _STT_FUNC, _STT_SECTION, _STT_FILE, _STT_TLS, _STT_IFUNC = 1, 2, 3, 4, 6, 10
_STB_LOCAL, _STB_WEAK, _STB_UNIQUE = 0, 2, 10
_MACHINES = {2: "SPARC", 8: "MIPS", 20: "PowerPC", 21: "PowerPC", 22: "S/390", 40: "ARM",
             183: "aarch64", 243: "RISC-V", 258: "LoongArch"}
_KINDS = {ET_REL: "object file", ET_EXEC: "executable", ET_DYN: "shared object", ET_CORE: "core"}

_HEADER = {32: struct.Struct("<HHIIIIIHHHHHH"), 64: struct.Struct("<HHIQQQIHHHHHH")}
_SECTION = {32: struct.Struct("<10I"), 64: struct.Struct("<IIQQQQIIQQ")}
_SEGMENT = {32: struct.Struct("<8I"), 64: struct.Struct("<IIQQQQQQ")}
_SYMBOL = {32: struct.Struct("<IIIBBH"), 64: struct.Struct("<IBBHQQ")}
# They bound the work that a hostile file can cause. Objects with a section a function have many.
_MAX_SECTIONS = 1 << 17
_MAX_SEGMENTS = 1 << 12
_MAX_SYMBOLS = 1 << 22
_MAX_NAME = 512


class ElfSection(NamedTuple):
    """A section header; bytes and addresses. ``kind``: SHT_*; ``flags``: SHF_*."""

    name: str
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int

    @property
    def is_code(self) -> bool:
        """Whether it says that it holds instructions, and they are in the file."""
        return bool(self.flags & SHF_EXECINSTR and self.kind != SHT_NOBITS and self.size)


class ElfSegment(NamedTuple):
    """A PT_LOAD program header; bytes. ``flags``: PF_*."""

    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int


class ElfSymbol(NamedTuple):
    """A defined symbol. ``section``: index, or None for one without (absolute, common)."""

    symbol: Symbol
    section: int | None
    function: bool
    data: bool


class ElfFile:
    """The headers of an x86 ELF file. Raises InputError for everything else.

    ``bits``: 32 or 64, its class. ``kind``: ET_*; ``segment_kinds``: the PT_* there are. Tables are
    read as needed, from ``image``, which must stay open.
    """

    def __init__(self, image: Image) -> None:
        self.image = image
        self.name = image.name
        ident = image.head(16)
        if not ident.startswith(MAGIC):
            raise InputError(f"{self.name}: not an ELF file")
        if len(ident) < 16:
            raise InputError(f"{self.name}: cut short in its ELF header")
        bits = {1: 32, 2: 64}.get(ident[4])
        if bits is None:
            raise InputError(f"{self.name}: ELF class {ident[4]} is unknown")
        if ident[5] != 1:
            raise InputError(f"{self.name}: is a big-endian ELF file, so not for x86")
        self.bits: int = bits
        header = _HEADER[bits]
        if image.size < 16 + header.size:
            raise InputError(f"{self.name}: cut short in its ELF header")
        (self.kind, self.machine, _, self.entry, self._phoff, self._shoff, _, _, self._phentsize,
         self._phnum, self._shentsize, self._shnum, self._shstrndx) = header.unpack(
            image.read(16, header.size))
        if self.machine not in (EM_386, EM_X86_64):
            what = _MACHINES.get(self.machine, f"machine type {self.machine}")
            raise InputError(f"{self.name}: is for {what}, not for x86")
        self.sections = self._read_sections()
        self._names_of: dict[int, dict[int, str]] = {}
        self.segment_kinds: set[int] = set()
        self.segments = self._read_segments()

    @property
    def what(self) -> str:
        """``64-bit ELF executable``, say."""
        return f"{self.bits}-bit ELF {_KINDS.get(self.kind, f'file of type {self.kind}')}"

    def _table(self, what: str, offset: int, entry: int, size: int, count: int,
               limit: int) -> Iterator[tuple[int, ...]]:
        form = (_SECTION if what == "section" else _SEGMENT)[self.bits]
        if count > limit:
            raise InputError(f"{self.name}: has {count} {what} headers; {limit} is the limit")
        if not count:
            return iter(())
        if entry != size:
            raise InputError(f"{self.name}: its {what} headers have {entry} bytes, not {size}")
        if offset + count * size > self.image.size:
            raise InputError(f"{self.name}: cut short: its {what} headers are not all there")
        return form.iter_unpack(self.image.read(offset, count * size))

    def _read_sections(self) -> tuple[ElfSection, ...]:
        form = _SECTION[self.bits]
        count, names_at = self._shnum, self._shstrndx
        if not count and self._shoff:
            # 65,280 sections or more: the numbers are in the first one's header.
            first = next(self._table("section", self._shoff, self._shentsize, form.size, 1, 1))
            count = first[5]
        raw = list(self._table("section", self._shoff, self._shentsize, form.size, count,
                               _MAX_SECTIONS))
        if names_at == 0xFFFF and raw:
            names_at = raw[0][6]
        names = b""
        if names_at < len(raw):
            names = self._string_table(raw[names_at][4], raw[names_at][5])
        return tuple(ElfSection(_text(names, fields[0]), fields[1], fields[2], fields[3],
                                fields[4], fields[5], fields[6], fields[7]) for fields in raw)

    def _read_segments(self) -> tuple[ElfSegment, ...]:
        form = _SEGMENT[self.bits]
        if not self._phnum:
            return ()
        found = []
        for fields in self._table("program", self._phoff, self._phentsize, form.size,
                                  self._phnum, _MAX_SEGMENTS):
            if self.bits == 64:
                kind, flags, offset, vaddr, paddr, filesz, memsz, _ = fields
            else:
                kind, offset, vaddr, paddr, filesz, memsz, flags, _ = fields
            self.segment_kinds.add(kind)
            if kind == PT_LOAD:
                found.append(ElfSegment(flags, offset, vaddr, paddr, filesz, memsz))
        return tuple(found)

    def _string_table(self, offset: int, size: int) -> bytes:
        if offset + size > self.image.size:
            raise InputError(f"{self.name}: cut short: a table of names is not all there")
        return self.image.read(offset, size)

    def contents(self, section: ElfSection) -> bytes:
        """The bytes of a section. Raises InputError if the file ends before."""
        if section.kind == SHT_NOBITS:
            return b""
        if section.offset + section.size > self.image.size:
            raise InputError(f"{self.name}: cut short: section {section.name or '?'} is not all "
                             "there")
        return self.image.read(section.offset, section.size)

    @cached_property
    def symbols(self) -> tuple[ElfSymbol, ...]:
        """The symbols with a value of this file's own, from .symtab, or else from .dynsym.

        The preferred name of an address comes first. Raises InputError if a table is damaged.
        """
        for wanted in (SHT_SYMTAB, SHT_DYNSYM):
            tables = [s for s in self.sections if s.kind == wanted]
            if tables:
                return tuple(sorted((found for table in tables
                                     for found in self._symbols_of(table)), key=_preference))
        return ()

    def relocations(self, section: int) -> dict[int, str]:
        """Offset in a section of an object file -> name of what a relocation puts there.

        A section symbol has its section's name. Raises InputError if a table is damaged.
        """
        found = {}
        for table in self.sections:
            if table.kind not in (SHT_RELA, SHT_REL) or table.info != section:
                continue
            names = self._reloc_names(table.link)
            # r_offset, r_info and, in SHT_RELA, r_addend.
            form = struct.Struct("<" + ("Q" if self.bits == 64 else "I") *
                                 (3 if table.kind == SHT_RELA else 2))
            raw = self.contents(table)
            for fields in form.iter_unpack(raw[:len(raw) // form.size * form.size]):
                found[fields[0]] = names.get(fields[1] >> (32 if self.bits == 64 else 8), "?")
        return found

    def _reloc_names(self, index: int) -> dict[int, str]:
        """Names by index in the symbol table that a relocation table uses."""
        if index not in self._names_of:
            self._names_of[index] = dict(self._numbered(index))
        return self._names_of[index]

    def _numbered(self, index: int) -> Iterator[tuple[int, str]]:
        if index >= len(self.sections) or self.sections[index].link >= len(self.sections):
            return
        table = self.sections[index]
        strings = self.sections[table.link]
        names = self._string_table(strings.offset, strings.size)
        form = _SYMBOL[self.bits]
        raw = self.contents(table)
        if len(raw) // form.size > _MAX_SYMBOLS:
            raise InputError(f"{self.name}: has more than {_MAX_SYMBOLS} symbols")
        for n, fields in enumerate(form.iter_unpack(raw[:len(raw) // form.size * form.size])):
            info, place = (fields[1], fields[3]) if self.bits == 64 else (fields[3], fields[5])
            if info & 15 == _STT_SECTION and place < len(self.sections):
                yield n, self.sections[place].name
            elif fields[0]:
                yield n, _text(names, fields[0])

    def _symbols_of(self, table: ElfSection) -> Iterator[ElfSymbol]:
        form = _SYMBOL[self.bits]
        count = table.size // form.size
        if count > _MAX_SYMBOLS:
            raise InputError(f"{self.name}: has {count} symbols; {_MAX_SYMBOLS} is the limit")
        if table.link >= len(self.sections):
            raise InputError(f"{self.name}: its symbols have no names")
        strings = self.sections[table.link]
        names = self._string_table(strings.offset, strings.size)
        raw = self.contents(table)[:count * form.size]
        letters = [_letter(section) for section in self.sections]
        wide = self.bits == 64
        for fields in form.iter_unpack(raw):
            if wide:
                name, info, _, index, value, size = fields
            else:
                name, value, size, info, _, index = fields
            kind, bind = info & 15, info >> 4
            if not index or not name or kind in (_STT_SECTION, _STT_FILE, _STT_TLS) or \
                    index == _SHN_COMMON:
                continue
            section = index if index < _SHN_LORESERVE and index < len(self.sections) else None
            if index == _SHN_ABS:
                letter = "A"
            elif kind == _STT_IFUNC:
                letter = "i"
            elif bind == _STB_UNIQUE:
                letter = "u"
            elif bind == _STB_WEAK:
                letter = "V" if kind == _STT_OBJECT else "W"
            else:
                letter = letters[section] if section is not None else "?"
            if bind == _STB_LOCAL and letter.isalpha():
                letter = letter.lower()
            text = _text(names, name)
            if text:
                yield ElfSymbol(Symbol(value, text, size, letter), section,
                                kind in (_STT_FUNC, _STT_IFUNC), kind == _STT_OBJECT)

    def symbol_table(self) -> SymbolTable:
        """All symbols of a linked file by address; of an object file none, its sections overlap."""
        if self.kind == ET_REL:
            return SymbolTable(source="ELF")
        loaded = [s for s in self.sections if s.flags & SHF_ALLOC and s.size]
        return SymbolTable((found.symbol for found in self.symbols), source="ELF",
                           sections=_ranges(loaded))


def _ranges(sections: list[ElfSection]) -> Iterator[Section]:
    for section in sections:
        yield Section(section.address, section.address + section.size, section.name)


def _preference(found: ElfSymbol) -> tuple[bool, bool, bool]:
    """Of several symbols at one address: one with a size, a function, a global one."""
    return not found.symbol.size, not found.function, found.symbol.kind.islower()


def _letter(section: ElfSection) -> str:
    """What nm(1) prints for a global symbol in a section."""
    if section.flags & SHF_EXECINSTR:
        return "T"
    if section.kind == SHT_NOBITS:
        return "B"
    if not section.flags & SHF_ALLOC:
        return "N"
    return "D" if section.flags & SHF_WRITE else "R"


def _text(names: bytes, at: int) -> str:
    end = names.find(b"\0", at, at + _MAX_NAME)
    text = names[at:end if end >= 0 else at + _MAX_NAME].decode("utf-8", "replace")
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)
