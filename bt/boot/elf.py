# SPDX-License-Identifier: GPL-2.0-or-later
"""ELF program headers: checked, and loaded at their physical addresses.

Only what booting needs is read: the file header and the PT_LOAD segments (System V ABI, "Object
Files" and "Program Loading"). A kernel is hostile input like any other, so every number is checked
against the file and against RAM before a byte is copied.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bt.boot.image import Image
from bt.boot.lowmem import HIGH_MEMORY, megabytes
from bt.errors import InputError
from bt.machine.ram import Ram

MAGIC = b"\x7fELF"
EM_386 = 3
EM_X86_64 = 62
_MACHINES = {2: "SPARC", 8: "MIPS", 20: "PowerPC", 21: "PowerPC64", 22: "S/390", 40: "ARM",
             43: "SPARC V9", 50: "Itanium", 183: "aarch64", 243: "RISC-V", 258: "LoongArch"}
_ET_EXEC = 2
_PT_LOAD = 1
_PT_NOTE = 4
# Only programs have a dynamic loader (PT_INTERP) or thread-local storage (PT_TLS).
_PROGRAM_ONLY = (3, 7)

# After the 16 identification bytes: type, machine, version, entry, phoff, shoff, flags, ehsize,
# phentsize, phnum (the rest is about sections).
_HEADER = {32: struct.Struct("<HHIIIIIHHH"), 64: struct.Struct("<HHIQQQIHHH")}
# 32-bit: type, offset, vaddr, paddr, filesz, memsz; 64-bit has the flags in second place.
_PHDR = {32: struct.Struct("<6I8x"), 64: struct.Struct("<I4x5Q8x")}
# A kernel has about five. The limit only bounds the work a hostile file can cause.
_MAX_PHDRS = 256
# A note of Xen's holds a number or a short name.
_MAX_NOTES = 4096


class Segment(NamedTuple):
    """One PT_LOAD segment, in bytes: file range, and virtual and physical address of the memory."""

    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int


class Elf(NamedTuple):
    """A checked ELF kernel: ``bits`` is its class, ``machine`` EM_386 or EM_X86_64.

    ``segments`` ascend by physical address and do not overlap; ``entry`` is physical. ``notes`` are
    the PT_NOTE segments that lie in the file: (offset, size).
    """

    bits: int
    machine: int
    entry: int
    segments: tuple[Segment, ...]
    notes: tuple[tuple[int, int], ...] = ()

    @property
    def end(self) -> int:
        """The first physical address after the last segment."""
        return self.segments[-1].paddr + self.segments[-1].memsz


def parse(image: Image) -> Elf:
    """Read and check the headers. Raises InputError for all that is not a loadable x86 kernel."""
    name = image.name
    ident = image.head(16)
    if not ident.startswith(MAGIC):
        raise InputError(f"{name}: not an ELF file")
    if len(ident) < 16:
        raise InputError(f"{name}: ELF header is cut short")
    bits = {1: 32, 2: 64}.get(ident[4])
    if bits is None:
        raise InputError(f"{name}: ELF class {ident[4]} is unknown")
    if ident[5] != 1:
        raise InputError(f"{name}: is not little-endian, so not for x86")
    header = _HEADER[bits]
    if image.size < 16 + header.size:
        raise InputError(f"{name}: ELF header is cut short")
    kind, machine, _, entry, phoff, _, _, _, phentsize, phnum = header.unpack(
        image.read(16, header.size))
    if machine not in (EM_386, EM_X86_64):
        what = _MACHINES.get(machine, f"machine type {machine}")
        raise InputError(f"{name}: is for {what}, not for x86")
    if phnum == 0:
        raise InputError(f"{name}: ELF file has no program headers, so nothing to load")
    if phnum > _MAX_PHDRS:
        raise InputError(f"{name}: ELF file has {phnum} program headers; {_MAX_PHDRS} is the limit")
    phdr = _PHDR[bits]
    if phentsize != phdr.size:
        raise InputError(f"{name}: ELF program headers of {phentsize} bytes instead of {phdr.size}")
    image.check(phoff, phnum * phdr.size)
    raw = list(phdr.iter_unpack(image.read(phoff, phnum * phdr.size)))
    if any(fields[0] in _PROGRAM_ONLY for fields in raw):
        raise InputError(f"{name}: is a program for an operating system, not a kernel")
    if kind != _ET_EXEC:
        raise InputError(f"{name}: ELF type {kind} is not an executable kernel")
    segments = [Segment(*fields[1:]) for fields in raw if fields[0] == _PT_LOAD and fields[5]]
    ordered = _checked(image, segments)
    notes = tuple((fields[1], fields[4]) for fields in raw
                  if fields[0] == _PT_NOTE and fields[1] + fields[4] <= image.size)
    return Elf(bits, machine, _physical_entry(name, entry, ordered), ordered, notes)


def _checked(image: Image, segments: list[Segment]) -> tuple[Segment, ...]:
    if not segments:
        raise InputError(f"{image.name}: ELF file has no segment to load")
    segments = sorted(segments, key=lambda segment: segment.paddr)
    end = 0
    for segment in segments:
        where = f"{image.name}: ELF segment at {segment.paddr:#x}"
        if segment.filesz > segment.memsz:
            raise InputError(f"{where} has more bytes in the file than in memory")
        if segment.filesz and segment.offset + segment.filesz > image.size:
            raise InputError(f"{where} ends after the end of the file: cut short?")
        if segment.paddr < HIGH_MEMORY:
            raise InputError(f"{where} lies below 1 MB, where the boot data goes")
        if segment.paddr < end:
            raise InputError(f"{where} overlaps the one before it")
        end = segment.paddr + segment.memsz
    return tuple(segments)


def _physical_entry(name: str, entry: int, segments: Sequence[Segment]) -> int:
    """Linux gives the entry as a physical address, other kernels mostly as a virtual one."""
    for segment in segments:
        if segment.paddr <= entry < segment.paddr + segment.memsz:
            return entry
    for segment in segments:
        if segment.vaddr <= entry < segment.vaddr + segment.memsz:
            return entry - segment.vaddr + segment.paddr
    raise InputError(f"{name}: ELF entry point {entry:#x} is outside of its segments")


def check_fits(name: str, end: int, ram: Ram, ramdisk: Image | None = None) -> None:
    """Raise InputError unless RAM reaches to ``end`` and holds the initrd, if any, behind it."""
    need = end + (ramdisk.size if ramdisk else 0)
    if need > ram.low_end:
        reason = f" ({megabytes(ramdisk.size)} of it for {ramdisk.name})" if ramdisk else ""
        raise InputError(f"{name}: needs at least {megabytes(need)} of RAM{reason}, "
                         f"but the machine has {ram.low_end >> 20}M")


def load_segments(image: Image, elf: Elf, ram: Ram) -> None:
    """Copy the segments into RAM, which must be fresh: bss is zero because RAM is.

    Raises InputError if they do not fit.
    """
    check_fits(image.name, elf.end, ram)
    for segment in elf.segments:
        if segment.filesz:
            image.read_into(segment.offset, ram.view[segment.paddr:segment.paddr + segment.filesz])


def xen_notes(image: Image, vmlinux: Elf) -> Iterator[tuple[int, bytes]]:
    """Type and value of each note that is named "Xen"; a damaged rest is left out."""
    left = _MAX_NOTES
    for offset, size in vmlinux.notes:
        data = image.read(offset, min(size, 1 << 20))
        at = 0
        while at + 12 <= len(data) and left:
            left -= 1
            name_size, value_size, kind = struct.unpack_from("<III", data, at)
            value_at = at + 12 + (name_size + 3 & ~3)
            end = value_at + (value_size + 3 & ~3)
            if value_at + value_size > len(data):
                break
            if data[at + 12:at + 12 + name_size] == b"Xen\0":
                yield kind, data[value_at:value_at + value_size]
            at = end
