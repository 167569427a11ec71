# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages of code that are written and run again: what did not change is not translated again, and
what did change is never run as it was.
"""

from __future__ import annotations

import random
import struct

import pytest
from micro import CTL, Micro, P, W
from test_core_code import ENGINES, counted, result_of

PAGE = 0x280000
#: Shares its place among the kept pages with PAGE (KEPT_PAGES in bt/core/state.pxi).
RIVAL = PAGE + (1024 << 12)
ALIAS = 0xFFFF_9000_0000_0000
#: A function across the end of PAGE: its MOV reaches into the next page, the rest is there.
ACROSS = PAGE + 0x1000 - 3
TAIL = ACROSS + 5 + 2 + 2
FUNCTIONS = [base + at for base in (PAGE, RIVAL) for at in (0, 16, 0x7F8, 0xFE0)]


def place(ram, imms: dict[int, int]) -> None:
    for address in FUNCTIONS:
        ram.write(address, struct.pack("<BIB", 0xB8, imms[address + 1], 0xC3))  # mov eax, n ; ret
    # mov eax, n ; jmp +2 ; (two bytes) ; add eax, n ; ret
    ram.write(ACROSS, struct.pack("<BIHHBIB", 0xB8, imms[ACROSS + 1], 0x02EB, 0xCCCC,
                                  0x05, imms[TAIL + 1], 0xC3))


def program(rng: random.Random, imms: dict[int, int], steps: int) -> tuple[str, int]:
    """Calls and stores in random order, and what R15 is in the end."""
    source, total = [], 0
    places = sorted(imms)
    for _ in range(steps):
        what = rng.random()
        if what < 0.35:
            at = rng.choice(places)
            imms[at] = rng.getrandbits(31)
            if at < RIVAL and rng.random() < 0.5 and at + 4 <= PAGE + 0x1000:
                source.append(f"mov rbx, {ALIAS + at - PAGE:#x}\nmov dword ptr [rbx], {imms[at]}")
            else:
                source.append(f"mov ebx, {at:#x}\nmov dword ptr [rbx], {imms[at]}")
            continue
        called = rng.choice([*FUNCTIONS, ACROSS])
        value = imms[called + 1] + (imms[TAIL + 1] if called == ACROSS else 0) & 0xFFFFFFFF
        source.append(f"mov ebx, {called:#x}\ncall rbx\nadd r15, rax\nrol r15, 7")
        total = total + value & (1 << 64) - 1
        total = (total << 7 | total >> 57) & (1 << 64) - 1
    return "xor r15d, r15d\n" + "\n".join(source) + "\njmp finish\n", total


@ENGINES
@pytest.mark.parametrize("seed", range(6))
def test_what_runs_is_what_was_written(engine: str, seed: int) -> None:
    """Several functions a page, through two addresses, across pages, and pages that have to go."""
    rng = random.Random(seed)
    imms = {at: rng.getrandbits(31)
            for at in [f + 1 for f in FUNCTIONS] + [ACROSS + 1, TAIL + 1]}
    before = dict(imms)
    source, expected = program(rng, imms, 400)
    micro = counted(source, engine=engine)
    place(micro.ram, before)
    micro.pages.map(ALIAS, PAGE, P | W)
    assert result_of(micro) == expected


def blocks_of(micro: Micro) -> int:
    result_of(micro)
    return micro.result.exit("block_scanned")


@ENGINES
def test_what_did_not_change_is_not_translated_again(engine: str) -> None:
    """A function beside a counter on its page, called five times and two hundred times."""
    def calls(times: int) -> Micro:
        micro = counted(f"""
    xor r15d, r15d
    mov ecx, {times}
@again:
    mov ebx, {PAGE + 16}
    call rbx
    inc dword ptr [rbx+{0x7F8 - 16 + 8}]
    dec ecx
    jnz @again
    jmp finish
""", engine=engine)
        place(micro.ram, dict.fromkeys([f + 1 for f in FUNCTIONS] + [ACROSS + 1, TAIL + 1], 1))
        return micro

    few, many = calls(5), calls(200)
    assert 5 < blocks_of(few) == blocks_of(many)
    assert many.result.exit("code page written") >= 200 > few.result.exit("code page written")


@ENGINES
@pytest.mark.parametrize("offset", [64, 0xF80])
def test_a_block_that_overwrites_itself_is_cut(engine: str, offset: int) -> None:
    """Straight on from the store, where the page was kept: Unicorn itself sees that store."""
    micro = counted(f"""
    jmp go
back:
    jmp finish
go:
    xor r15d, r15d
    mov ecx, 6
    mov ebx, {CTL + 256}                ; at first the store goes elsewhere
    mov edi, {PAGE + offset}
    lea rbp, [back]
    jmp rdi
""", engine=engine)
    code = bytes.fromhex("880b"         # mov [rbx], cl
                         "b077"         # mov al, 0x77
                         "0fb6c0"       # movzx eax, al
                         "49c1e708"     # shl r15, 8
                         "4909c7"       # or r15, rax
                         "83f903"       # cmp ecx, 3
                         "7504"         # jne +4
                         "488d5f03"     # lea rbx, [rdi+3]
                         "ffc9"         # dec ecx
                         "7402"         # jz +2
                         "ffe7"         # jmp rdi
                         "ffe5")        # jmp rbp
    micro.ram.write(PAGE + offset, code)
    assert result_of(micro) == 0x7777_7777_0201
