# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's whole kernel: what the compiled sweep finds is what capstone finds, no more, no less."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import capstone
import pytest

from bt.errors import InputError
from bt.scan.files import Region, open_binary
from bt.scan.work import Options, scan_file
from guests.linux import fetch
from translator.sensitive import BY_NAME, TABLE

pytestmark = pytest.mark.slow

#: capstone's mnemonics of rows that need no look at the operands.
MNEMONICS = {
    **{name.lower(): name for name in BY_NAME},
    "pushf": "PUSHF", "pushfq": "PUSHF", "popf": "POPF", "popfq": "POPF", "iretd": "IRET",
    "iretq": "IRET", "lcall": "FAR_CALL", "ljmp": "FAR_JMP", "retf": "FAR_RET",
    "retfq": "FAR_RET", "sysretq": "SYSRET", "sysexitq": "SYSEXIT", "insb": "INS", "insw": "INS",
    "insd": "INS", "outsb": "OUTS", "outsw": "OUTS", "outsd": "OUTS", "lss": "LOAD_FAR_PTR",
    "lfs": "LOAD_FAR_PTR", "lgs": "LOAD_FAR_PTR", "int": "INT_N", "wbnoinvd": "WBINVD"}
CR, DR, SEG = (re.compile(rf"\b{kind}\b") for kind in (r"cr\d+", r"dr\d+", r"[cdefgs]s"))


def by_text(mnemonic: str, operands: str) -> str | None:
    """The row's name, from the text of the disassembly alone."""
    word = mnemonic.split()[-1] if mnemonic.startswith("rep") else mnemonic
    if word == "mov":
        to, _, source = operands.partition(", ")
        for pattern, name in ((CR, "CR"), (DR, "DR")):
            if pattern.fullmatch(to):
                return f"MOV_TO_{name}"
            if pattern.fullmatch(source):
                return f"MOV_FROM_{name}"
        if SEG.fullmatch(to):
            return "MOV_TO_SEG"
        return "MOV_FROM_SEG" if source in ("cs", "ss") else None
    if word in ("jmp", "call") and operands.startswith("ptr "):
        return "FAR_JMP" if word == "jmp" else "FAR_CALL"       # a near one has "qword ptr"
    if word == "pop" and SEG.fullmatch(operands):
        return "POP_SEG"
    return MNEMONICS.get(word)


def by_capstone(region: Region) -> Iterator[tuple[int, str]]:
    """(offset, row) of everything from each start to the next, INT3s left out."""
    handle = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    bounds = sorted({0, *region.starts, len(region.data)})
    for start, end in zip(bounds, bounds[1:], strict=False):
        at = start
        while at < end:
            while at < end and region.data[at] == 0xCC:
                at += 1
            if at == end:
                break
            # Up to the next run of INT3, which fills a fifth of the kernel.
            stop = region.data.find(b"\xcc\xcc\xcc\xcc\xcc\xcc\xcc\xcc", at, end)
            stop = end if stop < 0 else stop
            before = at
            for offset, size, mnemonic, operands in handle.disasm_lite(region.data[at:stop], at):
                row = by_text(mnemonic, operands)
                if row is not None and row != "INT3":
                    yield offset, row
                at = offset + size
            if at < stop:               # not an instruction, or one cut short by the bound
                inside = next(handle.disasm_lite(region.data[at:at + 15], at, 1), None)
                at = stop if inside is not None and at + inside[1] > stop == end else at + 1
            assert at > before


@pytest.fixture(scope="module")
def vmlinux() -> Path:
    try:
        return fetch.kernel(fetch.KERNEL_PACKAGE)
    except InputError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def test_the_whole_kernel(vmlinux) -> None:
    result = scan_file(vmlinux, Options())
    assert result.instructions > 2_500_000 and result.symbols == "kallsyms"
    with open_binary(vmlinux) as binary:
        for region in binary.regions:
            mine = [(s.address - region.address, TABLE[s.row].name) for s in result.sites
                    if s.section == region.section]
            assert mine == list(by_capstone(region)), region.section
    assert result.total > 3000
