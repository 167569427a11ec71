# SPDX-License-Identifier: GPL-2.0-or-later
"""What kvm_pvm leaves half done, completed; on real hardware the same guests need no completion."""

from __future__ import annotations

from pathlib import Path

import pytest
from micro import KCODE, UCODE, UDATA, USER_STACK, Micro

from bt.cli import main as cli
from bt.engines import ENGINES
from bt.kvm import software as module
from bt.kvm.software import PVM, software

LIMIT_S = 60
#: Enters ``user`` in user mode; SYSCALL goes to ``entry``. SYSRET's base is 0x1b: 0x23, 0x2b, 0x33.
START = f"""
    mov ecx, 0xc0000081
    mov edx, {0x23 << 16 | KCODE}
    xor eax, eax
    wrmsr
    mov ecx, 0xc0000082
    mov rax, entry
    mov rdx, rax
    shr rdx, 32
    wrmsr
    mov ecx, 0xc0000084
    mov eax, 0x700
    xor edx, edx
    wrmsr
    mov ecx, 0xc0000080
    rdmsr
    or eax, 1
    wrmsr
    push {UDATA}
    push {USER_STACK - 16}
    push 0x202
    push {UCODE}
    mov rax, user
    push rax
    iretq
"""


def micro(source: str) -> Micro:
    return Micro(source, engine="kvm", deterministic=False)


@pytest.fixture
def pvm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "software", lambda: PVM)


@pytest.mark.kvm
def test_syscall_enters_the_kernel_and_sysret_goes_back() -> None:
    result = micro(START + """
    entry:
        mov r12, rcx
        mov r13, r11
        mov r14, rsp
        mov r15d, cs
        mov ebx, ss
        inc ebp
        cmp ebp, 3
        jb @again
        EXIT 5
    @again:
        sysretq
    .section user
    user:
        syscall
    back:
        jmp user
    """).run(LIMIT_S)
    assert (result.outcome.kind, result.outcome.status) == ("powered-off", 5), \
        result.outcome.report
    regs = result.regs
    assert regs["r12"] == result.symbol("back") and regs["r13"] & 0x200
    assert regs["r14"] == USER_STACK - 16
    assert (regs["r15"], regs["rbx"], regs["cpl"]) == (KCODE, KCODE + 8, 0)
    assert not regs["rflags"] & 0x700


@pytest.mark.kvm
def test_page_faults_are_still_the_guests() -> None:
    result = micro(START + """
    entry: EXIT 1
    .section user
    user:
        mov eax, [0x100]
    """).run(LIMIT_S)
    [record] = result.records
    assert (record.vector, record.cr2, record.error & 5) == (14, 0x100, 5)
    assert record.ip == result.symbol("user") and record.cs == UCODE


@pytest.mark.kvm
def test_undefined_instructions_are_still_the_guests() -> None:
    result = micro(START + "entry: EXIT 1\n.section user\nuser: ud2").run(LIMIT_S)
    assert [(r.vector, r.ip) for r in result.records] == [(6, result.symbol("user"))]


@pytest.mark.kvm
@pytest.mark.parametrize("ist", [0, 1])
def test_int_n_of_user_code(ist: int) -> None:
    guest = micro(START + "entry: EXIT 1\n.section user\nuser: int 0x80\nback: nop")
    guest.set_gate(0x80, kind=0xEE, ist=ist)
    result = guest.run(LIMIT_S)
    [record] = result.records
    assert (record.vector, record.ip, record.cs) == (0x80, result.symbol("back"), UCODE)
    assert record.old_sp == USER_STACK - 16 and record.handler_cs & 0xFFFF == KCODE


@pytest.mark.kvm
def test_int_n_that_user_code_may_not_do() -> None:
    result = micro(START + "entry: EXIT 1\n.section user\nuser: int 0x80").run(LIMIT_S)
    [record] = result.records
    assert (record.vector, record.error, record.ip) == (13, 0x80 << 3 | 2, result.symbol("user"))


@pytest.mark.kvm
def test_int_n_of_kernel_code() -> None:
    guest = micro("mov r15d, 1\nint 0x80\nback: mov r15d, 2\nEXIT 4")
    guest.resume("back")
    result = guest.run(LIMIT_S)
    [record] = result.records
    assert (record.vector, record.ip, record.cs) == (0x80, result.symbol("back"), KCODE)
    assert result.outcome.status == 4 and result.regs["r15"] == 2


@pytest.mark.kvm
def test_int_n_without_a_handler_for_invalid_opcodes() -> None:
    """guests/nano has none: there #UD of user code would be a triple fault."""
    guest = micro(START + "entry: EXIT 1\n.section user\nuser: int 0x80\nback: nop")
    guest.set_gate(0x80, kind=0xEE)
    guest.set_gate(6, kind=0)
    guest.set_gate(8, kind=0)
    guest.set_gate(11, kind=0)
    result = guest.run(LIMIT_S)
    assert [(r.vector, r.ip) for r in result.records] == [(0x80, result.symbol("back"))]


@pytest.mark.kvm
@pytest.mark.skipif(software() != PVM, reason="this KVM has 32-bit paging")
def test_what_it_cannot_do_is_named() -> None:
    import guests
    from bt.machine.machine import Machine
    out = bytearray()
    machine = Machine(engine="kvm", console=out.extend)
    machine.load(guests.image("hello32"))
    outcome = machine.run(LIMIT_S)
    assert outcome.kind == "died" and out.startswith(b"Hello from 32-bit protected mode")
    assert "paging in 32-bit mode, which kvm_pvm does not have" in outcome.report


@pytest.mark.parametrize(("names", "found"), [
    ((), None), (("kvm",), None), (("kvm", "kvm_amd"), None),
    (("kvm", "kvm_intel", "kvm_pvm"), None),
    (("kvm", "kvm_pvm"), "kvm_pvm"), (("kvm", "kvm_other"), "kvm_other")])
def test_which_kvm_it_is(monkeypatch, tmp_path: Path, names, found) -> None:
    for name in names:
        (tmp_path / name).mkdir()
    monkeypatch.setattr(module, "MODULES", tmp_path)
    assert software() == found


def test_a_remark_says_so(pvm) -> None:
    assert "software one (kvm_pvm)" in ENGINES["kvm"].open().remark()


def test_linux_is_refused_where_it_cannot_run(pvm, monkeypatch, tmp_path, capsys) -> None:
    from bt.engines.kvm import KvmEngine

    class Nothing:
        def __getattr__(self, name):
            return lambda *args: 0

    monkeypatch.setattr(KvmEngine, "make_vcpu", lambda self, parts: Nothing())
    head = bytearray(0x400)
    head[0x1FE:0x200], head[0x202:0x206] = b"\x55\xaa", b"HdrS"
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(head)
    assert cli.main(["run", str(kernel), "--engine", "kvm"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("bt: engine kvm cannot run Linux here: the KVM of this host is a ")

