# SPDX-License-Identifier: GPL-2.0-or-later
"""Ring1's own paravirtual interface in numbers; docs/pv-abi.md says what they mean.

A kernel declares the interface by an ELF note. What `patcher` makes of a kernel has two notes more
and a segment: the stubs, which the VMM puts into its own window, and the list of the traps.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from translator import vcpupage

VERSION = 1
VECTOR = 0x82                           # of the hypercall interrupt
HYPERCALL_SLOT = 32                     # bytes of the hypercall page for each hypercall

#: The window: the vCPU page, then (in the VMM's memory) the stubs of a patched kernel. In 32-bit
#: code it is at the low half of the same address.
WINDOW = 0xFFFF_FFFF_FFE5_7000
WINDOW32 = WINDOW & 0xFFFF_FFFF
STUBS_OFFSET = 0x1000
STUBS_ROOM = 0x3F000

NOTE_NAME = b"Ring1\0"
NOTE_INTERFACE = 1                      # the kernel speaks this interface: INTERFACE
NOTE_TRAPS = 2                          # INT3 that stand for instructions: TRAP each
INTERFACE = struct.Struct("<IIQQ")      # version, flags (0), hypercall page, vCPU page
TRAP = struct.Struct("<QQQBB15s7x")     # trap, address, resume, bits, length, code
#: Program-header type of the stubs (in the range for operating systems: loaders skip it).
PT_STUBS = 0x6052_0001

HYPERCALLS: tuple[str, ...] = (
    "version", "features", "set_gdt", "set_idt", "set_ldt", "set_tss", "set_stack", "read_cr",
    "write_cr", "invlpg", "flush_tlb", "iret", "sysret", "sti", "halt", "in", "out", "rdmsr",
    "wrmsr", "cpuid", "read_tsc", "set_segment", "set_segment_base", "swapgs", "console_write",
    "shutdown",
)
NUMBERS: dict[str, int] = {name: number for number, name in enumerate(HYPERCALLS)}

SHUTDOWN_POWEROFF, SHUTDOWN_REBOOT, SHUTDOWN_CRASH = range(3)


class Trap(NamedTuple):
    """An INT3 at ``trap`` that stands for the instruction ``code``, ``bits`` wide, at ``address``.

    After it the kernel goes on at ``resume``. Addresses are linear; ``trap`` may lie in the window.
    """

    trap: int
    address: int
    resume: int
    bits: int
    code: bytes


def pack_traps(traps: Iterable[Trap]) -> bytes:
    """The descriptor of a NOTE_TRAPS."""
    return b"".join(TRAP.pack(t.trap, t.address, t.resume, t.bits, len(t.code), t.code)
                    for t in traps)


def unpack_traps(desc: bytes) -> Iterator[Trap]:
    """The traps of a note. Raises ValueError for what is not a whole table."""
    if len(desc) % TRAP.size:
        raise ValueError("the table of traps is cut short")
    for trap, address, resume, bits, length, code in TRAP.iter_unpack(desc):
        if bits not in (16, 32, 64) or not 1 <= length <= 15:
            raise ValueError("the table of traps has an entry that is none")
        yield Trap(trap, address, resume, bits, code[:length])


def note(kind: int, desc: bytes) -> bytes:
    """One ELF note of ours (System V ABI, "Note Section"; the name is padded to 4 bytes)."""
    name = NOTE_NAME.ljust(len(NOTE_NAME) + 3 & -4, b"\0")
    return (struct.pack("<III", len(NOTE_NAME), len(desc), kind) + name
            + desc.ljust(len(desc) + 3 & -4, b"\0"))


def notes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Our notes in a note segment: (type, descriptor). Stops where the rest makes no sense."""
    at = 0
    while at + 12 <= len(data):
        name_size, size, kind = struct.unpack_from("<III", data, at)
        start = at + 12 + (name_size + 3 & -4)
        if start + size > len(data):
            return
        if data[at + 12:at + 12 + name_size] == NOTE_NAME:
            yield kind, data[start:start + size]
        at = start + (size + 3 & -4)


def hypercall_page() -> bytes:
    """What the VMM writes to the hypercall page: a routine for each hypercall, to be called.

    IRET expects RAX on the stack, on top of the frame, and SYSRET in the vCPU page; their
    routines put it there, and are jumped to.
    """
    page = bytearray(b"\xCC" * 4096)
    for number, name in enumerate(HYPERCALLS):
        code = b"\xB8" + struct.pack("<I", number) + bytes([0xCD, VECTOR])  # mov eax, n; int 0x82
        if name == "iret":
            code = b"\x50" + code                                       # push rax
        elif name == "sysret":
            # mov [WINDOW + SAVE0], rax: only 64-bit kernels have SYSRET
            code = b"\x48\x89\x04\x25" + struct.pack(
                "<I", WINDOW + vcpupage.SAVE0 & 0xFFFF_FFFF) + code
        else:
            code += b"\xC3"
        page[number * HYPERCALL_SLOT:number * HYPERCALL_SLOT + len(code)] = code
    return bytes(page)
