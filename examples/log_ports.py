#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Every access to an I/O port, with what was read or written, and from where.

    python examples/log_ports.py [GUEST]        # a name from `bt guests`
"""

from __future__ import annotations

import sys

from bt import Exit, Machine

vm = Machine.guest(sys.argv[1] if len(sys.argv) > 1 else "hello")


@vm.on_exit("port read", "port write", when="after")
def log(exit: Exit) -> None:
    way = "->" if exit.reason == "port read" else "<-"
    print(f"{exit.rip:#10x}  port {exit.port:#06x} {way} {exit.value:#0{2 + 2 * exit.size}x}")


sys.exit(vm.run(timeout=60).status)
