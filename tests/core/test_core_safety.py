# SPDX-License-Identifier: GPL-2.0-or-later
"""What the guest may not do to the VMM, and user mode may not do to the guest's kernel."""

from __future__ import annotations

import pytest
from bt.core.vcpu import VCPU_PAGE_ADDRESS, WINDOW_ADDRESS
from micro import CTL, GP, PF, TSS, USER_STACK, Micro, P, U, W

from translator import vcpupage

RESULT = CTL + 32
STUB_AREA = WINDOW_ADDRESS + 0x1000

USER = """
    mov eax, UDATA
    push rax
    mov eax, USER_STACK
    push rax
    push 2
    mov eax, UCODE
    push rax
    lea rax, [user_code]
    push rax
    iretq
.section user
user_code:
{code}
.section text
"""


@pytest.mark.parametrize("access", ["mov rax, [rbx]", "mov [rbx], rax", "jmp rbx"])
@pytest.mark.parametrize("where", [VCPU_PAGE_ADDRESS, VCPU_PAGE_ADDRESS + vcpupage.VIF, STUB_AREA,
                                   STUB_AREA + 64])
@pytest.mark.parametrize("warm", [False, True])
def test_user_mode_cannot_touch_the_window(access: str, where: int, warm: bool) -> None:
    """To user mode nothing is mapped there: #PF with P = 0, also right after kernel stubs used it.
    """
    loop = """
    mov ecx, 200
@warm: cli
    nop
    nop
    nop
    nop
    nop
    dec ecx
    jnz @warm
""" if warm else ""
    micro = Micro(loop + USER.format(code=f"mov rbx, {where:#x}\nfault: {access}"), hot=16)
    result = micro.run()
    (record,) = result.records
    error = {"mov rax, [rbx]": 4, "mov [rbx], rax": 6, "jmp rbx": 4 | 16}[access]
    assert (record.vector, record.error, record.cr2) == (PF, error, where)
    assert (result.exit("stub_installed") > 0) == warm


@pytest.mark.parametrize("access", ["mov rax, [rbx]", "mov [rbx], rax", "jmp rbx"])
def test_user_mode_cannot_touch_kernel_pages(access: str) -> None:
    micro = Micro(USER.format(code=f"mov rbx, {TSS:#x}\nfault: {access}"))
    (record,) = micro.run().records
    error = {"mov rax, [rbx]": 5, "mov [rbx], rax": 7, "jmp rbx": 5 | 16}[access]
    assert (record.vector, record.error, record.cr2) == (PF, error, TSS)
    assert record.cs == 0x33


@pytest.mark.parametrize("offset", [0, 64, 0x800, 0x3E000])
@pytest.mark.parametrize("access", ["mov [rbx], rax", "mov rax, [rbx]", "lock inc dword ptr [rbx]"])
def test_the_kernel_cannot_read_or_write_stub_code(offset: int, access: str) -> None:
    """To the kernel, too, nothing is mapped where stubs are, except to run."""
    micro = Micro(f"""
    mov ecx, 200
@warm: cli
    nop
    nop
    nop
    nop
    nop
    dec ecx
    jnz @warm
    mov rbx, {STUB_AREA + offset:#x}
fault: {access}
    """, hot=16)
    result = micro.run()
    (record,) = result.records
    assert (record.vector, record.cr2) == (PF, STUB_AREA + offset)
    assert record.error & ~2 == 0
    assert result.exit("stub_installed") > 0


