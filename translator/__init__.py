# SPDX-License-Identifier: GPL-2.0-or-later
"""Finding and rewriting sensitive x86 instructions: bytes in, bytes out.

This package knows nothing about a VMM. Read it in this order:

1. ``sensitive``: the one table of instructions, which drives everything else;
2. ``_scan`` (compiled) and ``scanner``: which of them a piece of code contains;
3. ``rewriter``: traps in place of them, and how much room an inline stub needs;
4. ``vcpupage`` and ``stubs``: inline emulation, and the page of state it works on.
"""

# `_scan` is linked to capstone's library by its soname (libcapstone.so.5), but the wheel's file is
# called libcapstone.so: the loader finds it only because the Python binding has loaded it already.
import capstone  # noqa: F401
