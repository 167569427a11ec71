# SPDX-License-Identifier: GPL-2.0-or-later
"""Hostile kernels for our own interface: random hypercalls, a scribbled vCPU page, lost stacks.

``python tests/engines/fuzz_pv.py [SECONDS [SEED]]`` runs new ones until the time is up.
"""

from __future__ import annotations

import random
import sys
import time

from pvkernel import FAR, NUMBER, RAM, assemble, call, run

from guests.asm import elf32

_VALUES = (0, 1, 2, 3, 4, 8, 0x10, 0x28, 0x80, 0x1000, 0x100000, 0x7FFFFF, RAM - 1, RAM, 0xFFFF,
           0x80000000, 0xC0000080, 0xFFE00000, 0xFFFFFFFF, 1 << 47, FAR, 1 << 63,
           0xFFFFFFFFFFE00000, 0xFFFFFFFFFFE01000, 0xFFFFFFFFFFFFFFF8, (1 << 64) - 1)


#: What mostly ends a kernel at once: rare here, so that the rest is reached.
_FATAL = frozenset(NUMBER[name] for name in ("shutdown", "halt", "iret", "sysret", "write_cr"))


def hostile(seed: int) -> str:
    """Random hypercalls, random stores to the vCPU page, some of them at a random stack."""
    rng = random.Random(seed)
    lines = []
    for _ in range(60):
        value = rng.choice(_VALUES) if rng.random() < 0.8 else rng.getrandbits(64)
        kind = rng.random()
        if kind < 0.85:
            number = rng.choice((rng.randrange(28), rng.randrange(28), rng.getrandbits(32)))
            if number in _FATAL and rng.random() < 0.9:
                number = NUMBER["read_cr"]
            others = [rng.choice(_VALUES) for _ in range(2)]
            lines.append(call(number, value, *others))
        elif kind < 0.97:
            lines += [f"    mov rax, {value:#x}",
                      f"    mov [VCPU + {rng.randrange(0, 0x1000, 8):#x}], rax"]
        else:
            lines += [f"    mov rsp, {value:#x}"]
    return "\n".join([*lines, "    EXIT"])


def survive(seed: int) -> int:
    """Run it: the hypercalls it made. The machine must end in one of the ways a machine ends."""
    machine, outcome, _ = run(elf32(assemble.__wrapped__(hostile(seed))), timeout=5, audit=True)
    assert outcome.kind in ("powered-off", "halted", "reset", "died", "timeout")
    assert machine.vcpu.audit_counters()[1] == 0, f"seed {seed}: at real CPL 0"
    assert machine.vcpu.real_cpl in (1, 3)
    return sum(machine.stats.hypercalls.values())


def main() -> None:
    """Run until the time given (300 s) is up; the seed of a failure is in its message."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 300
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns()
    end = time.monotonic() + seconds
    guests = calls = 0
    while time.monotonic() < end:
        try:
            calls += survive(seed)
        except BaseException:
            print(f"seed {seed}", file=sys.stderr)
            raise
        guests += 1
        seed += 1
    print(f"{guests} guests made {calls} hypercalls")


if __name__ == "__main__":
    main()
