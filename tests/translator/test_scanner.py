# SPDX-License-Identifier: GPL-2.0-or-later
"""The compiled scanner against capstone, which decodes and classifies on its own in these tests."""

import itertools
import random

import capstone
import pytest
from capstone import x86_const as x86
from golden import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st

from translator import _scan
from translator.scanner import disassembler, scan, scan_block, selection, sweep
from translator.sensitive import TABLE

MODES = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}
DETAIL = {}
for _bits, _mode in MODES.items():
    DETAIL[_bits] = capstone.Cs(capstone.CS_ARCH_X86, _mode)
    DETAIL[_bits].detail = True

IDS = {}
for _row, _names in {
    "CLI": "CLI", "STI": "STI", "HLT": "HLT", "PUSHF": "PUSHF PUSHFD PUSHFQ",
    "POPF": "POPF POPFD POPFQ", "IRET": "IRET IRETD IRETQ", "SGDT": "SGDT", "SIDT": "SIDT",
    "SLDT": "SLDT", "STR": "STR", "LGDT": "LGDT", "LIDT": "LIDT", "LLDT": "LLDT", "LTR": "LTR",
    "LAR": "LAR", "LSL": "LSL", "VERR": "VERR", "VERW": "VERW",
    "LOAD_FAR_PTR": "LDS LES LSS LFS LGS", "SWAPGS": "SWAPGS", "SMSW": "SMSW", "LMSW": "LMSW",
    "CLTS": "CLTS", "STAC": "STAC", "CLAC": "CLAC", "XGETBV": "XGETBV", "XSETBV": "XSETBV",
    "RDMSR": "RDMSR", "WRMSR": "WRMSR", "RDPMC": "RDPMC", "RDTSC": "RDTSC", "RDTSCP": "RDTSCP",
    "RDPID": "RDPID", "CPUID": "CPUID", "INVLPG": "INVLPG", "INVPCID": "INVPCID",
    "WBINVD": "WBINVD WBNOINVD", "INVD": "INVD", "IN": "IN", "OUT": "OUT",
    "INS": "INSB INSW INSD", "MONITOR": "MONITOR", "MWAIT": "MWAIT",
    "OUTS": "OUTSB OUTSW OUTSD", "PAUSE": "PAUSE", "FAR_CALL": "LCALL", "FAR_JMP": "LJMP",
    "FAR_RET": "RETF RETFQ", "INT_N": "INT", "INT3": "INT3", "INT1": "INT1", "INTO": "INTO",
    "SYSCALL": "SYSCALL", "SYSENTER": "SYSENTER", "SYSRET": "SYSRET SYSRETQ",
    "SYSEXIT": "SYSEXIT SYSEXITQ", "VMCALL": "VMCALL", "VMMCALL": "VMMCALL",
}.items():
    for _name in _names.split():
        IDS[getattr(x86, f"X86_INS_{_name}")] = _row
SEGMENTS = {getattr(x86, f"X86_REG_{name}"): name for name in "CS DS ES FS GS SS".split()}
CONTROL = {getattr(x86, f"X86_REG_CR{n}") for n in range(16)}
DEBUG = {getattr(x86, f"X86_REG_DR{n}") for n in range(16)}


def independent_row(insn, bits: int) -> str | None:
    """The row's name by capstone's instruction ids and operands alone."""
    if insn.id == x86.X86_INS_SWAPGS and bits != 64:
        return None                    # #UD there, though capstone takes it
    if insn.id in IDS:
        return IDS[insn.id]
    # Where an indirect far branch has capstone's name of a near one, only the opcode tells.
    if insn.id in (x86.X86_INS_CALL, x86.X86_INS_JMP) and insn.opcode[0] == 0xFF:
        return {3: "FAR_CALL", 5: "FAR_JMP"}.get(insn.modrm >> 3 & 7)
    registers = [op.reg if op.type == x86.X86_OP_REG else None for op in insn.operands]
    if insn.id == x86.X86_INS_MOV:
        to, source = registers
        if source in CONTROL:
            return "MOV_FROM_CR"
        if to in CONTROL:
            return "MOV_TO_CR"
        if source in DEBUG:
            return "MOV_FROM_DR"
        if to in DEBUG:
            return "MOV_TO_DR"
        if to in SEGMENTS:
            return None if SEGMENTS[to] == "CS" else "MOV_TO_SEG"       # CS: #UD
        if SEGMENTS.get(source) in ("CS", "SS"):
            return "MOV_FROM_SEG"
    if insn.id == x86.X86_INS_PUSH and SEGMENTS.get(registers[0]) in ("CS", "SS"):
        return "PUSH_SEG"
    if insn.id == x86.X86_INS_POP and registers[0] in SEGMENTS:
        return "POP_SEG"
    return None


