# SPDX-License-Identifier: GPL-2.0-or-later
"""The engines: ways for privileged work of a guest kernel to reach the VMM.

They share the machine, the devices, the loaders and the exits. A row here is what the command line
and the tools list; the module it names is imported when a machine needs it, so an engine costs
nothing (and needs nothing installed) where another one runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bt.engines.base import Engine


@dataclass(frozen=True)
class EngineInfo:
    """One engine.

    ``implementation``: "module:class" of its bt.engines.base.Engine. ``translate``: sensitive
    instructions are rewritten before they run. ``paravirtual``: the guest kernel asks for
    privileged work by hypercalls; nothing is scanned. ``intercepts``: hardware makes the exits, and
    one can choose which. ``emulated``: guest code runs in this process, on Unicorn.
    """

    name: str
    summary: str
    implementation: str
    translate: bool = False
    paravirtual: bool = False
    intercepts: bool = False
    emulated: bool = True
    #: What a user should know before believing what a guest prints under it; "" if nothing.
    caveat: str = ""

    def open(self) -> Engine:
        """The engine for one machine."""
        module, _, name = self.implementation.partition(":")
        engine: Engine = getattr(import_module(module), name)(self)
        return engine


_UNICORN = "bt.engines.unicorn:UnicornEngine"

ENGINES: dict[str, EngineInfo] = {
    engine.name: engine
    for engine in (
        EngineInfo("bt", "binary translation: the unmodified kernel in ring 1, every sensitive "
                   "instruction rewritten before it first runs", _UNICORN, translate=True),
        EngineInfo("trap", "ring 1 without the translator: what trap-and-emulate alone gets wrong "
                   "on x86", _UNICORN,
                   caveat="engine trap shows the holes of trap-and-emulate: POPF loses IF, SMSW, "
                   "MOV from CS and others tell the guest where it really runs"),
        EngineInfo("pv", "paravirtual: the kernel in ring 1 asks for privileged work by "
                   "hypercalls, nothing is scanned or rewritten", "bt.engines.pv:PvEngine",
                   paravirtual=True),
        EngineInfo("hvm", "hardware-assisted: the unmodified kernel in ring 0 of AMD-V guest mode, "
                   "which Unicorn has; nothing is scanned or rewritten",
                   "bt.engines.hvm:HvmEngine", intercepts=True),
        EngineInfo("kvm", "hardware: the unmodified kernel in ring 0 of the host's own virtual "
                   "machines, /dev/kvm", "bt.engines.kvm:KvmEngine", emulated=False),
    )
}


def names() -> list[str]:
    """Names of the engines, for messages and options."""
    return list(ENGINES)
