# SPDX-License-Identifier: GPL-2.0-or-later
"""What a file holds: code regions and the names in them, whatever the format.

Linux bzImage (unpacked), ELF of both classes (kernels, modules, programs), PE (drivers, kernels),
each also packed with gzip, xz, zstd...; a flat binary has to be said so. All of it is hostile
input: whatever is wrong ends in one InputError.
"""

from __future__ import annotations

import bisect
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from bt.boot import linux, payload
from bt.boot.image import BytesImage, FileImage, Image
from bt.errors import InputError
from bt.symbols import elf, of_elf
from bt.symbols.table import SymbolTable

#: No file and nothing unpacked may be larger, bytes.
MAX_BYTES = 1 << 30
#: Code of one file at most, bytes: a compiler's output has some 20 MB in a kernel.
_MAX_CODE = 512 << 20
_MAX_PACKED = 256 << 20         # what a packed file may unpack to, bytes
_HEAD = 0x2000
_REX_W_MOVES = (b"\x48\x8b", b"\x48\x89", b"\x48\x8d", b"\x48\x83")
#: Kernels with so much code or less are followed to learn where they change modes, bytes.
_MAX_FOLLOWED = 1 << 20

#: (offset, magic, what it is): files that people try, to name instead of just refuse.
_FOREIGN = (
    (0, b"\xff\xd8\xff", "a JPEG picture"), (0, b"\x89PNG", "a PNG picture"),
    (0, b"GIF8", "a GIF picture"), (0, b"%PDF", "a PDF document"), (0, b"PK\3\4", "a ZIP archive"),
    (0, b"!<arch>", "an archive (a Debian package?); unpack it first"),
    (0, b"070701", "a cpio archive (an initrd?); unpack it first"),
    (257, b"ustar", "a tar archive; unpack it first"), (0, b"#!", "a script"),
    (0x38, b"ARM\x64", "a kernel for aarch64, not for x86"),
    (0x24, b"\x18\x28\x6f\x01", "a kernel for ARM, not for x86"),
    (0x38, b"RSC\x05", "a kernel for RISC-V, not for x86"),
    (0, b"\xfe\xed\xfa", "a Mach-O file, for another system"),
    (0, b"\xcf\xfa\xed\xfe", "a Mach-O file, for another system"),
    (0, b"\xce\xfa\xed\xfe", "a Mach-O file, for another system"),
)


class NotCode(InputError):
    """The file is no guest binary at all: in a folder it is passed over, not complained of."""


@dataclass(frozen=True)
class Region:
    """A piece of code. ``address``: of its first byte; in an object file, in its section.

    ``starts``: offsets at which an instruction is known to begin (symbols). ``holes``: (start, end)
    offsets of data among the code. ``relocations``: called, gives offset -> name of what a
    relocation puts there.
    """

    section: str
    address: int
    bits: int
    data: bytes
    table: SymbolTable
    starts: tuple[int, ...] = ()
    holes: tuple[tuple[int, int], ...] = ()
    relocations: Callable[[], dict[int, str]] = field(default=dict)


@dataclass(frozen=True)
class Binary:
    """A file's code. kind: "kernel", "module", "program", "object", "driver" or "flat"."""

    kind: str
    description: str
    bits: int
    symbols: str                # where the names come from; "" = there are none
    regions: tuple[Region, ...]

    @property
    def user(self) -> bool:
        """Whether the code is meant for ring 3."""
        return self.kind == "program"


@contextmanager
def open_binary(path: Path, flat_bits: int | None = None, base: int = 0,
                system_map: SymbolTable | None = None) -> Iterator[Binary]:
    """The code in a file, for as long as it is open. ``flat_bits``: it is flat, at ``base``.

    ``system_map``: names to use instead of the file's own. Raises InputError.
    """
    with FileImage(path) as image:
        if image.size == 0:
            raise NotCode(f"{image.name}: is empty")
        if image.size > MAX_BYTES:
            raise InputError(f"{image.name}: is larger than {MAX_BYTES >> 20} MB")
        if flat_bits is not None:
            yield _flat(image, flat_bits, base, system_map)
        else:
            yield _recognise(image, system_map)


def _flat(image: Image, bits: int, base: int, system_map: SymbolTable | None) -> Binary:
    if base + image.size > 1 << max(bits, 32):
        raise InputError(f"{image.name}: does not fit at {base:#x} in a {bits}-bit address space")
    table = system_map or SymbolTable()
    data = image.read(0, image.size)
    region = Region("flat", base, bits, data, table, starts_of(table, base, len(data)))
    return Binary("flat", f"{bits}-bit flat binary", bits, table.source, (region,))


