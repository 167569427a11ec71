#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes the documents that follow from code: ``python docs/generate.py``.

tests/docs checks that what is committed is what this writes.
"""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent

_SENSITIVE = """\
# Sensitive instructions

The instructions that a kernel one ring down must not execute as they are. This page is written by
`docs/generate.py` from `translator/sensitive.py`, the table that also drives the scanner and the
tests.

- *class*: **sensitive** instructions run at any privilege level without a fault, but show or change
  state that is not the guest's. They are the holes of trap-and-emulate on x86. **Privileged** ones
  fault outside ring 0. **Wanted** ones are harmless, but the answer belongs to the VMM.
- *encodings*: opcode bytes; `/n` is the reg field of the ModRM byte, `mem` and `reg` say what its
  mod field must name. A prefix is shown where it is mandatory.
- *modes*: sizes of the code, in bits, in which it exists.
- *translated*: in code that the guest means to run in ring 0 (kernel), in ring 3 (user). "no": it
  reaches the VMM by itself, or need not.
- *faults at CPL 1*: by the manual, with IOPL 0.
- *source*: SDM is Intel's Software Developer's Manual, APM is AMD's Architecture Programmer's
  Manual, by volume.

MOV and PUSH from DS, ES, FS and GS are not here: the vCPU holds in those four what the guest
loaded. Only CS and SS carry the real ring. The sensitive ones are those of J. Robin and C. Irvine,
"Analysis of the Intel Pentium's Ability to Support a Secure Virtual Machine Monitor", USENIX
Security 2000.

"""


def sensitive() -> str:
    """docs/sensitive.md."""
    from translator.sensitive import markdown

    return _SENSITIVE + markdown()


_EXITS = """\
# Exits

Every way into the monitor, by the name that `--stats`, `--trace`, `bt inspect` and hooks in Python
use. This page is written by `docs/generate.py`.

They are of two families. The *control unit* is about what the processor does: instructions, events,
time used up. The *memory unit* is about what it touches: translations, code pages, absent memory,
devices in memory. What a hook gets to see of each is in `bt/machine/exits.py`.

## Instructions

Rows of [the table of sensitive instructions](sensitive.md), control unit. Under `bt` each is an
exit while it is a trap; one that became a stub is none any more.

"""

_EVENTS = {
    "exception": "the processor raised it; the guest's handler gets it",
    "page fault injected": "the guest's page tables refused an access: its handler gets #PF",
    "software interrupt": "INT n, INT3, INTO of the guest",
    "SYSCALL": "system calls by SYSCALL, and under Xen hypercalls",
    "SYSENTER": "system calls by SYSENTER",
    "interrupt injected": "an interrupt controller's interrupt, delivered to the guest",
    "quantum used up": "a device's deadline passed or input came: back to the run loop",
    "translation": "a TLB miss, answered by a walk of the guest's page tables",
    "TLB flush": "everything cached was forgotten",
    "page invalidation": "one page was forgotten (INVLPG)",
    "code page written": "a store to a page of code: what was translated of it cannot run "
                         "until the page is looked at again",
    "page became code": "the first fetch from a page",
    "absent memory": "an access where there is neither RAM nor a device",
    "mmio": "an access to a device in memory",
    "page not there yet": "the first touch of a page of RAM (`hvm`: second level of translation)",
    "protected memory written": "a store to a page made read-only, which is dropped (`hvm`)",
    "page first written": "the first store to a page while writes are tracked (`hvm`)",
    "block scanned": "a block was reported before its first run (not an exit: translation work)",
    "block translated again": "something in a block was rewritten (translation work)",
    "stale trap": "a trap of ours in a block of a page that was just written (translation work)",
    "stub installed": "a hot trap became inline code (translation work)",
    "stub taken back": "a stub became a trap again (translation work)",
    "port access to a device": "of the IN and OUT above, those that asked a device in Python",
}


def exits() -> str:
    """docs/exits.md."""
    from bt.core.vcpu import PSEUDO_EXITS

    from bt.core.counters import MEMORY_UNIT
    from translator.sensitive import TABLE

    lines = ["| exit | class | what it is about |", "|---|---|---|"]
    lines += [f"| `{row.name}` | {row.instr_class} | {row.category} |" for row in TABLE]
    lines += ["", "## Events", "", "| exit | unit | meaning |", "|---|---|---|",
              f"| `exception #XX` | control | {_EVENTS['exception']} |"]
    for name in PSEUDO_EXITS.values():
        unit = "memory" if name in MEMORY_UNIT else "control"
        lines.append(f"| `{name}` | {unit} | {_EVENTS[name]} |")
    return _EXITS + "\n".join(lines) + "\n"


#: File in docs/ -> what writes it.
GENERATED = {"sensitive.md": sensitive, "exits.md": exits}

if __name__ == "__main__":
    sys.path.insert(0, str(DOCS.parent))  # a clone that is built in place
    for name, write in GENERATED.items():
        (DOCS / name).write_text(write(), encoding="utf-8")
