# SPDX-License-Identifier: GPL-2.0-or-later
"""guests/nano in ring 0 on plain Unicorn, with no VMM: the baseline of `bt compare nano`.

The image is the one the engines run. It starts at its 64-bit entry ``main``, with the page tables
that lib/longmode.s would have built, because plain Unicorn cannot switch modes the way a
bootloader's kernel does. _native.pyx says what the CPU cannot do by itself and who does it.

Its time stamp counter is the host's, so ticks are turned into ns by a calibration of that counter.
"""

from __future__ import annotations

import mmap
import struct
import time
from pathlib import Path

from bt.errors import BtError

_RAM = 16 << 20
_LARGE = 0x200000
_PRESENT, _WRITE, _USER, _LARGE_PAGE = 1, 2, 4, 0x80
_INFORMATION = 0x1000  # GPA of the multiboot information, below everything that is loaded
_COMMAND_LINE = 0x2000
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
    """The first GiB in pages of 2 MiB, in the three pages at ``root`` (lib/longmode.s)."""
    table = _PRESENT | _WRITE | _USER
    struct.pack_into("<Q", ram, root, root + 0x1000 | table)
    struct.pack_into("<Q", ram, root + 0x1000, root + 0x2000 | table)
    for i in range(512):
        struct.pack_into("<Q", ram, root + 0x2000 + 8 * i,
                         i * _LARGE | _PRESENT | _WRITE | _LARGE_PAGE)


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
