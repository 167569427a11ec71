# SPDX-License-Identifier: GPL-2.0-or-later
"""Hostile guests by seed, run in a process of their own so that a crash names its seed.

``python fuzz_core.py FIRST COUNT`` prints each seed before it runs it, then how it ended. Every
guest gets random code (bytes, or real instructions in random order) and, by chance, random page
tables, descriptor tables, gates, task state and control registers.
"""

from __future__ import annotations

import random
import sys

from bt.core.vcpu import WINDOW_ADDRESS
from micro import GDT, IDT, RAM, TABLES, TSS, Micro, P, U, W

from translator.sensitive import TABLE

OUTCOMES = {"powered-off", "halted", "reset", "died", "timeout", "stopped"}
BLOCK_BUDGET_NS = 100_000       # virtual: 5 ns a block


def sensitive_bytes(rng: random.Random, bits: int) -> bytes:
    """An instruction of the table with random operands."""
    row = rng.choice(TABLE)
    enc = rng.choice(row.encodings)
    out = bytearray()
    for prefix in (0x66, 0x67, 0xF2, 0xF3, 0x2E, 0x64, 0xF0):
        if rng.random() < 0.06:
            out.append(prefix)
    if enc.prefix:
        out.append(enc.prefix)
    if bits == 64 and rng.random() < 0.3:
        out.append(0x40 | rng.randrange(16))
    out += {0: b"", 1: b"\x0f", 2: b"\x0f\x38"}[enc.map]
    out.append(enc.opcode)
    if enc.modrm:
        reg = rng.choice(enc.reg) if enc.reg else rng.randrange(8)
        mod = {"reg": 3, "mem": rng.randrange(3), "any": rng.randrange(4)}[enc.mod]
        rm = enc.rm if enc.rm is not None else rng.randrange(8)
        out.append(mod << 6 | (reg & 7) << 3 | rm & 7)
    return bytes(out) + rng.randbytes(rng.choice((0, 0, 1, 4, 6)))


def ordinary_bytes(rng: random.Random) -> bytes:
    return rng.choice((
        b"\x50\x9d", b"\x9c\x58", b"\x48\x89\x07", b"\x48\xff\xc0", b"\xf3\xab", b"\xc3", b"\xcc",
        b"\xcd" + rng.randbytes(1), b"\xeb" + rng.randbytes(1), b"\x75" + rng.randbytes(1),
        b"\xe8" + rng.randrange(-300, 300).to_bytes(4, "little", signed=True), b"\x0f\x05",
        b"\x0f\x34", b"\x48\x8b\x06", b"\xf4", b"\xfb\xf4", b"\x8e\xd8", b"\x0f\x0b",
        b"\xb8" + rng.randbytes(4), b"\xb9" + rng.choice((0xC0000080, 0xC0000082, 0x10, 0x174,
                                                        0x277)).to_bytes(4, "little") + b"\x0f\x30",
        b"\x48\xcf", b"\xcf", b"\x48\xcb", b"\x0f\xae" + rng.randbytes(1),
        b"\xd9" + rng.randbytes(1),
        b"\x0f" + rng.randbytes(3), rng.randbytes(4)))


def code(rng: random.Random, bits: int, length: int) -> bytes:
    out = bytearray()
    share = rng.random()
    while len(out) < length:
        out += sensitive_bytes(rng, bits) if rng.random() < share else ordinary_bytes(rng)
    return bytes(out[:length])


def fill_empty_pages(micro: Micro, rng: random.Random) -> None:
    """Something short where nothing is: zeroes are ADD [RAX], AL, thousands of them to a page."""
    filler = rng.choice((b"\xf4", b"\xcc", b"\x0f\x0b", b"\xeb\xfe", b"\xc3")) * 4096
    if micro.bits == 16:
        for vector in range(256):
            micro.ram.write(4 * vector, rng.randrange(0x7C00, 0x8200).to_bytes(4, "little"))
        micro.ram.write(0x400, filler[:0xC00])
    for at in range(0x1000 if micro.bits == 16 else 0x8000, RAM, 0x1000):
        if not TABLES <= at < 0x80000 and not any(micro.ram.view[at:at + 0x1000]):
            micro.ram.write(at, filler[:4096])


