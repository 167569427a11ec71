# SPDX-License-Identifier: GPL-2.0-or-later
"""From what the core says of an exit to the parameters of an :class:`~bt.machine.exits.Exit`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt.core import vcpu as core

if TYPE_CHECKING:
    from bt.machine.exits import Exit

#: Reasons that are accesses to a guest-physical address which is not plain RAM.
MEMORY_ACCESS = ("absent memory", "mmio", "protected memory written")
_ACCESS = ("read", "write", "execute")
#: Order of ModRM's register numbers (SDM vol. 2, table 2-2).
_GPRS = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
         "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")


def describe(exit_: Exit, number: int, arguments: tuple[int, ...]) -> int | None:
    """Set the parameters of an exit from the core's arguments. Gives the result, if one is there.

    ``number``: the core's, of the reason.
    """
    reason = exit_.reason
    if number < core.HOOK_PSEUDO:
        _describe_instruction(exit_, *arguments)
    elif number < core.HOOK_PSEUDO + 32:
        exit_.vector = number - core.HOOK_PSEUDO
        exit_.error = arguments[0]
        if exit_.vector == 14:
            exit_.gva = arguments[1]
            # Bits of the error code: SDM vol. 3, 4.7.
            exit_.access = _ACCESS[2 if exit_.error & 16 else exit_.error >> 1 & 1]
    elif reason in ("port read", "port write"):
        exit_.port, exit_.size = arguments[:2]
        if reason == "port write" or exit_.when == "after":
            exit_.value = arguments[2] & (1 << 8 * exit_.size) - 1
        if reason == "port read" and exit_.when == "after":
            return exit_.value
    elif reason == "hypercall":
        if exit_.when == "after":
            *arguments, result = arguments
        exit_.number, exit_.args = arguments[0], tuple(arguments[1:])
        if exit_.when == "after":
            return result - (1 << 64) if result >> 63 else result
    elif reason in ("syscall", "sysenter"):
        exit_.number = arguments[0] & 0xFFFF_FFFF
    elif reason in ("software interrupt", "interrupt injected"):
        exit_.vector = arguments[0]
    elif reason == "translation":
        exit_.gva = arguments[0]
        exit_.access = _ACCESS[arguments[1]]
        if exit_.when == "after":
            exit_.gpa = arguments[2]
    elif reason in MEMORY_ACCESS:
        exit_.gpa, exit_.size = arguments[:2]
        exit_.access = _ACCESS[arguments[2]]
        if exit_.access == "write" or exit_.when == "after":
            exit_.value = arguments[3] & (1 << 8 * exit_.size) - 1
            if exit_.access == "read":
                return exit_.value
    elif reason in ("code page written", "page became code", "page not there yet",
                    "page first written"):
        exit_.gpa = arguments[0]
    elif reason in ("page invalidation", "stub installed", "stub taken back", "stale trap"):
        exit_.gva = arguments[0]
    elif reason == "block scanned":
        exit_.gva, exit_.size = arguments
    return None


def _describe_instruction(exit_: Exit, rax: int, rcx: int, rdx: int) -> None:
    """Parameters of a row of the sensitive table, from the registers it began with."""
    reason = exit_.reason
    if reason == "cpuid":
        exit_.leaf, exit_.subleaf = rax & 0xFFFF_FFFF, rcx & 0xFFFF_FFFF
    elif reason in ("rdmsr", "wrmsr"):
        exit_.msr = rcx & 0xFFFF_FFFF
        if reason == "wrmsr":
            exit_.value = (rdx & 0xFFFF_FFFF) << 32 | rax & 0xFFFF_FFFF
    elif reason in ("in", "out", "ins", "outs"):
        exit_.port, exit_.size = _port_of(exit_.code, exit_.bits, rdx)
        if reason == "out":
            exit_.value = rax & (1 << 8 * exit_.size) - 1
    elif reason.startswith("mov ") and reason[-2:] in ("cr", "dr"):
        exit_.register, rm = _modrm(exit_.code)
        if exit_.code[0] == 0xF0 and reason.endswith("cr") and exit_.register == 0:
            exit_.register = 8  # LOCK MOV CR0 is CR8 outside of 64-bit code (AMD)
        if " to " in reason:
            exit_.value = exit_.registers[_GPRS[rm]]
    elif reason == "int n":
        exit_.vector = exit_.code[-1]


def operand(code: bytes) -> str:
    """The general register of a MOV to or from a control or debug register."""
    return _GPRS[_modrm(code)[1]]


def _modrm(code: bytes) -> tuple[int, int]:
    """(reg, rm) of a MOV CR or DR, which ends in its ModRM byte; REX extends both."""
    modrm = code[-1]
    rex = code[-4] if len(code) >= 4 and code[-4] & 0xF0 == 0x40 else 0
    return modrm >> 3 & 7 | (rex & 4) << 1, modrm & 7 | (rex & 1) << 3


def _port_of(code: bytes, bits: int, dx: int) -> tuple[int, int]:
    """(port, size) of an IN, OUT, INS or OUTS."""
    opcode = code[-2] if len(code) > 1 and code[-2] in (0xE4, 0xE5, 0xE6, 0xE7) else code[-1]
    port = code[-1] if opcode & 0xFC == 0xE4 and opcode != code[-1] else dx & 0xFFFF
    if not opcode & 1:
        return port, 1
    return port, 2 if (0x66 in code[:-1]) == (bits != 16) else 4
