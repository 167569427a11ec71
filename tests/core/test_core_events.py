# SPDX-License-Identifier: GPL-2.0-or-later
"""Event delivery against SDM vol. 3, chapter 6, and against vol. 2 where instructions cause it."""

from __future__ import annotations

import struct

import pytest
from micro import (
    BP,
    CTL,
    DB,
    DE,
    DF,
    GP,
    IST1,
    KCODE,
    KCODE32,
    NM,
    NP,
    PF,
    RSP0,
    SS,
    STACK,
    TSS,
    TSS_SEL,
    UCODE,
    UCODE32,
    UD,
    UDATA,
    USER_STACK,
    Micro,
    assemble,
    descriptor,
)
from ticking import TIMER, prepare_timer, timer

ENGINES = pytest.mark.parametrize("engine", ["bt", "trap", "hvm"])
BITS = pytest.mark.parametrize("bits", [64, 32])
RESULT = CTL + 32

#: Enter user mode at ``entry`` with ``flags``; registers are spoiled.
TO_USER = {64: """
    mov eax, UDATA
    push rax
    mov eax, USER_STACK
    push rax
    mov eax, {flags}
    push rax
    mov eax, UCODE
    push rax
    lea rax, [{entry}]
    push rax
    iretq
""", 32: """
    mov eax, UDATA
    mov ds, ax
    mov es, ax
    push eax
    push USER_STACK
    push {flags}
    push UCODE32
    push {entry}
    iretd
"""}


def user(code: str, bits: int = 64, flags: int = 2) -> str:
    return TO_USER[bits].format(flags=flags, entry="user_code") + \
        f"\n.section user\nuser_code:\n{code}\n.section text\n"


def only_record(source: str, bits: int = 64, **kwargs):
    micro = Micro(source, bits, paging=4 if bits == 64 else 3, **kwargs)
    result = micro.run()
    assert result.outcome.status == 0x7F, result.outcome.report or result.outcome
    (record,) = result.records
    return micro, record


FAULTS = [
    ("xor ecx, ecx\n xor edx, edx\nfault: div ecx", DE, 0),
    ("fault: ud2", UD, 0),
    ("mov eax, 0x80\nfault: mov ds, ax", GP, 0x80),          # beyond the GDT's limit
    ("mov eax, 0x84\nfault: mov es, ax", GP, 0x84),          # no LDT
    ("mov eax, 0x38\nfault: mov ds, ax", GP, 0x38),          # a TSS is no data segment
    ("fault: int 0x80", GP, 0x80 * 8 + 2),                   # gate with DPL 0
    ("fault: int 13", GP, 13 * 8 + 2),
]
KERNEL_FAULTS = [
    ("fault: int 0x90", NP, 0x90 * 8 + 2),                   # gate not present
    ("mov eax, 0x58\nfault: mov ss, ax", SS, 0x58),          # stack segment not present
    ("mov eax, 0x58\nfault: mov ds, ax", NP, 0x58),
    ("mov eax, cr0\n or eax, 8\n mov cr0, {a}\nfault: fninit", NM, 0),
]


@ENGINES
@BITS
@pytest.mark.parametrize(("code", "vector", "error"),
                         [f for f in FAULTS if not (f[1] == GP and f[2] & 2)] + KERNEL_FAULTS)
def test_faults_in_the_kernel(code: str, vector: int, error: int, bits: int, engine: str) -> None:
    code = code.format(a="rax" if bits == 64 else "eax").replace(
        "eax, cr0", "rax, cr0" if bits == 64 else "eax, cr0")
    micro = Micro(code, bits, paging=4 if bits == 64 else 3, engine=engine)
    micro.set_gate(0x90, 0x0E)
    micro.set_descriptor(0x58, descriptor(0, 0xFFFFF, 0x13, 0xC))
    record = micro.run().records[0]
    assert (record.vector, record.error) == (vector, error)
    assert record.ip == micro.symbol("fault")
    assert record.cs == (KCODE if bits == 64 else KCODE32)
    if bits == 64:
        assert (record.old_sp, record.old_ss) == (STACK, 0x18)
    else:
        assert record.frame_end == STACK


