# SPDX-License-Identifier: GPL-2.0-or-later
"""The micro-guests' own frame: it boots in every mode, handlers record, both engines agree."""

from __future__ import annotations

import pytest
from micro import CODE, DE, UD, Micro


@pytest.mark.parametrize(("bits", "paging"), [(64, 4), (32, 0), (32, 2), (32, 3)])
@pytest.mark.parametrize("engine", ["bt", "trap", "hvm"])
@pytest.mark.parametrize("deterministic", [True, False])
def test_a_fault_is_recorded_and_the_guest_goes_on(bits: int, paging: int, engine: str,
                                                   deterministic: bool) -> None:
    micro = Micro("ud2\ngo: EXIT 5", bits, paging=paging, engine=engine,
                  deterministic=deterministic)
    micro.resume("go")
    result = micro.run()
    assert (result.outcome.kind, result.outcome.status) == ("powered-off", 5)
    (record,) = result.records
    assert (record.vector, record.error, record.ip) == (UD, 0, CODE)
    assert record.cs == (0x10 if bits == 64 else 0x08)


def test_real_mode_runs_through_its_vector_table() -> None:
    """INT n and #DE push FLAGS, CS, IP and enter at the vector's CS:IP (SDM vol. 3, 21.1.4)."""
    micro = Micro("""
    xor ax, ax
    mov ds, ax
    int 0x21
    xor cx, cx
divide:
    div cx
after:
    mov ax, [0x6000]
    EXIT 3
int21:
    mov word ptr [0x6000], 0x1234
    iretw
de:
    pop ax
    mov [0x6002], ax
    add ax, after - divide
    push ax
    iretw
    """, 16)
    base = 0x100000 - 0x7C00
    for vector, name in ((0x21, "int21"), (DE, "de")):
        micro.ram.write(vector * 4, (micro.symbol(name) - base).to_bytes(4, "little"))
    result = micro.run()
    assert (result.outcome.kind, result.outcome.status) == ("powered-off", 3), result.outcome.report
    assert result.d(0x6000) & 0xFFFF == 0x1234
    assert result.d(0x6000) >> 16 == micro.symbol("divide") - base
