# SPDX-License-Identifier: GPL-2.0-or-later
"""What an exit can be: the names a hook is asked for by, and the core's numbers behind them."""

from __future__ import annotations

import difflib
from typing import Literal, NamedTuple

from bt.core import vcpu as core
from bt.core.counters import EXCEPTIONS, MEMORY_UNIT
from bt.core.vcpu import PSEUDO_EXITS
from bt.errors import InputError
from translator.sensitive import TABLE


class Reason(NamedTuple):
    """One kind of exit. ``number``: the core's; ``unit``: who intercepts it."""

    name: str
    number: int
    unit: Literal["control", "memory"]


def _exception_name(vector: int) -> str:
    return f"exception {EXCEPTIONS.get(vector, vector)}"


def _all_reasons() -> dict[str, Reason]:
    found = [(row.name.lower().replace("_", " "), row.id) for row in TABLE]
    # Rows that reach the VMM as events only; the event has the name.
    taken = {"syscall", "sysenter"}
    found = [(name, number) for name, number in found if name not in taken]
    found += [(_exception_name(v), core.HOOK_PSEUDO + v) for v in range(32) if v != 14]
    found.append(("page fault", core.HOOK_PSEUDO + 14))
    merged = {"page fault injected", "port access to a device"}
    found += [(name if name[0] != "S" else name.lower(), core.HOOK_PSEUDO + number)
              for number, name in PSEUDO_EXITS.items() if name not in merged]
    found += [("hypercall", core.HYPERCALL), ("port read", core.PORT_READ),
              ("port write", core.PORT_WRITE)]
    memory = MEMORY_UNIT | {"page fault"}
    return {name: Reason(name, number, "memory" if name in memory else "control")
            for name, number in found}


REASONS = _all_reasons()
BY_NUMBER = {reason.number: reason for reason in REASONS.values()}
#: Exits that are told when they have happened: a hook comes once, and can change nothing.
NEWS = frozenset({
    "quantum used up", "TLB flush", "code page written", "page became code", "block scanned",
    "block translated again", "stale trap", "stub installed", "stub taken back",
    "page invalidation",
})
_GROUPS = {
    "port": ("port read", "port write"),
    "exception": tuple(name for name in REASONS if name.startswith("exception ")) + ("page fault",),
    "instruction": tuple(reason.name for reason in REASONS.values()
                         if reason.number < core.HOOK_PSEUDO),
}
_ALIASES = {
    "page fault injected": "page fault", "exception #pf": "page fault", "int": "software interrupt",
    "interrupt": "interrupt injected", "irq": "interrupt injected", "tlb flush": "TLB flush",
    "tlb fill": "translation", "exception 14": "page fault", "#pf": "page fault",
    **{name.removeprefix("exception ").lower(): name for name in REASONS
       if name.startswith("exception #")},
    **{f"exception {vector}": _exception_name(vector) for vector in EXCEPTIONS if vector != 14},
    **{name.lower(): name for name in REASONS},
}


def reasons() -> tuple[str, ...]:
    """Every reason a hook can be put on; the groups "port", "exception", "instruction" too."""
    return (*REASONS, *_GROUPS)


def find_reasons(name: str) -> tuple[Reason, ...]:
    """The reasons that ``name`` stands for. Raises InputError, with what was perhaps meant."""
    plain = name.strip().lower().replace("_", " ").replace("-", " ")
    if plain in _GROUPS:
        return tuple(REASONS[one] for one in _GROUPS[plain])
    found = REASONS.get(_ALIASES.get(plain, plain))
    if found is None:
        near = difflib.get_close_matches(plain, [*_ALIASES, *_GROUPS], 3, 0.6)
        hint = f"perhaps {' or '.join(repr(n) for n in near)}" if near else \
            "bt.machine.exit_reasons.reasons() lists them"
        raise InputError(f"no exit {name!r}: {hint}")
    return (found,)
