# SPDX-License-Identifier: GPL-2.0-or-later
"""Plain Unicorn at a chosen ring: what stubs and native instructions are compared on.

Memory is flat and identity-mapped, but for the vCPU page, which is at the top of the address space
(Unicorn's TLB asks us: there is no page table). In 64-bit code writing CS does not change the ring,
so the CPU gets there as an operating system would, by IRET through a descriptor of that ring.
"""

import struct
from dataclasses import dataclass, field

import unicorn
from unicorn import x86_const as uc_x86

from translator import vcpupage
from translator.stubs import Point, Stub

CODE, STUB, STACK, TABLES, PAGE = 0x100000, 0x200000, 0x300000, 0x400000, 0x500000
VCPU = {64: 0xFFFF_FFFF_FFFE_0000, 32: 0xFFFE_0000}
STACK_SIZE = 0x2000
UNMAPPED = 0x900000
NAMES = {
    64: "rax rcx rdx rbx rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split(),
    32: "eax ecx edx ebx ebp esi edi".split(),
}
ARITHMETIC = 0x8D5                    # OF SF ZF AF PF CF
DF, ID, IF, IOPL = 0x400, 0x20_0000, 0x200, 0x3000


def register(name: str) -> int:
    return getattr(uc_x86, f"UC_X86_REG_{name.upper()}")


@dataclass
class State:
    """Everything an instruction under test could change."""

    ip: int
    sp: int
    flags: int
    gpr: dict
    stack: bytes = field(repr=False)
    gs_base: int = 0


class RingCpu:
    def __init__(self, bits: int, ring: int):
        self.bits, self.ring = bits, ring
        mode = unicorn.UC_MODE_64 if bits == 64 else unicorn.UC_MODE_32
        self.uc = uc = unicorn.Uc(unicorn.UC_ARCH_X86, mode)
        uc.ctl_set_cpu_model(uc_x86.UC_CPU_X86_HASWELL)
        for base in (CODE, STUB, TABLES, PAGE):
            uc.mem_map(base, 0x1000)
        uc.mem_map(STACK, STACK_SIZE)
        self.ip, self.sp = register("rip" if bits == 64 else "eip"), register(
            "rsp" if bits == 64 else "esp")
        self.flags = register("rflags" if bits == 64 else "eflags")
        self.traps: list[int] = []
        uc.ctl_set_tlb_mode(unicorn.UC_TLB_VIRTUAL)
        uc.hook_add(unicorn.UC_HOOK_TLB_FILL, self._fill)
        uc.hook_add(unicorn.UC_HOOK_INTR, self._interrupt)
        uc.ctl_exits_enabled(True)
        self._enter_ring()
        if bits == 64:
            uc.reg_write(uc_x86.UC_X86_REG_CR4, 1 << 16)       # FSGSBASE
        self.start = uc.context_save()

    def _interrupt(self, uc, number, _data):
        self.traps.append(number)
        uc.emu_stop()

    def _fill(self, _uc, address, _access, entry, _data):
        if address == VCPU[self.bits]:
            entry.paddr = PAGE
        elif address < UNMAPPED:
            entry.paddr = address
        else:
            return False
        # Unicorn is slow to write pages that are executable as well.
        data = address == VCPU[self.bits] or STACK <= address < STACK + STACK_SIZE
        entry.perms = unicorn.UC_PROT_READ | (
            unicorn.UC_PROT_WRITE if data else unicorn.UC_PROT_EXEC)
        return True

    def _enter_ring(self) -> None:
        uc, ring = self.uc, self.ring
        size = 0xAF if self.bits == 64 else 0xCF
        table = struct.pack("<Q", 0)
        for level in (0, ring):
            for kind in (0x9B, 0x93):
                table += struct.pack("<HHBBBB", 0xFFFF, 0, 0, kind | level << 5, size, 0)
        uc.mem_write(TABLES, table)
        uc.reg_write(uc_x86.UC_X86_REG_GDTR, (0, TABLES, len(table) - 1, 0))
        if self.bits == 32:
            for name in ("cs", "ds", "es", "ss"):
                uc.reg_write(register(name), 8 if name == "cs" else 16)
        code, data = 0x18 | ring, 0x20 | ring
        frame = struct.pack("<5Q" if self.bits == 64 else "<5I",
                            CODE, code, 2, STACK + 0x1000, data)
        uc.mem_write(STACK + 0x800, frame)
        uc.reg_write(self.sp, STACK + 0x800)
        uc.mem_write(STUB, b"\x48\xcf" if self.bits == 64 else b"\xcf")
        uc.reg_write(self.ip, STUB)
        self.run(CODE)
        if self.bits == 32:
            for name in ("ds", "es"):
                uc.reg_write(register(name), data)
        assert uc.reg_read(uc_x86.UC_X86_REG_CS) & 3 == ring

    def load(self, state: State) -> None:
        self.uc.context_restore(self.start)
        self.traps.clear()
        self.uc.mem_write(STACK, state.stack)
        for name, value in state.gpr.items():
            self.uc.reg_write(register(name), value)
        self.uc.reg_write(self.sp, state.sp)
        self.uc.reg_write(self.flags, state.flags | 2)
        if self.bits == 64:
            self.uc.reg_write(uc_x86.UC_X86_REG_GS_BASE, state.gs_base)
        self.uc.reg_write(self.ip, state.ip)

    def save(self) -> State:
        read = self.uc.reg_read
        return State(read(self.ip), read(self.sp), read(self.flags) & ~2,
                     {name: read(register(name)) for name in NAMES[self.bits]},
                     bytes(self.uc.mem_read(STACK, STACK_SIZE)),
                     read(uc_x86.UC_X86_REG_GS_BASE) if self.bits == 64 else 0)

    def run(self, *until: int) -> None:
        """From the current RIP to one of ``until``, or to the first interrupt."""
        self.uc.ctl_set_exits(until)
        self.uc.ctl_flush_tb()           # where to stop is part of Unicorn's translated code
        self.uc.emu_start(self.uc.reg_read(self.ip), 0, count=200)

    def field(self, offset: int) -> int:
        return struct.unpack("<Q", self.uc.mem_read(PAGE + offset, 8))[0]

    def set_fields(self, **values: int) -> None:
        for name, value in values.items():
            self.uc.mem_write(PAGE + getattr(vcpupage, name), struct.pack("<Q", value))

    def leave(self, point: Point) -> None:
        """What a VMM does at a point of a stub: the guest's state, and RIP back in guest code."""
        read, write = self.uc.reg_read, self.uc.reg_write
        wide = self.bits == 64
        for bit, name, saved in ((1, "rcx" if wide else "ecx", vcpupage.SAVE0),
                                 (2, "rdx" if wide else "edx", vcpupage.SAVE1)):
            if point.restore & bit:
                write(register(name), self.field(saved) & (1 << self.bits) - 1)
        write(self.sp, read(self.sp) + point.rsp)
        write(self.ip, point.orig)

    def enter(self, stub: Stub) -> None:
        """Where guest code goes on inside a replaced region: at the stub's copy of it."""
        here = self.uc.reg_read(self.ip)
        for point in stub.points:
            if point.clean and point.orig == here:
                self.uc.reg_write(self.ip, STUB + point.offset)
