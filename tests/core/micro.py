# SPDX-License-Identifier: GPL-2.0-or-later
"""Micro-guests: a few lines of assembly in an environment that Python builds around them.

The tables a kernel would set up (GDT, IDT, TSS, page tables) are written straight into guest RAM,
so a test's source is only what it is about. Every vector has a handler that records what it saw
and then goes on where the test says, or ends the run. The same bytes run in a `Machine` and, for
programs without faults, natively in ring 0 on plain Unicorn (`native`), which is the oracle.

Physical layout (also linear: identity mapped, supervisor only, in every paging mode)::

    0x01000 GDT   0x02000 IDT   0x03000 TSS   0x05000 vector stubs   0x06000 recorder
    0x07000 control block (CTL_*)             0x08000 records        0x20000 page tables
    0x90000 kernel stack   0x98000 RSP0   0xa0000 IST1   0xb0000 user stack (tops)
    0x100000 the test's sections; one called ``user`` belongs to user mode, as does its stack
"""

from __future__ import annotations

import functools
import struct
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import unicorn
from unicorn import x86_const as ucx

from bt.boot.entry import EntryState
from bt.machine.machine import Machine, Outcome
from guests.asm import Assembler, Program

GDT, IDT, TSS, STUBS, RECORDER, CTL, LOG = (
    0x1000, 0x2000, 0x3000, 0x5000, 0x6000, 0x7000, 0x8000)
TABLES, STACK, RSP0, IST1, CODE = 0x20000, 0x90000, 0x98000, 0xA0000, 0x100000
BASE16 = 0x7C00
CTL_COUNT, CTL_RESUME, CTL_ABANDON = CTL, CTL + 8, CTL + 16
MAX_RECORDS = 900
#: The engine of a Micro that names none.
ENGINE = "bt"
USER_STACK = 0xB0000
RAM = 8 << 20

NULL, KCODE32, KCODE, KDATA, UCODE32, UDATA, UCODE, TSS_SEL = (
    0, 0x08, 0x10, 0x18, 0x23, 0x2B, 0x33, 0x38)
KCODE16, KDATA16 = 0x48, 0x50
P, W, U, A, D, PS, G, NX = 1, 2, 4, 0x20, 0x40, 0x80, 0x100, 1 << 63
CR0_PG, CR0_WP, CR0_PE = 1 << 31, 1 << 16, 1
CR4_PSE, CR4_PAE = 0x10, 0x20
EFER_NXE, EFER_SCE = 0x800, 1
WITH_ERROR = frozenset({8, 10, 11, 12, 13, 14, 17})
DE, DB, BP, UD, NM, DF, TS, NP, SS, GP, PF = 0, 1, 3, 6, 7, 8, 10, 11, 12, 13, 14

PRELUDE = """
.equ CTL, 0x7000
.equ LOG, 0x8000
.equ KCODE32, 0x08
.equ KCODE, 0x10
.equ KDATA, 0x18
.equ UCODE32, 0x23
.equ UDATA, 0x2b
.equ UCODE, 0x33
.equ STACK, 0x90000
.equ USER_STACK, 0xb0000
.equ BASE16, 0xf8400
.macro EXIT status=0
    mov al, \\status
    mov dx, 0x501
    out dx, al
    hlt
.endm
"""

_RECORD64 = """
    push rax
    push rbx
    push rcx
    push rsi
    mov ebx, CTL
    mov rax, [rbx]
    inc qword ptr [rbx]
    imul eax, eax, 80
    add eax, LOG
    xor ecx, ecx
@copy:
    mov rsi, [rsp+rcx*8+32]
    mov [rax+rcx*8], rsi
    inc ecx
    cmp ecx, 7
    jne @copy
    mov rsi, cr2
    mov [rax+56], rsi
    lea rsi, [rsp+88]
    mov [rax+64], rsi
    mov esi, cs
    mov [rax+72], rsi
    mov rax, [rbx+16]
    test rax, rax
    jnz @abandon
    mov rax, [rbx+8]
    test rax, rax
    jz @end
    mov [rsp+48], rax
    pop rsi
    pop rcx
    pop rbx
    pop rax
    add rsp, 16
    iretq
@abandon:
    mov esp, STACK
    jmp rax
@end:
    EXIT 0x7f
"""

