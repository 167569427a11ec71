# SPDX-License-Identifier: GPL-2.0-or-later
"""Breakpoints: stop before an instruction, and call a function or end the run.

The vCPU hides them: the guest's memory has no trace of one. An address is linear and counts in
every address space. A symbol's address is the one it has when the breakpoint is made; Linux is
where its file says (the part of it that would move it, its decompressor, never runs here).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from bt.errors import InputError

if TYPE_CHECKING:
    from bt.machine.machine import Machine

Action = Callable[["Machine"], object]


class Breakpoint:
    """One breakpoint. ``hits`` counts; ``name`` is what it was asked for by."""

    def __init__(self, debugger: Debugger, address: int, name: str, action: Action | None) -> None:
        self._debugger = debugger
        self.address = address
        self.name = name
        self.action = action
        self.hits = 0

    def remove(self) -> None:
        """Never stop there again. Doing it twice is no error."""
        self._debugger.remove(self)

    def __repr__(self) -> str:
        return f"<Breakpoint {self.name} at {self.address:#x}, {self.hits} hits>"


class Debugger:
    """The breakpoints of one machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._at: dict[int, list[Breakpoint]] = {}

    def add(self, where: int | str, action: Action | None = None) -> Breakpoint:
        """A breakpoint at a linear address or a symbol. Raises InputError for one that is none.

        ``action(machine)`` is called each time, before the instruction; the guest goes on behind
        it unless it calls ``machine.stop``. Without one the run ends, with kind "breakpoint".
        """
        address = self._address(where)
        name = where if isinstance(where, str) else f"{where:#x}"
        found = Breakpoint(self, address, name, action)
        if address not in self._at:
            try:
                self._machine.vcpu.set_breakpoint(address)
            except ValueError as error:
                raise InputError(f"no breakpoint at {name}: {error}") from None
        self._at.setdefault(address, []).append(found)
        return found

    def remove(self, breakpoint: Breakpoint) -> None:
        """See :meth:`Breakpoint.remove`."""
        here = self._at.get(breakpoint.address, [])
        if breakpoint not in here:
            return
        # A new list: the one of a breakpoint that removes itself is being gone through.
        self._at[breakpoint.address] = left = [one for one in here if one is not breakpoint]
        if not left:
            del self._at[breakpoint.address]
            self._machine.vcpu.clear_breakpoint(breakpoint.address)

    def all(self) -> list[Breakpoint]:
        """Every breakpoint, in the order of addresses."""
        return [one for address in sorted(self._at) for one in self._at[address]]

    def hit(self) -> bool:
        """The vCPU stopped at a breakpoint. True: the run ends, False: it goes on."""
        ends = False
        for breakpoint in self._at.get(self._machine.vcpu.linear_rip, ()):
            breakpoint.hits += 1
            if breakpoint.action is None:
                ends = True
            else:
                breakpoint.action(self._machine)
        return ends

    def _address(self, where: int | str) -> int:
        if isinstance(where, int):
            if not 0 <= where < 1 << 64:
                raise InputError(f"{where:#x} is no address")
            return where
        name, plus, offset = where.partition("+")
        found = self._machine.symbols().address(name.strip())
        if found is None:
            raise InputError(f"the guest's kernel has no symbol {name.strip()!r}")
        try:
            return found + int(offset, 0) if plus else found
        except ValueError:
            raise InputError(f"{offset!r} is no offset") from None
