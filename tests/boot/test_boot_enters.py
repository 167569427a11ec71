# SPDX-License-Identifier: GPL-2.0-or-later
"""The entry state and the tables in RAM, as a CPU sees them: small guests run on plain Unicorn.

Each reloads its segment registers from the loader's GDT, looks for what its boot protocol promises
and leaves the result in a word at 2 MB.
"""

import ctypes
import struct

import pytest
import unicorn as uc
from bootimages import MB, bzimage, elf, multiboot_header, pack, segment
from keystone import KS_ARCH_X86, KS_MODE_16, KS_MODE_32, KS_MODE_64, Ks
from unicorn import x86_const as x86

from bt.boot import load
from bt.machine.ram import Ram

RESULT = 2 * MB
CR0_PG = 1 << 31
CR4_PAE = 1 << 5
RELOAD = {
    32: "mov cx, 0x18; mov ds, cx; mov es, cx; mov ss, cx; push 0x10; push {next}; retf;",
    64: "mov cx, 0x18; mov ds, cx; mov es, cx; mov ss, cx; push 0x10; push {next}; retfq;",
}


def assemble(code: str, bits: int, at: int) -> bytes:
    mode = {16: KS_MODE_16, 32: KS_MODE_32, 64: KS_MODE_64}[bits]
    return bytes(Ks(KS_ARCH_X86, mode).asm(code, at)[0])


def guest(code: str, bits: int, at: int = MB) -> bytes:
    """``code`` at ``at``, after reloading all segments from the GDT."""
    length = len(assemble(RELOAD[bits].format(next=at), bits, at))
    reload = assemble(RELOAD[bits].format(next=at + length), bits, at)
    assert len(reload) == length
    return reload + assemble(code, bits, at + length)


def result(path, options: dict | None = None) -> int:
    """Load and run to HLT, then give the word at 2 MB."""
    ram = Ram(4 * MB)
    entry = load(path, ram, **(options or {})).entry
    bits = entry.bits
    mode = uc.UC_MODE_64 if bits == 64 else uc.UC_MODE_32
    cpu = uc.Uc(uc.UC_ARCH_X86, mode)
    cpu.mem_map_ptr(0, ram.size, uc.UC_PROT_ALL, (ctypes.c_char * ram.size).from_buffer(ram.view))
    if entry.gdt_limit:
        cpu.reg_write(x86.UC_X86_REG_GDTR, (0, entry.gdt_base, entry.gdt_limit, 0))
    if bits == 64:
        cpu.reg_write(x86.UC_X86_REG_CR3, entry.cr3)
        cpu.reg_write(x86.UC_X86_REG_CR4, cpu.reg_read(x86.UC_X86_REG_CR4) | CR4_PAE)
        cpu.reg_write(x86.UC_X86_REG_CR0, cpu.reg_read(x86.UC_X86_REG_CR0) | CR0_PG)
    for name, value in {**entry.regs, "rsp": entry.rsp}.items():
        name = name.replace("r", "e", 1) if bits == 32 else name
        cpu.reg_write(getattr(x86, f"UC_X86_REG_{name.upper()}"), value)
    cpu.emu_start(entry.rip, ram.size, count=1000)
    value = struct.unpack("<I", ram.read(RESULT, 4))[0]
    del cpu
    return value


@pytest.mark.parametrize(("bits", "pointer"), [(32, "esi"), (64, "rsi")])
def test_linux(kernel, bits, pointer):
    code = guest(f"mov eax, [{pointer} + 0x202]; mov ebx, [{pointer} + 0x228];"
                 f"xor eax, [{'r' if bits == 64 else 'e'}bx]; mov [{RESULT}], eax; hlt", bits)
    path = kernel(bzimage(pack(elf([segment(MB, code)], bits=bits), "zstd")))
    expected = int.from_bytes(b"HdrS", "little") ^ int.from_bytes(b"text", "little")
    assert result(path, {"cmdline": "text"}) == expected


def test_multiboot(kernel):
    header = multiboot_header(3)
    code = guest(f"xor eax, 0x2badb002; add eax, [ebx + 8]; mov [{RESULT}], eax; hlt", 32, MB + 12)
    path = kernel(elf([segment(MB, header + code)], bits=32, entry=MB + 12))
    assert result(path) == 3 * 1024


@pytest.mark.parametrize("bits", [32, 64])
def test_flat(kernel, bits):
    path = kernel(guest(f"mov eax, 7; mov [{RESULT}], eax; hlt", bits))
    assert result(path, {"kind": "flat", "bits": bits}) == 7


@pytest.mark.parametrize("base", [0x7C00, 0x12345])
def test_flat_real_mode(kernel, base):
    """The code finds its data through DS, and calls through its stack."""
    ip = base & 0xFFFF
    text = f"call {ip + 16}; mov [{ip + 8}], ax; hlt"
    code = assemble(text, 16, ip).ljust(16, b"\x90") + assemble("mov ax, 0x1234; ret", 16, ip + 16)
    path = kernel(code)
    ram = Ram(4 * MB)
    entry = load(path, ram, kind="flat", base=base).entry
    assert (entry.cs, entry.ds) == (base - ip >> 4, base - ip >> 4)
    cpu = uc.Uc(uc.UC_ARCH_X86, uc.UC_MODE_16)
    cpu.mem_map_ptr(0, ram.size, uc.UC_PROT_ALL, (ctypes.c_char * ram.size).from_buffer(ram.view))
    for register in (x86.UC_X86_REG_DS, x86.UC_X86_REG_SS, x86.UC_X86_REG_CS):
        cpu.reg_write(register, entry.cs)
    cpu.reg_write(x86.UC_X86_REG_SP, entry.rsp)
    cpu.emu_start(base, ram.size, count=100)
    assert ram.read(base + 8, 2) == b"\x34\x12"
