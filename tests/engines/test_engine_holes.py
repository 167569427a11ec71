# SPDX-License-Identifier: GPL-2.0-or-later
"""What trap-and-emulate gets wrong on x86, and that translation gets it right.

Robin and Irvine's list: instructions that show or lose privileged state without a fault. Each
program leaves what it saw in R15; natively, in ring 0, it is what engine bt must show.
"""

from __future__ import annotations

import pytest
from micro import CTL, Micro, native
from unicorn import x86_const as ucx

RESULT = CTL + 32
FINISH = f"""
    mov ebx, {RESULT}
    mov [rbx], r15
    EXIT 1
"""

HOLES = {
    "POPF loses IF": ("cli\n pushfq\n or dword ptr [rsp], 0x200\n popfq\n pushfq\n pop r15\n"
                      "and r15d, 0x200\n cli", 0x200, 0),
    "PUSHF after POPF with IF clear": ("pushfq\n or dword ptr [rsp], 0x200\n popfq\n pushfq\n"
                                       "and dword ptr [rsp], 0xfffffdff\n popfq\n pushfq\n"
                                       "pop r15\n and r15d, 0x200", 0, 0),
    "MOV from CS": ("xor r15d, r15d\n mov r15w, cs", 0x10, 0x11),
    "MOV from SS": ("xor r15d, r15d\n mov r15w, ss", 0x18, 0x19),
    "PUSHF shows IOPL": ("pushfq\n or dword ptr [rsp], 0x3000\n popfq\n pushfq\n pop r15\n"
                         "and r15d, 0x3000\n pushfq\n and dword ptr [rsp], 0xffffcfff\n popfq",
                         0x3000, 0),
    "VERW of a kernel segment": ("mov eax, 0x18\n verw ax\n setz r15b\n movzx r15d, r15b", 1, 0),
    "LSL of a kernel segment": ("xor r15d, r15d\n mov eax, 0x18\n lsl r15d, eax", 0xFFFFFFFF, 0),
    "LAR of a kernel segment": ("xor r15d, r15d\n mov eax, 0x18\n lar r15d, eax\n"
                                "and r15d, 0xf0ff00", 0x00C09300, 0),
}


@pytest.mark.parametrize("name", HOLES)
def test_translation_closes_the_hole(name: str) -> None:
    code, truth, shown = HOLES[name]
    result = Micro(code + FINISH).run()
    assert result.outcome.status == 1, result.outcome.report or result.records
    assert result.q(RESULT) == truth
    uc = native(code + FINISH)
    assert uc.reg_read(ucx.UC_X86_REG_R15) == truth
    trap = Micro(code + FINISH, engine="trap").run()
    assert trap.outcome.status == 1
    assert trap.q(RESULT) == shown
    assert truth != shown or "PUSHF" in name


@pytest.mark.parametrize(("store", "register"), [("sgdt [rbx]", "gdtr"), ("sidt [rbx]", "idtr")])
def test_descriptor_table_registers(store: str, register: str) -> None:
    """SGDT and SIDT give the guest's own tables, and under engine trap the CPU's real ones."""
    code = f"mov ebx, {RESULT + 16}\n {store}\n mov r15, [rbx+2]" + FINISH
    base = {"gdtr": 0x1000, "idtr": 0x2000}[register]
    assert Micro(code).run().q(RESULT) == base
    assert Micro(code, engine="trap").run().q(RESULT) != base


def test_str_and_sldt() -> None:
    code = "xor r15d, r15d\n str r15w" + FINISH
    assert Micro(code).run().q(RESULT) == 0x38
    assert Micro(code, engine="trap").run().q(RESULT) != 0x38


def test_smsw_tells_the_truth_about_the_wrong_machine() -> None:
    """The guest runs with paging and CR0.WP; the CPU underneath has neither."""
    code = "smsw r15" + FINISH
    assert Micro(code).run().q(RESULT) == 0x80010011
    assert Micro(code, engine="trap").run().q(RESULT) & 0x80010000 == 0


def test_privileged_instructions_work_under_both() -> None:
    code = "mov r15, cr0\n mov rax, cr3\n add r15, rax\n sti\n cli\n clts\n wbinvd" + FINISH
    for engine in ("bt", "trap"):
        assert Micro(code, engine=engine).run().q(RESULT) == 0x80010011 + 0x20000


def test_exits_of_the_two_engines() -> None:
    """bt sees every PUSHF, trap none; both see CLI."""
    code = "cli\n pushfq\n pop rax\n" * 5 + "xor r15d, r15d" + FINISH
    bt, trap = Micro(code).run(), Micro(code, engine="trap").run()
    assert (bt.exit("CLI"), trap.exit("CLI")) == (5, 5)
    assert (bt.exit("PUSHF"), trap.exit("PUSHF")) == (5, 0)
