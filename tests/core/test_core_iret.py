# SPDX-License-Identifier: GPL-2.0-or-later
"""IRETQ of the kernel to its own ring, many times over: the first is Unicorn's, later ones ours
(bt/core/iret.pxi). What it must do is what plain Unicorn does in ring 0, or, where something
faults, what engine bt's IRET does, which is a trap.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from micro import DB, GDT, GP, KCODE, KDATA, NP, PF, SS, Micro, Record, Result, native

ENGINES = pytest.mark.parametrize("engine", ["hvm", "bt"])
OUT = 0x170000
TURNS = 6
#: Of each turn: RFLAGS behind the IRETQ, RSP, and what LAR says of CS and SS.
GUEST = """
    mov r13d, OUT
    mov ebx, {turns}
again:
    {before}
    mov eax, {ss}
    push rax
    lea rax, [rsp+{stack}]
    push rax
    mov rax, {flags}
    push rax
    mov eax, {cs}
    push rax
    {target}
    push rax
    {operation}
    iretq
back:
    pushfq
    pop qword ptr [r13]
    mov [r13+8], rsp
    mov eax, cs
    lar eax, eax
    mov [r13+16], eax
    mov eax, ss
    mov [r13+20], eax
    mov rsp, STACK
    push 2
    popfq
    add r13, 24
    dec ebx
    jnz again
    EXIT 1
""".replace("OUT", hex(OUT))
DEFAULTS = {"turns": TURNS, "before": "", "ss": KDATA, "cs": KCODE, "stack": 8, "flags": 2,
            "target": "lea rax, [back]", "operation": ""}
IF, VM, AC, ID, TF = 0x200, 1 << 17, 1 << 18, 1 << 21, 0x100
ARITHMETIC, DF = 0x8D5, 0x400


def guest(**parts: object) -> str:
    return GUEST.format(**DEFAULTS | parts)


def turns(memory: bytes) -> list[tuple[int, ...]]:
    return [struct.unpack_from("<QQII", memory, 24 * i) for i in range(TURNS)]


def run_on(source: str, engine: str) -> tuple[Result, list[tuple[int, ...]]]:
    micro = Micro(source, engine=engine)
    return micro.run(), turns(micro.ram.read(OUT, 24 * TURNS))


def same_as_native(source: str, engine: str) -> list[tuple[int, ...]]:
    result, found = run_on(source, engine)
    assert result.outcome.status == 1, (result.outcome.report, result.records)
    assert found == turns(bytes(native(source).mem_read(OUT, 24 * TURNS)))
    return found


@ENGINES
@pytest.mark.parametrize("flags", [
    2, ARITHMETIC | 2, 1, 4, 0x10, 0x40, 0x80, 0x800, DF, ARITHMETIC | DF, IF, IF | ARITHMETIC, ID,
    AC, 0x3000, VM, 0x180000, 1 << 40 | 1, 0x246], ids=hex)
@pytest.mark.parametrize("operation", ["", "cmp rax, rax", "sub eax, 0x7fffffff", "std"])
def test_the_flags_are_those_of_the_frame(flags: int, operation: str, engine: str) -> None:
    found = same_as_native(guest(flags=flags, operation=operation), engine)
    assert len(set(found)) == 1
    assert found[0][0] & (ARITHMETIC | DF | IF) == flags & (ARITHMETIC | DF | IF)


@ENGINES
@pytest.mark.parametrize("stack", [8, 0, 1, -3, -0x1000, 0x70000, -0x54321])
def test_the_stack_is_that_of_the_frame(stack: int, engine: str) -> None:
    found = same_as_native(guest(stack=stack), engine)
    assert {turn[1] for turn in found} == {0x90000 - 8 + stack}


@ENGINES
def test_frames_of_different_content_take_turns(engine: str) -> None:
    """Flags that only Unicorn's takes among those that ours does."""
    before = "mov r12d, 0x200\n test ebx, 1\n cmovz r12d, r13d\n and r12d, 0x8d5\n bts r12d, 9"
    source = guest(before=before, flags="r12", operation="neg r12d")
    found = same_as_native(source, engine)
    assert len({turn[0] for turn in found}) > 2


@ENGINES
@pytest.mark.parametrize("offset", [1, 3, 8, 16, 24, 32, 39, 40])
def test_a_frame_across_two_pages(offset: int, engine: str) -> None:
    """``offset``: how much of the frame is on the lower page."""
    before = f"mov rsp, {0x90000 - 0x1000 + 40 - offset}"
    same_as_native(guest(before=before, stack=8), engine)


@ENGINES
def test_a_null_stack_segment(engine: str) -> None:
    found = same_as_native(guest(before="xor eax, eax\n mov ss, ax", ss=0), engine)
    assert {turn[3] for turn in found} == {0}


@ENGINES
def test_prefixes_make_it_another_instruction(engine: str) -> None:
    """IRETD pops words of four bytes; what REX has besides W does not matter."""
    squeeze = "\n".join(f"mov eax, [rsp+{8 * i}]\n mov [rsp+{4 * i}], eax" for i in range(1, 5))
    narrow = guest(flags=ARITHMETIC, operation=squeeze).replace("iretq", "iretd")
    wide = guest(flags=ARITHMETIC).replace("iretq", ".byte 0x4f, 0xcf")
    expected = same_as_native(wide, engine)
    assert len(set(expected)) == 1
    result, found = run_on(narrow, engine)      # plain Unicorn has no such SS
    assert result.outcome.status == 1 and found == expected