# 32-bit frames have SS:ESP only when the privilege changed; the record holds garbage otherwise.
_RECORD32 = """
    push eax
    push ebx
    push ecx
    push esi
    mov ebx, CTL
    mov eax, [ebx]
    inc dword ptr [ebx]
    imul eax, eax, 80
    add eax, LOG
    xor ecx, ecx
@copy:
    mov esi, [esp+ecx*4+16]
    mov [eax+ecx*8], esi
    inc ecx
    cmp ecx, 7
    jne @copy
    mov esi, cr2
    mov [eax+56], esi
    lea esi, [esp+36]
    mov [eax+64], esi
    mov esi, cs
    mov [eax+72], esi
    mov eax, [ebx+16]
    test eax, eax
    jnz @abandon
    mov eax, [ebx+8]
    test eax, eax
    jz @end
    mov [esp+24], eax
    pop esi
    pop ecx
    pop ebx
    pop eax
    add esp, 8
    iretd
@abandon:
    mov esp, STACK
    jmp eax
@end:
    EXIT 0x7f
"""


@functools.lru_cache(maxsize=512)
def assemble(source: str, bits: int, paging: int = 0) -> Program:
    """The program of ``source`` (its label ``start`` is 0x100000) and the boot code behind it."""
    boot = "" if bits == 16 else _boot(bits, paging)
    with tempfile.NamedTemporaryFile("w", suffix=".s") as file:
        file.write(f".section text\n.bits {bits}\n{PRELUDE}\nstart:\n{source}\n{boot}\n")
        file.flush()
        return Assembler().assemble(Path(file.name))


def _boot(bits: int, paging: int) -> str:
    """Code that loads the tables and turns paging on as asked, then jumps to ``start``."""
    lines = [".section boot", "boot:", "    lgdt [gdtr]", "    lidt [idtr]"]
    if bits == 32 and paging:
        lines += [f"    mov eax, {CR4_PAE if paging == 3 else CR4_PSE}", "    mov cr4, eax"]
        if paging == 3:
            lines += ["    mov ecx, 0xc0000080", f"    mov eax, {EFER_NXE}", "    xor edx, edx",
                      "    wrmsr"]
        lines += [f"    mov eax, {TABLES}", "    mov cr3, eax", "    mov eax, cr0",
                  f"    or eax, {CR0_PG | CR0_WP}", "    mov cr0, eax"]
    if bits == 64:
        lines += ["    mov ecx, 0xc0000080", "    rdmsr", f"    or eax, {EFER_NXE | EFER_SCE}",
                  "    wrmsr", "    mov rax, cr0", f"    or eax, {CR0_WP}", "    mov cr0, rax"]
    lines += [f"    mov eax, {KDATA}", "    mov ds, ax", "    mov es, ax", "    mov ss, ax",
              f"    mov eax, {TSS_SEL}", "    ltr ax"]
    for name in "ax bx cx dx si di bp".split():
        lines.append(f"    xor e{name}, e{name}")
    lines += [f"    mov esp, {STACK}", "    jmp start", ".align 8", "gdtr:", "    .word 0x5f",
              f"    .quad {GDT}", ".align 8", "idtr:",
              f"    .word {0xfff if bits == 64 else 0x7ff}", f"    .quad {IDT}"]
    return "\n".join(lines)


@functools.lru_cache(maxsize=4)
def _recorder(bits: int) -> bytes:
    text = {64: _RECORD64, 32: _RECORD32}[bits]
    # Assembled at 0x100000 and used at RECORDER: its jumps are relative and its data absolute.
    return assemble(text, bits).sections[0].data


def descriptor(base: int, limit: int, access: int, flags: int = 0) -> int:
    """An 8-byte segment descriptor (SDM vol. 3, 3.4.5). ``flags``: G D/B L AVL."""
    return (limit & 0xFFFF | (base & 0xFFFFFF) << 16 | access << 40 | (limit >> 16 & 15) << 48
            | flags << 52 | (base >> 24) << 56)


