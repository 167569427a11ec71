# SPDX-License-Identifier: GPL-2.0-or-later
"""The hooks of a machine: who is called at which exit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from bt.core import vcpu as core
from bt.errors import InputError
from bt.machine.exit_reasons import BY_NUMBER, NEWS, Reason, find_reasons
from bt.machine.exits import Exit

if TYPE_CHECKING:
    from bt.machine.machine import Machine

Hook = Callable[[Exit], object]


class ExitHooks:
    """The hooks of one machine, and the way from the core's numbers to an :class:`Exit`.

    Engines without the compiled core call :meth:`fire` with the same arguments.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._hooks: dict[tuple[int, int], list[Hook]] = {}
        self._phases: dict[int, int] = {}

    def add(self, names: Iterable[str], when: str, hook: Hook) -> None:
        """Call ``hook`` at these exits.

        Raises InputError for a name or time that is none, and for an exit that this engine cannot
        have; then none is hooked. Of a group, those that it can have.
        """
        if when not in ("before", "after"):
            raise InputError(f'when is "before" or "after", not {when!r}')
        phase = core.BEFORE if when == "before" else core.AFTER
        wanted = [find_reasons(name) for name in names]     # all, before any hook is there
        added: list[tuple[int, int]] = []
        try:
            for found in wanted:
                added += self._add_some(found, phase, hook)
        except InputError:
            for key in added:
                self._take_one(key, hook)
            raise

    def _add_some(self, found: Iterable[Reason], phase: int, hook: Hook) -> list[tuple[int, int]]:
        """Add to those that this engine can have: the keys. Raises InputError if it has none."""
        added = []
        refused = None
        for reason in found:
            # News come once: then they count as before.
            key = reason.number, core.BEFORE if reason.name in NEWS else phase
            # A new list, here and below: a hook may add and remove while the old is gone through.
            self._hooks[key] = [*self._hooks.get(key, ()), hook]
            try:
                self._tell(reason.number)
            except InputError as error:
                self._take_one(key, hook)
                refused = error
            else:
                added.append(key)
        if refused and not added:
            raise refused
        return added

    def _take_one(self, key: tuple[int, int], hook: Hook) -> None:
        """Undo one adding of ``hook``, the last: it may have been there before."""
        hooks = list(reversed(self._hooks[key]))
        hooks.remove(hook)
        self._hooks[key] = hooks[::-1]
        self._tell(key[0])

    def remove(self, hook: Hook) -> None:
        """Take a hook off every exit it is on."""
        for key, hooks in self._hooks.items():
            if hook in hooks:
                self._hooks[key] = [one for one in hooks if one != hook]
                self._tell(key[0])

    def wanted(self, number: int, phase: int) -> bool:
        """Whether anybody hooks exit ``number`` at this phase."""
        return bool(self._phases.get(number, 0) & phase)

    def _tell(self, number: int) -> None:
        before, after = (bool(self._hooks.get((number, phase)))
                         for phase in (core.BEFORE, core.AFTER))
        self._phases[number] = before * core.BEFORE | after * core.AFTER
        self._machine.vcpu.set_hook(number, before, after)

    def fire(self, number: int, phase: int, rip: int, cpl: int, bits: int, hardware_code: int,
             code: bytes, arguments: tuple[int, ...], limits: int) -> tuple[int, int, int]:
        """Call the hooks of one exit; the last to decide decides. See ``Vcpu.set_hook``."""
        hooks = self._hooks.get((number, phase))
        if not hooks:
            return core.GO, 0, 0
        exit_ = Exit(self._machine, BY_NUMBER[number],
                     "before" if phase == core.BEFORE else "after",
                     rip, cpl, bits, hardware_code, code, arguments, limits)
        for hook in hooks:
            hook(exit_)
        return exit_.decision