@ENGINES
@BITS
@pytest.mark.parametrize(("code", "vector", "error"), FAULTS)
def test_faults_in_user_mode(code: str, vector: int, error: int, bits: int, engine: str) -> None:
    """Error codes as in the kernel, and the stack of the TSS."""
    micro, record = only_record(user(code, bits, 0x202), bits, engine=engine)
    assert (record.vector, record.error) == (vector, error)
    assert record.ip == micro.symbol("fault")
    assert record.cs == (UCODE if bits == 64 else UCODE32)
    assert (record.old_sp, record.old_ss) == (USER_STACK, UDATA)
    assert record.frame_end == (RSP0 if bits == 64 else RSP0 - 8)    # the recorder counts no SS:ESP
    assert record.flags & 0x3202 == 0x202
    assert record.handler_cs & 0xFFFC == (KCODE if bits == 64 else KCODE32)
    if engine == "bt":
        assert record.handler_cs & 3 == 0


PRIVILEGED = {
    "cli": 13, "sti": 13, "hlt": 13, "lgdt [{sp}]": 13, "lidt [{sp}]": 13, "lldt ax": 13,
    "ltr ax": 13, "lmsw ax": 13, "clts": 13, "invlpg [{sp}]": 13, "wbinvd": 13, "invd": 13,
    "mov {a}, cr0": 13, "mov cr0, {a}": 13, "mov {a}, cr2": 13, "mov cr3, {a}": 13,
    "mov cr4, {a}": 13, "mov {a}, dr7": 13, "mov dr7, {a}": 13, "mov dr0, {a}": 13,
    "rdmsr": 13, "wrmsr": 13, "in al, 0x60": 13, "out 0x60, al": 13, "in al, dx": 13,
    "in eax, dx": 13, "out dx, ax": 13, ".byte 0x6c": 13, ".byte 0x6f": 13, "xsetbv": 6,
    "stac": 6, "clac": 6, "monitor": 6, "mwait": 6, "swapgs": 13, "vmcall": 6,
    ".byte 0x0f, 0x01, 0xd8": 6,            # VMRUN
    "rsm": 6, ".byte 0x0f, 0x33": 13, ".byte 0xf4": 13,
}


@BITS
@pytest.mark.parametrize("code", PRIVILEGED)
def test_privileged_instructions_in_user_mode(code: str, bits: int) -> None:
    """Each gives the architectural exception: #GP(0), or #UD where CPUID lacks the feature."""
    text = code.format(a="rax" if bits == 64 else "eax", sp="rsp" if bits == 64 else "esp")
    micro, record = only_record(user(f"fault: {text}\n nop", bits), bits)
    vector = UD if code == "swapgs" and bits == 32 else PRIVILEGED[code]    # 64-bit code only
    assert (record.vector, record.error) == (vector, 0)
    assert record.ip == micro.symbol("fault")


@BITS
@pytest.mark.parametrize("engine", ["bt"])
def test_io_permission_bitmap(bits: int, engine: str) -> None:
    """Ports of the bitmap's clear bits work in user mode; a wider access needs all its bits."""
    micro = Micro(user("""
    mov edx, 0x71
    in al, dx
    mov dx, 0xe9
    mov al, 0x41
    out dx, al
    mov dx, 0x71
fault: in ax, dx
    """, bits), bits, paging=4 if bits == 64 else 3, engine=engine)
    micro.set_descriptor(TSS_SEL, descriptor(TSS, 0x67 + 0x2000, 0x89))
    bitmap = bytearray(b"\xff" * 0x200)
    for port in (0x71, 0xE9):
        bitmap[port >> 3] &= ~(1 << (port & 7))
    micro.ram.write(TSS + 0x68, bytes(bitmap))
    result = micro.run()
    (record,) = result.records
    assert (record.vector, record.error, record.ip) == (GP, 0, micro.symbol("fault"))


@BITS
def test_iopl_3_gives_user_mode_ports_and_cli(bits: int) -> None:
    micro, record = only_record(user("in al, 0x80\n cli\n sti\n cli\nfault: ud2", bits, 0x3202),
                                bits)
    assert (record.vector, record.ip) == (UD, micro.symbol("fault"))
    assert record.flags & 0x3200 == 0x3000


