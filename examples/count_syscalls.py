#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Which system calls a command makes in the guest, by name.

    python examples/count_syscalls.py [COMMAND ARGUMENT...]

The numbers' names are the kernel's own: sys_call_table holds the functions' addresses, and the
kernel's symbols their names. What its /init does around the command is counted too.
"""

from __future__ import annotations

import sys
from collections import Counter

from bt import Exit, Machine

vm = Machine.linux(sys.argv[1:] or ["ls", "/proc/self"], append="quiet")
made: Counter[int] = Counter()


@vm.on_exit("syscall")
def count(exit: Exit) -> None:
    made[exit.number] += 1


outcome = vm.run(timeout=120)
sys.stdout.write(vm.output.decode("utf-8", "replace"))

table = vm.symbols().address("sys_call_table")
assert table is not None, "the kernel has no symbol sys_call_table"
for number, times in made.most_common():
    function = vm.symbols().lookup(vm.memory.read_int(table + 8 * number))
    name = function[0].removeprefix("__x64_sys_") if function else f"number {number}"
    print(f"{times:8} {name}")
sys.exit(outcome.status)