def independent(code: bytes, bits: int):
    """[(offset, row name, length)], instructions, bytes: what the scanner must say."""
    found, count, end = [], 0, 0
    for insn in DETAIL[bits].disasm(code, 0):
        row = independent_row(insn, bits)
        if row:
            found.append((insn.address, row, insn.size))
        count += 1
        end = insn.address + insn.size
    return found, count, end


def agree(code: bytes, bits: int) -> None:
    block = scan_block(code, 0, bits, "all")
    mine = [(f.offset, f.row.name, f.length) for f in block.findings]
    assert (mine, block.instructions, block.consumed) == independent(code, bits), code.hex()


@pytest.mark.parametrize("bits", MODES)
@settings(max_examples=1500, deadline=None)
@given(data=st.data())
def test_random_bytes_agree_with_capstone(bits, data):
    agree(data.draw(st.binary(min_size=1, max_size=64)), bits)


@pytest.mark.parametrize("bits", MODES)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_streams_of_sensitive_and_plain_instructions_agree(bits, data):
    known = [case.code for case in GOLDEN if case.bits == bits]
    plain = [bytes.fromhex(code) for code in ("90", "89c8", "83c001", "b801000000", "c3", "50")]
    code = b"".join(data.draw(st.lists(st.sampled_from(known + plain), max_size=20)))
    if code:
        agree(code, bits)


@pytest.mark.parametrize("bits", MODES)
def test_every_opcode_and_modrm_agrees_with_capstone(bits):
    """The whole opcode space once, with each ModRM byte and the prefixes that change lengths."""
    prefixes = [b"", b"\x66", b"\xf3", b"\xf2", b"\x67", b"\x2e"]
    if bits == 64:
        prefixes += [b"\x41", b"\x48", b"\x66\x48", b"\x48\x66"]
    tail = random.Random(7).randbytes(15)
    handle = disassembler(bits)
    everything = selection("all")
    for escape, opcode in itertools.product((b"", b"\x0f"), range(256)):
        if not escape and opcode in (0x0F, 0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0,
                                     0xF2, 0xF3):
            continue
        for prefix, modrm in itertools.product(prefixes, range(256)):
            code = prefix + escape + bytes((opcode, modrm)) + tail
            insn = next(handle.disasm_lite(code, 0, 1), None)
            found, count, consumed = _scan.scan(bits, code, 1, 0, everything)
            assert consumed == (insn[1] if insn else 0), code.hex()
            assert count == (insn is not None)


@pytest.mark.parametrize("bits", MODES)
def test_every_form_of_the_tables_opcodes_is_classified_like_capstone(bits):
    escapes = (b"", b"\x0f", b"\x0f\x38")
    opcodes = sorted({(e.map, e.opcode) for row in TABLE for e in row.encodings})
    prefixes = [b"", b"\x66", b"\xf3", b"\xf2", b"\x67"] + [b"\x48", b"\x41"] * (bits == 64)
    everything = selection("all")
    tail = b"\x11\x22\x33\x44\x55\x66\x77\x88"
    for (map_, opcode), prefix in itertools.product(opcodes, prefixes):
        for modrm in range(256):
            code = prefix + escapes[map_] + bytes((opcode, modrm)) + tail
            insn = next(DETAIL[bits].disasm(code, 0, 1), None)
            found, _, _ = _scan.scan(bits, code, 1, 0, everything)
            assert [TABLE[row].name for _, row, _ in found] == [
                name for name in [insn and independent_row(insn, bits)] if name], code.hex()


@pytest.mark.parametrize("bits", [32, 64])
def test_every_sib_agrees_with_capstone(bits):
    tail = bytes(range(1, 13))
    for mod, sib in itertools.product(range(3), range(256)):
        code = bytes((0x89, mod << 6 | 4, sib)) + tail
        insn = next(disassembler(bits).disasm_lite(code, 0, 1))
        assert scan_block(code, 0, bits, span=1).consumed == insn[1], code.hex()


