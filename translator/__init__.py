# SPDX-License-Identifier: GPL-2.0-or-later
"""Finding and rewriting sensitive x86 instructions: bytes in, bytes out.

This package knows nothing about a VMM. Read it in this order:

1. ``sensitive``: the one table of instructions, which drives everything else;
2. ``_scan`` (compiled) and ``scanner``: which of them a piece of code contains;
3. ``rewriter``: traps in place of them, and how much room an inline stub needs;
4. ``vcpupage`` and ``stubs``: inline emulation, and the page of state it works on.
"""

import ctypes
from importlib.machinery import PathFinder
from pathlib import Path


def _load_capstone() -> None:
    """Let `_scan` find capstone's library.

    It is linked to it by its soname (libcapstone.so.5), but the wheel's file is called
    libcapstone.so: the loader finds it only if it is loaded already. The Python binding would do
    that as well, and takes a fiftieth of a second, which engines that scan nothing need not pay.
    """
    spec = PathFinder.find_spec("capstone")
    if spec is None or spec.origin is None:
        raise ImportError("no module named 'capstone'", name="capstone")
    ctypes.CDLL(str(Path(spec.origin).with_name("lib") / "libcapstone.so"))


_load_capstone()
