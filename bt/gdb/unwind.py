# SPDX-License-Identifier: GPL-2.0-or-later
"""From ORC to DWARF: how gdb finds the caller in a Linux kernel built without frame pointers.

Such a kernel has a table for its own backtraces (Documentation/arch/x86/orc-unwinder.rst):
``.orc_unwind_ip`` has the address of each stretch of code, relative to the entry itself, and
``.orc_unwind`` what holds in it (arch/x86/include/asm/orc_types.h): the stack pointer before the
call as a register plus an offset, and where the caller's RBP is. gdb reads DWARF call frame
information (DWARF 4, 6.4), so each function's stretches are written down in that.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left
from operator import gt

from bt.symbols.elf import ElfFile
from bt.symbols.table import SymbolTable

#: Of what is made here; a file made by another one is made anew.
VERSION = 1
_MAX_BYTES = 64 << 20
_ENTRY = struct.Struct("<hhH")
_SP, _BP = 5, 4                 # orc_types.h: ORC_REG_SP, ORC_REG_BP
_PREV_SP = 1
# DWARF register numbers of x86-64 (psABI, 3.36)
_RBP, _RSP, _RA = 6, 7, 16
_ADVANCE1, _ADVANCE2, _ADVANCE4, _DEF_CFA, _SAME_VALUE, _UNDEFINED, _OFFSET = (
    0x02, 0x03, 0x04, 0x0C, 0x08, 0x07, 0x80)


def debug_frame(elf: ElfFile, table: SymbolTable) -> bytes:
    """The contents of .debug_frame; empty if the kernel has no ORC table that can be read."""
    found = {section.name: section for section in elf.sections
             if section.name in (".orc_unwind_ip", ".orc_unwind")}
    if len(found) != 2 or elf.bits != 64:
        return b""
    where, what = found[".orc_unwind_ip"], found[".orc_unwind"]
    count = where.size // 4
    if not count or what.size != count * _ENTRY.size or what.size > _MAX_BYTES:
        return b""
    offsets = array("i")
    offsets.frombytes(elf.image.read(where.offset, count * 4))
    addresses = array("Q", [where.address + 4 * i + offset & (1 << 64) - 1
                            for i, offset in enumerate(offsets)])
    if any(map(gt, addresses, addresses[1:])):
        return b""          # not sorted when it was built
    entries = list(_ENTRY.iter_unpack(elf.image.read(what.offset, what.size)))
    out = bytearray(_cie())
    functions = [s for s in table.items() if s.kind in "tT"]
    for symbol, after in zip(functions, functions[1:], strict=False):
        if after.address > symbol.address:
            out += _function(symbol.address, after.address, addresses, entries)
    return bytes(out)


def _record(body: bytes) -> bytes:
    body += bytes(-(len(body) + 4) % 8)     # DW_CFA_nop is 0
    return struct.pack("<I", len(body)) + body


def _cie() -> bytes:
    """Common to all: code aligned to 1, data to -8, the return address in column 16."""
    rules = bytes((_DEF_CFA, _RSP, 8, _OFFSET | _RA, 1))
    return _record(struct.pack("<I", 0xFFFFFFFF) + bytes((1, 0, 1, 0x78, _RA)) + rules)


def _function(start: int, end: int, addresses: array[int],
              entries: list[tuple[int, int, int]]) -> bytes:
    """One function's frame description entry."""
    at = bisect_left(addresses, start)
    if at == len(addresses) or addresses[at] != start:
        at -= 1             # its first stretch began before
    rules = bytearray()
    now = start
    while 0 <= at < len(addresses) and addresses[at] < end:
        rules += _advance(max(addresses[at], start) - now)
        now = max(addresses[at], start)
        rules += _rules(*entries[at])
        at += 1
    if not rules:
        return b""
    return _record(struct.pack("<IQQ", 0, start, end - start) + bytes(rules))


def _advance(by: int) -> bytes:
    if by == 0:
        return b""
    if by < 0x40:
        return bytes((0x40 | by,))
    if by < 0x100:
        return bytes((_ADVANCE1, by))
    if by < 0x10000:
        return struct.pack("<BH", _ADVANCE2, by)
    return struct.pack("<BI", _ADVANCE4, by)


def _rules(sp_offset: int, bp_offset: int, bits: int) -> bytes:
    """What one ORC entry says: sp_reg in bits 0-3, bp_reg in 4-7."""
    base = {_SP: _RSP, _BP: _RBP}.get(bits & 15)
    if base is None or sp_offset < 8:
        # Nothing is known, or a frame of an interrupt: gdb shall stop here and not guess.
        return bytes((_UNDEFINED, _RA))
    out = bytes((_DEF_CFA, base)) + _uleb(sp_offset) + bytes((_OFFSET | _RA, 1))
    if bits >> 4 & 15 == _PREV_SP and bp_offset < 0 and bp_offset % 8 == 0:
        return out + bytes((_OFFSET | _RBP,)) + _uleb(-bp_offset // 8)
    return out + bytes((_SAME_VALUE, _RBP))


def _uleb(value: int) -> bytes:
    out = bytearray()
    while True:
        out.append(value & 0x7F | (0x80 if value > 0x7F else 0))
        value >>= 7
        if not value:
            return bytes(out)
