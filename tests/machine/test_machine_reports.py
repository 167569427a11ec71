# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that dies ends as "died", status 3, with a report that says why and where."""

from __future__ import annotations

import pytest
from micro import KCODE, PF, STACK, Micro, P, Result, W


def died(micro: Micro, timeout: float = 60) -> Result:
    result = micro.run(timeout)
    assert (result.outcome.kind, result.outcome.status) == ("died", 3), result.outcome
    report = result.outcome.report
    assert report.startswith("bt: the guest died: ")
    for name in ("rip", "rflags", "rax", "rsp", "r15", "cs", "cr0", "cr2", "cr3", "code at",
                 "newest blocks", "virtual CPL"):
        assert name in report, name
    return result


@pytest.mark.parametrize("bits", [64, 32])
def test_triple_fault(bits: int) -> None:
    micro = Micro("mov eax, 0x1234abcd\n lidt [none]\nlast: ud2\nnone: .space 10", bits)
    report = died(micro).outcome.report
    assert "triple fault" in report.splitlines()[0]
    assert "1234abcd" in report
    assert f"code at {micro.symbol('last'):#x}: 0f 0b" in report
    assert f"{micro.symbol('start'):x}" in report
    assert "ud2" in report


def test_jump_into_the_void() -> None:
    """Paging off, an address without RAM behind it."""
    micro = Micro("mov eax, 0x7f000000\n jmp eax", 32)
    report = died(micro).outcome.report
    assert "void" in report.splitlines()[0]
    assert "0x7f000000" in report.splitlines()[0]


def test_jump_into_the_void_through_the_page_tables() -> None:
    micro = Micro("mov rax, 0xffff900000000010\n jmp rax")
    micro.pages.map(0xFFFF_9000_0000_0000, 0x7_0000_0000, P | W)
    report = died(micro).outcome.report
    assert "0x700000" in report.splitlines()[0]


def test_unknown_instruction_without_a_handler() -> None:
    """#UD with no gate for it, nor for what comes of that."""
    micro = Micro("bad: .byte 0x0f, 0x0a")
    for vector in (6, 8, 11, 13):
        micro.set_gate(vector, 0x0E)
    report = died(micro).outcome.report
    assert "triple fault" in report.splitlines()[0]
    assert f"code at {micro.symbol('bad'):#x}: 0f 0a" in report


def test_endless_page_fault_loop() -> None:
    """A handler that returns without having repaired anything."""
    micro = Micro("""
    mov rbx, 0xffff900000000123
again:
    mov rax, [rbx]
    EXIT 1
handler:
    add rsp, 8
    iretq
""")
    micro.set_gate(PF, target=micro.symbol("handler"))
    report = died(micro).outcome.report
    assert "endless" in report.splitlines()[0]
    assert "0xffff900000000123" in report.splitlines()[0]
    assert f"rip {micro.symbol('again'):#018x}" in report


def test_halted_for_good() -> None:
    outcome = Micro("cli\n hlt").run().outcome
    assert (outcome.kind, outcome.status) == ("halted", 0)


def test_reset_and_exit() -> None:
    assert Micro("mov al, 0xfe\n out 0x64, al\n@l: jmp @l").run().outcome.kind == "reset"
    assert Micro("mov al, 6\n mov dx, 0xcf9\n out dx, al\n@l: jmp @l").run().outcome.kind == "reset"
    outcome = Micro("EXIT 77").run().outcome
    assert (outcome.kind, outcome.status) == ("powered-off", 77)


@pytest.mark.parametrize(("code", "bits", "words"), [
    ("mov eax, 0x58\n ltr ax\n int 0x60", 32, "task gate"),
    ("pushfd\n or dword ptr [esp], 0x4000\n popfd\n iretd", 32, "task switch"),
    ("push 0\n push 0\n push 0\n push 0\n push 0\n push 0x7000\n push 0x20002\n push 0\n push 0\n"
     " iretd", 32, "virtual-8086"),
])
def test_what_the_vcpu_does_not_do_is_said(code: str, bits: int, words: str) -> None:
    from micro import IDT, TSS, descriptor
    micro = Micro(code, bits)
    micro.set_descriptor(0x58, descriptor(TSS, 0x67, 0x89))
    micro.ram.write(IDT + 8 * 0x60, b"\0\0\x38\0\0\x85\0\0")
    assert words in died(micro).outcome.report.splitlines()[0]


def test_the_report_survives_a_guest_without_a_stack_or_code() -> None:
    """Nothing the report wants to show is mapped."""
    micro = Micro("mov rsp, 0x123456789000\n mov rax, 0x900000\n mov cr3, rax\n nop")
    report = died(micro).outcome.report
    assert "not mapped" in report
    assert (KCODE, STACK) == (0x10, 0x90000)
