# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtual-8086 mode under engine hvm: in by IRET, out by events (SDM vol. 3, 21.2 and 21.3)."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "core"))
import micro
from micro import GP, RSP0, UCODE32, Micro, Result

V86, V86_STACK = 0x60000, 0x62000       # linear; the paragraphs are a sixteenth
VM, IF, NOTHING = 0x20000, 0x200, 2
RAM_FOR_RESULTS = 0x200000

#: Enters virtual-8086 mode with EFLAGS = {flags}. ``back`` is a handler that returns there.
KERNEL = """
    mov edx, 0x3f0
    out dx, al
    push 0x4444
    push 0x3333
    push 0x2222
    push 0x1111
    push 0x6200
    push 0x7ff0
    push {flags}
    push 0x6000
    push 0
    iretd
next: EXIT 2
back:
    inc dword ptr ss:[0x200000]
    mov eax, ds
    mov ecx, es
    or eax, ecx
    mov ecx, fs
    or eax, ecx
    mov ecx, gs
    or eax, ecx
    mov ss:[0x200004], eax
    iretd
"""


def run(code: str, iopl: int, intercept: str, flags: int = NOTHING,
        deterministic: bool = True) -> Result:
    """Run ``code`` in virtual-8086 mode until an event that has no other handler ends it.

    INT 0x81 counts and returns; INT 0x80 and 0x82 may be made by user code, 0x82 ending at CPL 3.
    """
    guest = Micro(KERNEL.format(flags=VM | iopl << 12 | flags), 32, paging=2, intercept=intercept,
                  deterministic=deterministic)
    guest.ram.write(V86, micro.assemble(code, 16).sections[0].data)
    for page in (V86, V86_STACK + 0x7000):
        guest.user_page(page)
    guest.set_gate(0x80, 0xEE)
    guest.set_gate(0x81, 0xEE, target=guest.symbol("back"))
    guest.set_gate(0x82, 0xEE, selector=UCODE32)
    guest.abandon("next")
    vcpu = guest.machine.vcpu
    guest.machine.on_exit("port write")(
        lambda exit: vcpu.set_intr(True) if exit.port == 0x3F0 and flags & IF else None)
    result = guest.run()
    assert (result.outcome.kind, result.outcome.status) == ("powered-off", 2), result.outcome
    return result


INTERCEPTS = pytest.mark.parametrize("intercept", ["", "all"])


@INTERCEPTS
def test_an_event_leaves_it_and_iret_comes_back(intercept: str) -> None:
    result = run("mov ax, 0x7777\nmov fs, ax\nint 0x81\nint 0x81\nint 0x80", 3, intercept)
    assert result.d(RAM_FOR_RESULTS) == 2
    assert result.d(RAM_FOR_RESULTS + 4) == 0, "the handler's data segments are null"
    [record] = result.records
    assert (record.vector, record.ip, record.cs, record.flags & (VM | 0x3000)) == (
        0x80, 11, 0x6000, VM | 0x3000)
    assert (record.old_sp, record.old_ss) == (0x7FF0, 0x6200)
    frame_top = struct.unpack("<4I", result.machine.ram.read(RSP0 - 16, 16))
    assert frame_top == (0x1111, 0x2222, 0x7777, 0x4444)       # ES, DS, FS, GS


@INTERCEPTS
@pytest.mark.parametrize("code", ["cli", "sti", "pushfw", "popfw", "int 0x80", "iretw"])
def test_below_iopl_3_the_flags_are_the_kernels(code: str, intercept: str) -> None:
    result = run(f"nop\n{code}\nint3", 0, intercept)
    assert [(r.vector, r.error, r.ip) for r in result.records] == [(GP, 0, 1)]


@INTERCEPTS
def test_at_iopl_3_they_are_not(intercept: str) -> None:
    """PUSHF hides VM, POPF and IRET change IF and neither IOPL nor the mode."""
    result = run("""
        sti
        pushfd
        pop edi
        xor ax, ax
        push ax
        popfw
        pushfw
        pop bp
        sti
        push ax
        mov ax, 0x6000
        push ax
        .byte 0xe8, 2, 0    ; CALL to the IRET
        int 0x80
        iretw
    """, 3, intercept)
    [record] = result.records
    assert record.vector == 0x80 and record.flags & (VM | 0x3000 | IF) == VM | 0x3000
    assert result.regs["rdi"] & 0xFF00 == 0x3200
    assert result.regs["rdi"] & VM == (0 if intercept else VM)  # docs/quirks.md: Unicorn's PUSHFD
    assert result.regs["rbp"] & 0xFF00 == 0x3000


@INTERCEPTS
@pytest.mark.parametrize("code", ["hlt", "out 0x80, al", "in al, 0x80", "mov eax, cr0"])
def test_what_is_privileged_stays_so_at_iopl_3(code: str, intercept: str) -> None:
    """Ports ask the TSS alone, which allows none here."""
    result = run(f"nop\n{code}", 3, intercept)
    assert [(r.vector, r.error, r.ip) for r in result.records] == [(GP, 0, 1)]


def test_a_handler_must_be_at_cpl_0() -> None:
    result = run("int 0x82", 3, "")
    assert [(r.vector, r.error) for r in result.records] == [(GP, UCODE32 & ~3)]


@INTERCEPTS
@pytest.mark.parametrize("deterministic", [False, True])
def test_an_interrupt_finds_it(deterministic: bool, intercept: str) -> None:
    result = run("again: jmp again", 0, intercept, IF, deterministic)
    [record] = result.records
    assert (record.cs, record.ip, record.flags & (VM | IF)) == (0x6000, 0, VM | IF)


def test_long_mode_has_none() -> None:
    """Unicorn's IRETD enters it there all the same. The machine ends before its kernel sees it."""
    guest = Micro(f"""
        mov rsp, {RSP0 - 64}
        mov dword ptr [rsp], 0
        mov dword ptr [rsp + 4], 0x6000
        mov dword ptr [rsp + 8], {VM | 0x3002}
        mov dword ptr [rsp + 12], 0x7ff0
        mov dword ptr [rsp + 16], 0x6200
        iretd
    """, engine="hvm")
    guest.ram.write(V86, micro.assemble("int 0x80", 16).sections[0].data)
    guest.user_page(V86)
    outcome = guest.run().outcome
    assert outcome.kind == "died"
    assert "virtual-8086 mode, which long mode does not have" in outcome.report


@pytest.fixture(autouse=True)
def _under_hvm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro, "ENGINE", "hvm")
