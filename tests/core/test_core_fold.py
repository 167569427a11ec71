# SPDX-License-Identifier: GPL-2.0-or-later
"""Folded loops (bt/core/fold.pxi) end in the state of the same loops run turn by turn."""

from __future__ import annotations

import random

import pytest
from micro import STACK, Micro

LOOPS = 40
NAMES = {
    64: ("rax", "rcx", "rdx", "rbx", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
         "r14", "r15"),
    32: ("eax", "ecx", "edx", "ebx", "ebp", "esi", "edi"),
}
LOW = dict(zip(NAMES[64], ("eax", "ecx", "edx", "ebx", "ebp", "esi", "edi", "r8d", "r9d", "r10d",
                           "r11d", "r12d", "r13d", "r14d", "r15d"), strict=True))
CONDITIONS = ("e", "ne", "b", "ae", "be", "a", "l", "ge", "le", "g", "s", "ns")


class Loops:
    """Random loops of registers: two or more conditions, steps of all sizes, values near edges.

    The last register of NAMES counts turns, so that every loop ends.
    """

    def __init__(self, rng: random.Random, bits: int) -> None:
        self.rng = rng
        self.bits = bits
        self.guard = NAMES[bits][-1]
        self.names = NAMES[bits][:-1]

    def value(self) -> int:
        rng = self.rng
        edge = rng.choice((0, 1 << 31, 1 << 32, 1 << 63, 1 << 64, rng.getrandbits(64)))
        return (edge + rng.choice((0, 1, -1, rng.randrange(-9000, 9000)))) % (1 << self.bits)

    def reg(self) -> str:
        """A register, often by its low half."""
        name = self.rng.choice(self.names[:5])
        return LOW[name] if self.bits == 64 and self.rng.random() < 0.4 else name

    def small(self) -> int:
        rng = self.rng
        return rng.choice((1, -1, 2, 8, -3, 4096, rng.randrange(-1 << 31, 1 << 31)))

    def pair(self) -> tuple[str, str]:
        """Two registers of one width."""
        a, b = self.rng.sample(self.names[:6], 2)
        return (LOW[a], LOW[b]) if self.bits == 64 and self.rng.random() < 0.4 else (a, b)

    def plain(self) -> str:
        a, b = self.pair()
        rng = self.rng
        return rng.choice((
            f"inc {a}", f"dec {a}", f"add {a}, {self.small()}", f"sub {a}, {self.small()}",
            f"mov {a}, {b}", f"mov {a}, {rng.randrange(1 << 31)}", f"xor {a}, {a}", f"sub {a}, {a}",
            f"lea {a}, [{NAMES[self.bits][0]} + {rng.randrange(1, 9000)}]", "nop",
            ".byte 0x0f, 0x1f, 0x44, 0, 0", ".byte 0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0"))

    def compare(self) -> str:
        a, b = self.pair()
        return self.rng.choice((f"cmp {a}, {b}", f"cmp {a}, {self.small()}", f"test {a}, {a}",
                                f"cmp {a}, {b}"))

    def loop(self, number: int) -> str:
        rng = self.rng
        lines = []
        turns = rng.choice((40, 500, 3000, 20000))
        for name in self.names:
            lines.append(f"mov {name}, {self.value():#x}")
        lines.append(f"xor {self.guard}, {self.guard}")
        lines.append(f"@head{number}:")
        lines += [self.plain() for _ in range(rng.choice((0, 0, 1, 2)))]
        lines += [self.compare(), f"j{rng.choice(CONDITIONS)} @far{number}"]
        lines.append(f"@near{number}:")
        if rng.random() < 0.5:
            lines += [self.plain() for _ in range(rng.choice((0, 0, 1, 2)))]
            lines += [self.compare(), f"j{rng.choice(CONDITIONS)} @skip{number}"]
            lines += [self.plain() for _ in range(rng.choice((0, 0, 1)))]
            lines.append(f"@skip{number}:")
        lines += [self.plain() for _ in range(rng.choice((0, 0, 1, 2)))]
        up = rng.random() < 0.5
        lines += [f"inc {self.guard}", f"cmp {self.guard}, {turns}"]
        if up:
            lines.append(f"jae @end{number}")
            if rng.random() < 0.3:
                lines.append(f"jmp @head{number}")
            else:
                lines += [self.compare(), f"j{rng.choice(CONDITIONS)} @head{number}"]
        else:
            lines.append(f"jb @head{number}")
        lines.append(f"jmp @end{number}")
        lines.append(f"@far{number}:")
        if rng.random() < 0.6:
            lines += [f"inc {self.guard}", f"cmp {self.guard}, {turns}", f"jb @near{number}"]
        lines.append(f"@end{number}:")
        lines.append("pushfq" if self.bits == 64 else "pushfd")
        lines += [f"push {name}" for name in NAMES[self.bits]]
        return "\n".join(lines)

    def program(self) -> str:
        return f"mov {'rsp' if self.bits == 64 else 'esp'}, STACK\n" + \
            "\n".join(self.loop(i) for i in range(LOOPS)) + "\nEXIT 1"


def states(micro: Micro, folding: bool) -> tuple[list[int], int, int]:
    """(registers and flags behind each loop, virtual time at the end, turns folded)."""
    micro.machine.vcpu.set_folding(folding)
    result = micro.run()
    assert result.outcome.status == 1
    width = micro.bits // 8
    count = LOOPS * (len(NAMES[micro.bits]) + 1)
    values = [int.from_bytes(micro.ram.read(STACK - (i + 1) * width, width), "little")
              for i in range(count)]
    return values, micro.machine.vcpu.now_ns(), micro.machine.vcpu.fold_counters()[1]


