# SPDX-License-Identifier: GPL-2.0-or-later
"""What a loader hands to the machine: the vCPU at the guest's first instruction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class EntryState:
    """What the vCPU holds at the guest's first instruction. Addresses are in bytes.

    ``bits`` says how the CPU runs: 16 is real mode (segment bases are selector * 16), 32 is
    protected mode with paging off, 64 is long mode with paging on. In 32 and 64 the segments are
    flat: base 0, limit 4 GiB. Interrupts are off (IF = 0) and the direction flag is clear.
    """

    bits: int
    rip: int
    rsp: int = 0
    #: The other general registers by 64-bit name ("rax", "rsi", ...); those absent are 0.
    regs: Mapping[str, int] = field(default_factory=dict)
    #: 64-bit only: guest-physical address of the PML4 that the loader built.
    cr3: int = 0
    #: Address and limit (size - 1) of a GDT that the loader built; 0, 0 is none.
    gdt_base: int = 0
    gdt_limit: int = 0
    #: Selectors; ss, es, fs and gs hold what ds holds.
    cs: int = 0x10
    ds: int = 0x18


@dataclass(frozen=True)
class Loaded:
    """A guest that lies in RAM, ready to start."""

    entry: EntryState
    #: "linux bzImage", "linux ELF", "multiboot" or "flat".
    kind: str
    #: One line for people: what was loaded, and how.
    description: str