@BITS
@pytest.mark.parametrize(("dpl", "vector", "error"), [(3, 0x55, 0), (0, GP, 0x55 * 8 + 2)])
def test_software_interrupt_checks_the_gate(dpl: int, vector: int, error: int, bits: int) -> None:
    micro = Micro(user("soft: int 0x55\nbehind: nop", bits), bits, paging=4 if bits == 64 else 3)
    micro.set_gate(0x55, 0x8E | dpl << 5)
    (record,) = micro.run().records
    assert (record.vector, record.error) == (vector, error)
    assert record.ip == micro.symbol("behind" if dpl else "soft")


@BITS
@pytest.mark.parametrize("where", ["kernel", "user"])
def test_int3_is_a_trap_and_checks_dpl(where: str, bits: int) -> None:
    code = "soft: int3\nbehind: nop"
    micro = Micro(user(code, bits) if where == "user" else code, bits,
                  paging=4 if bits == 64 else 3)
    micro.set_gate(BP, 0xEE)
    (record,) = micro.run().records
    assert (record.vector, record.error, record.ip) == (BP, 0, micro.symbol("behind"))
    if where == "user":
        micro = Micro(user(code, bits), bits, paging=4 if bits == 64 else 3)
        (record,) = micro.run().records
        assert (record.vector, record.error, record.ip) == (GP, BP * 8 + 2, micro.symbol("soft"))


@BITS
@pytest.mark.parametrize(("kind", "flag"), [(0x8E, 0), (0x8F, 0x200)])
def test_interrupt_gates_clear_if_and_trap_gates_do_not(kind: int, flag: int, bits: int) -> None:
    micro = Micro(f"""
    sti
    nop
    int 0x40
    hlt
handler:
    {"pushfq" if bits == 64 else "pushfd"}
    pop {"rax" if bits == 64 else "eax"}
    mov ecx, {RESULT}
    mov [{"rcx" if bits == 64 else "ecx"}], eax
    EXIT 1
    """, bits, paging=4 if bits == 64 else 3)
    micro.set_gate(0x40, kind, target=micro.symbol("handler"))
    result = micro.run()
    assert result.outcome.status == 1
    assert result.d(RESULT) & 0x200 == flag


def test_ist_switches_the_stack_in_the_kernel() -> None:
    micro = Micro("int 0x41")
    micro.set_gate(0x41, ist=1)
    (record,) = micro.run().records
    assert (record.old_sp, record.frame_end) == (STACK, IST1)


def test_a_64_bit_frame_is_aligned() -> None:
    """RSP is aligned down to 16 before the frame is pushed; the frame has the old value."""
    micro = Micro("sub rsp, 3\n ud2")
    (record,) = micro.run().records
    assert record.old_sp == STACK - 3
    assert record.frame_end == (STACK - 3) & ~15


@pytest.mark.parametrize(("gate", "vector", "error"), [
    ("absent IDT entry", GP, 0xF0 * 8 + 2), ("null selector", GP, 0),
    ("data segment", GP, 0x18), ("beyond the GDT", GP, 0x70), ("absent code", NP, 0x58),
    ("32-bit code", GP, 0x08), ("wrong type", GP, 0x60 * 8 + 2),
])
def test_bad_gates(gate: str, vector: int, error: int) -> None:
    """INT n through a gate that is wrong (SDM vol. 2, INT n, 64-bit mode exceptions): EXT is 0."""
    number = 0xF0 if gate == "absent IDT entry" else 0x60
    micro = Micro(f"""
    lidt [short]
fault: int {number:#x}
short: .word 0x{0xf0 * 16 - 1:x}
    .quad 0x2000
    """)
    selector = {"null selector": 3, "data segment": 0x18, "beyond the GDT": 0x70,
                "absent code": 0x58, "32-bit code": 0x08}.get(gate, 0x10)
    kind = 0x85 if gate == "wrong type" else 0x8E
    micro.set_descriptor(0x58, descriptor(0, 0xFFFFF, 0x1B, 0xA))
    micro.set_gate(0x60, kind, selector=selector)
    (record,) = micro.run().records
    assert (record.vector, record.error, record.ip) == (vector, error, micro.symbol("fault"))


@pytest.mark.parametrize(("first", "second"), [
    (GP, "absent gate"), (DE, "absent gate"), (PF, "absent gate"), (PF, "page fault")])
