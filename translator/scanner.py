# SPDX-License-Identifier: GPL-2.0-or-later
"""Finding sensitive instructions, for Python callers: a typed face on the compiled scanner."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache

import capstone

from translator import _scan
from translator.sensitive import BY_NAME, TABLE, Row

_FILLER = BY_NAME["INT3"]
_MODES = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}


@cache
def disassembler(bits: int, detail: bool = False) -> capstone.Cs:
    """The process's one capstone handle for a code size (16, 32 or 64 bits)."""
    handle = capstone.Cs(capstone.CS_ARCH_X86, _MODES[bits])
    handle.detail = detail
    return handle


@cache
def selection(privilege: str = "kernel") -> bytes:
    """What `_scan` looks for: 256 bytes, byte n != 0 if row n is translated.

    privilege: "kernel" (code the guest means to run in ring 0), "user" (ring 3), or "all" (every
    row of the table). Any other raises ValueError.
    """
    if privilege not in ("kernel", "user", "all"):
        raise ValueError(f"privilege must be kernel, user or all, not {privilege!r}")
    chosen = bytes(privilege == "all" or getattr(row, privilege) for row in TABLE)
    return chosen.ljust(256, b"\0")


@dataclass(frozen=True)
class Finding:
    """A sensitive instruction in some code.

    offset: of its first byte, prefixes included, in the scanned bytes; address: the same as a
    virtual address; code: its bytes; bits: the code size it was read with.
    """

    offset: int
    address: int
    row: Row
    code: bytes
    bits: int

    @property
    def length(self) -> int:
        """Bytes, prefixes included."""
        return len(self.code)

    @property
    def text(self) -> str:
        """The disassembly, in Intel syntax."""
        _, _, mnemonic, operands = next(
            disassembler(self.bits).disasm_lite(self.code, self.address, 1))
        return f"{mnemonic} {operands}".rstrip()


@dataclass(frozen=True)
class Block:
    """The result of a linear scan: findings, instructions decoded, bytes decoded."""

    findings: list[Finding] = field(default_factory=list)
    instructions: int = 0
    consumed: int = 0


def scan_block(code: bytes, address: int = 0, bits: int = 64, privilege: str = "kernel",
               span: int | None = None) -> Block:
    """Scans the instructions that start in ``code[:span]``, stopping at the first undecodable one.

    The last instruction may run past ``span`` (default: the whole of ``code``) but not past
    ``code``. ``address`` is that of ``code[0]``. ValueError for a bad code size or privilege.
    """
    span = len(code) if span is None else span
    found, instructions, consumed = _scan.scan(bits, code, span, address, selection(privilege))
    findings = [Finding(offset, address + offset, TABLE[row], bytes(code[offset:offset + length]),
                        bits) for offset, row, length in found]
    return Block(findings, instructions, consumed)


@dataclass(frozen=True)
class Sweep:
    """What a sweep over a piece of code found.

    instructions: without INT3, which fills the room between functions and has a count of its own
    (``fillers``); skipped: bytes that are no instruction, or part of one that would run into a
    known start (``dropped`` of them).
    """

    findings: tuple[Finding, ...]
    instructions: int
    fillers: int
    skipped: int
    dropped: int


def sweep(code: bytes, address: int = 0, bits: int = 64,
          starts: Iterable[int] = (), privilege: str = "all") -> Sweep:
    """Every instruction in ``code``, one behind the other, and anew from each offset in ``starts``.

    A sweep reads data among code as instructions, and may fall out of step behind it until the
    next start. INT3 is never among the findings.
    """
    known = array("I", sorted({at for at in starts if 0 < at < len(code)}))
    found, instructions, fillers, skipped, dropped = _scan.sweep(
        bits, code, address, known, selection(privilege), _FILLER.id)
    return Sweep(tuple(Finding(offset, address + offset, TABLE[row],
                               bytes(code[offset:offset + length]), bits)
                       for offset, row, length in found),
                 instructions, fillers, skipped, dropped)


def scan(code: bytes, address: int = 0, bits: int = 64,
         privilege: str = "kernel") -> list[Finding]:
    """Sweeps over all of ``code`` and skips a byte wherever nothing can be decoded.

    A sweep can read data as code; it suits a listing of an image. What a VMM relies on is
    :func:`scan_block` on blocks that are about to run.
    """
    findings: list[Finding] = []
    view, chosen, at = memoryview(code), selection(privilege), 0
    while at < len(code):
        found, _, consumed = _scan.scan(bits, view[at:], len(code) - at, address + at, chosen)
        for offset, row, length in found:
            start = at + offset
            findings.append(Finding(start, address + start, TABLE[row],
                                    bytes(view[start:start + length]), bits))
        at += consumed + 1
    return findings
