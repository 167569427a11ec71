# SPDX-License-Identifier: GPL-2.0-or-later
"""Multiboot 1 (Multiboot Specification 0.6.96; section numbers below are its own).

The kernel is an ELF file, or any file whose header gives the load addresses itself (the "a.out
kludge"). A 64-bit ELF file is loaded as it is and, like the rest, entered in 32-bit mode: the
protocol knows no other.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from bt.boot import elf, initrd, lowmem
from bt.boot.entry import EntryState, Loaded
from bt.boot.image import Image
from bt.errors import InputError
from bt.machine.ram import Ram

#: The header lies in the first 8192 bytes, 4-byte aligned (3.1).
SEARCH = 8192
_MAGIC = 0x1BADB002
_LOADER_MAGIC = 0x2BADB002
# Header flags (3.1.1). Bits 0-15 are requirements: a loader that does not know one must refuse.
_PAGE_ALIGN = 1 << 0
_MEMORY_INFO = 1 << 1
_VIDEO_MODE = 1 << 2        # known, and answered with "no video information"
_ADDRESSES = 1 << 16
_KNOWN = _PAGE_ALIGN | _MEMORY_INFO | _VIDEO_MODE
# Information flags (3.3).
_INFO_MEMORY = 1 << 0
_INFO_CMDLINE = 1 << 2
_INFO_MODULES = 1 << 3
_INFO_MEMORY_MAP = 1 << 6
_INFO_LOADER_NAME = 1 << 9
_INFO_SIZE = 120
_FOUR_GB = 1 << 32
_LOADER_NAME = b"ring1\0"


class Header(NamedTuple):
    """A multiboot header: ``offset`` in the file, and the fields of 3.1."""

    offset: int
    flags: int
    header_addr: int = 0
    load_addr: int = 0
    load_end_addr: int = 0
    bss_end_addr: int = 0
    entry_addr: int = 0


def find_header(head: bytes) -> Header | None:
    """The multiboot header in the first bytes of a file, or None."""
    magic = struct.pack("<I", _MAGIC)
    at = head.find(magic, 0, SEARCH)
    while at >= 0:
        if at % 4 == 0 and at + 12 <= len(head):
            _, flags, checksum = struct.unpack_from("<III", head, at)
            if (_MAGIC + flags + checksum) & 0xFFFFFFFF == 0:
                if not flags & _ADDRESSES:
                    return Header(at, flags)
                if at + 32 <= len(head):
                    return Header(at, flags, *struct.unpack_from("<5I", head, at + 12))
        at = head.find(magic, at + 1, SEARCH)
    return None


def load(image: Image, ram: Ram, cmdline: str, module: Image | None) -> Loaded:
    """Put a kernel, its information structure and one module into RAM. Raises InputError."""
    header = find_header(image.head(SEARCH))
    if header is None:
        raise InputError(f"{image.name}: has no multiboot header in its first {SEARCH} bytes")
    unknown = header.flags & 0xFFFF & ~_KNOWN
    if unknown:
        raise InputError(f"{image.name}: its multiboot header requires unknown features "
                         f"({unknown:#x})")
    if header.flags & _ADDRESSES:
        entry, end = _load_by_addresses(image, header, ram)
        how = "addresses in its header"
    else:
        kernel = elf.parse(image)
        entry, end = kernel.entry, kernel.end
        how = f"{kernel.bits}-bit ELF"
        if max(entry, end) > _FOUR_GB:
            raise InputError(f"{image.name}: lies above 4 GB, where 32-bit code cannot start")
        elf.load_segments(image, kernel, ram)
    placed = None
    if module:
        placed = initrd.place(module, ram, end + lowmem.PAGE - 1 & -lowmem.PAGE, _FOUR_GB)
    _write_info(ram, cmdline, placed)
    gdt_base, gdt_limit = lowmem.write_gdt(ram, 32)
    state = EntryState(
        bits=32, rip=entry, rsp=lowmem.STACK_TOP,
        regs={"rax": _LOADER_MAGIC, "rbx": lowmem.INFO},
        gdt_base=gdt_base, gdt_limit=gdt_limit, cs=lowmem.CS, ds=lowmem.DS)
    return Loaded(state, "multiboot", f"multiboot kernel, {how}")


def _load_by_addresses(image: Image, header: Header, ram: Ram) -> tuple[int, int]:
    """Load by the header's address fields (3.1.2); gives the entry and the end of the kernel."""
    name = image.name
    start = header.offset - (header.header_addr - header.load_addr)
    if header.load_addr > header.header_addr or start < 0:
        raise InputError(f"{name}: multiboot header: load_addr {header.load_addr:#x} does not "
                         f"suit header_addr {header.header_addr:#x}")
    size = image.size - start
    if header.load_end_addr:
        size = header.load_end_addr - header.load_addr
    if size <= 0 or start + size > image.size:
        raise InputError(f"{name}: multiboot header: load_end_addr {header.load_end_addr:#x} is "
                         "not in the file: cut short?")
    end = header.load_addr + size
    if header.bss_end_addr:
        if header.bss_end_addr < end:
            raise InputError(f"{name}: multiboot header: bss_end_addr {header.bss_end_addr:#x} "
                             "lies before the end of the data")
        end = header.bss_end_addr
    if header.load_addr < lowmem.HIGH_MEMORY:
        raise InputError(f"{name}: multiboot header: load_addr {header.load_addr:#x} lies below "
                         "1 MB, where the boot data goes")
    if not header.load_addr <= header.entry_addr < end:
        raise InputError(f"{name}: multiboot header: entry_addr {header.entry_addr:#x} is outside "
                         "of the kernel")
    elf.check_fits(name, end, ram)
    image.read_into(start, ram.view[header.load_addr:header.load_addr + size])
    return header.entry_addr, end


def _write_info(ram: Ram, cmdline: str, module: tuple[int, int] | None) -> None:
    """The information structure (3.3), and behind it what it points to."""
    command = lowmem.write_cmdline(ram, cmdline, lowmem.CMDLINE_ROOM - 1)
    flags = _INFO_MEMORY | _INFO_CMDLINE | _INFO_MEMORY_MAP | _INFO_LOADER_NAME
    extra = bytearray(_LOADER_NAME.ljust(16, b"\0"))
    map_at = lowmem.INFO_EXTRA + len(extra)
    regions = lowmem.memory_map(ram)
    for start, length, kind in regions:     # each entry's size field does not count itself
        extra += struct.pack("<IQQI", 20, start, length, kind)
    map_size = 24 * len(regions)
    modules_at = 0
    if module:
        flags |= _INFO_MODULES
        modules_at = lowmem.INFO_EXTRA + len(extra)
        start, size = module
        extra += struct.pack("<IIII", start, start + size, lowmem.INFO_EXTRA + 8, 0)
    # mem_lower and mem_upper are in KiB and count from 0 and from 1 MB.
    upper = min(ram.low_end, _FOUR_GB) - lowmem.HIGH_MEMORY >> 10
    info = bytearray(_INFO_SIZE)
    struct.pack_into("<IIIIIII", info, 0, flags, lowmem.CONVENTIONAL_END >> 10, upper, 0, command,
                     1 if module else 0, modules_at)
    struct.pack_into("<II", info, 44, map_size, map_at)
    struct.pack_into("<I", info, 64, lowmem.INFO_EXTRA)
    ram.write(lowmem.INFO_EXTRA, extra)
    ram.write(lowmem.INFO, info)
