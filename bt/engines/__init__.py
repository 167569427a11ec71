# SPDX-License-Identifier: GPL-2.0-or-later
"""The engines: ways for privileged work of a guest kernel to reach the VMM.

They share the machine, the devices, the loaders and the exits; an engine only says how the vCPU is
made. ``ENGINES`` is what the command line and the tools list.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineInfo:
    """One engine. ``translate``: sensitive instructions are rewritten before they run.

    ``paravirtual``: the guest kernel asks for privileged work by hypercalls; nothing is scanned.
    """

    name: str
    summary: str
    translate: bool
    paravirtual: bool = False
    #: What a user should know before believing what a guest prints under it; "" if nothing.
    caveat: str = ""


ENGINES: dict[str, EngineInfo] = {
    engine.name: engine
    for engine in (
        EngineInfo("bt", "binary translation: the unmodified kernel in ring 1, every sensitive "
                   "instruction rewritten before it first runs", translate=True),
        EngineInfo("trap", "ring 1 without the translator: what trap-and-emulate alone gets wrong "
                   "on x86", translate=False,
                   caveat="engine trap shows the holes of trap-and-emulate: POPF loses IF, SMSW, "
                   "MOV from CS and others tell the guest where it really runs"),
        EngineInfo("pv", "paravirtual: the kernel in ring 1 asks for privileged work by "
                   "hypercalls, nothing is scanned or rewritten", translate=False,
                   paravirtual=True),
    )
}


def names() -> list[str]:
    """Names of the engines, for messages and options."""
    return list(ENGINES)