def hostile(seed: int) -> Micro:
    rng = random.Random(seed)
    bits = rng.choice((64, 64, 32, 16))
    paging = {64: 4, 32: rng.choice((0, 2, 3)), 16: 0}[bits]
    engine = "bt" if rng.random() < 0.85 else "trap"
    micro = Micro("nop", bits, paging=paging, engine=engine, hot=rng.choice((0, 4, 64)), audit=True)
    ram = micro.ram
    fill_empty_pages(micro, rng)
    body = code(rng, bits, rng.choice((32, 200, 1500)))
    ram.write(0x7C00 if bits == 16 else 0x100000, body)
    if rng.random() < 0.5:      # handlers are code of the same kind
        for at in range(0x5000, 0x7000, 0x100):
            ram.write(at, code(rng, bits, 0x100))
    if rng.random() < 0.4:      # somewhere to go on after a fault, in the middle of it all
        ram.write(0x7008, (0x100000 + rng.randrange(64)).to_bytes(8, "little"))
    for base, size in ((GDT + 8, 0x58), (IDT, 0x1000), (TSS, 0x68)):
        if rng.random() < 0.3:
            for _ in range(rng.choice((1, 4, 200))):
                ram.write(base + rng.randrange(size), rng.randbytes(rng.choice((1, 2, 8))))
    if micro.pages is not None:
        if rng.random() < 0.5:
            micro.user_page(0x100000)
            micro.user_page(rng.randrange(0, 0x200) << 12)
        if rng.random() < 0.4:
            for _ in range(rng.choice((1, 20, 300))):
                slot = TABLES + rng.randrange(0x6000) // 8 * 8
                ram.write(slot, (rng.choice((rng.getrandbits(64), rng.randrange(RAM) & ~0xFFF | P
                                             | rng.choice((0, W, U, W | U)))) & (1 << 64) - 1
                                 ).to_bytes(8, "little"))
    return micro


def scramble(micro: Micro, rng: random.Random) -> None:
    """Random register state where the interface lets a loader set it."""
    from bt.boot.entry import EntryState
    names = "rax rbx rcx rdx rsi rdi rbp r8 r9 r10 r11 r12 r13 r14 r15".split()
    regs = {n: rng.choice((rng.getrandbits(64), rng.randrange(RAM), CR3S[rng.randrange(len(CR3S))]))
            for n in names}
    bits = micro.bits
    micro.machine.vcpu.enter(EntryState(
        bits=bits, rip=0x7C00 if bits == 16 else rng.choice((0x100000, rng.getrandbits(48)))
        if rng.random() < 0.2 else (0x7C00 if bits == 16 else 0x100000),
        rsp=rng.choice((0x90000, rng.getrandbits(64), 8, WINDOW_ADDRESS + 0x100)), regs=regs,
        cr3=micro.pages.root if bits == 64 and rng.random() < 0.8 else rng.getrandbits(40),
        gdt_base=GDT if rng.random() < 0.8 else rng.getrandbits(64),
        gdt_limit=rng.choice((0x5F, 0xFFFF, 0)), cs=0x10, ds=0x18))


CR3S = (0, 0x20000, 0xFFFFFFFFFFFFF000, 0x7FF000, WINDOW_ADDRESS, 0x20, 0x80000011)


def one(seed: int) -> str:
    micro = hostile(seed)
    rng = random.Random(seed ^ 0x5EED)
    micro.enter()
    if rng.random() < 0.3:
        scramble(micro, rng)
    machine = micro.machine
    machine.timers.at(machine.vcpu.now_ns() + BLOCK_BUDGET_NS, lambda: machine.stop("budget"))
    outcome = machine.run(5)
    assert outcome.kind in OUTCOMES, outcome
    assert outcome.kind != "timeout" or machine.vcpu.now_ns() > 0, "virtual time stood still"
    assert machine.vcpu.audit_counters()[1] == 0, "the guest ran at real CPL 0"
    assert machine.vcpu.real_cpl in (1, 3)
    if outcome.kind == "died":
        assert outcome.status == 3 and outcome.report
        assert "gave up" not in outcome.report.splitlines()[0], outcome.report
    machine.vcpu.registers()
    return outcome.kind


def main() -> None:
    first, count = int(sys.argv[1]), int(sys.argv[2])
    for seed in range(first, first + count):
        print(f"seed {seed}", end=" ", flush=True)
        print(one(seed), flush=True)
    print("done", flush=True)


if __name__ == "__main__":
    main()