def _recognise(image: Image, system_map: SymbolTable | None) -> Binary:
    head = image.head(_HEAD)
    if head.startswith(elf.MAGIC):
        return _elf(image, "", system_map)
    # An EFI program may have a Linux setup header and nothing packed behind it (memtest86+).
    packs = linux.is_bzimage(head) and (head[:2] != b"MZ" or linux.payload_length(head) > 0)
    if isinstance(image, FileImage) and packs:
        kernel = linux.open_kernel(image, linux.Room(MAX_BYTES))
        with kernel.image as vmlinux:
            return _elf(vmlinux, f"{kernel.description}, ", system_map)
    if head[:2] == b"MZ":
        from bt.scan import pe  # lief takes a while to import
        return pe.read(image, system_map)
    for offset, magic, what in _FOREIGN:
        if head[offset:offset + len(magic)] == magic:
            raise NotCode(f"{image.name}: is {what}")
    method = payload.method_of(head)
    if method is not None and isinstance(image, FileImage):
        data = payload.unpack_stream(image.name, method, image.read(0, image.size), _MAX_PACKED)
        return _recognise(BytesImage(image.name, data), system_map)
    raise NotCode(f"{image.name}: holds no code that is known here (ELF, Linux bzImage, PE; for a "
                  "flat binary say --arch 16, 32 or 64)")


# -- ELF -----------------------------------------------------------------------------------------


def _elf(image: Image, prefix: str, system_map: SymbolTable | None) -> Binary:
    file = elf.ElfFile(image)
    if file.kind not in (elf.ET_REL, elf.ET_EXEC, elf.ET_DYN):
        raise InputError(f"{image.name}: is {_an(file.what)}, which holds no code of its own")
    if file.kind == elf.ET_REL:
        return _object(file, prefix)
    table = system_map or of_elf(file)
    regions = tuple(_linked(file, table))
    kind, what = _elf_kind(file)
    if kind == "kernel" and sum(len(region.data) for region in regions) <= _MAX_FOLLOWED:
        regions = tuple(_by_mode(regions, image))
    if kind == "kernel" and file.bits == 32:
        regions = tuple(replace(region, bits=64) if _looks_64_bit(region) else region
                        for region in regions)
    return Binary(kind, f"{prefix}{file.bits}-bit ELF {what}", file.bits,
                  table.source if table else "", regions)


def _by_mode(regions: Iterable[Region], image: Image) -> Iterator[Region]:
    """The regions, cut where a small kernel's code changes from one size to another.

    Its class says little: most multiboot kernels are 32-bit files with 64-bit code in them. The
    patcher follows the code from the entry point, far jumps included.
    """
    from translator.image import ImageError
    from translator.patcher import code_sizes

    try:
        changes = code_sizes(image.read(0, image.size))
    except ImageError:              # it is no kernel after all, or a damaged one
        changes = []
    for region in regions:
        end = region.address + len(region.data)
        before = [bits for at, bits in changes if at <= region.address]
        cuts = [(region.address, before[-1] if before else region.bits)]
        cuts += [(at, bits) for at, bits in changes if region.address < at < end]
        for (start, bits), (stop, _) in zip(cuts, [*cuts[1:], (end, 0)], strict=True):
            first, last = start - region.address, stop - region.address
            yield replace(
                region, address=start, bits=bits, data=region.data[first:last],
                starts=tuple(at - first for at in region.starts if first <= at < last),
                holes=tuple((max(a, first) - first, min(b, last) - first)
                            for a, b in region.holes if a < last and b > first))


def _looks_64_bit(region: Region) -> bool:
    """Whether 32-bit code is in truth 64-bit code: Xen's file is a 32-bit one, and others'.

    MOV, LEA and CMP with REX.W are 2 to 5 in 100 bytes of 64-bit code. In 32-bit code the same
    bytes are DEC EAX and one of these, which nobody writes: fewer than 4 in 10,000.
    """
    return region.bits == 32 and len(region.data) >= 1024 and \
        200 * sum(map(region.data.count, _REX_W_MOVES)) > len(region.data)