def test_a_fault_while_delivering_a_fault_is_a_double_fault(first: int, second: str) -> None:
    """Table 6-5: contributory after contributory or #PF, #PF after #PF; RIP stays."""
    micro = Micro({GP: "mov eax, 0x80\nfault: mov ds, ax", DE: "xor ecx, ecx\nfault: div ecx",
                   PF: "mov eax, 0x60000000\nfault: mov ecx, [rax]"}[first])
    if second == "absent gate":
        micro.set_gate(first, 0x0E)
    else:
        micro.set_gate(first, ist=2)
        micro.ram.write(TSS + 0x2C, (0x70000000).to_bytes(8, "little"))
    (record,) = micro.run().records
    assert (record.vector, record.error) == (DF, 0)
    assert record.ip == micro.symbol("fault")


@pytest.mark.parametrize("first", [UD, BP])
def test_a_benign_exception_does_not_make_a_double_fault(first: int) -> None:
    """A #PF or #NP met while delivering a benign exception is delivered as itself."""
    micro = Micro("fault: ud2" if first == UD else "fault: int3")
    micro.set_gate(first, 0x0E)
    (record,) = micro.run().records
    # EXT is 1 for an exception, and 0 for a software interrupt (SDM vol. 3, 6.13).
    assert (record.vector, record.error) == (NP, first * 8 + 2 + (first == UD))
    assert record.ip == micro.symbol("fault")


def test_ext_is_set_when_an_interrupt_cannot_be_delivered() -> None:
    micro = Micro(TIMER.format(body="hlt", count=1))
    prepare_timer(micro)
    micro.set_gate(0x20, 0x0E)
    (record,) = micro.run().records
    assert (record.vector, record.error) == (NP, 0x20 * 8 + 3)


@BITS
def test_page_fault_on_the_kernel_stack_of_the_tss(bits: int) -> None:
    """From user mode, with a stack that is not mapped: #PF while delivering #UD."""
    micro = Micro(user("fault: ud2", bits), bits, paging=4 if bits == 64 else 3)
    if bits == 64:
        micro.ram.write(TSS + 4, (0x70000000).to_bytes(8, "little"))
        micro.set_gate(PF, ist=1)
        (record,) = micro.run().records
        assert (record.vector, record.error) == (PF, 2)
        assert record.cr2 == 0x70000000 - 40
        assert record.ip == micro.symbol("fault")
    else:
        micro.ram.write(TSS + 4, struct.pack("<I", 0x70000000))
        assert micro.run().outcome.kind == "died"


def test_32_bit_inner_stack_must_be_good() -> None:
    """#TS(SS selector) when the TSS names a stack segment of the wrong privilege."""
    micro = Micro(user("fault: ud2", 32), 32, paging=3)
    micro.ram.write(TSS + 8, struct.pack("<I", UDATA))
    outcome = micro.run().outcome
    # The #TS handler needs the same stack: double fault, then shutdown.
    assert outcome.kind == "died" and "triple fault" in outcome.report


STEP = """
    {pushf}
    or dword ptr [{sp}], 0x100
    {popf}
first:
    nop
second:
    cli
third:
    mov ax, cs
fourth:
    {pushf}
fifth:
    pop {a}
sixth:
    cpuid
seventh:
    jmp eighth
    nop
eighth:
    {pushf}
    and dword ptr [{sp}], 0xfffffeff
    {popf}
behind:
    nop
    EXIT 1
"""


@BITS
def test_single_step_over_translated_instructions(bits: int) -> None:
    """#DB after every instruction from the one after POPF on, none skipped, none twice."""
    names = {"pushf": "pushfq", "popf": "popfq", "sp": "rsp", "a": "rax"} if bits == 64 else {
        "pushf": "pushfd", "popf": "popfd", "sp": "esp", "a": "eax"}
    micro = Micro(STEP.format(**names) + "\nstepped:", bits, paging=4 if bits == 64 else 3)
    micro.set_gate(DB, target=0x6800)
    micro.ram.write(0x6800, stepper(bits))
    result = micro.run()
    assert result.outcome.status == 1, result.outcome.report or result.outcome
    count = result.d(RESULT)
    seen = [result.d(RESULT + 8 + 4 * i) for i in range(count)]
    at = micro.symbol
    expected = [at(n) for n in ("second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")]
    assert seen[:7] == expected
    assert seen[7] == at("eighth") + 1
    assert seen[-1] == at("behind")
    assert len(seen) == 7 + 3, [hex(s) for s in seen]


