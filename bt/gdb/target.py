# SPDX-License-Identifier: GPL-2.0-or-later
"""What gdb is told of the CPU: registers in order, for 64- and for 32-bit code.

gdb demands its feature org.gnu.gdb.i386.core with these names in this order, the x87 ones among
them (gdb manual, G.5.5 i386 Features). Those are "unavailable" here. Segment bases and control
registers follow, as QEMU's stub has them.
"""

from __future__ import annotations

from typing import NamedTuple


class Register(NamedTuple):
    """One register: gdb's name and type, its size in bits, and ours (None: not available)."""

    name: str
    bits: int
    kind: str
    ours: str | None


_SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs")
_X87 = ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")


def _core(names: tuple[str, ...], bits: int) -> list[Register]:
    prefix = "r" if bits == 64 else "e"
    found = [Register(name, bits, "data_ptr" if name[1:] in ("sp", "bp") else f"int{bits}",
                      "r" + name[1:] if bits == 32 else name) for name in names]
    found.append(Register(prefix + "ip", bits, "code_ptr", "rip"))
    found.append(Register("eflags", 32, "i386_eflags", "rflags"))
    found += [Register(name, 32, "int32", name) for name in _SEGMENTS]
    found += [Register(f"st{n}", 80, "i387_ext", None) for n in range(8)]
    found += [Register(name, 32, "int", None) for name in _X87]
    system = ["cr0", "cr2", "cr3", "cr4"]
    if bits == 64:
        system = ["fs_base", "gs_base", "kernel_gs_base", *system, "cr8", "efer"]
    found += [Register("k_gs_base" if name == "kernel_gs_base" else name, bits, f"int{bits}", name)
              for name in system]
    return found


#: In gdb's order, which is not the CPU's.
X86_64 = _core(("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp",
                *(f"r{n}" for n in range(8, 16))), 64)
I386 = _core(("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi"), 32)

_FLAGS = {0: "CF", 2: "PF", 4: "AF", 6: "ZF", 7: "SF", 8: "TF", 9: "IF", 10: "DF", 11: "OF",
          14: "NT", 16: "RF", 17: "VM", 18: "AC", 19: "VIF", 20: "VIP", 21: "ID"}


def description(registers: list[Register]) -> str:
    """target.xml (gdb manual, G.2)."""
    wide = registers is X86_64
    flags = "".join(f'<field name="{name}" start="{bit}" end="{bit}"/>'
                    for bit, name in _FLAGS.items())
    lines = "\n".join(f'<reg name="{r.name}" bitsize="{r.bits}" type="{r.kind}"/>'
                      for r in registers)
    return f"""<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd">
<target version="1.0"><architecture>{'i386:x86-64' if wide else 'i386'}</architecture>
<feature name="org.gnu.gdb.i386.core"><flags id="i386_eflags" size="4">{flags}</flags>
{lines}
</feature></target>
"""
