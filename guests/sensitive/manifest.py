# SPDX-License-Identifier: GPL-2.0-or-later
"""Which rows of the table of sensitive instructions the guests execute, and where.

Read from the assembled guests, so it cannot disagree with them. A row's name is that of
``translator/sensitive.py``; rows that are not there (PAGES, BOUND, ARPL) are extras of the guests.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from .. import get
from ..asm import Assembler

KERNEL, USER = 1, 2
GUESTS = ("sensitive", "sensitive32")
_RECORD = struct.Struct("<10I")  # the R_* fields of harness.s


@dataclass(frozen=True)
class Case:
    """One case: ``row`` and ``label``, code width, and the modes (KERNEL | USER) it runs in."""

    guest: str
    row: str
    label: str
    bits: int
    modes: int

    def lines(self) -> tuple[str, ...]:
        """The beginnings of the lines that the guest prints for it."""
        names = [name for bit, name in ((KERNEL, "kernel"), (USER, "user")) if self.modes & bit]
        return tuple(f"{self.row}.{self.label} {self.bits}-bit {name}" for name in names)


def cases(guest: str) -> list[Case]:
    """Every case of ``sensitive`` or ``sensitive32``, in the order they run."""
    sections = {s.name: s for s in Assembler().assemble(get(guest).source).sections}
    names = sections["names"]

    def text(address: int) -> str:
        start = address - names.address
        return names.data[start:names.data.index(b"\0", start)].decode()

    return [Case(guest, text(row), text(label), bits, modes)
            for row, label, _code, bits, modes, *_rest in _RECORD.iter_unpack(
                sections["cases"].data)]


def coverage() -> dict[str, dict[int, list[Case]]]:
    """Row name -> code width -> cases, over both guests."""
    rows: dict[str, dict[int, list[Case]]] = {}
    for guest in GUESTS:
        for case in cases(guest):
            rows.setdefault(case.row, {}).setdefault(case.bits, []).append(case)
    return rows