def gate64(offset: int, selector: int = KCODE, kind: int = 0x8E, ist: int = 0) -> bytes:
    """A 16-byte gate; ``kind`` is the access byte: 0x8e interrupt, 0x8f trap, +0x60 for DPL 3."""
    return struct.pack("<HHBBHII", offset & 0xFFFF, selector, ist, kind, offset >> 16 & 0xFFFF,
                       offset >> 32, 0)


def gate32(offset: int, selector: int = KCODE32, kind: int = 0x8E) -> bytes:
    return struct.pack("<HHBBH", offset & 0xFFFF, selector, 0, kind, offset >> 16)


@dataclass(frozen=True)
class Record:
    """What a handler saw. ``sp``: the stack pointer before the frame (what is on top of it)."""

    vector: int
    error: int
    ip: int
    cs: int
    flags: int
    old_sp: int
    old_ss: int
    cr2: int
    frame_end: int
    handler_cs: int


@dataclass
class Paging:
    """Page tables in a guest's RAM. ``levels``: 2 (32-bit), 3 (PAE) or 4."""

    ram: object
    levels: int
    next: int = TABLES
    root: int = 0

    def __post_init__(self) -> None:
        self.root = self._new()

    def _new(self) -> int:
        at, self.next = self.next, self.next + 0x1000
        assert at + 0x1000 <= STACK - 0x8000
        return at

    @property
    def entry_bytes(self) -> int:
        return 4 if self.levels == 2 else 8

    def get(self, at: int) -> int:
        return int.from_bytes(self.ram.read(at, self.entry_bytes), "little")

    def put(self, at: int, entry: int) -> None:
        self.ram.write(at, entry.to_bytes(self.entry_bytes, "little"))

    def _shift(self, level: int) -> int:
        return 12 + (level - 1) * (10 if self.levels == 2 else 9)

    def slot(self, va: int, level: int = 1, upper: int = P | W | U) -> int:
        """Address of the entry that maps ``va`` at ``level``; tables above are made as needed."""
        bits = 10 if self.levels == 2 else 9
        table = self.root
        for at_level in range(self.levels, level, -1):
            slot = table + (va >> self._shift(at_level) & (1 << bits) - 1) * self.entry_bytes
            entry = self.get(slot)
            if not entry & P:
                # A PDPTE of PAE paging has no rights: those bits are reserved.
                flags = P if self.levels == 3 and at_level == 3 else upper
                entry = self._new() | flags
                self.put(slot, entry)
            assert at_level == self.levels or not entry & PS
            table = entry & 0x000FFFFFFFFFF000
        return table + (va >> self._shift(level) & (1 << bits) - 1) * self.entry_bytes

    def map(self, va: int, pa: int, flags: int, level: int = 1, upper: int = P | W | U) -> int:
        """Map one page (``level`` 1) or large page (2: 2M/4M, 3: 1G); gives its entry's address."""
        slot = self.slot(va, level, upper)
        self.put(slot, pa | flags | (PS if level > 1 else 0))
        return slot

    def identity(self, size: int = RAM) -> None:
        """Supervisor, writable, in small pages below 2 MB/4 MB and large ones above."""
        for pa in range(0, 0x200000, 0x1000):
            self.map(pa, pa, P | W)
        if self.levels == 2:
            for pa in range(0x200000, 0x400000, 0x1000):
                self.map(pa, pa, P | W)
        step = 4 << 20 if self.levels == 2 else 2 << 20
        for pa in range(step, size, step):
            self.map(pa, pa, P | W, 2)