def caught(source: str, engine: str,
           prepare: Callable[[Micro], None] = lambda micro: None) -> Record:
    """The one exception of the guest, in its fourth turn."""
    micro = Micro(source + CAUGHT, engine=engine)
    prepare(micro)
    micro.abandon("caught")
    result = micro.run()
    assert result.outcome.status == 2, (result.outcome.report, result.records)
    assert result.q(OUT + 24 * 2) and not result.q(OUT + 24 * 3)
    [record] = result.records
    return record


CAUGHT = """
caught:
    EXIT 2
"""
#: In the fourth turn, when the IRETQ has been ours: eax = 1, else 0.
FOURTH = f"xor eax, eax\n cmp ebx, {TURNS - 3}\n sete al"


@ENGINES
@pytest.mark.parametrize(("name", "byte", "vector", "error"), [
    ("code not present", (KCODE + 5, 0x1B), NP, KCODE),
    ("code of ring 3", (KCODE + 5, 0xFB), GP, KCODE),
    ("code is data", (KCODE + 5, 0x93), GP, KCODE),
    ("stack not present", (KDATA + 5, 0x13), SS, KDATA),        # Unicorn: #NP
    ("stack of ring 3", (KDATA + 5, 0xF3), GP, KDATA),
    ("stack read-only", (KDATA + 5, 0x91), GP, KDATA),
], ids=lambda value: value if isinstance(value, str) else "")
def test_descriptors_are_looked_at_each_time(name: str, byte: tuple[int, int], vector: int,
                                             error: int, engine: str) -> None:
    """The guest writes to its descriptor table between two IRETQs.

    Handlers go through an intact copy of the code segment, which an IRETQ does not name.
    """
    at, value = byte
    before = (f"{FOURTH}\n test eax, eax\n jz whole\n"
              f"mov byte ptr [{GDT + at:#x}], {value:#x}\n whole:")

    def prepare(micro: Micro) -> None:
        micro.set_descriptor(0x58, 0x00AF9B000000FFFF)
        for fault in (NP, GP, SS):
            micro.set_gate(fault, selector=0x58)

    record = caught(guest(before=before), engine, prepare)
    if engine == "hvm" and vector == SS:
        vector = NP
    assert (record.vector, record.error) == (vector, error)


@ENGINES
@pytest.mark.parametrize(("what", "vector", "error"), [
    ({"cs": 0}, GP, 0), ({"cs": 0x70}, GP, 0x70), ({"ss": 0x70}, GP, 0x70),
    ({"cs": KDATA}, GP, KDATA), ({"ss": KCODE}, GP, KCODE), ({"ss": KDATA | 3}, GP, KDATA),
    ({"cs": KCODE | 1}, GP, KCODE), ({"cs": 0x14}, GP, 0x14), ({"ss": 0x1C}, GP, 0x1C),
], ids=str)
def test_what_a_frame_may_not_have(what: dict[str, int], vector: int, error: int,
                                   engine: str) -> None:
    """Three good ones, then one that is not."""
    [(name, bad)] = what.items()
    good = DEFAULTS[name]
    before = f"{FOURTH}\n neg eax\n and eax, {bad ^ good}\n xor eax, {good}\n mov r12d, eax"
    source = guest(before=before, **{name: "r12d"})
    record = caught(source, engine)
    assert (record.vector, record.error) == (vector, error)


@ENGINES
def test_nt_is_refused(engine: str) -> None:
    """IRET of a nested task does not exist in long mode (SDM vol. 2, IRET)."""
    operation = (f"{FOURTH}\n shl eax, 14\n or eax, 2\n push rax\n popfq")
    record = caught(guest(operation=operation), engine)
    assert (record.vector, record.error) == (GP, 0)


@ENGINES
def test_a_single_step_follows(engine: str) -> None:
    """TF of the frame: #DB behind the first instruction there."""
    before = f"{FOURTH}\n shl eax, 8\n or eax, 2\n mov r12d, eax"
    record = caught(guest(before=before, flags="r12"), engine)
    assert (record.vector, record.flags & TF) == (DB, TF)


@ENGINES
def test_a_stack_page_that_goes_away(engine: str) -> None:
    """The frame's page is unmapped, with INVLPG, where the IRETQs before found theirs."""
    page = 0x90000 - 0x1000
    source = guest(operation=f"""
    {FOURTH}
    xor eax, 1
    mov ecx, SLOT
    mov r12, [rcx]
    and r12, -2
    or r12, rax
    mov [rcx], r12
    invlpg [{page:#x}]
""")
    slot = Micro(source.replace("SLOT", "0") + CAUGHT, engine=engine).pages.slot(page)
    record = caught(source.replace("SLOT", str(slot)), engine,
                    lambda micro: micro.set_gate(PF, ist=1))
    assert (record.vector, record.error, record.cr2) == (PF, 0, 0x90000 - 40)


@ENGINES
def test_addresses_that_are_not_canonical(engine: str) -> None:
    target = f"{FOURTH}\n shl rax, 60\n mov r12, rax\n lea rax, [back]\n or rax, r12"
    assert caught(guest(target=target), engine).vector == GP


@pytest.mark.parametrize("deterministic", [True, False])
@ENGINES
def test_an_endless_row_of_them_can_be_stopped(deterministic: bool, engine: str) -> None:
    """No other instruction ends a block in this loop."""
    micro = Micro("""
    mov rbp, rsp
again:
    mov rsp, rbp
    push KDATA
    push rbp
    push 2
    push KCODE
    lea rax, [again]
    push rax
    iretq
""", engine=engine, deterministic=deterministic)
    outcome = micro.run(timeout=0.3).outcome
    assert "time" in str(outcome).lower()