def same(seed: int, bits: int, *, engine: str = "bt", deterministic: bool = True) -> int:
    source = Loops(random.Random(seed), bits).program()
    one = states(Micro(source, bits, engine=engine, deterministic=deterministic), False)
    other = states(Micro(source, bits, engine=engine, deterministic=deterministic), True)
    assert one[2] == 0
    size = len(NAMES[bits]) + 1
    for i in range(LOOPS):
        assert one[0][i * size:(i + 1) * size] == other[0][i * size:(i + 1) * size], (seed, i)
    if deterministic:
        assert one[1] == other[1], "folded turns take the time of the blocks they have"
    return other[2]


@pytest.mark.parametrize("bits", [64, 32])
def test_random_loops(bits: int) -> None:
    assert sum(same(seed, bits) for seed in range(6)) > 20_000


def test_on_the_host_clock() -> None:
    assert same(77, 64, deterministic=False) > 1000


def test_engine_trap() -> None:
    assert same(78, 64, engine="trap") > 1000


@pytest.mark.slow
@pytest.mark.parametrize("bits", [64, 32])
def test_many_random_loops(bits: int) -> None:
    assert sum(same(seed, bits) for seed in range(1000, 1060)) > 200_000


def folded(source: str, *, deterministic: bool = True) -> tuple[Micro, int]:
    micro = Micro(source, deterministic=deterministic)
    result = micro.run()
    assert result.outcome.status == 1
    return micro, micro.machine.vcpu.fold_counters()[1]


#: The shape of Debian 6.1's xen_rebuild_p2m_list, for which all of this is.
WALK = """
    mov r9d, 0x20000
    mov edi, 0x40000
    mov eax, {turns}
    mov esi, 0
    mov edx, 1
@head:
    cmp rdi, r9
    jae @behind
    mov r8, [rdi*8 + 0x8000]
    jmp @end
@behind:
    xor r8d, r8d
    jmp @type
@type:
    cmp esi, r8d
    jne @end
    inc edx
    inc rdi
    cmp edx, eax
    jne @head
@end:
    mov [0x7020], rdx
    mov [0x7028], rdi
    EXIT 1
"""


def test_the_loop_it_is_for() -> None:
    """Two thousand million turns would take many seconds."""
    micro, turns = folded(WALK.format(turns=0x7fffffff), deterministic=False)
    assert turns > 0x7fff0000
    assert int.from_bytes(micro.ram.read(0x7020, 8), "little") == 0x7fffffff
    assert int.from_bytes(micro.ram.read(0x7028, 8), "little") == 0x40000 + 0x7ffffffe


def test_a_delay_is_left_alone() -> None:
    """One condition: what such a loop is there for is the time it takes."""
    _, turns = folded("mov ecx, 100000\n@a: jmp @b\n@b: dec ecx\njnz @a\nEXIT 1")
    assert turns == 0


def test_memory_is_never_skipped() -> None:
    """A turn that loads is not foreseen, whatever else it does."""
    _, turns = folded("""
        mov ecx, 100000
        xor eax, eax
    @a: cmp ecx, 7
        je @out
        mov rdx, [0x7020]
        jmp @b
    @b: inc eax
        dec ecx
        cmp eax, -1
        jne @a
    @out: EXIT 1
    """)
    assert turns == 0


def test_code_that_changes_under_the_hook() -> None:
    """The hook decodes what is there now, not what was there when the loop was first seen."""
    micro, turns = folded("""
        mov r12d, 2
    @again:
        xor ecx, ecx
        xor eax, eax
        mov edx, 50000
    @a: cmp ecx, edx
        je @out
        jmp @b
    @b: inc eax
    @change:
        add ecx, 1
        cmp eax, 70000
        jne @a
    @out:
        push rax
        push rcx
        mov byte ptr [@change + 2], 2
        jmp @flush
    @flush:
        dec r12d
        jnz @again
        EXIT 1
    """)
    stack = [int.from_bytes(micro.ram.read(STACK - 8 * i, 8), "little") for i in range(1, 5)]
    assert stack == [50000, 50000, 25000, 50000]
    assert turns > 50000


def test_deadlines_are_kept() -> None:
    """A timer due in the middle of a folded loop comes in the middle of it, to the block."""
    seen = []
    for folding in (False, True):
        micro = Micro(WALK.format(turns=300_000))
        machine = micro.machine
        machine.vcpu.set_folding(folding)
        due: list[tuple[int, dict[str, int]]] = []
        machine.timers.at(machine.vcpu.now_ns() + 2_000_000,
                          lambda vcpu=machine.vcpu, due=due: due.append(
                              (vcpu.now_ns(), vcpu.registers())))
        assert micro.run().outcome.status == 1
        seen.append(due)
    assert len(seen[0]) == 1 and seen[0] == seen[1]


def test_an_endless_loop_stays_one() -> None:
    micro = Micro("xor eax, eax\n@a: cmp eax, 1\nje @b\njmp @c\n@b: EXIT 1\n@c: cmp eax, 2\n"
                  "jne @a\nEXIT 1")
    micro.machine.timers.at(1_000_000, lambda: micro.machine.stop("enough"))
    assert micro.run().outcome.kind == "stopped"
    assert micro.machine.vcpu.fold_counters()[1] == 0
