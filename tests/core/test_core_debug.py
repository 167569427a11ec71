# SPDX-License-Identifier: GPL-2.0-or-later
"""Breakpoints and single steps in the core: exact, and nothing of them for the guest to see.

The oracle is the same guest run without them: it must print the same and end the same.
"""

from __future__ import annotations

import random

import pytest
from micro import PF, UD, Micro, P, W

import guests
from bt.machine.cpu import Stop
from bt.machine.machine import Machine

ENGINES = pytest.mark.parametrize("engine", ["bt", "trap", "hvm"])
LOOP = """
    mov ecx, 200
@again:
    call sub
    dec ecx
    jnz @again
    lea rsi, [sub]
    mov r9, [rsi]
    mov eax, r8d
    mov dx, 0x501
    out dx, al
    hlt
sub:
    pushfq
    pop rbx
    cli
    nop dword ptr [rax + 8]
    sti
    inc r8
    ret
"""


def run(vm: Machine) -> int:
    """Until something happens that is no kick."""
    while True:
        why = vm.vcpu.run(None)
        if why != Stop.KICKED or vm._ended is not None:
            return why


@ENGINES
@pytest.mark.parametrize("label", ["sub", "loop_cli"])
def test_a_breakpoint_stops_each_time_and_is_not_there_to_be_read(engine: str, label: str) -> None:
    micro = Micro(LOOP.replace("    cli", "loop_cli:\n    cli"), engine=engine)
    micro.enter()
    vcpu, at = micro.machine.vcpu, micro.symbol(label)
    original = micro.ram.read(micro.symbol("sub"), 8)
    vcpu.set_breakpoint(at)
    for count in range(200):
        assert run(micro.machine) == Stop.DEBUGGED
        assert vcpu.registers()["rip"] == at
        assert vcpu.registers()["r8"] == count
        assert micro.machine.memory.read(micro.symbol("sub"), 8) == original
    run(micro.machine)
    assert micro.machine._ended.status == 200
    assert vcpu.registers()["r9"] == int.from_bytes(original, "little")


def test_a_breakpoint_in_what_is_a_stub_already() -> None:
    micro = Micro(LOOP.replace("    nop dword", "inside:\n    nop dword"))
    micro.enter()
    vcpu = micro.machine.vcpu
    vcpu.set_breakpoint(micro.symbol("start") + 5)
    for _ in range(150):
        run(micro.machine)
    vcpu.clear_breakpoint(micro.symbol("start") + 5)
    stubs = [site for site in vcpu.sites() if site[5]]
    assert stubs
    for at in (micro.symbol("inside"), micro.symbol("inside") - 1):
        vcpu.set_breakpoint(at)
    for count in range(149, 200):
        for at in (micro.symbol("inside") - 1, micro.symbol("inside")):
            assert run(micro.machine) == Stop.DEBUGGED
            assert (vcpu.registers()["rip"], vcpu.registers()["r8"]) == (at, count)
    run(micro.machine)
    assert micro.machine._ended.status == 200


@ENGINES
def test_a_breakpoint_before_its_page_is_mapped(engine: str) -> None:
    """As a kernel's start: the address means nothing until the guest has made its tables."""
    micro = Micro("""
    mov eax, 3
    mov [0x40], rax
    mov rbx, {entry}
    mov rax, {pte}
    mov [rbx], rax
    mov rcx, 0xffff900000000000 + (target - 0x100000)
    call target
    call rcx
    EXIT 1
target:
    inc r8
    ret
""".replace("{entry}", "0x50").replace("{pte}", "0"))
    # The real entry is made here, from Python, when the guest comes to `target` the first time.
    micro.enter()
    vcpu = micro.machine.vcpu
    high = 0xFFFF_9000_0000_0000 + micro.symbol("target") - 0x100000
    vcpu.set_breakpoint(high)
    vcpu.set_breakpoint(micro.symbol("target"))
    assert run(micro.machine) == Stop.DEBUGGED
    assert vcpu.registers()["rip"] == micro.symbol("target")
    micro.pages.map(0xFFFF_9000_0000_0000, 0x100000, P | W)
    vcpu.clear_breakpoint(micro.symbol("target"))
    assert run(micro.machine) == Stop.DEBUGGED
    # The same byte was run at the low address, and did not stop there again.
    assert (vcpu.registers()["rip"], vcpu.registers()["r8"]) == (high, 1)
    run(micro.machine)
    assert (micro.machine._ended.status, vcpu.registers()["r8"]) == (1, 2)


