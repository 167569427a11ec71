# SPDX-License-Identifier: GPL-2.0-or-later
"""Breakpoints and steps under KVM."""

from __future__ import annotations

import pytest
from micro import Micro

import guests
from bt.errors import InputError
from bt.kvm.software import PVM, software
from bt.machine.cpu import Stop
from bt.machine.machine import Machine

pytestmark = pytest.mark.kvm
LIMIT_S = 60
COUNT = """
    xor r15d, r15d
    mov ecx, 5
here:
    inc r15
    dec ecx
    jnz here
    EXIT 7
"""


def micro(source: str) -> Micro:
    return Micro(source, engine="kvm", deterministic=False)


def test_a_breakpoint_is_hit_each_time_before_its_instruction() -> None:
    guest = micro(COUNT)
    seen = []
    guest.machine.breakpoint(guest.symbol("here"),
                             lambda machine: seen.append(machine.registers["r15"]))
    result = guest.run(LIMIT_S)
    assert (result.outcome.kind, result.outcome.status) == ("powered-off", 7)
    assert seen == [0, 1, 2, 3, 4]


def test_a_breakpoint_ends_the_run_and_the_next_goes_on() -> None:
    guest = micro(COUNT)
    found = guest.machine.breakpoint(guest.symbol("here"))
    assert guest.run(LIMIT_S).outcome.kind == "breakpoint"
    assert guest.machine.registers["rip"] == guest.symbol("here")
    assert guest.machine.run(LIMIT_S).kind == "breakpoint"
    assert guest.machine.registers["r15"] == 1
    found.remove()
    assert guest.machine.run(LIMIT_S).status == 7
    assert found.hits == 2 and guest.machine.registers["r15"] == 5


def test_the_guest_does_not_see_it() -> None:
    guest = micro("mov al, [here]\nhere: nop\nmov dx, 0x501\nout dx, al")
    guest.machine.breakpoint(guest.symbol("here"), lambda machine: None)
    assert guest.run(LIMIT_S).outcome.status == 0x90


def test_steps() -> None:
    guest = micro("mov eax, 1\nmov ebx, 2\nin al, 0x80\nmov ecx, 3\nhere: nop\nEXIT 3")
    guest.machine.breakpoint(guest.symbol("start"))
    assert guest.run(LIMIT_S).outcome.kind == "breakpoint"
    registers = guest.machine.registers
    rip = registers["rip"]
    assert guest.machine.step() is None
    assert registers["rip"] == rip + 5 and registers["rax"] == 1
    assert guest.machine.step(2) is None        # a port access is one instruction
    assert registers["rip"] == rip + 12 and registers["rax"] & 0xFF == 0xFF
    assert guest.machine.step() is None and registers["rip"] == guest.symbol("here")
    outcome = guest.machine.step(100)
    assert outcome is not None and outcome.status == 3


def test_a_step_executes_hlt_and_then_sleeps() -> None:
    guest = micro("here: cli\nhlt\nnop")
    guest.machine.breakpoint(guest.symbol("here"))
    guest.run(LIMIT_S)
    vcpu = guest.machine.vcpu
    assert vcpu.step() == Stop.DEBUGGED and vcpu.step() == Stop.DEBUGGED
    assert vcpu.step() == Stop.HALTED


def test_there_are_not_many() -> None:
    guest = micro(COUNT)
    room = 2 if software() == PVM else 4
    for i in range(room):
        guest.machine.breakpoint(0x300000 + i)
    with pytest.raises(InputError, match=f"this engine has {room} breakpoints"):
        guest.machine.breakpoint(0x400000)
    assert guest.run(LIMIT_S).outcome.status == 7


def test_system_calls_still_work_beside_a_breakpoint() -> None:
    """Ours on the guest's handlers and somebody's are on together."""
    out = bytearray()
    machine = Machine(engine="kvm", console=out.extend)
    machine.load(guests.image("tasks"))
    from guests.asm import Assembler
    symbols = Assembler().assemble(guests.get("tasks").source).symbols
    hits = machine.breakpoint(symbols["system_call"], lambda machine: None)
    assert machine.run(LIMIT_S).kind == "powered-off"
    assert b"syscall was used: yes" in out and b"int 0x80 was used: yes" in out
    assert hits.hits > 10


@pytest.mark.skipif(software() != PVM, reason="this KVM steps user code")
def test_user_code_that_cannot_be_stepped_is_said_so() -> None:
    machine = Machine(engine="kvm")
    machine.load(guests.image("tasks"))
    seen = []

    @machine.on_exit("interrupt injected")
    def stop(exit) -> None:
        if exit.cpl == 3:
            seen.append(exit.rip)
            machine.stop("seen")

    machine.run(LIMIT_S)
    if machine.registers["cpl"] == 3:
        with pytest.raises(InputError, match="cannot step user code"):
            machine.step()
    assert seen
