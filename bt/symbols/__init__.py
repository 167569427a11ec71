# SPDX-License-Identifier: GPL-2.0-or-later
"""Names for addresses: of a kernel file, of a map of one, of a guest that runs.

`table` answers the questions; `elf`, `systemmap` and `kallsyms` are the sources, one file each,
and `guest` finds the names of a machine's guest. Nothing here imports Unicorn.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bt.boot.image import FileImage
from bt.errors import InputError
from bt.symbols.table import Section, Symbol, SymbolTable

if TYPE_CHECKING:
    from bt.symbols.elf import ElfFile

__all__ = ["Section", "Symbol", "SymbolTable", "of_file", "of_image"]

_BANNER = b"Linux version "
_MAX_KERNEL = 1 << 30


def of_file(path: Path) -> SymbolTable:
    """The symbols that a file has: ELF, bzImage (its kallsyms), System.map. Empty if it has none.

    Raises InputError for what cannot be read or is none of these.
    """
    with FileImage(path) as image:
        return of_image(image)


def of_image(image: FileImage) -> SymbolTable:
    """As ``of_file``, for an open file."""
    from bt.boot import linux
    from bt.symbols import elf, systemmap

    head = image.head(0x2000)
    if head.startswith(elf.MAGIC):
        return of_elf(elf.ElfFile(image))
    if linux.is_bzimage(head):
        with linux.open_kernel(image, linux.Room(_MAX_KERNEL)).image as vmlinux:
            return of_elf(elf.ElfFile(vmlinux))
    if systemmap.looks_like(head):
        return systemmap.read(image)
    raise InputError(f"{image.name}: has no symbols: not an ELF file, a bzImage or a System.map")


def of_elf(file: ElfFile) -> SymbolTable:
    """The symbols of an ELF file; those of its kallsyms if it is a stripped Linux kernel."""
    from bt.symbols import elf, kallsyms

    image = file.image
    table = file.symbol_table()
    if not table and file.kind == elf.ET_EXEC and image.size <= _MAX_KERNEL:
        data = image.read(0, image.size)
        if _BANNER in data:
            found = kallsyms.decode(data)
            if found is not None:
                return SymbolTable(found.items(), source=found.source, lowest=found.lowest,
                                   highest=found.highest, sections=table.sections)
    return table
