# SPDX-License-Identifier: GPL-2.0-or-later
"""RDTSC and RDTSCP come to a hook of their own, not by a fault, unless somebody wants that. Under
hvm they are exits, made by a call in front of them (bt/core/rdtsc.pxi).
"""

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


@pytest.mark.parametrize("engine", ["bt", "trap", "hvm"])
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


@pytest.mark.parametrize("engine", ["bt", "hvm"])
@pytest.mark.parametrize("tsd", [False, True])
def test_in_user_mode(tsd: bool, engine: str) -> None:
    before = "mov rax, cr4\nor eax, 4\nmov cr4, rax" if tsd else ""
    micro = Micro(IN_USER.format(before=before), engine=engine)
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


#: Of each instruction: RFLAGS before it and behind it, the TSC.
MANY = """
    mov r13d, 0x170000
    mov ebx, 6
@again:
{turns}
    dec ebx
    jnz @again
    EXIT 1
"""
TURN = """
    {operation}
    pushfq
    pop qword ptr [r13]
    {operation}
    {code}
    pushfq
    pop qword ptr [r13+8]
    mov [r13+16], eax
    mov [r13+20], edx
    add r13, 24
"""


@pytest.mark.parametrize("engine", ["bt", "trap", "hvm"])
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("code", ["rdtsc", "rdtscp", ".byte 0x66, 0x0f, 0x31",
                                  ".byte 0x48, 0x0f, 0x01, 0xf9"])
def test_many_in_a_row(code: str, deterministic: bool, engine: str) -> None:
    """Flags stay, whatever Unicorn keeps them as; time goes on; with prefixes it is the same."""
    operations = ("xor eax, eax", "stc", "cmp ebx, 0x7fffffff", "std\n cmp ebx, 3",
                  "cld\n neg ebx\n neg ebx", "shl rbx, 1\n shr rbx, 1", "sti\n nop", "cli")
    turns = "".join(TURN.format(operation=operation, code=code) for operation in operations)
    micro = Micro(MANY.format(turns=turns), engine=engine, deterministic=deterministic)
    result = micro.run()
    assert result.outcome.status == 1, (result.outcome.report, result.records)
    count = 6 * len(operations)
    name = "RDTSCP" if "p" in code or "f9" in code else "RDTSC"
    assert counts(result)[name] == count
    last = 0
    for at in range(0x170000, 0x170000 + 24 * count, 24):
        assert result.q(at) == result.q(at + 8)
        assert last < result.q(at + 16) or deterministic and last == result.q(at + 16)
        last = result.q(at + 16)


@pytest.mark.parametrize("answer", [0x1234, 0xFFFF_FFFF_0000_0001])
def test_a_hook_of_hvm_may_choose_the_value(answer: int) -> None:
    """The call makes the exit that the hook sees."""
    micro = Micro(READ, engine="hvm")

    @micro.machine.on_exit("rdtsc")
    def choose(at) -> None:
        at.registers["rax"] = answer & 0xFFFF_FFFF
        at.registers["rdx"] = answer >> 32
        at.skip()

    result = micro.run()
    assert result.q(0x7020) == answer