@pytest.mark.parametrize("pattern", [0, (1 << 64) - 1, 0x5A5A5A5A5A5A5A5A, 0x8000_0000_0000_0000])
@pytest.mark.parametrize("hot", [0, 4])
def test_scribbling_on_the_vcpu_page_hurts_only_the_guest(pattern: int, hot: int) -> None:
    """Every word of the page overwritten again and again, with every instruction that reads it."""
    micro = Micro(f"""
    mov r14d, 300
@again:
    mov rdi, {VCPU_PAGE_ADDRESS:#x}
    mov rax, {pattern:#x}
    mov ecx, 512
    cld
    rep stosq
    cli
    nop
    nop
    nop
    nop
    pushfq
    pop rax
    nop
    nop
    nop
    push 2
    popfq
    nop
    nop
    nop
    swapgs
    nop
    nop
    mov ax, cs
    nop
    nop
    mov rax, cr0
    nop
    nop
    sti
    nop
    nop
    nop
    nop
    mov ecx, 0xc0000102
    rdmsr
    cpuid
    dec r14d
    jnz @again
    EXIT 1
    """, hot=hot, audit=True)
    result = micro.run()
    assert result.outcome.kind in ("powered-off", "died", "halted")
    assert result.machine.vcpu.audit_counters()[1] == 0
    assert result.machine.vcpu.real_cpl in (1, 3)
    # The VMM's own view of the machine is untouched by it.
    assert result.regs["cr0"] == 0x80010011
    assert result.regs["cr3"] == micro.pages.root


def test_the_page_gives_user_mode_no_rights() -> None:
    """A kernel that writes IOPL 3 on the page has what POPF would have given it, and no more."""
    micro = Micro(f"""
    mov rbx, {VCPU_PAGE_ADDRESS + vcpupage.VIOPL:#x}
    mov rax, -1
    mov [rbx], rax
""" + USER.format(code="fault: in al, 0x60"))
    (record,) = micro.run().records
    assert record.ip == micro.symbol("fault")
    assert record.flags & 0x3000 == 0


def test_accesses_around_the_end_of_ram() -> None:
    """The last bytes work, an access that straddles the end gets ones for the rest."""
    micro = Micro(f"""
    mov rbx, 0xffff900000000ffc
    mov dword ptr [rbx], 0x11223344
    mov rax, [rbx]
    mov ecx, {RESULT}
    mov [rcx], rax
    sgdt [rbx-4]                ; by the VMM, up to the end and beyond
    mov rax, [rbx-4]
    mov [rcx+8], rax
    mov qword ptr [rbx+2], 0
fault: lgdt [rbx-4]             ; a base that is not canonical: #GP(0), and GDTR as it was
    """)
    micro.pages.map(0xFFFF_9000_0000_0000, (8 << 20) - 0x1000, P | W)
    micro.pages.map(0xFFFF_9000_0000_1000, 8 << 20, P | W)
    result = micro.run()
    (record,) = result.records
    assert (record.vector, record.error, record.ip) == (GP, 0, micro.symbol("fault"))
    assert result.q(RESULT) == 0xFFFFFFFF_11223344
    assert result.q(RESULT + 8) == 0x0000_1000_005F
    assert result.regs["gdtr"] == 0x1000


def test_page_tables_that_map_themselves_and_the_code() -> None:
    """The root table as its own lower levels: 512 aliases of everything, then a store to them."""
    micro = Micro("""
    mov rbx, 0x20000
    mov rax, [rbx]
    mov rcx, rbx
    or rcx, 3
    mov [rbx+0x800], rcx        ; slot 256: recursive
    mov rdx, 0xffff800000000000
    mov rax, [rdx]
    mov qword ptr [rdx+8], 0
    mov rsi, 0xffff804020100800
    mov rax, [rsi]
    and eax, 0xffffff9f         ; whatever A and D say
    cmp rax, rcx
    jne @bad
    EXIT 1
@bad:
    EXIT 2
    """)
    result = micro.run()
    assert (result.outcome.kind, result.outcome.status) == ("powered-off", 1), result.records


def test_user_mode_never_runs_at_ring_0() -> None:
    micro = Micro(USER.format(code="mov ecx, 1000\n@l: dec ecx\n jnz @l\n int3"), audit=True)
    result = micro.run()
    blocks, ring0 = result.machine.vcpu.audit_counters()
    assert blocks > 1000 and ring0 == 0
    assert (U, USER_STACK) == (4, 0xB0000)