@dataclass
class Result:
    """A finished run."""

    machine: Machine
    outcome: Outcome
    program: Program
    regs: dict[str, int] = field(default_factory=dict)

    def q(self, at: int) -> int:
        return int.from_bytes(self.machine.ram.read(at, 8), "little")

    def d(self, at: int) -> int:
        return int.from_bytes(self.machine.ram.read(at, 4), "little")

    def symbol(self, name: str) -> int:
        return self.program.symbols[name]

    @property
    def records(self) -> list[Record]:
        count = self.d(CTL_COUNT)
        assert count <= MAX_RECORDS, "the records ran over"
        return [Record(*struct.unpack("<10Q", self.machine.ram.read(LOG + 80 * i, 80)))
                for i in range(count)]

    def exit(self, name: str) -> int:
        """How often an exit of the statistics happened."""
        exits = self.machine.stats.to_json()
        flat = {**exits["exits"]["control"], **exits["exits"]["memory"], **exits["translator"]}
        return flat.get(name, 0)


class Micro:
    """One micro-guest before it runs. ``bits``: 16, 32 or 64; ``paging``: levels or 0 for none.
    ``board``: Machine's ``machine``.
    """

    def __init__(self, source: str, bits: int = 64, *, engine: str | None = None,
                 paging: int | None = None, deterministic: bool = True, hot: int = 64,
                 audit: bool = False, board: str | None = None, intercept: str = "") -> None:
        self.bits = bits
        levels = (4 if bits == 64 else 0) if paging is None else paging
        self.program = assemble(source, bits, levels)
        self.machine = Machine(engine=engine or ENGINE, ram_bytes=RAM, hot=hot, audit=audit,
                               deterministic=deterministic, intercept=intercept, machine=board)
        self.ram = self.machine.ram
        for section in self.program.sections:
            self.ram.write(section.address, section.data)
        self.pages = Paging(self.ram, levels) if levels else None
        if self.pages is not None:
            self.pages.identity()
            self.user_page(USER_STACK - 0x1000)
        for section in self.program.sections:
            if bits == 16:
                self.ram.write(section.address - CODE + BASE16, section.data)
            elif section.name == "user" and self.pages is not None:
                for at in range(section.address, section.address + section.size, 0x1000):
                    self.user_page(at)
        if bits != 16:
            self._tables()

    def symbol(self, name: str) -> int:
        return self.program.symbols[name]

    def _tables(self) -> None:
        wide = self.bits == 64
        self.set_descriptor(KCODE32, descriptor(0, 0xFFFFF, 0x9B, 0xC))
        self.set_descriptor(KCODE, descriptor(0, 0xFFFFF, 0x9B, 0xA if wide else 0xC))
        self.set_descriptor(KDATA, descriptor(0, 0xFFFFF, 0x93, 0xC))
        self.set_descriptor(UCODE32, descriptor(0, 0xFFFFF, 0xFB, 0xC))
        self.set_descriptor(UDATA, descriptor(0, 0xFFFFF, 0xF3, 0xC))
        self.set_descriptor(UCODE, descriptor(0, 0xFFFFF, 0xFB, 0xA if wide else 0xC))
        self.set_descriptor(TSS_SEL, descriptor(TSS, 0x67, 0x89))
        self.set_descriptor(KCODE16, descriptor(0, 0xFFFFF, 0x9B, 0x8))
        self.set_descriptor(KDATA16, descriptor(0, 0xFFFFF, 0x93, 0x8))
        if wide:
            self.ram.write(TSS + 4, RSP0.to_bytes(8, "little"))
            self.ram.write(TSS + 0x24, IST1.to_bytes(8, "little"))
        else:
            self.ram.write(TSS + 4, struct.pack("<II", RSP0, KDATA))
        self.ram.write(TSS + 0x66, (0x68).to_bytes(2, "little"))
        for vector in range(256):
            self.set_gate(vector)
        self.ram.write(RECORDER, _recorder(self.bits))

    def set_descriptor(self, selector: int, value: int) -> None:
        self.ram.write(GDT + (selector & ~7), value.to_bytes(8, "little"))

    def set_gate(self, vector: int, kind: int = 0x8E, *, target: int | None = None, ist: int = 0,
                 selector: int | None = None) -> None:
        """Point a vector at ``target``, or at its recording stub."""
        if target is None:
            target = STUBS + 16 * vector
            push = b"" if vector in WITH_ERROR else b"\x6a\x00"
            code = push + b"\x68" + struct.pack("<I", vector)
            code += b"\xe9" + struct.pack("<i", RECORDER - (target + len(code) + 5))
            self.ram.write(target, code)
        selector = (KCODE if self.bits == 64 else KCODE32) if selector is None else selector
        if self.bits == 64:
            self.ram.write(IDT + 16 * vector, gate64(target, selector, kind, ist))
        else:
            self.ram.write(IDT + 8 * vector, gate32(target, selector, kind))

    def user_page(self, at: int) -> None:
        """Let user mode use one identity-mapped page below 2 MB."""
        self.pages.map(at, at, P | W | U)

    def resume(self, target: str) -> None:
        """Handlers return there after recording. Default: they end the run with status 0x7f."""
        self.ram.write(CTL_RESUME, self.symbol(target).to_bytes(8, "little"))

    def abandon(self, target: str) -> None:
        """Handlers jump there after recording, in the kernel, with an empty stack."""
        self.ram.write(CTL_ABANDON, self.symbol(target).to_bytes(8, "little"))

    def enter(self) -> None:
        """Set the vCPU to the boot code (or, for 16-bit guests, straight to the test)."""
        if self.bits == 16:
            entry = EntryState(bits=16, rip=BASE16, rsp=BASE16, cs=0, ds=0)
        else:
            wide = self.bits == 64
            entry = EntryState(bits=self.bits, rip=self.symbol("boot"), rsp=STACK,
                               cr3=self.pages.root if wide else 0, gdt_base=GDT, gdt_limit=0x5F,
                               cs=KCODE if wide else KCODE32, ds=KDATA)
        self.machine.vcpu.enter(entry)

    def run(self, timeout: float = 20.0) -> Result:
        self.enter()
        outcome = self.machine.run(timeout)
        return Result(self.machine, outcome, self.program, self.machine.vcpu.registers())


