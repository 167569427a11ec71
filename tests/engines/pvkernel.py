# SPDX-License-Identifier: GPL-2.0-or-later
"""Small kernels for engine pv: assembly in, a machine that has run it out."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from bt.machine.machine import Machine, Outcome
from guests.asm import Assembler, Program, elf32
from translator import pvabi

LIB = Path(__file__).parents[2] / "guests" / "lib"
RAM = 8 << 20
FAR = 0x7FFFFFFFF000            # a canonical address that the test kernels do not map
NUMBER = pvabi.NUMBERS

#: 64-bit kernel at ``main``, identity-mapped, interrupts off; one macro for the end of the run.
LONG = """
.include "{lib}/boot.s"
.include "{lib}/longmode.s"
{pv}
.macro EXIT status=0
    mov al, \\status
    mov dx, EXIT_PORT
    OUT_AL
    HLT
.endm
.equ KCODE, 0x08
.equ KDATA, 0x10
.equ UDATA, 0x1b
.equ UCODE, 0x23
start:
    CLI
    mov esp, stack_top
    ENTER_LONG_MODE page_tables, 1, gdt_pointer, KCODE, KDATA, main
.bits 64
main:
    mov rsp, stack_top
{source}
.section data
.align 8
gdt:
.quad 0
DESCRIPTOR 0, 0xfffff, 0x9b, 0xa
DESCRIPTOR 0, 0xfffff, 0x93, 0xc
DESCRIPTOR 0, 0xfffff, 0xf3, 0xc
DESCRIPTOR 0, 0xfffff, 0xfb, 0xa
gdt_tss:
DESCRIPTOR tss, 103, 0x89, 0
.quad 0
gdt_end:
gdt_pointer:
.word gdt_end - gdt - 1
.quad gdt
.align 16
tss: .space 104
results: .space 2048
{data}
.section bss
page_tables: .space 0x3000
.align 4096
.space 0x4000
stack_top:
"""

#: 32-bit kernel at ``start``, paging off.
PROTECTED = """
.include "{lib}/boot.s"
{pv}
{source}
.section data
results: .space 2048
{data}
.section bss
.align 4096
page_tables: .space 0x2000
.space 0x1000
stack_top:
"""


@functools.lru_cache(maxsize=64)
def assemble(source: str, *, form: str = LONG, pv: bool = True, data: str = "") -> Program:
    """The kernel of ``source``; with ``pv`` it declares the interface and has its macros."""
    include = f'.include "{LIB}/pv.s"' if pv else ""
    with tempfile.NamedTemporaryFile("w", suffix=".s") as file:
        file.write(form.format(lib=LIB, pv=include, source=source, data=data))
        file.flush()
        return Assembler().assemble(Path(file.name))


def run(image: bytes, engine: str = "pv", timeout: float = 60, **options: object
        ) -> tuple[Machine, Outcome, str]:
    """Run a kernel image to its end: the machine, the outcome, what it printed."""
    printed = bytearray()
    machine = Machine(engine=engine, ram_bytes=RAM, console=printed.extend,
                      **options)  # type: ignore[arg-type]
    with tempfile.NamedTemporaryFile(suffix=".elf") as file:
        file.write(image)
        file.flush()
        machine.load(Path(file.name))
    outcome = machine.run(timeout=timeout)
    return machine, outcome, printed.decode("latin-1")


def run_source(source: str, **how: object) -> tuple[Machine, Outcome, list[int]]:
    """Assemble, run under pv, and give the 64-bit words at ``results``."""
    program = assemble(source, **how)  # type: ignore[arg-type]
    machine, outcome, _ = run(elf32(program))
    return machine, outcome, words(machine, program)


def words(machine: Machine, program: Program, count: int = 256) -> list[int]:
    """The 64-bit words at ``results``."""
    raw = machine.ram.read(program.symbols["results"], 8 * count)
    return [int.from_bytes(raw[i:i + 8], "little") for i in range(0, len(raw), 8)]


def call(name: str | int, *arguments: int) -> str:
    """A hypercall in 64-bit code; RAX and RDX have the results."""
    number = NUMBER[name] if isinstance(name, str) else name
    loads = [f"    mov {register}, {value:#x}" for register, value in zip(
        ("rdi", "rsi", "rdx"), arguments, strict=False)]
    return "\n".join([*loads, f"    mov eax, {number:#x}", "    int 0x82"])