@ENGINES
def test_a_rewritten_page_keeps_its_breakpoint(engine: str) -> None:
    micro = Micro("""
    call target
    mov byte ptr [target + 3], 2
    call target
    mov eax, r8d
    mov dx, 0x501
    out dx, al
    hlt
.section other
target:
    add r8d, 1
    ret
""", engine=engine)
    micro.enter()
    micro.machine.vcpu.set_breakpoint(micro.symbol("target"))
    for seen in (0, 1):
        assert run(micro.machine) == Stop.DEBUGGED
        assert micro.machine.registers["r8"] == seen
    run(micro.machine)
    assert micro.machine._ended.status == 3


@ENGINES
def test_a_step_ends_in_the_handler_of_what_the_instruction_raised(engine: str) -> None:
    micro = Micro("mov rbx, 0xffff900000000000\nmov eax, [rbx]\nud2", engine=engine)
    micro.enter()
    vcpu = micro.machine.vcpu
    vcpu.set_breakpoint(micro.symbol("start"))
    run(micro.machine)
    assert vcpu.step() == Stop.DEBUGGED
    assert vcpu.registers()["rbx"] == 0xFFFF_9000_0000_0000
    assert vcpu.step() == Stop.DEBUGGED
    assert vcpu.registers()["rip"] == 0x5000 + 16 * PF
    micro = Micro("ud2", engine=engine)
    micro.enter()
    vcpu = micro.machine.vcpu
    vcpu.set_breakpoint(micro.symbol("start"))
    run(micro.machine)
    assert vcpu.step() == Stop.DEBUGGED
    assert vcpu.registers()["rip"] == 0x5000 + 16 * UD
    frame = micro.ram.read(vcpu.registers()["rsp"], 24)
    assert not int.from_bytes(frame[16:], "little") & 0x100, "our TF in the guest's frame"


def printed(name: str, engine: str, drive) -> tuple[bytes, str, int]:
    out = bytearray()
    vm = Machine(engine=engine, console=out.extend, deterministic=True)
    vm.load(guests.image(name))
    outcome = drive(vm)
    return bytes(out), outcome.kind, outcome.status


@ENGINES
@pytest.mark.parametrize("name", ["hello", "hello32",
                                  pytest.param("sensitive", marks=pytest.mark.slow)])
def test_a_guest_stepped_all_the_way_prints_the_same(name: str, engine: str) -> None:
    """The sensitive instructions show every flag and segment there is: TF among them."""
    def steps(vm: Machine):
        while True:
            outcome = vm.step(1000)
            if outcome is not None:
                vm.pc.flush()
                return outcome

    assert printed(name, engine, steps) == printed(name, engine, lambda vm: vm.run(timeout=60))


@ENGINES
def test_breakpoints_at_random_change_nothing(engine: str) -> None:
    """At addresses that are executed, which are the starts of instructions."""
    reached: list[int] = []

    def look(vm: Machine):
        while True:
            reached.append(vm.vcpu.linear_rip)
            outcome = vm.step()
            if outcome is not None:
                return outcome

    expected = printed("tasks", engine, lambda vm: vm.run(timeout=60))
    printed("hello", engine, look)
    chosen = random.Random(5).sample(sorted(set(reached)), 40)

    def broken(vm: Machine):
        for at in chosen:
            vm.breakpoint(at, lambda vm: None)
        return vm.run(timeout=60)

    assert printed("hello", engine, broken) == \
        printed("hello", engine, lambda vm: vm.run(timeout=60))
    assert expected[1] == "powered-off"


def test_too_many() -> None:
    micro = Micro("EXIT 0")
    for at in range(256):
        micro.machine.vcpu.set_breakpoint(at)
    micro.machine.vcpu.set_breakpoint(0)
    with pytest.raises(ValueError, match="more than 256"):
        micro.machine.vcpu.set_breakpoint(0x1000)
    for at in range(256):
        micro.machine.vcpu.clear_breakpoint(at)
    micro.machine.vcpu.set_breakpoint(0x1000)
