# SPDX-License-Identifier: GPL-2.0-or-later
"""Which instructions a hook can be put on: one that would never be called is refused."""

from __future__ import annotations

from bt.core import svm
from bt.errors import InputError
from translator.sensitive import Row

#: Rows of the sensitive table that reach the VMM as something else only: what to hook instead.
_EVENTS = {
    "INT3": "software interrupt", "INTO": "software interrupt", "SYSCALL": "syscall",
    "SYSENTER": "sysenter", "VMCALL": "#UD", "VMMCALL": "#UD",
}
#: Under hvm VMMCALL exits. Of the others AMD-V could intercept a few, but #UD comes first: the CPU
#: does not have them (under bt they are rewritten before it could say so).
_HVM_EVENTS = {name: event for name, event in _EVENTS.items() if name != "VMMCALL"} | \
    dict.fromkeys(("XSETBV", "MONITOR", "MWAIT"), "#UD")


def check_row(row: Row, *, hvm: bool) -> None:
    """Raises InputError if instruction ``row`` is never an exit, under engine hvm or the others."""
    if hvm:
        svm.for_row(row.name)
    event = (_HVM_EVENTS if hvm else _EVENTS).get(row.name)
    if event:
        raise InputError(f"{row.name} is no exit of its own here: hook {event!r}")
    if not (hvm or row.kernel or row.user):
        raise InputError(f"{row.name} just runs under this engine: it cannot be hooked")
