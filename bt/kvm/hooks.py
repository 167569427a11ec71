# SPDX-License-Identifier: GPL-2.0-or-later
"""Hooks on the exits that KVM has; the processor does all the others itself."""

from __future__ import annotations

from collections.abc import Callable

from bt.errors import InputError
from bt.machine import exit_reasons

#: What can be hooked. "rdmsr" and "wrmsr" are those of MSRs that KVM leaves to the machine.
REASONS = ("port read", "port write", "mmio", "absent memory", "rdmsr", "wrmsr", "hlt",
           "interrupt injected", "quantum used up")
_NUMBERS = {name: exit_reasons.REASONS[name].number for name in REASONS}
_NAMES = {number: name for name, number in _NUMBERS.items()}
_BEFORE, _AFTER = 1, 2
_GO = 0
_NO_INJECT, _NO_SKIP = 1, 2

Fire = Callable[[int, int, tuple[int, ...], int], tuple[int, int, int]]


class KvmHooks:
    """Which exits of one vCPU are hooked, and what hooks make of them.

    ``fire(number, phase, arguments, limits)`` calls the hooks: the arguments of
    bt.machine.exit_hooks.ExitHooks.fire, less those that the vCPU knows.
    """

    def __init__(self, fire: Fire) -> None:
        self._fire = fire
        self._phases: dict[str, int] = {}

    def set(self, number: int, before: bool, after: bool) -> None:
        """See ``VirtualCpu.set_hook``. Raises InputError for an exit that KVM does not have."""
        name = _NAMES.get(number)
        if name is not None:
            self._phases[name] = before * _BEFORE | after * _AFTER
        elif before or after:
            found = exit_reasons.BY_NUMBER[number].name
            raise InputError(f"engine kvm has no exit {found!r}: it has {', '.join(REASONS)}")

    def before(self, name: str, arguments: tuple[int, ...], *, news: bool = False) -> int | None:
        """None: deal with the exit. A number: a hook has, and this is the result.

        ``news``: it has happened already, and nothing can be done about it.
        """
        if not self._phases.get(name, 0) & _BEFORE:
            return None
        limits = _NO_INJECT | (_NO_SKIP if news else 0)
        action, result, _ = self._fire(_NUMBERS[name], _BEFORE, arguments, limits)
        return None if action == _GO else result

    def wants_after(self, name: str) -> bool:
        """Whether :meth:`after` does anything."""
        return bool(self._phases.get(name, 0) & _AFTER)

    def after(self, name: str, arguments: tuple[int, ...]) -> int | None:
        """A number: a hook wants this result in place of the one that there was."""
        if not self._phases.get(name, 0) & _AFTER:
            return None
        action, result, _ = self._fire(_NUMBERS[name], _AFTER, arguments, _NO_INJECT)
        return None if action == _GO else result

    def read(self, name: str, arguments: tuple[int, ...], do: Callable[[], int]) -> int:
        """A read of a port or device; hooks get the value last."""
        value = self.before(name, (*arguments, 0))
        if value is not None:
            return value
        value = do()
        other = self.after(name, (*arguments, value))
        return value if other is None else other

    def write(self, name: str, arguments: tuple[int, ...], do: Callable[[], None]) -> None:
        """A write to a port or device; the value is the last argument."""
        if self.before(name, arguments) is None:
            do()
            self.after(name, arguments)
