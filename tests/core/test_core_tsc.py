# SPDX-License-Identifier: GPL-2.0-or-later
"""RDTSC and RDTSCP come to a hook of their own, not by a fault, unless somebody wants that."""

from __future__ import annotations

import pytest
from micro import GP, Micro

READ = """
    rdtsc
    mov [0x7020], eax
    mov [0x7024], edx
    mov ecx, 5
    rdtscp
    mov [0x7028], eax
    mov [0x702c], edx
    mov [0x7030], ecx
    EXIT 1
"""
IN_USER = """
    {before}
    push UDATA
    push USER_STACK
    push 2
    push UCODE
    mov eax, usercode
    push rax
    iretq
.section user
usercode:
    rdtsc
    shl rdx, 32
    or rax, rdx
    mov r12, rax
    rdtscp
    shl rdx, 32
    or rdx, rax
    int 0x40
"""


def counts(result) -> dict[str, int]:
    return result.machine.stats.to_json()["exits"]["control"]


@pytest.mark.parametrize("engine", ["bt", "trap"])
@pytest.mark.parametrize("hooked", [False, True])
def test_in_the_kernel(engine: str, hooked: bool) -> None:
    """Under `trap` nothing is rewritten: a hook on the exit brings the fault back."""
    micro = Micro(READ, engine=engine)
    seen: list[int] = []
    if hooked:
        micro.machine.on_exit("rdtsc", "rdtscp")(lambda at: seen.append(at.rip))
    result = micro.run()
    first, second = result.q(0x7020), result.q(0x7028)
    assert 0 < first <= second <= micro.machine.vcpu.now_ns()
    assert result.d(0x7030) == 0, "TSC_AUX"
    assert counts(result)["RDTSC"] == counts(result)["RDTSCP"] == 1
    assert len(seen) == 2 * hooked
    faults = counts(result).get("exception #GP", 0)
    without = counts(Micro("EXIT 1", engine=engine).run()).get("exception #GP", 0)
    assert faults - without == (2 if hooked and engine == "trap" else 0)


@pytest.mark.parametrize("tsd", [False, True])
def test_in_user_mode(tsd: bool) -> None:
    before = "mov rax, cr4\nor eax, 4\nmov cr4, rax" if tsd else ""
    micro = Micro(IN_USER.format(before=before))
    micro.set_gate(0x40, 0xEE)
    result = micro.run()
    (record,) = result.records
    assert record.vector == (GP if tsd else 0x40)
    if tsd:
        assert record.ip == result.symbol("usercode") and record.error == 0
    else:
        registers = micro.machine.vcpu.registers()
        assert 0 < registers["r12"] <= micro.machine.vcpu.now_ns()
        assert counts(result)["RDTSC"] == 1
        assert counts(result).get("exception #GP", 0) == 0