def stepper(bits: int) -> bytes:
    """A #DB handler that appends its return address to a list at RESULT and returns."""
    a, b, sp = ("rax", "rbx", "rsp") if bits == 64 else ("eax", "ebx", "esp")
    word = 8 if bits == 64 else 4
    return assemble(f"""
    push {a}
    push {b}
    mov ebx, {RESULT}
    mov eax, [{b}]
    inc dword ptr [{b}]
    lea {b}, [{b}+{a}*4+8]
    mov eax, [{sp}+{2 * word}]
    mov [{b}], eax
    pop {b}
    pop {a}
    {"iretq" if bits == 64 else "iretd"}
    """, bits).sections[0].data


def test_single_step_over_a_stub() -> None:
    """The same where the instruction has become an inline stub with absorbed instructions."""
    micro = Micro("""
    mov ecx, 100
@warm:
    call site
    dec ecx
    jnz @warm
    pushfq
    or dword ptr [rsp], 0x100
    popfq
    call site
    pushfq
    and dword ptr [rsp], 0xfffffeff
    popfq
    nop
    EXIT 1
site:
    cli
one:
    nop
two:
    inc r8d
three:
    nop
four:
    nop
five:
    ret
    """, hot=16)
    micro.set_gate(DB, target=0x6800)
    micro.ram.write(0x6800, stepper(64))
    result = micro.run()
    assert result.outcome.status == 1, result.outcome.report or result.outcome
    assert result.exit("stub_installed") >= 1
    seen = [result.d(RESULT + 8 + 4 * i) for i in range(min(result.d(RESULT), 20))]
    names = ("site", "one", "two", "three", "four", "five")
    assert seen[:6] == [micro.symbol(n) for n in names]
    assert result.regs["r8"] == 101
    assert len(seen) == 6 + 4


def test_single_step_over_far_transfer() -> None:
    micro = Micro("""
    lea rcx, [landed]
    pushfq
    or dword ptr [rsp], 0x100
    popfq
    push 0x10
    push rcx
    retfq
landed:
    nop
last:
    pushfq
    and dword ptr [rsp], 0xfffffeff
    popfq
    nop
    EXIT 1
    """)
    micro.set_gate(DB, target=0x6800)
    micro.ram.write(0x6800, stepper(64))
    result = micro.run()
    assert result.outcome.status == 1, result.outcome.report or result.outcome
    seen = [result.d(RESULT + 8 + 4 * i) for i in range(result.d(RESULT))]
    assert seen[2:4] == [micro.symbol("landed"), micro.symbol("last")]


SYSCALL_ENTRY = """
    mov ecx, 0xc0000081
    xor eax, eax
    mov edx, 0x00200010
    wrmsr
    mov ecx, 0xc0000082
    lea rax, [entry]
    xor edx, edx
    wrmsr
    mov ecx, 0xc0000084
    mov eax, 0x300
    wrmsr
"""


@pytest.mark.parametrize("prefix", ["", ".byte 0x48", ".byte 0x66", ".byte 0x66, 0x66, 0x48"])
def test_syscall_with_prefixes_enters_where_lstar_says(prefix: str) -> None:
    """RCX is the address behind the instruction, however long it is; RIP is LSTAR exactly."""
    micro = Micro(SYSCALL_ENTRY + user(f"    {prefix}\n    syscall\nbehind: ud2", flags=0x202) + """
    ud2
    ud2
entry:
    nop
    mov ebx, 0x7020
    mov [rbx], rcx
    mov [rbx+8], r11
    mov ax, cs
    mov [rbx+16], ax
    EXIT 1
""")
    result = micro.run()
    assert result.outcome.status == 1, result.outcome.report or result.records
    assert result.q(RESULT) == micro.symbol("behind")
    assert result.q(RESULT + 8) & 0x3202 == 0x202
    assert result.q(RESULT + 16) & 0xFFFF == 0x10
    assert result.exit("stale_trap") == 0


