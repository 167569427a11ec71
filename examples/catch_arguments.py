#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The arguments of a kernel function, each time it is called: which files are opened.

    python examples/catch_arguments.py [COMMAND ARGUMENT...]

do_sys_openat2(int dfd, const char *filename, struct open_how *how): the first arguments of a
function are in RDI, RSI and RDX (System V ABI); struct open_how begins with the flags.
"""

from __future__ import annotations

import sys

from bt import Machine
from bt.machine.machine import Machine as AnyMachine

vm = Machine.linux(sys.argv[1:] or ["cat", "/etc/passwd", "/proc/version"], append="quiet")


def opened(vm: AnyMachine) -> None:
    name = vm.memory.read_text(vm.registers["rsi"])
    flags = vm.memory.read_int(vm.registers["rdx"])
    print(f"open {name} flags {flags:#o}")


vm.breakpoint("do_sys_openat2", opened)
outcome = vm.run(timeout=120)
sys.stdout.write(vm.output.decode("utf-8", "replace"))
sys.exit(outcome.status)
