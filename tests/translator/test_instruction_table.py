# SPDX-License-Identifier: GPL-2.0-or-later
"""The table itself: complete, consistent, and found by the scanner in every mode."""

import pytest
from golden import GOLDEN, INNOCENT, Golden

from translator.scanner import disassembler, scan_block
from translator.sensitive import BY_NAME, TABLE, markdown

ISSUE = """SGDT SIDT SLDT SMSW PUSHF POPF LAR LSL VERR VERW STR CLI STI HLT LGDT LIDT LLDT LTR LMSW
CLTS INVLPG INVPCID WBINVD INVD RDMSR WRMSR SWAPGS SYSRET SYSEXIT IRET XSETBV RDPMC STAC CLAC IN
OUT INS OUTS MONITOR MWAIT CPUID RDTSC RDTSCP PAUSE XGETBV MOV_FROM_SEG MOV_TO_SEG PUSH_SEG POP_SEG
LOAD_FAR_PTR MOV_FROM_CR MOV_TO_CR MOV_FROM_DR MOV_TO_DR FAR_CALL FAR_JMP FAR_RET INT_N""".split()


def case_id(case: Golden) -> str:
    return f"{case.row or case.mnemonic}-{case.bits}-{case.code.hex()}"


def test_ids_are_indexes_and_names_are_unique():
    assert [row.id for row in TABLE] == list(range(len(TABLE)))
    assert len(BY_NAME) == len(TABLE) < 256


@pytest.mark.parametrize("name", ISSUE)
def test_required_instruction_is_there(name):
    assert name in BY_NAME


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_row_is_consistent(row):
    assert row.instr_class in ("sensitive", "privileged", "wanted")
    assert row.modes and row.source
    if row.instr_class == "privileged":
        assert row.traps
    for encoding in row.encodings:
        assert encoding.modrm or (encoding.reg is None and encoding.rm is None)


def test_golden_list_covers_every_row_in_every_mode():
    wanted = {(row.name, bits) for row in TABLE for bits in row.modes}
    assert wanted == {(case.row, case.bits) for case in GOLDEN}


@pytest.mark.parametrize("case", GOLDEN, ids=case_id)
def test_instruction_is_found(case):
    # What follows is more of the same byte, so that a wrong length would show.
    block = scan_block(case.code + b"\x90" * 8, 0x1000, case.bits, "all")
    assert block.findings[0].row.name == case.row
    assert block.findings[0].code == case.code
    assert len(block.findings) == 1
    assert block.instructions == 9
    _, size, mnemonic, _ = next(disassembler(case.bits).disasm_lite(case.code, 0, 1))
    assert (size, mnemonic) == (len(case.code), case.mnemonic)


@pytest.mark.parametrize("case", GOLDEN, ids=case_id)
def test_selection_follows_the_table(case):
    row = BY_NAME[case.row]
    for privilege in ("kernel", "user"):
        found = scan_block(case.code, 0, case.bits, privilege).findings
        assert bool(found) == getattr(row, privilege)


@pytest.mark.parametrize("case", INNOCENT, ids=case_id)
def test_look_alike_is_left_alone(case):
    block = scan_block(case.code, 0, case.bits, "all")
    assert block.findings == []
    assert block.consumed == len(case.code)
    assert next(disassembler(case.bits).disasm_lite(case.code, 0, 1))[2] == case.mnemonic


def test_markdown_has_a_line_for_each_row():
    lines = markdown().splitlines()
    assert len(lines) == len(TABLE) + 2
    assert {line.count("|") for line in lines} == {11}
    for row, line in zip(TABLE, lines[2:], strict=True):
        assert line.startswith(f"| `{row.name}` |")
