# SPDX-License-Identifier: GPL-2.0-or-later
"""The report on a guest that died: what a kernel developer wants to see first."""

from __future__ import annotations

from bt.machine.cpu import VirtualCpu
from bt.symbols.table import SymbolTable

_GENERAL = (("rax", "rbx", "rcx", "rdx"), ("rsi", "rdi", "rbp", "rsp"),
            ("r8", "r9", "r10", "r11"), ("r12", "r13", "r14", "r15"))
_CODE_BYTES = 24
_STACK_WORDS = 8


def death_report(vcpu: VirtualCpu, reason: str, symbols: SymbolTable | None = None) -> str:
    """Several lines: reason, registers, the newest blocks, code and stack at the point of death.

    Addresses that ``symbols`` knows get their names.
    """
    symbols = symbols or SymbolTable()
    regs = vcpu.registers()
    lines = [f"bt: the guest died: {reason}", ""]
    lines.append(f"  {vcpu.bits}-bit code, virtual CPL {regs['cpl']}, real CPL {vcpu.real_cpl}")
    lines.append(f"  rip {regs['rip']:#018x}  rflags {regs['rflags']:#010x}")
    for names in _GENERAL:
        lines.append("  " + "  ".join(f"{name:>3} {regs[name]:016x}" for name in names))
    lines.append("  " + "  ".join(f"{name} {regs[name]:04x}"
                                  for name in ("cs", "ss", "ds", "es", "fs", "gs", "tr", "ldtr")))
    lines.append(f"  fs_base {regs['fs_base']:016x}  gs_base {regs['gs_base']:016x}  "
                 f"kernel_gs_base {regs['kernel_gs_base']:016x}")
    lines.append("  " + "  ".join(f"{name} {regs[name]:x}"
                                  for name in ("cr0", "cr2", "cr3", "cr4", "efer", "gdtr", "idtr")))
    lines.append("")
    lines += _code(vcpu, symbols)
    lines += _stack(vcpu, regs["rsp"], symbols)
    lines += _blocks(vcpu.recent_blocks(), symbols)
    return "\n".join(lines)


def _named(address: int, symbols: SymbolTable) -> str:
    name = symbols.describe(address)
    return f"{address:x} <{name}>" if name else f"{address:x}"


def _blocks(blocks: list[int], symbols: SymbolTable) -> list[str]:
    if not blocks:
        return []
    lines = ["  newest blocks (first execution), newest last:"]
    a_line = 2 if symbols else 6
    for i in range(0, len(blocks), a_line):
        lines.append("    " + " ".join(_named(address, symbols)
                                       for address in blocks[i:i + a_line]))
    return lines


def _code(vcpu: VirtualCpu, symbols: SymbolTable) -> list[str]:
    at = vcpu.linear_rip
    name = symbols.describe(at)
    where = [f"  in {name}"] if name else []
    code = vcpu.read_virtual(at, _CODE_BYTES)
    if code is None:
        return [*where, f"  code at {at:#x}: not mapped"]
    lines = [*where, f"  code at {at:#x}: {code.hex(' ')}"]
    from translator.scanner import disassembler
    for address, _, mnemonic, operands in list(disassembler(vcpu.bits).disasm_lite(code, at))[:4]:
        lines.append(f"    {address:x}: {mnemonic} {operands}")
    return lines


def _stack(vcpu: VirtualCpu, rsp: int, symbols: SymbolTable) -> list[str]:
    size = 8 if vcpu.bits == 64 else 4
    stack = vcpu.read_virtual(rsp, _STACK_WORDS * size)
    if stack is None:
        return [f"  stack at {rsp:#x}: not mapped"]
    words = [int.from_bytes(stack[i:i + size], "little") for i in range(0, len(stack), size)]
    lines = [f"  stack at {rsp:#x}: " + " ".join(f"{word:x}" for word in words)]
    # Return addresses, most likely: what is in no function has no name.
    names = [name for word in words if (name := symbols.describe(word))]
    if names:
        lines.append("    in it: " + " ".join(names))
    return lines