@ENGINES
@pytest.mark.parametrize("between", ["", ".byte 0xeb, 0", "nop"])
@pytest.mark.parametrize("what", [
    "add al, 0x7f", "sub eax, 0x80000001", "xor ax, ax", "and eax, 0x84", "inc al", "dec rax",
    "shl eax, 3", "sar al, 1", "neg rax", "mul cl", "imul eax, eax, 77", "adc eax, eax",
    "sbb rax, rax", "bt eax, 7", "rol al, 1", "popcnt eax, eax", "cmc", "std",
])
def test_syscall_keeps_the_flags_of_every_kind_of_instruction(
        what: str, between: str, engine: str) -> None:
    """R11 is what PUSHF shows behind the same instruction, in the same block or the one before."""
    once = f"""
    xor ecx, ecx
    mov rax, 0x8081
    mov cl, 3
    cmp cl, al
    {what}
    {between}
"""
    micro = Micro(SYSCALL_ENTRY + user(
        f"{once}\n    pushfq\n    cld\n    pop r15\n{once}\n    syscall", flags=0x202) + """
    ud2
    ud2
entry:
    EXIT 1
""", engine=engine)
    result = micro.run()
    assert result.outcome.status == 1, result.outcome.report or result.records
    assert result.regs["r15"] & 2
    assert result.regs["r11"] == result.regs["r15"]


@ENGINES
def test_syscall_under_a_single_step(engine: str) -> None:
    """FMASK takes TF away before the step is done, so there is no #DB; R11 has it (AMD vol. 3)."""
    micro = Micro(SYSCALL_ENTRY + user("    syscall", flags=0x302) + """
    ud2
    ud2
entry:
    nop
    EXIT 1
""", engine=engine)
    result = micro.run()
    assert result.outcome.status == 1, result.outcome.report or result.records
    assert result.regs["r11"] & 0x300 == 0x300


@ENGINES
@pytest.mark.parametrize("fault", ["mov al, [0x40000000]", "ud2", "int 0x30", "div bl"])
def test_a_handler_finds_the_flags_as_they_were(fault: str, engine: str) -> None:
    """Delivery clears TF, NT, RF and by an interrupt gate IF (SDM vol. 3, 6.12.1). DF and the
    arithmetic flags are those of the frame."""
    micro = Micro(f"""
    xor ebx, ebx
    mov eax, 3
    std
    sub eax, 5
    pushfq
    pop r14
    mov eax, 3
    sub eax, 5
    {fault}
    EXIT 1
handler:
    pushfq
    pop r15
    EXIT 2
""", engine=engine)
    for vector in (0, 6, 14, 0x30):
        micro.set_gate(vector, target=micro.symbol("handler"))
    result = micro.run()
    assert result.outcome.status == 2
    assert result.regs["r14"] & 0xCD5 == 0x491      # DF, SF, AF, CF
    assert result.regs["r15"] == result.regs["r14"]


# Interrupts -----------------------------------------------------------------------------------

MODES = pytest.mark.parametrize("deterministic", [True, False])


@MODES
@ENGINES
def test_hlt_wakes_once_for_each_interrupt(deterministic: bool, engine: str) -> None:
    """A slow timer (55 ms): HLT must sleep through everything else the machine does."""
    micro = timer("""
    hlt
    mov r14d, r15d
    hlt
    shl r14d, 8
    or r14d, r15d
    """, 0xFFFF, deterministic=deterministic, engine=engine)
    result = micro.run()
    assert result.outcome.status == 1, result.outcome
    assert result.regs["r14"] == 0x0102


@MODES
@ENGINES
@pytest.mark.parametrize("body", ["@l: jmp @l", "@l: pause\n jmp @l", "@l: cpuid\n jmp @l",
                                  "@l: inc rbx\n jmp @l", "@l: hlt\n jmp @l", "@l: sti\n jmp @l",
                                  "@l: cli\n nop\n sti\n nop\n jmp @l"])
def test_interrupts_reach_every_kind_of_loop(body: str, deterministic: bool, engine: str) -> None:
    source = TIMER.format(body=body, count=1193).replace(
        "inc r15d", "inc r15d\n cmp r15d, 5\n je finish").replace("tick:", "finish: EXIT 1\ntick:")
    micro = Micro(source, deterministic=deterministic, engine=engine)
    prepare_timer(micro)
    result = micro.run(10)
    assert result.outcome.status == 1, result.outcome
    assert result.regs["r15"] == 5


