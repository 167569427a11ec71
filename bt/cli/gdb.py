# SPDX-License-Identifier: GPL-2.0-or-later
"""``bt run --gdb [PORT]``: open the door, say how to come in, and let gdb drive the run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bt.errors import InputError

if TYPE_CHECKING:
    from bt.gdb.server import GdbServer
    from bt.gdb.session import Segment
    from bt.machine.machine import Machine, Outcome


def add_arguments(add: Callable[..., Any]) -> None:
    """The option of ``bt run``."""
    add("--gdb", type=_port, nargs="?", const=0, metavar="PORT",
        help="wait for gdb on this port of the loopback interface (without PORT: a free one)")


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) < 65536:
        raise InputError(f"--gdb: {text!r} is no port (a guest's name goes before --gdb)")
    return int(text)


class Door:
    """gdb's way in, for one run."""

    def __init__(self, port: int, kernel: Path) -> None:
        from bt.gdb.server import GdbServer

        self._server: GdbServer = GdbServer(port)
        self._segments: tuple[Segment, ...] = ()
        symbols = self._symbols(kernel)
        host, number = self._server.address
        lines = ["bt: waiting for gdb. In gdb:"]
        if symbols is not None:
            lines.append(f"    file {symbols}")
        lines.append(f"    target remote {host}:{number}")
        print("\n".join(lines), file=sys.stderr, flush=True)

    def _symbols(self, kernel: Path) -> Path | None:
        """The file that gdb gets its names from; None if the kernel has none."""
        from bt import usercache
        from bt.gdb import symfile

        folder = usercache.find("symbols")
        if folder is None:
            print("bt: no symbols for gdb: no home folder to keep them in", file=sys.stderr)
            return None
        try:
            with symfile.kernel_elf(kernel) as elf:
                self._segments = symfile.segments(elf)
                return symfile.cached_symbol_file(kernel, elf, folder)
        except InputError:      # a flat binary, say
            return None
        except OSError as error:
            print(f"bt: no symbols for gdb: {error.strerror}", file=sys.stderr)
            return None

    def run(self, machine: Machine, timeout: float | None) -> Outcome:
        """Run the machine under gdb."""
        try:
            return self._server.run(machine, timeout, self._segments)
        finally:
            self._server.close()

    def leave(self) -> None:
        """From any thread, after ``machine.stop``: do not wait for gdb any more."""
        self._server.leave()
