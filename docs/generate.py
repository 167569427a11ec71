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


#: File in docs/ -> what writes it.
GENERATED = {"sensitive.md": sensitive}

if __name__ == "__main__":
    sys.path.insert(0, str(DOCS.parent))  # a clone that is built in place
    for name, write in GENERATED.items():
        (DOCS / name).write_text(write(), encoding="utf-8")
