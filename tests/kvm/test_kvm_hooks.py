# SPDX-License-Identifier: GPL-2.0-or-later
"""Hooks under KVM: the exits that it has, seen, replaced, skipped; the others refused by name."""

from __future__ import annotations

import io

import pytest
from micro import Micro

from bt.errors import InputError
from bt.machine.exits import Exit
from bt.machine.machine import Machine

pytestmark = pytest.mark.kvm
LIMIT_S = 60


def micro(source: str) -> Micro:
    return Micro(source, engine="kvm", deterministic=False)


def status(guest: Micro) -> int:
    result = guest.run(LIMIT_S)
    assert result.outcome.kind == "powered-off", result.outcome.report
    return result.outcome.status


def test_ports() -> None:
    guest = micro("""
        mov al, 0x11
        out 0x80, al
        in al, 0x80
        mov bl, al
        in al, 0x81
        add al, bl
        mov dx, 0x501
        out dx, al
        hlt""")
    seen = []

    @guest.machine.on_exit("port write")
    def write(exit: Exit) -> None:
        seen.append((exit.port, exit.size, exit.value, exit.cpl, exit.bits, exit.hardware_code))

    @guest.machine.on_exit("port read")
    def before(exit: Exit) -> None:
        if exit.port == 0x80:
            exit.result = 0x20

    @guest.machine.on_exit("port read", when="after")
    def after(exit: Exit) -> None:
        assert exit.port == 0x81 and exit.result == 0xFF
        exit.result = 3

    assert status(guest) == 0x23
    assert seen == [(0x80, 1, 0x11, 0, 64, 2), (0x501, 1, 0x23, 0, 64, 2)]


def test_a_skipped_write_does_not_reach_the_device() -> None:
    guest = micro("EXIT 1\nmov al, 2\nmov dx, 0x501\nout dx, al")
    left = [True]

    @guest.machine.on_exit("port write", "hlt")
    def skip(exit: Exit) -> None:
        if left[0]:
            exit.skip()
        left[0] = exit.reason != "hlt"

    assert status(guest) == 2


def test_device_memory() -> None:
    guest = micro("""
        mov ebx, 0x600000
        mov eax, [rbx]
        mov [rbx + 4], eax
        mov dx, 0x501
        out dx, al""")
    assert guest.pages is not None
    guest.pages.put(guest.pages.slot(0x600000, 2), 0)
    guest.pages.map(0x600000, 0xFED0_0000, 3)
    seen = []

    @guest.machine.on_exit("absent memory")
    def access(exit: Exit) -> None:
        seen.append((exit.access, exit.gpa, exit.size, exit.unit))
        if exit.access == "read":
            exit.result = 0x1234
        else:
            assert exit.value == 0x1234

    assert status(guest) == 0x34
    assert seen == [("read", 0xFED0_0000, 4, "memory"), ("write", 0xFED0_0004, 4, "memory")]


RDMSR = """
    mov ecx, 0x12345
    rdmsr
    mov ebx, edx
    mov dx, 0x501
    add al, bl
    out dx, al
    hlt
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_msrs(when: str) -> None:
    guest = micro(RDMSR)
    guest.machine.read_msr = lambda index: 1
    seen = []

    @guest.machine.on_exit("rdmsr", when=when)
    def answer(exit: Exit) -> None:
        seen.append(exit.msr)
        if when == "after":
            assert exit.result == 1
        exit.result = 0x30_0000_0020

    assert status(guest) == 0x50
    assert seen == [0x12345]


def test_a_skipped_msr_write_is_not_the_policys() -> None:
    guest = micro("mov ecx, 0x12345\nmov eax, 7\nmov edx, 1\nwrmsr\nEXIT 4")
    guest.machine.write_msr = lambda index, value: pytest.fail("it came through")
    values = []

    @guest.machine.on_exit("wrmsr")
    def skip(exit: Exit) -> None:
        values.append(exit.value)
        exit.skip()

    assert status(guest) == 4
    assert values == [0x1_0000_0007]


def test_interrupts_and_kicks_are_news() -> None:
    machine = Machine(engine="kvm")
    import guests
    machine.load(guests.image("tasks"))
    vectors, kicks = set(), []

    @machine.on_exit("interrupt injected")
    def interrupt(exit: Exit) -> None:
        vectors.add(exit.vector)

    @machine.on_exit("quantum used up")
    def kick(exit: Exit) -> None:
        kicks.append(exit.unit)

    assert machine.run(LIMIT_S).kind == "powered-off"
    assert vectors == {0x20} and set(kicks) == {"control"}


def test_what_a_hook_raises_ends_the_run() -> None:
    guest = micro("EXIT 1")

    @guest.machine.on_exit("port write")
    def broken(exit: Exit) -> None:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        guest.run(LIMIT_S)
    assert guest.machine.registers["rdx"] == 0x501


def test_hooks_can_look_at_the_guest() -> None:
    guest = micro("mov r15, 0x1234567\nEXIT 0")
    seen = []

    @guest.machine.on_exit("port write")
    def look(exit: Exit) -> None:
        seen.append((exit.registers["r15"], exit.memory.read(exit.rip, 1) is not None))

    assert status(guest) == 0
    assert seen == [(0x1234567, True)]


@pytest.mark.parametrize("name", ["cpuid", "mov to cr", "page fault", "translation"])
def test_exits_that_kvm_does_not_have(name: str) -> None:
    guest = micro("EXIT")
    with pytest.raises(InputError, match="engine kvm has no exit '"):
        guest.machine.on_exit(name)(lambda exit: None)


def test_trace() -> None:
    stream = io.StringIO()
    machine = Machine(engine="kvm", trace=stream)
    import guests
    machine.load(guests.image("hello"))
    assert machine.run(LIMIT_S).kind == "powered-off"
    lines = stream.getvalue().splitlines()
    assert {" ".join(line.split()[1:4]) for line in lines} >= {
        "cpl0 OUT KVM_EXIT_IO", "cpl0 IN KVM_EXIT_IO"}
