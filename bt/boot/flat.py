# SPDX-License-Identifier: GPL-2.0-or-later
"""Flat binaries: the file as it is, at one address, entered at its first byte."""

from __future__ import annotations

from bt.boot import lowmem
from bt.boot.entry import EntryState, Loaded
from bt.boot.image import Image
from bt.errors import InputError
from bt.machine.ram import Ram

#: Where a boot sector goes (16-bit), and where RAM without a legacy below it begins.
DEFAULT_BASE = {16: 0x7C00, 32: lowmem.HIGH_MEMORY, 64: lowmem.HIGH_MEMORY}


def load(image: Image, ram: Ram, *, base: int | None = None, bits: int | None = None) -> Loaded:
    """Put the file at ``base``; ``bits`` (16 unless told) is the mode it starts in.

    16-bit code starts with CS:IP = base, all data segments and SS equal to CS, and SP = IP, so the
    stack grows down from the code (from the end of the segment if IP is 0). 32- and 64-bit code
    has flat segments and a stack at 0x90000. Raises InputError.
    """
    bits = 16 if bits is None else bits
    if bits not in DEFAULT_BASE:
        raise InputError(f"{image.name}: a flat binary has 16, 32 or 64 bits, not {bits}")
    base = DEFAULT_BASE[bits] if base is None else base
    end = base + image.size
    if base < 0 or end > ram.low_end:
        raise InputError(f"{image.name}: {image.size} bytes at {base:#x} do not fit into "
                         f"{ram.low_end >> 20}M of RAM")
    if bits == 16:
        if base >= lowmem.HIGH_MEMORY:
            raise InputError(f"{image.name}: real mode cannot start at {base:#x}, above 1 MB")
        ip = base & 0xFFFF
        segment = base - ip >> 4
        entry = EntryState(bits=16, rip=ip, rsp=ip, cs=segment, ds=segment)
    else:
        if bits == 32 and end > 1 << 32:
            raise InputError(f"{image.name}: 32-bit code cannot lie above 4 GB")
        _check_low_tables(image.name, base, end, bits, ram)
        gdt_base, gdt_limit = lowmem.write_gdt(ram, bits)
        entry = EntryState(
            bits=bits, rip=base, rsp=lowmem.STACK_TOP,
            cr3=lowmem.write_identity_tables(ram) if bits == 64 else 0,
            gdt_base=gdt_base, gdt_limit=gdt_limit, cs=lowmem.CS, ds=lowmem.DS)
    image.read_into(0, ram.view[base:end])
    return Loaded(entry, "flat", f"{bits}-bit flat binary, {image.size} bytes at {base:#x}")


def _check_low_tables(name: str, base: int, end: int, bits: int, ram: Ram) -> None:
    """Raise InputError if the file would cover the GDT or the page tables."""
    taken = [(lowmem.GDT, lowmem.GDT + 0x20, "the GDT")]
    if bits == 64:
        taken.append((lowmem.PAGE_TABLES, lowmem.page_tables_end(ram), "the page tables"))
    for first, last, what in taken:
        if base < last and first < end:
            raise InputError(f"{name}: {base:#x}-{end:#x} covers {what} at {first:#x}-{last:#x}")
