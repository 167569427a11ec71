# SPDX-License-Identifier: GPL-2.0-or-later
"""Random kernels against plain Unicorn in ring 0: same registers, flags and memory at the end.

Loops run often enough that hot sites turn into stubs; sensitive and ordinary instructions stand in
any order, so stubs absorb all sorts of neighbours.
"""

from __future__ import annotations

import random

import pytest
from micro import CTL, STACK, Micro, native
from unicorn import x86_const as ucx

REGISTERS = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8", "r9", "r10", "r11", "r12",
             "r13", "r15")
DATA = 0x170000
FLAGS = 0xCD5 | 0x200       # arithmetic flags, DF and IF


def random_instruction(rng: random.Random) -> list[str]:
    reg = rng.choice(REGISTERS)
    other = rng.choice(REGISTERS)
    imm = rng.randrange(1 << rng.choice((3, 7, 15, 31)))
    slot = DATA + 8 * rng.randrange(64)
    return rng.choice([
        ["cli"], ["cli"], ["sti", "nop"], ["sti"], ["pushfq", f"pop {reg}"],
        [f"push {reg}", "and dword ptr [rsp], 0xad5", "popfq"],
        ["pushfq", "nop", "nop", "popfq"], ["pushfq", "cli", f"inc {reg}", "popfq"],
        ["pushfq", "sti", f"lea {reg}, [{reg}+{other}]", "popfq"],
        [f"mov {reg}, cs"] if reg < "r" else ["nop"], [f"mov {reg}, ss"] if reg < "r" else ["cli"],
        [f"add {reg}, {other}"], [f"sub {reg}, {imm}"], [f"imul {reg}, {other}"],
        [f"xor {reg}, {other}"], [f"shl {reg}, {rng.randrange(63)}"], [f"adc {reg}, {imm}"],
        [f"ror {reg}, {1 + rng.randrange(30)}"], [f"push {reg}", f"pop {other}"],
        [f"mov {reg}, {imm}"], [f"bt {reg}, {rng.randrange(63)}"], ["cld"], ["std"], ["cmc"],
        [f"mov r14, {slot}", f"xchg [r14], {reg}"], [f"mov r14, {slot}", f"add [r14], {reg}"],
        [f"test {reg}, {other}", f"cmovz {reg}, {other}"], [f"neg {reg}"], [f"sbb {reg}, {reg}"],
        ["swapgs", "nop", "nop", "swapgs"], [f"movzx {reg}, byte ptr [0x{DATA:x}+8]"],
    ])


def random_kernel(seed: int) -> str:
    rng = random.Random(seed)
    lines = [f"mov {reg}, {rng.getrandbits(63):#x}" for reg in REGISTERS]
    for part in range(4):
        lines += [f"mov r14, {DATA - 8}", f"mov dword ptr [r14], {rng.randrange(20, 60)}",
                  f"part{part}:"]
        for i in range(rng.randrange(10, 30)):
            lines += random_instruction(rng)
            if rng.random() < 0.15:
                lines += [f"test r11, {1 << rng.randrange(8)}", f"jz skip{part}_{i}"]
                lines += ["cli", f"skip{part}_{i}:"]
        lines += [f"mov r14, {DATA - 8}", "dec dword ptr [r14]", f"jnz part{part}"]
    lines += ["pushfq", "pop r14", "cli", f"mov [0x{CTL + 40:x}], rax",
              f"mov [0x{CTL + 48:x}], rdx", "EXIT 1"]
    return "\n".join(lines)


@pytest.mark.parametrize("hot", [0, 1, 8])
@pytest.mark.parametrize("seed", range(12))
def test_random_kernels_end_as_in_ring_0(seed: int, hot: int) -> None:
    source = random_kernel(seed)
    uc = native(source)
    micro = Micro(source, hot=hot)
    result = micro.run()
    assert result.outcome.status == 1, (result.outcome.report, result.records)
    if hot and micro.machine.engine.translate:
        assert result.exit("stub_installed") > 0
    for reg in REGISTERS[1:3] + REGISTERS[4:]:
        assert result.regs[reg] == uc.reg_read(getattr(ucx, f"UC_X86_REG_{reg.upper()}")), reg
    flags = uc.reg_read(ucx.UC_X86_REG_R14) & FLAGS
    assert result.regs["r14"] & FLAGS == flags
    assert result.regs["rsp"] == uc.reg_read(ucx.UC_X86_REG_RSP) == STACK
    assert micro.ram.read(DATA - 8, 0x210) == bytes(uc.mem_read(DATA - 8, 0x210))
    assert micro.ram.read(CTL + 40, 16) == bytes(uc.mem_read(CTL + 40, 16))