@MODES
def test_sti_holds_interrupts_for_one_instruction(deterministic: bool) -> None:
    """STI; CLI leaves no room for an interrupt; STI; HLT none between the two."""
    micro = timer("""
    cli
    mov r14d, 20000
@again:
    sti
    cli
    dec r14d
    jnz @again
    """, 60, deterministic=deterministic)
    result = micro.run()
    assert result.outcome.status == 1
    assert result.regs["r15"] == 0


@MODES
def test_mov_ss_holds_interrupts_for_one_instruction(deterministic: bool) -> None:
    """An interrupt never falls between MOV SS and the MOV ESP behind it."""
    micro = Micro(TIMER.format(body="""
    mov r13d, 0x18
    mov r14d, 60000
@again:
    mov ss, r13w
    mov esp, 0x80000
    mov ss, r13w
    mov esp, 0x90000
    dec r14d
    jnz @again
    jmp good
bad:
    EXIT 2
good:
    """, count=60).replace("inc r15d", """
    mov rbx, [rsp]
    cmp byte ptr [rbx], 0xbc            ; about to run MOV ESP
    je bad
    inc r15d"""), deterministic=deterministic)
    prepare_timer(micro)
    result = micro.run()
    assert result.outcome.status == 1
    assert result.regs["r15"] > 1


@MODES
@pytest.mark.parametrize("hot", [0, 16])
def test_interrupt_storm_over_hot_stubs(deterministic: bool, hot: int) -> None:
    """Counters, flags, stack and registers come out exact however often the loop is interrupted."""
    micro = timer("""
    mov r14d, 60000
    xor r12d, r12d
    xor r13d, r13d
    mov ecx, 0x1111
    mov edx, 0x2222
@again:
    cli
    inc r12d
    nop
    nop
    pushfq
    pop rax
    nop
    nop
    nop
    nop
    test eax, 0x200
    jnz @bad
    sti
    nop
    nop
    nop
    nop
    pushfq
    pop rbx
    nop
    nop
    nop
    nop
    test ebx, 0x200
    jz @bad
    pushfq
    cli
    mov ax, ss
    nop
    nop
    popfq
    lea r13d, [r13+1]
    nop
    nop
    nop
    cmp ecx, 0x1111
    jne @bad
    cmp edx, 0x2222
    jne @bad
    cmp rsp, STACK
    jne @bad
    dec r14d
    jnz @again
    jmp @good
@bad:
    EXIT 2
@good:
    """, 60, deterministic=deterministic, hot=hot)
    result = micro.run()
    assert result.outcome.status == 1, result.outcome.report or (result.outcome, result.regs)
    assert (result.regs["r12"], result.regs["r13"]) == (60000, 60000)
    assert result.regs["r15"] > 5
    if hot:
        assert result.exit("stub_installed") >= 4


@MODES
def test_an_interrupt_storm_leaves_swapgs_and_iret_alone(deterministic: bool) -> None:
    """GS and KERNEL_GS_BASE exchanged 2 x 20,000 times under interrupts end where they were."""
    micro = timer("""
    mov ecx, 0xc0000101
    mov eax, 0x1000
    xor edx, edx
    wrmsr
    mov ecx, 0xc0000102
    mov eax, 0x2000
    wrmsr
    mov r14d, 20000
@again:
    swapgs
    nop
    nop
    swapgs
    nop
    nop
    dec r14d
    jnz @again
    """, 60, deterministic=deterministic, hot=16)
    result = micro.run()
    assert result.outcome.status == 1, result.outcome.report
    assert (result.regs["gs_base"], result.regs["kernel_gs_base"]) == (0x1000, 0x2000)


@BITS
def test_an_interrupt_arrives_in_user_mode(bits: int) -> None:
    if bits == 32:
        source = TIMER.replace("r15d", "ebp").replace("push rax", "push eax").replace(
            "pop rax", "pop eax").replace("iretq", "iretd")
    else:
        source = TIMER
    # Programming channel 0 raises its line at once; that first interrupt is not the one meant.
    source = source.format(count=1193, body=user("spin: jmp spin", bits, 0x202))
    source = source.replace("sti", "nop").replace("tick:", "unused:")
    micro = Micro(source, bits, paging=4 if bits == 64 else 3)
    (record,) = micro.run().records
    assert record.vector == 0x20
    assert record.ip == micro.symbol("spin")
    assert record.cs == (UCODE if bits == 64 else UCODE32)
    assert record.flags & 0x200