def _elf_kind(file: elf.ElfFile) -> tuple[str, str]:
    """What it is meant to be, by what only programs of an operating system have."""
    if file.segment_kinds & {elf.PT_INTERP, elf.PT_DYNAMIC, elf.PT_TLS} or \
            any(s.name == ".note.ABI-tag" for s in file.sections):
        library = file.kind == elf.ET_DYN and elf.PT_INTERP not in file.segment_kinds
        return "program", "shared object" if library else "program"
    return "kernel", "kernel"


def _linked(file: elf.ElfFile, table: SymbolTable) -> Iterator[Region]:
    """Executable sections; where there are none, executable segments."""
    parts = [(s.name or f"section {n}", s.address, s.offset, s.size)
             for n, s in enumerate(file.sections) if s.is_code and s.flags & elf.SHF_ALLOC]
    if not parts:
        parts = [(f"segment {n}", s.vaddr, s.offset, s.filesz)
                 for n, s in enumerate(file.segments) if s.flags & elf.PF_X and s.filesz]
    objects = _objects(file)
    for name, address, offset, size in parts:
        data = contents(file.image, name, offset, size)
        yield Region(name, address, file.bits, data, table, starts_of(table, address, size),
                     _holes(objects, address, size))


def contents(image: Image, name: str, offset: int, size: int) -> bytes:
    """The bytes of a section. Raises InputError if they are not all there."""
    if size > _MAX_CODE:
        raise InputError(f"{image.name}: has {size >> 20} MB of code in {name}")
    if offset + size > image.size:
        raise InputError(f"{image.name}: cut short: {name} is not all there")
    return image.read(offset, size)


def _objects(file: elf.ElfFile) -> list[tuple[int, int]]:
    """(address, size) of what symbols in code sections say is data, by rising address."""
    return sorted((f.symbol.address, f.symbol.size) for f in file.symbols
                  if f.data and f.symbol.size and f.section is not None
                  and file.sections[f.section].is_code)


def _holes(objects: list[tuple[int, int]], address: int, size: int) -> tuple[tuple[int, int], ...]:
    first = bisect.bisect_left(objects, (address, 0))
    holes: list[tuple[int, int]] = []
    for start, length in objects[first:]:
        if start >= address + size:
            break
        holes.append((start - address, min(start + length - address, size)))
    return tuple(holes)


def starts_of(table: SymbolTable, address: int, size: int) -> tuple[int, ...]:
    """Offsets of the symbols in ``size`` bytes at ``address``."""
    return tuple(s.address - address for s in table.between(address, address + size))


def _object(file: elf.ElfFile, prefix: str) -> Binary:
    """A kernel module or another object file: each section has addresses of its own, from 0."""
    regions = []
    for index, section in enumerate(file.sections):
        if not section.is_code or not section.flags & elf.SHF_ALLOC:
            continue
        here = [f for f in file.symbols if f.section == index]
        table = SymbolTable((f.symbol for f in here), source="ELF")
        data = contents(file.image, section.name, section.offset, section.size)
        holes = tuple(sorted((f.symbol.address, min(f.symbol.address + f.symbol.size, len(data)))
                             for f in here if f.data and f.symbol.size
                             and f.symbol.address < len(data)))
        regions.append(Region(
            section.name or f"section {index}", 0, file.bits, data, table,
            tuple(f.symbol.address for f in here if f.symbol.address < len(data)), holes,
            _Relocations(file, index)))
    module = any(s.name == ".modinfo" for s in file.sections)
    what = "kernel module" if module else "object file"
    return Binary("module" if module else "object", f"{prefix}{file.bits}-bit ELF {what}",
                  file.bits, "ELF" if file.symbols else "", tuple(regions))


class _Relocations:
    """Those of one section, read when asked for: most sections hold nothing to ask about."""

    def __init__(self, file: elf.ElfFile, section: int) -> None:
        self._file = file
        self._section = section

    def __call__(self) -> dict[int, str]:
        return self._file.relocations(self._section)


def _an(what: str) -> str:
    return f"an {what}" if what[0] in "aeiou8" else f"a {what}"



def listed(path: Path) -> Iterator[Path]:
    """The regular files of a folder and of those in it, by name, each once whatever its names are.

    Links to folders are not followed.
    """
    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(path):
        folders.sort()
        files = [Path(folder, name) for name in sorted(names)]
        for file in sorted(files, key=Path.is_symlink):     # the file itself before a link to it
            try:
                status = file.stat()
            except OSError:                                 # a link to nothing
                continue
            if stat.S_ISREG(status.st_mode) and (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                yield file
