# SPDX-License-Identifier: GPL-2.0-or-later
"""Room for inline stubs; what takes the place of a sensitive instruction.

A trap is one byte, INT3 over the first byte of the instruction: it fits everywhere, and a jump to
the instruction still lands on it. An inline stub is reached by a 5-byte ``jmp rel32``; where the
instruction is shorter, the instructions behind it move into the stub too (are *absorbed*). That is
allowed for those that mean the same at another address: no RIP-relative operand, no sensitive
instruction, and no branch but one that ends the region (RET, or JMP to a fixed place). Behind such
a branch nothing falls through, so the region may run on over whatever is there.

Here it is only found out. The bytes are written by bt/core (translate.pxi) and by the patcher.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from capstone import x86_const as x86

from translator import _scan
from translator.scanner import Finding, disassembler, selection
from translator.sensitive import Row

TRAP = 0xCC            # INT3
JUMP_LENGTH = 5        # bytes of jmp rel32
PAGE = 0x1000

# Instructions that only compute: registers and immediates in, registers and flags out.
_PLAIN = frozenset({
    x86.X86_INS_NOP, x86.X86_INS_ENDBR32, x86.X86_INS_ENDBR64, x86.X86_INS_MOV,
    x86.X86_INS_MOVABS, x86.X86_INS_MOVZX, x86.X86_INS_MOVSX, x86.X86_INS_MOVSXD,
    x86.X86_INS_LEA, x86.X86_INS_ADD, x86.X86_INS_ADC, x86.X86_INS_SUB, x86.X86_INS_SBB,
    x86.X86_INS_AND, x86.X86_INS_OR, x86.X86_INS_XOR, x86.X86_INS_CMP, x86.X86_INS_TEST,
    x86.X86_INS_INC, x86.X86_INS_DEC, x86.X86_INS_NEG, x86.X86_INS_NOT, x86.X86_INS_SHL,
    x86.X86_INS_SHR, x86.X86_INS_SAR, x86.X86_INS_ROL, x86.X86_INS_ROR, x86.X86_INS_BT,
    x86.X86_INS_CDQ, x86.X86_INS_CDQE, x86.X86_INS_CQO, x86.X86_INS_CWDE, x86.X86_INS_XCHG,
    x86.X86_INS_PUSH, x86.X86_INS_POP,
})
_STACK = frozenset({x86.X86_INS_PUSH, x86.X86_INS_POP})
_NOT_GENERAL = frozenset({x86.X86_REG_RIP, x86.X86_REG_EIP, x86.X86_REG_IP}) | frozenset(
    getattr(x86, f"X86_REG_{name}") for name in (
        "CS", "DS", "ES", "FS", "GS", "SS",
        *(f"{kind}{n}" for kind in ("CR", "DR") for n in range(16))))
_STACK_POINTER = frozenset({x86.X86_REG_RSP, x86.X86_REG_ESP, x86.X86_REG_SP})
_FORBIDDEN_PREFIXES = frozenset({0xF0, 0x67})


@dataclass(frozen=True)
class StubPlan:
    """What an inline stub would replace.

    offset: of the site in the code; address: of the site; code: the sensitive instruction;
    absorbed: the instructions behind it, whole, that move into the stub.
    """

    offset: int
    address: int
    row: Row
    bits: int
    code: bytes
    absorbed: tuple[bytes, ...]

    @property
    def region(self) -> int:
        """Bytes replaced, at least `JUMP_LENGTH`."""
        return max(JUMP_LENGTH, len(self.code) + sum(map(len, self.absorbed)))


def absorbable(code: bytes, bits: int = 64) -> bool:
    """Whether the one instruction in ``code`` may run at another address, inside a stub.

    It then cannot branch, trap or read RIP. It may fault: a stub says for each absorbed
    instruction where the guest has it (`stubs.Point`).
    """
    found, count, consumed = _scan.scan(bits, code, len(code), 0, selection("all"))
    if found or count != 1 or consumed != len(code):
        return False
    insn = next(disassembler(bits, True).disasm(code, 0, 1))
    if insn.id not in _PLAIN or _FORBIDDEN_PREFIXES & {insn.prefix[0], insn.prefix[3]}:
        return False
    for operand in insn.operands:
        if operand.type == x86.X86_OP_REG:
            if operand.reg in _NOT_GENERAL:
                return False
            if insn.id in _STACK and (operand.size * 8 != bits or operand.reg in _STACK_POINTER):
                return False
        elif operand.type == x86.X86_OP_MEM:
            if {operand.mem.base, operand.mem.index} & _NOT_GENERAL:
                return False
    return not (insn.id in _STACK and insn.prefix[2])


def ends_region(code: bytes, address: int, bits: int = 64) -> int | None:
    """For an instruction after which nothing falls through: its target, or 0 for RET; else None.

    ``code``: one whole instruction, at ``address``.
    """
    if code == b"\xC3":
        return 0
    if code[:1] == b"\xEB" and len(code) == 2 or code[:1] == b"\xE9" and len(code) == 5:
        distance = int.from_bytes(code[1:], "little", signed=True)
        return address + len(code) + distance & (1 << bits) - 1
    return None


def plan_stub(code: bytes, finding: Finding, limit: int | None = None) -> StubPlan | None:
    """Decides which instructions a stub for ``finding`` must absorb; None if there is no room.

    ``code`` is what ``finding`` was found in. ``limit``: bytes of ``code`` that may be replaced
    (default: all). The region never leaves the 4 KiB page of the site.
    """
    end = len(code) if limit is None else min(limit, len(code))
    end = min(end, finding.offset + PAGE - finding.address % PAGE)
    at = finding.offset + finding.length
    if at > end or finding.offset + JUMP_LENGTH > end:
        return None
    absorbed: list[bytes] = []
    while at - finding.offset < JUMP_LENGTH:
        insn = next(disassembler(finding.bits).disasm_lite(code[at:end], 0, 1), None)
        if insn is None:
            return None
        piece = code[at:at + insn[1]]
        at += len(piece)
        if ends_region(piece, 0, finding.bits) is not None:
            absorbed.append(piece)
            break
        if not absorbable(piece, finding.bits):
            return None
        absorbed.append(piece)
    return StubPlan(finding.offset, finding.address, finding.row, finding.bits, finding.code,
                    tuple(absorbed))


def jump(source: int, target: int, bits: int = 64) -> bytes | None:
    """``jmp rel32`` placed at address ``source``, or None if ``target`` is out of reach."""
    distance = target - (source + JUMP_LENGTH) & (1 << bits) - 1
    if distance >> bits - 1:
        distance -= 1 << bits
    if not -(1 << 31) <= distance < 1 << 31:
        return None
    return b"\xE9" + struct.pack("<i", distance)
