# SPDX-License-Identifier: GPL-2.0-or-later
"""guests/nano in ring 0 on plain Unicorn, with no VMM: the baseline of `bt compare nano`.

The image is the one the engines run. It starts at its 64-bit entry ``main`` with page tables of the
shape that lib/longmode.s builds, because only 64-bit code is of interest. They differ in one thing:
code pages are not writable, and all others are not executable (NX). Unicorn stores to a page that
can be executed on a slow path (30 ns), which would make stores and calls look dearer in ring 0 than
under an engine, whose TLB never grants both. _native.pyx says what the CPU cannot do by itself.

Its time stamp counter is the host's, so ticks are turned into ns by a calibration of that counter.
"""

from __future__ import annotations

import mmap
import struct
import time
from pathlib import Path

from bt.errors import BtError

_RAM = 16 << 20
_PAGE, _LARGE = 0x1000, 0x200000
_PRESENT, _WRITE, _USER, _LARGE_PAGE, _NX = 1, 2, 4, 0x80, 1 << 63
_EXECUTABLE = 1  # p_flags of a program header
_INFORMATION = 0x1000  # GPA of the multiboot information, below everything that is loaded
_COMMAND_LINE = 0x2000
_SMALL_PAGES = 0x3000  # the page table of the first 2 MiB
_HAS_COMMAND_LINE = 1 << 2
_CALIBRATION_S = 0.05


def run(image: Path, cmdline: str) -> str:
    """What nano prints with ``cmdline``, ticks being the host's. Raises BtError if it fails."""
    import lief

    from bt.compare import _native

    elf = lief.ELF.parse(str(image))
    if elf is None:
        raise BtError(f"{image}: is no ELF file")
    symbols = {symbol.name: symbol.value for symbol in elf.symtab_symbols}
    ram = mmap.mmap(-1, _RAM)
    for segment in elf.segments:
        content = bytes(segment.content)
        ram[segment.physical_address:segment.physical_address + len(content)] = content
    root = symbols["page_tables"]
    _map_one_to_one(ram, root)
    for segment in elf.segments:
        if int(segment.flags) & _EXECUTABLE:
            _make_code(ram, segment.physical_address, segment.physical_size)
    ram[_COMMAND_LINE:_COMMAND_LINE + len(cmdline)] = cmdline.encode()
    struct.pack_into("<I", ram, _INFORMATION, _HAS_COMMAND_LINE)
    struct.pack_into("<I", ram, _INFORMATION + 16, _COMMAND_LINE)
    struct.pack_into("<I", ram, symbols["information"], _INFORMATION)
    try:
        status, output = _native.run(ram, entry=symbols["main"], cr3=root, code=0x08, data=0x10)
    except RuntimeError as error:
        raise BtError(f"nano on plain Unicorn: {error}") from None
    if status != 0:
        raise BtError(f"nano on plain Unicorn ended with status {status}")
    return str(output.decode("ascii", "replace"))


def _map_one_to_one(ram: mmap.mmap, root: int) -> None:
    """The first GiB, in the three pages at ``root`` (lib/longmode.s) and one of our own."""
    table = _PRESENT | _WRITE | _USER
    struct.pack_into("<Q", ram, root, root + 0x1000 | table)
    struct.pack_into("<Q", ram, root + 0x1000, root + 0x2000 | table)
    data = _PRESENT | _WRITE | _NX
    for i in range(512):
        struct.pack_into("<Q", ram, _SMALL_PAGES + 8 * i, i * _PAGE | data)
        struct.pack_into("<Q", ram, root + 0x2000 + 8 * i, i * _LARGE | data | _LARGE_PAGE)
    struct.pack_into("<Q", ram, root + 0x2000, _SMALL_PAGES | table)


def _make_code(ram: mmap.mmap, address: int, size: int) -> None:
    for page in range(address // _PAGE, (address + size - 1) // _PAGE + 1):
        struct.pack_into("<Q", ram, _SMALL_PAGES + 8 * page, page * _PAGE | _PRESENT)


def ns_per_tick() -> float:
    """Nanoseconds that one tick of the counter takes which RDTSC shows on plain Unicorn."""
    from unicorn import UC_ARCH_X86, UC_MODE_64, Uc
    from unicorn.x86_const import UC_X86_REG_RAX, UC_X86_REG_RDX

    uc = Uc(UC_ARCH_X86, UC_MODE_64)
    uc.mem_map(0, 0x1000)
    uc.mem_write(0, b"\x0f\x31")  # rdtsc

    def both() -> tuple[int, int]:
        before = time.perf_counter_ns()
        uc.emu_start(0, 2)
        after = time.perf_counter_ns()
        ticks = uc.reg_read(UC_X86_REG_RDX) << 32 | uc.reg_read(UC_X86_REG_RAX)
        return (before + after) // 2, ticks

    both()  # translates
    ns, ticks = both()
    time.sleep(_CALIBRATION_S)
    later_ns, later_ticks = both()
    return (later_ns - ns) / (later_ticks - ticks)