def test_the_last_instruction_may_run_past_the_span():
    code = bytes.fromhex("90 0f01f8 fa")
    block = scan_block(code, 0x1000, 64, span=2)
    assert [(f.offset, f.row.name) for f in block.findings] == [(1, "SWAPGS")]
    assert block.consumed == 4
    assert scan_block(code[:3], 0x1000, 64, span=2).findings == []


def test_stops_at_what_is_no_instruction():
    block = scan_block(bytes.fromhex("fa 06 fb"), 0, 64)
    assert [f.row.name for f in block.findings] == ["CLI"]
    assert block.consumed == 1
    assert [f.row.name for f in scan(bytes.fromhex("fa 06 fb"))] == ["CLI", "STI"]


@pytest.mark.parametrize("bits", MODES)
def test_every_truncation_is_undecodable_and_harmless(bits):
    for case in GOLDEN:
        if case.bits == bits:
            for size in range(len(case.code)):
                assert scan_block(case.code[:size], 0, bits, "all").consumed <= size


def test_more_findings_than_one_call_of_the_compiled_part_returns():
    code = b"\xfa\x90" * 1000
    found = scan_block(code, 0, 64).findings
    assert [f.offset for f in found] == list(range(0, 2000, 2))


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="16, 32 or 64"):
        scan_block(b"\x90", bits=31)
    with pytest.raises(ValueError, match="privilege"):
        scan_block(b"\x90", privilege="root")
    with pytest.raises(ValueError, match="256"):
        _scan.scan(64, b"\x90", 1, 0, b"")


def test_listing_of_a_kernel_entry():
    """A golden listing: the system call entry and exit of a 64-bit kernel, in short."""
    code = bytes.fromhex("0f01f8" "65488924251460 0000" "0f20d8" "0f22d8" "9c" "fa" "8cc8"
                         "0f30" "0f01f8" "480f07")
    listing = [f"{f.address:x} {f.row.name}: {f.text}" for f in scan(code, 0xFFFFFFFF81000000)]
    assert listing == [
        "ffffffff81000000 SWAPGS: swapgs",
        "ffffffff8100000c MOV_FROM_CR: mov rax, cr3",
        "ffffffff8100000f MOV_TO_CR: mov cr3, rax",
        "ffffffff81000012 PUSHF: pushfq",
        "ffffffff81000013 CLI: cli",
        "ffffffff81000014 MOV_FROM_SEG: mov eax, cs",
        "ffffffff81000016 WRMSR: wrmsr",
        "ffffffff81000018 SWAPGS: swapgs",
        "ffffffff8100001b SYSRET: sysretq",
    ]


@pytest.mark.parametrize("bits", MODES)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_sweep_is_capstone_step_by_step(bits, data):
    """Against a sweep in Python with capstone's lengths: starts, skipped bytes, dropped ones."""
    code = data.draw(st.binary(min_size=1, max_size=80))
    known = set(data.draw(st.lists(st.integers(0, len(code) - 1), max_size=6)))
    at, instructions, fillers, skipped, dropped, found = 0, 0, 0, 0, 0, []
    while at < len(code):
        limit = min((start for start in known if start > at), default=len(code))
        insn = next(DETAIL[bits].disasm(code[at:], at, 1), None)
        if insn is None:
            at, skipped = at + 1, skipped + 1
        elif at + insn.size > limit:
            dropped, skipped, at = dropped + 1, skipped + limit - at, limit
        else:
            row = independent_row(insn, bits)
            if row == "INT3":
                fillers += 1
            else:
                instructions += 1
                found += [(at, row, insn.size)] if row else []
            at += insn.size
    mine = sweep(code, 0, bits, known)
    assert [(f.offset, f.row.name, f.length) for f in mine.findings] == found, code.hex()
    assert (mine.instructions, mine.fillers, mine.skipped, mine.dropped) == (
        instructions, fillers, skipped, dropped), code.hex()


def test_a_sweep_over_more_than_one_buffer():
    code = b"\xfa\x90\xcc" * 3000
    found = sweep(code, 0x1000, 64, [3000])
    assert [f.address for f in found.findings] == [0x1000 + 3 * n for n in range(3000)]
    assert (found.instructions, found.fillers) == (6000, 3000)
