# SPDX-License-Identifier: GPL-2.0-or-later
"""``--trace``: one line an exit, as it happens."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from translator.sensitive import TABLE

if TYPE_CHECKING:
    from bt.symbols.table import SymbolTable

_KINDS = {-1: "INT", -2: "exception", -3: "SYSCALL"}


class Tracer:
    """Writes exits to a stream; does nothing without one. ``symbols`` gives names to addresses."""

    def __init__(self, stream: TextIO | None, symbols: Callable[[], SymbolTable]) -> None:
        self._stream = stream
        self._symbols = symbols

    def exit(self, row: int, vector: int, rip: int, cpl: int, hardware: str = "") -> None:
        """``row``: of the sensitive table, or a negative kind with its ``vector``; ``hardware``:
        what the hardware calls the exit.
        """
        if self._stream is None:
            return
        if row >= 0:
            what = TABLE[row].name
        elif row == -3:
            what = _KINDS[row]
        else:
            what = f"{_KINDS[row]} {vector:#x}"
        name = self._symbols().describe(rip)
        where = f" {name}" if name else ""
        code = f" {hardware}" if hardware else ""
        self._stream.write(f"{rip:016x} cpl{cpl} {what}{code}{where}\n")
