# SPDX-License-Identifier: GPL-2.0-or-later
"""Symbols of a guest that runs: from its file, moved to where it is, or out of its memory.

A Linux kernel in long mode lies in the top 2 GB, mapped contiguously (Documentation/arch/x86/
x86_64/mm.rst), wherever KASLR has put it. So its kallsyms table can be read without knowing an
address: the page tables say which physical memory is the kernel's, and in it the table is found
by its shape. What a guest's memory holds is a stranger's word: it can cost no more than a bounded
search, and names are made printable.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from bt.errors import InputError
from bt.symbols import kallsyms
from bt.symbols.cache import cached_of_file
from bt.symbols.table import SymbolTable

_PRESENT, _LARGE = 1, 0x80
_FRAME = 0x000F_FFFF_FFFF_F000
_TOP = 0xFFFF_FFFF_8000_0000        # where the kernel's text mapping begins
_EFER_LMA = 1 << 10
_LARGEST = 256 << 20                # bytes of one kernel image that are searched
_LARGE_PAGE = 2 << 20
_MAX_SEARCHES = 3                   # of a guest's memory; one takes a good part of a second
_BANNER = b"Linux version "         # what its symbol linux_banner stands for


class Memory(Protocol):
    """Guest-physical memory (bt.machine.ram.Ram)."""

    size: int
    view: memoryview


class GuestSymbols:
    """The names of one guest's addresses: of its kernel file ``path``, read when first asked for.

    A Linux kernel that turns out not to be where its file says (KASLR, kexec) is read from memory.
    """

    def __init__(self, memory: Memory, path: Path) -> None:
        self._memory = memory
        self._path = path
        self._linked: SymbolTable | None = None
        self._found: SymbolTable | None = None
        self._searches = 0

    def table(self, registers: Mapping[str, int]) -> SymbolTable:
        """The names, for a CPU with these ``cr3`` and ``efer``; empty if none are known.

        Before the kernel has its page tables nothing can be checked, and the file's names are
        given as they are.
        """
        if self._found is not None:
            return self._found
        if self._linked is None:
            try:
                self._linked = cached_of_file(self._path)
            except InputError:      # a flat binary, say
                self._linked = SymbolTable()
        linked = self._linked
        banner = linked.address("linux_banner")
        if linked and banner is None:
            self._found = linked
        else:
            runs = _mapped(self._memory, registers)
            if banner is not None and _read(self._memory, runs, banner,
                                            len(_BANNER)) == _BANNER:
                self._found = linked
            elif runs:
                self._found = _from_runs(self._memory, runs)
                self._searches += 1
                if self._found is None and self._searches == _MAX_SEARCHES:
                    self._found = linked
        return self._found or linked


def from_memory(memory: Memory, registers: Mapping[str, int]) -> SymbolTable | None:
    """The kallsyms of the Linux kernel that runs with these ``cr3`` and ``efer``; None if none is.

    Addresses are those that the kernel runs at.
    """
    return _from_runs(memory, _mapped(memory, registers))


class _Run(NamedTuple):
    """Pages contiguous in both spaces; bytes."""

    gva: int
    gpa: int
    length: int


def _from_runs(memory: Memory, runs: list[_Run]) -> SymbolTable | None:
    for run in sorted(runs, key=lambda run: -run.length):
        if run.length >= _LARGE_PAGE:
            data = bytes(memory.view[run.gpa:run.gpa + min(run.length, _LARGEST)])
            found = kallsyms.decode(data)
            if found is not None:
                return found
    return None


def _read(memory: Memory, runs: list[_Run], gva: int, length: int) -> bytes | None:
    for run in runs:
        if run.gva <= gva and gva + length <= run.gva + run.length:
            gpa = run.gpa + gva - run.gva
            return bytes(memory.view[gpa:gpa + length])
    return None


def _mapped(memory: Memory, registers: Mapping[str, int]) -> list[_Run]:
    """What is mapped from _TOP on (SDM 3A section 4.5.4: 4-level paging)."""
    if not registers["efer"] & _EFER_LMA:
        return []
    runs: list[_Run] = []
    for gva, gpa, size in _leaves(memory, registers["cr3"]):
        if runs and gva == runs[-1].gva + runs[-1].length and \
                gpa == runs[-1].gpa + runs[-1].length:
            runs[-1] = runs[-1]._replace(length=runs[-1].length + size)
        else:
            runs.append(_Run(gva, gpa, size))
    return runs


def _leaves(memory: Memory, cr3: int) -> Iterator[tuple[int, int, int]]:
    """(guest-virtual, guest-physical, bytes) of each page in the top 2 GB that is in RAM."""
    level4 = _table(memory, cr3)
    level3 = _table(memory, level4[511]) if level4 and level4[511] & _PRESENT else None
    if not level3:
        return
    for third in (510, 511):
        level2 = _table(memory, level3[third]) if level3[third] & _PRESENT else None
        if not level2 or level3[third] & _LARGE:
            continue
        for second, entry in enumerate(level2):
            gva = _TOP + ((third - 510) << 30) + (second << 21)
            if not entry & _PRESENT:
                continue
            if entry & _LARGE:
                gpa = entry & _FRAME & -_LARGE_PAGE
                if gpa + _LARGE_PAGE <= memory.size:
                    yield gva, gpa, _LARGE_PAGE
                continue
            for first, leaf in enumerate(_table(memory, entry) or ()):
                gpa = leaf & _FRAME
                if leaf & _PRESENT and gpa + 4096 <= memory.size:
                    yield gva + (first << 12), gpa, 4096


def _table(memory: Memory, entry: int) -> memoryview | None:
    at = entry & _FRAME
    return memory.view[at:at + 4096].cast("Q") if at + 4096 <= memory.size else None
