# SPDX-License-Identifier: GPL-2.0-or-later
"""Ring1 from Python: ``from bt import Machine``. docs/api.md shows how.

``import bt`` itself loads nothing, so that a command starts fast; the names come when asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bt.api import Machine
    from bt.errors import InputError
    from bt.machine.debug import Breakpoint
    from bt.machine.exits import Exit
    from bt.machine.machine import Outcome

__all__ = ["Breakpoint", "Exit", "InputError", "Machine", "Outcome"]

_HOME = {
    "Breakpoint": "bt.machine.debug",
    "Exit": "bt.machine.exits",
    "InputError": "bt.errors",
    "Machine": "bt.api",
    "Outcome": "bt.machine.machine",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'bt' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
