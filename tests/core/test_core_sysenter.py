# SPDX-License-Identifier: GPL-2.0-or-later
"""SYSENTER leaves the arithmetic flags alone (SDM vol. 2: it clears VM and IF, and no others).

Unicorn has not stored which operation the flags are to come from when it calls the hook, and does
so behind it. So what is before SYSENTER matters, in the same block. Each guest does it twice: once
with PUSHF behind it, which says what the flags are, once with SYSENTER.
"""

from __future__ import annotations

import pytest
from micro import GP, Micro

ENGINES = pytest.mark.parametrize("engine", ["bt", "trap", "hvm"])
ARITHMETIC = 0x8D5
FLAGS, IF = 0x300000, 0x200
#: Leaves every kind of cc_op that QEMU has for these, and each flag both 0 and 1.
OPERATIONS = {
    "add carry": "mov eax, 0xffffffff\n add eax, 1",
    "add overflow": "mov eax, 0x7fffffff\n add eax, 1",
    "adc": "mov eax, 5\n stc\n adc eax, 0xfffffffa",
    "sub": "mov eax, 3\n sub eax, 5",
    "sbb": "mov eax, 0\n stc\n sbb eax, 7",
    "cmp byte": "mov al, 0x80\n cmp al, 1",
    "and": "mov eax, 0xf0\n and eax, 0xff",
    "xor": "xor eax, eax",
    "inc": "mov eax, 0x7fffffff\n stc\n inc eax",
    "dec": "mov eax, 0x10\n stc\n dec eax",
    "shl": "mov eax, 0xc0000001\n shl eax, 1",
    "sar": "mov eax, 0x80000003\n sar eax, 1",
    "imul": "mov eax, 0x12345\n imul eax, eax, 0x54321",
    "neg": "mov eax, 1\n neg eax",
    "stc": "xor eax, eax\n stc",
    "popf": "push 0x8d7\n popfd",
    "none of these": "mov eax, 1",
}
SETUP = """
    mov ecx, 0x174
    mov eax, {cs}
    xor edx, edx
    wrmsr
    mov ecx, 0x175
    mov eax, STACK
    wrmsr
    mov ecx, 0x176
    lea eax, [entry]
    wrmsr
"""
#: In ring 0 of a 32-bit guest, which SYSENTER may be executed in too.
LEGACY = SETUP + """
    jmp @body
@body:
    sti
    {operation}
    pushfd
    pop dword ptr [0x300000]
    jmp @again
@again:
    {operation}
    sysenter
    EXIT 9
entry:
    pushfd
    pop dword ptr [0x300004]
    EXIT 1
refused:
    pushfd
    pop dword ptr [0x300004]
    mov eax, [esp+12]
    mov [0x300008], eax
    EXIT 2
"""


def flags(micro: Micro, number: int) -> int:
    return int.from_bytes(micro.ram.read(FLAGS + 4 * number, 4), "little")


OPERATION = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)


@ENGINES
@OPERATION
def test_legacy_mode(operation: str, engine: str) -> None:
    micro = Micro(LEGACY.format(cs="KCODE32", operation=operation), 32, engine=engine)
    assert micro.run().outcome.status == 1
    assert flags(micro, 1) == flags(micro, 0) & ~IF


@ENGINES
@OPERATION
def test_refused(operation: str, engine: str) -> None:
    """Without a segment it is #GP, whose frame has the flags, and whose handler finds them too."""
    micro = Micro(LEGACY.format(cs="0", operation=operation), 32, engine=engine)
    micro.set_gate(GP, target=micro.symbol("refused"))
    assert micro.run().outcome.status == 2
    assert flags(micro, 1) == flags(micro, 0) & ~IF
    assert flags(micro, 2) & ~0x10000 == flags(micro, 0)      # RF is the fault's


COMPATIBILITY = SETUP + """
    push UDATA
    push USER_STACK
    push 0x202
    push UCODE32
    lea rax, [user_code]
    push rax
    iretq
entry:
    pushfq
    pop rax
    mov [0x300004], eax
    mov eax, [USER_STACK - 4]
    mov [0x300000], eax
    EXIT 1
.section user
.bits 32
user_code:
    {operation}
    pushfd
    jmp @again
@again:
    {operation}
    sysenter
    ud2
.bits 64
.section text
"""


@ENGINES
@OPERATION
def test_user_code_of_a_64_bit_kernel(operation: str, engine: str) -> None:
    micro = Micro(COMPATIBILITY.format(cs="KCODE", operation=operation), engine=engine)
    assert micro.run().outcome.status == 1
    assert flags(micro, 1) == flags(micro, 0) & ~IF


@ENGINES
@pytest.mark.parametrize("when", ["before", "after"])
def test_flags_that_a_hook_changes(engine: str, when: str) -> None:
    micro = Micro(LEGACY.format(cs="KCODE32", operation=OPERATIONS["sub"]), 32, engine=engine)

    @micro.machine.on_exit("sysenter", when=when)
    def change(exit):
        exit.registers["rflags"] ^= ARITHMETIC

    assert micro.run().outcome.status == 1
    assert flags(micro, 1) == (flags(micro, 0) ^ ARITHMETIC) & ~IF


@ENGINES
def test_a_call_in_a_loop(engine: str) -> None:
    """Chained blocks: CF arrives each time."""
    micro = Micro(SETUP.format(cs="KCODE32") + """
    mov ebp, 100
    xor ebx, ebx
again:
    cmp ebp, 101            ; CF = 1, ZF = 0
    sysenter
entry:
    adc ebx, 0
    dec ebp
    jnz again
    mov [0x300000], ebx
    EXIT 1
""", 32, engine=engine)
    assert micro.run().outcome.status == 1
    assert flags(micro, 0) == 100
