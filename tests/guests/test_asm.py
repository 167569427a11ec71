# SPDX-License-Identifier: GPL-2.0-or-later
"""The guests' assembler: its language, and every instruction of every guest read back."""

from __future__ import annotations

import re
import struct

import capstone
import pytest

import guests
from guests.asm import LOAD_BASE, AsmError, Assembler, elf32

HEAD = ".section text\n.bits 64\nstart:\n"
_MODES = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}


def assemble(tmp_path, source, head=HEAD):
    path = tmp_path / "main.s"
    path.write_text(head + source)
    return Assembler().assemble(path)


def text(tmp_path, source, head=HEAD):
    return assemble(tmp_path, source, head).sections[0].data


@pytest.mark.parametrize(("source", "code"), [
    ("mov eax, 10", "b80a000000"),  # decimal is decimal
    ("mov rdi, [cell]\ncell:", "488b3d00000000"),  # RIP-relative, RIP subtracted
    ("mov qword ptr [cell], 5\ncell:", "48c7050000000005000000"[:6] + "0000000005000000"),
    ("mov rax, gs:[8]", "65488b042508000000"),  # absolute in the segment
    ("jmp start", "ebfe"), ("jmp far_away\n.space 200\nfar_away:", "e9c8000000"),
    ("@l: loop @l", "e2fe"), ("pushfw\npopfq\niretq\nretfd\nsysretl", "669c9d48cfcb0f07"),
    ("jmpfq [rsi]\ncallfd [rsi]", "48ff2eff1e"),
    (".equ N, 3\n.rept N\nnop\n.endr", "909090"),
    (".macro TWO a, b=7\n.byte \\a, \\b\n.endm\nTWO 1\nTWO 2, 3", "01070203"),
    (".if 2 > 1\nnop\n.else\nhlt\n.endif", "90"), (".byte 'A', ';' ; comment", "413b"),
    ('.asciz "a;b", "c"', "613b62006300"), (".define R rax\nmov R, cs", "488cc8"),
    ("nop\n.align 4\n.word $ - start", "90909090" + "0400"),
])
def test_language(tmp_path, source, code):
    data = text(tmp_path, source).hex()
    assert data[:len(code)] == code


def test_sixteen_and_thirty_two_bits(tmp_path):
    head = ".section text\nstart:\n"
    assert text(tmp_path, ".bits 16\npush ds\npop fs\niretd\ncallfw 8, 0x1234", head).hex() == (
        "1e" "0fa1" "66cf" "9a34120800")
    assert text(tmp_path, ".bits 32\npush cs\nlgdt [0x1234]\njmpf 8, start", head).hex() == (
        "0e" "0f011534120000" "ea000010000800")


def test_sections_are_page_aligned_and_bss_takes_no_room(tmp_path):
    program = assemble(tmp_path, "nop\n.section data\nd: .quad d\n.section bss\nb: .space 0x3000")
    assert [s.address for s in program.sections] == [
        LOAD_BASE, LOAD_BASE + 0x1000, LOAD_BASE + 0x2000]
    assert program.sections[1].data == struct.pack("<Q", LOAD_BASE + 0x1000)
    assert program.symbols["b"] == LOAD_BASE + 0x2000
    image = elf32(program)
    assert image[:5] == b"\x7fELF\x01"
    assert struct.unpack_from("<HHII", image, 16) == (2, 3, 1, program.symbols["start"])
    bss = struct.unpack_from("<8I", image, 52 + 2 * 32)
    assert (bss[4], bss[5]) == (0, 0x3000)


@pytest.mark.parametrize(("source", "message"), [
    ("mov eax, nowhere", "nowhere is not defined"), ("frobnicate", "frobnicate"),
    (".nonsense", "unknown directive"), ("x: nop\nx: nop", "defined twice"),
    (".rept 2\nnop", "without .endr"), ("iret", "write it with its suffix"),
    (".macro M a\n.endm\nM", "argument a missing"), ("mov eax, 1 +", "bad expression"),
])
def test_mistakes_name_their_line(tmp_path, source, message):
    with pytest.raises(AsmError, match=r":\d+: ") as error:
        text(tmp_path, source)
    assert message in str(error.value)


# How capstone spells what the guests' sources spell otherwise.
_SAME = {"jz": "je", "jnz": "jne", "jc": "jb", "jnc": "jae", "setnz": "setne",
         "sysexitl": "sysexit", "sysretl": "sysret", "pause": "pause"}


def _mnemonic(source, bits):
    words = source.split()
    name = words[1] if words[0] == "rep" else words[0]
    if m := re.fullmatch(r"(jmpf|callf|pushf|popf|iret|retf|sysret|sysexit)([wdql]?)", name):
        stem = {"jmpf": "jmp", "callf": "call"}.get(m[1], m[1])
        return stem
    return _SAME.get(name, name).removeprefix("movabs")


@pytest.mark.parametrize("name", [g.name for g in guests.all_guests()])
def test_instructions_read_back(name):
    """Capstone finds one instruction of the same name and length in every encoding."""
    engines = {bits: capstone.Cs(capstone.CS_ARCH_X86, mode) for bits, mode in _MODES.items()}
    program = Assembler().assemble(guests.get(name).source)
    assert len(program.instructions) > 50
    for address, bits, code, source in program.instructions:
        read = list(engines[bits].disasm(code, address))
        assert len(read) == 1 and read[0].size == len(code), (source, code.hex())
        spelled = read[0].mnemonic.split()[-1].replace("movabs", "mov")
        assert _mnemonic(source, bits) in spelled, (source, code.hex(), spelled)
