# SPDX-License-Identifier: GPL-2.0-or-later
"""Micro-guests that count the interrupts of a timer in R15."""

from __future__ import annotations

from typing import Any

from micro import Micro

#: 8259 pair at vector 0x20, channel 0 of the 8254 periodic with ``count``; then ``body``.
TIMER = """
    mov al, 0x11
    out 0x20, al
    mov al, 0x20
    out 0x21, al
    mov al, 4
    out 0x21, al
    mov al, 1
    out 0x21, al
    mov al, 0xfe
    out 0x21, al
    mov al, 0x34
    out 0x43, al
    mov al, {count} & 0xff
    out 0x40, al
    mov al, {count} / 256
    out 0x40, al
    xor r15d, r15d
    sti
    {body}
    EXIT 1
tick:
    inc r15d
    push rax
    mov al, 0x20
    out 0x20, al
    pop rax
    iretq
"""


def prepare_timer(micro: Micro) -> None:
    """Send the timer's interrupts to the guest's ``tick``."""
    micro.set_gate(0x20, target=micro.symbol("tick"))


def timer(body: str, count: int = 1193, **kwargs: Any) -> Micro:
    """A guest that runs ``body`` while channel 0 fires each ``count`` / 1193182 s; status 1."""
    micro = Micro(TIMER.format(body=body, count=count), **kwargs)
    prepare_timer(micro)
    return micro