def native(source: str, bits: int = 64) -> unicorn.Uc:
    """Run a program in ring 0 on plain Unicorn, paging off, until it writes to port 0x501.

    For programs that raise nothing: Unicorn delivers no exception. IF starts as 0.
    """
    program = assemble(source, bits)
    uc = unicorn.Uc(unicorn.UC_ARCH_X86,
                    unicorn.UC_MODE_64 if bits == 64 else unicorn.UC_MODE_32)
    uc.ctl_set_cpu_model(ucx.UC_CPU_X86_HASWELL)
    uc.mem_map(0, RAM)
    for section in program.sections:
        uc.mem_write(section.address, section.data)
    uc.mem_write(GDT + KDATA, descriptor(0, 0xFFFFF, 0x93, 0xC).to_bytes(8, "little"))
    uc.mem_write(GDT + KCODE, descriptor(0, 0xFFFFF, 0x9B, 0xA if bits == 64 else 0xC).to_bytes(
        8, "little"))
    uc.mem_write(GDT + KCODE32, descriptor(0, 0xFFFFF, 0x9B, 0xC).to_bytes(8, "little"))
    uc.reg_write(ucx.UC_X86_REG_GDTR, (0, GDT, 0x5F, 0))
    uc.reg_write(ucx.UC_X86_REG_CS, KCODE if bits == 64 else KCODE32)
    for reg in (ucx.UC_X86_REG_SS, ucx.UC_X86_REG_DS, ucx.UC_X86_REG_ES):
        uc.reg_write(reg, KDATA)
    uc.reg_write(ucx.UC_X86_REG_RSP if bits == 64 else ucx.UC_X86_REG_ESP, STACK)
    uc.reg_write(ucx.UC_X86_REG_EFLAGS, 2)

    def out(uc: unicorn.Uc, port: int, size: int, value: int, _data: object) -> None:
        assert port == 0x501
        uc.emu_stop()

    uc.hook_add(unicorn.UC_HOOK_INSN, out, None, 1, 0, ucx.UC_X86_INS_OUT)
    uc.emu_start(program.symbols["start"], 0, 0, 20_000_000)
    return uc
