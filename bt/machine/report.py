# SPDX-License-Identifier: GPL-2.0-or-later
"""The report on a guest that died: what a kernel developer wants to see first."""

from __future__ import annotations

from bt.machine.cpu import VirtualCpu

_GENERAL = (("rax", "rbx", "rcx", "rdx"), ("rsi", "rdi", "rbp", "rsp"),
            ("r8", "r9", "r10", "r11"), ("r12", "r13", "r14", "r15"))
_CODE_BYTES = 24
_STACK_WORDS = 8


def death_report(vcpu: VirtualCpu, reason: str) -> str:
    """Several lines: reason, registers, the newest blocks, code and stack at the point of death."""
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
    lines += _code(vcpu)
    lines += _stack(vcpu, regs["rsp"])
    blocks = vcpu.recent_blocks()
    lines.append("  newest blocks (first execution), newest last:")
    for i in range(0, len(blocks), 6):
        lines.append("    " + " ".join(f"{address:x}" for address in blocks[i:i + 6]))
    return "\n".join(lines)


def _code(vcpu: VirtualCpu) -> list[str]:
    at = vcpu.linear_rip
    code = vcpu.read_virtual(at, _CODE_BYTES)
    if code is None:
        return [f"  code at {at:#x}: not mapped"]
    lines = [f"  code at {at:#x}: {code.hex(' ')}"]
    from translator.scanner import disassembler
    for address, _, mnemonic, operands in list(disassembler(vcpu.bits).disasm_lite(code, at))[:4]:
        lines.append(f"    {address:x}: {mnemonic} {operands}")
    return lines


def _stack(vcpu: VirtualCpu, rsp: int) -> list[str]:
    size = 8 if vcpu.bits == 64 else 4
    stack = vcpu.read_virtual(rsp, _STACK_WORDS * size)
    if stack is None:
        return [f"  stack at {rsp:#x}: not mapped"]
    words = [int.from_bytes(stack[i:i + size], "little") for i in range(0, len(stack), size)]
    return [f"  stack at {rsp:#x}: " + " ".join(f"{word:x}" for word in words)]
