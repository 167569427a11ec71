# SPDX-License-Identifier: GPL-2.0-or-later
"""What every loader puts below 1 MB: a GDT, identity page tables, and the memory map.

A boot protocol leaves it to the loader where in low memory its tables lie, as long as the memory
map calls that RAM usable and the kernel image does not cover it. All loaders use this layout:

========  ====================================================================
 0x00500  GDT
 0x01000  boot_params (Linux) or the information structure (multiboot)
 0x02000  memory map, module list and loader name (multiboot)
 0x10000  PML4, then a PDPT, then one page directory for each GiB (64 at most)
 0x80000  command line
 0x90000  initial stack, growing down
 0x9fc00  end of conventional memory (where a BIOS keeps its extended data area)
========  ====================================================================
"""

from __future__ import annotations

import struct

from bt.errors import InputError
from bt.machine.ram import Ram

GDT = 0x500
INFO = 0x1000
INFO_EXTRA = 0x2000
PAGE_TABLES = 0x10000
CMDLINE = 0x80000
CMDLINE_ROOM = 0x8000
STACK_TOP = 0x90000
CONVENTIONAL_END = 0x9FC00
HIGH_MEMORY = 0x100000

PAGE = 0x1000
GIB = 1 << 30
MAX_TABLE_GIB = 64

CS = 0x10
DS = 0x18

# Segment descriptors (Intel SDM 3A, 3.4.5): type and flags; base 0, limit 4 GiB in 4 KiB units.
_CODE32 = 0x00CF9B000000FFFF
_CODE64 = 0x00AF9B000000FFFF
_DATA = 0x00CF93000000FFFF

# Page-table entry bits (Intel SDM 3A, 4.5): present, writable, page size.
_TABLE = 0x3
_LARGE_PAGE = 0x83

E820_RAM = 1
E820_RESERVED = 2


def write_gdt(ram: Ram, bits: int) -> tuple[int, int]:
    """Put a flat GDT with code at selector 0x10 and data at 0x18; gives its base and limit.

    ``bits`` (32 or 64) chooses the kind of code segment.
    """
    code = _CODE64 if bits == 64 else _CODE32
    table = struct.pack("<4Q", 0, 0, code, _DATA)
    ram.write(GDT, table)
    return GDT, len(table) - 1


def page_tables_end(ram: Ram) -> int:
    """Address of the first byte after the tables that write_identity_tables() builds."""
    return PAGE_TABLES + PAGE * (2 + _table_gib(ram))


def _table_gib(ram: Ram) -> int:
    return min(max(4, -(-ram.size // GIB)), MAX_TABLE_GIB)


def write_identity_tables(ram: Ram) -> int:
    """Map all of RAM, and at least the first 4 GiB, at its own address; gives the value of CR3.

    4-level tables with 2 MiB pages, supervisor and writable: they use no CPU feature beyond long
    mode itself.
    """
    count = _table_gib(ram)
    pdpt = PAGE_TABLES + PAGE
    directories = pdpt + PAGE
    ram.write(PAGE_TABLES, struct.pack("<Q", pdpt | _TABLE))
    ram.write(pdpt, struct.pack(f"<{count}Q",
                                *range(directories | _TABLE, directories + count * PAGE, PAGE)))
    entries = 512 * count
    ram.write(directories, struct.pack(
        f"<{entries}Q", *range(_LARGE_PAGE, (entries << 21) | _LARGE_PAGE, 1 << 21)))
    return PAGE_TABLES


def memory_map(ram: Ram) -> list[tuple[int, int, int]]:
    """The E820 map: (start, length in bytes, type) in ascending order, without gaps or overlaps."""
    entries = [(0, CONVENTIONAL_END, E820_RAM),
               (CONVENTIONAL_END, HIGH_MEMORY - CONVENTIONAL_END, E820_RESERVED)]
    if ram.low_end > HIGH_MEMORY:
        entries.append((HIGH_MEMORY, ram.low_end - HIGH_MEMORY, E820_RAM))
    return entries + [(start, length, E820_RAM) for start, length in ram.regions[1:]]


def write_cmdline(ram: Ram, cmdline: str, limit: int) -> int:
    """Put the command line, NUL-terminated; gives its address.

    ``limit`` is the longest the kernel takes, in bytes without the NUL. Raises InputError.
    """
    try:
        data = cmdline.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise InputError("the command line contains text that is not valid Unicode") from None
    limit = min(limit, CMDLINE_ROOM - 1)
    if len(data) > limit:
        raise InputError(f"the command line has {len(data)} bytes, but this kernel takes {limit}")
    if b"\0" in data:
        raise InputError("the command line contains a NUL byte")
    ram.write(CMDLINE, data + b"\0")
    return CMDLINE


def megabytes(size: int) -> str:
    """A size for messages: whole megabytes, rounded up, as --mem takes them."""
    return f"{-(-size >> 20)}M"
