# SPDX-License-Identifier: GPL-2.0-or-later
"""Engine hvm: what exits, by which name, and that a guest at CPL 0 stays in guest mode."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "core"))
import micro
from micro import CODE, GP, KDATA, TSS_SEL, UD, Micro, Result

import guests
from bt.cli import main as cli
from bt.core import svm
from bt.errors import InputError
from bt.machine.machine import Machine

#: SVM's own instructions; a guest whose EFER.SVME is 0 has none of them (APM vol. 3).
SVM = {"vmrun": 0xD8, "vmload": 0xDA, "vmsave": 0xDB, "stgi": 0xDC, "clgi": 0xDD, "skinit": 0xDE,
       "invlpga": 0xDF}
HSAVE, EFER = 0xC0010117, 0xC0000080


@pytest.fixture(autouse=True)
def _under_hvm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro, "ENGINE", "hvm")


def faults(source: str, bits: int = 64, **options: object) -> Result:
    """Run ``source``; each fault goes on at ``next``."""
    guest = Micro(f"{source}\nEXIT 1\nnext: EXIT 2", bits, **options)
    guest.abandon("next")
    return guest.run()


# What exits ---------------------------------------------------------------------------------------

def test_exits_have_both_names(capsys) -> None:
    trace = io.StringIO()
    machine = Machine(engine="hvm", trace=trace)
    machine.load(guests.image("hello"))
    assert machine.run(20).kind == "powered-off"
    assert "MOV_TO_CR VMEXIT_CR0_WRITE" in trace.getvalue()
    assert "OUT VMEXIT_IOIO" in trace.getvalue()
    counted = machine.stats.to_json()
    hardware, control = counted["hardware"], counted["exits"]["control"]
    assert hardware["VMEXIT_IOIO"] == {"code": 0x7B, "count": control["IN"] + control["OUT"]}
    assert hardware["VMEXIT_MSR"] == {"code": 0x7C, "count": control["RDMSR"] + control["WRMSR"]}
    assert hardware["VMEXIT_NPF"]["code"] == 0x400


def test_the_minimum_leaves_a_kernel_alone() -> None:
    """Interrupt flag, segment loads, PUSHF, SWAPGS, IRET, exceptions: nothing of this exits."""
    result = faults("""
        mov ecx, 1000
    again: cli
        sti
        pushfq
        popfq
        swapgs
        swapgs
        mov ds, dx
        mov rax, cr0
        mov rax, rsp
        push 0x18
        push rax
        pushfq
        push 0x10
        mov eax, back
        push rax
        iretq
    back: dec ecx
        jnz again
        xor ecx, ecx
        div ecx
    """)
    assert result.outcome.status == 2 and [r.vector for r in result.records] == [0]
    assert "exception #DE" not in result.machine.stats.exits["control"]
    assert sum(result.machine.stats.exits["control"].values()) < 20


@pytest.mark.parametrize(("name", "code", "reason", "hardware"), [
    ("pushf", "pushfq\npopfq", "PUSHF", "VMEXIT_PUSHF"),
    ("popf", "pushfq\npopfq", "POPF", "VMEXIT_POPF"),
    ("int", "int3\nnext2: nop", "software interrupt", "VMEXIT_SWINT"),
    ("cr0", "mov rax, cr0", "MOV_FROM_CR", "VMEXIT_CR0_READ"),
    ("tables", "sgdt [rsp]", "SGDT", "VMEXIT_GDTR_READ"),
    ("pause", "pause", "PAUSE", "VMEXIT_PAUSE"),
    ("#ud", "ud2", "exception #UD", "VMEXIT_EXCP_UD"),
    ("exceptions", "mov rax, [0x40000000]", "exception #PF", "VMEXIT_EXCP_PF"),
])
def test_what_is_asked_for_exits(name: str, code: str, reason: str, hardware: str) -> None:
    counts = []
    for policy in ("", name):
        guest = Micro(f"{code}\nEXIT 1\nnext: EXIT 2", intercept=policy)
        guest.abandon("next")
        result = guest.run()
        assert result.outcome.status in (1, 2)
        stats = result.machine.stats.to_json()
        counts.append(stats["exits"]["control"].get(reason, 0))
        assert stats["hardware"].get(hardware, {"count": 0})["count"] == counts[-1], policy
    assert counts[0] == 0 < counts[1]


def test_rdtscp_has_its_own_code() -> None:
    codes = []
    guest = Micro("rdtsc\nrdtscp\nEXIT 1")
    guest.machine.on_exit("rdtsc")(lambda exit: codes.append(exit.hardware_code))
    guest.machine.on_exit("rdtscp")(lambda exit: codes.append(exit.hardware_code))
    assert guest.run().outcome.status == 1
    assert codes == [svm.CODES["RDTSC"], svm.CODES["RDTSCP"]]


def test_a_hook_makes_its_instruction_exit() -> None:
    """PUSHF is nobody's business until somebody hooks it, while the guest runs too."""
    guest = Micro("pushfq\nmov dx, 0x3f0\nout dx, al\npushfq\nud2\nEXIT 1\nnext: EXIT 2")
    guest.abandon("next")
    seen: list[tuple[str, int | None]] = []

    @guest.machine.on_exit("out")
    def late(exit: object) -> None:
        if not seen:
            seen.append(("out", None))
            guest.machine.on_exit("pushf", "#UD")(
                lambda exit: seen.append((exit.reason, exit.hardware_code)))

    assert guest.run().outcome.status == 2
    assert seen == [("out", None), ("pushf", 0x70), ("exception #UD", 0x46)]


def test_policies_are_checked(capsys) -> None:
    assert svm.intercepts("minimal") == svm.MINIMAL
    assert svm.intercepts(" PUSHF, iret") == svm.MINIMAL | {0x70, 0x74}
    assert svm.intercepts("all") > svm.intercepts("exceptions,int,popf")
    with pytest.raises(InputError, match="perhaps pushf"):
        svm.intercepts("pushff")
    with pytest.raises(InputError, match="hvm"):
        Machine(engine="bt", intercept="cpuid")
    assert cli.main(["run", "hello", "--engine", "hvm", "--intercept", "nothing"]) == 2
    assert "cannot intercept" in capsys.readouterr().err


def test_stats_of_other_engines_name_no_hardware(capsys) -> None:
    assert cli.main(["run", "hello", "--stats", "-"]) == 0
    text = capsys.readouterr().out
    assert json.loads(text[text.index("{"):])["hardware"] == {}


# Getting out --------------------------------------------------------------------------------------

@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("where", ["kernel", "user"])
@pytest.mark.parametrize("name", SVM)
def test_svm_instructions_are_undefined(name: str, where: str, bits: int) -> None:
    code = f"fault: .byte 0x0f, 0x01, {SVM[name]:#x}"
    if where == "user":
        cs, sp = (micro.UCODE, "rsp") if bits == 64 else (micro.UCODE32, "esp")
        wide = "q" if bits == 64 else "d"
        code = f"""
            push {micro.UDATA}
            push {micro.USER_STACK}
            push 2
            push {cs}
            push fault
            iret{wide}
            .section user
            {code}
            nop
            .section text
        """
    guest = Micro(f"{code}\nEXIT 1\nnext: EXIT 2", bits, paging=None if bits == 64 else 2,
                  audit=True)
    guest.abandon("next")
    result = guest.run()
    assert result.outcome.status == 2
    assert [(r.vector, r.ip) for r in result.records] == [(UD, guest.symbol("fault"))]
    assert result.machine.stats.to_json()["audit"]["ring0"] == 0


def test_svm_is_hidden() -> None:
    """EFER.SVME reads 0 and cannot be set; VM_HSAVE_PA does not exist; CPUID knows no SVM."""
    result = faults(f"""
        mov ecx, {EFER:#x}
        rdmsr
        mov [0x200000], eax
        mov eax, 0x80000001
        cpuid
        mov [0x200008], ecx
        mov ecx, {EFER:#x}
        rdmsr
        or eax, 0x1000
    fault: wrmsr
    """)
    assert not result.d(0x200000) & 0x1000 and not result.d(0x200008) & 4
    assert [(r.vector, r.error) for r in result.records] == [(GP, 0)]
    for access in ("rdmsr", "wrmsr"):
        for msr in (HSAVE, 0xC0010114, 0xC0011000, 0x12345678, 0xFFFFFFFF):
            result = faults(f"mov ecx, {msr:#x}\nxor eax, eax\nxor edx, edx\n{access}")
            assert [(r.vector, r.error) for r in result.records] == [(GP, 0)], hex(msr)


@pytest.mark.parametrize("address", [1 << 43, (1 << 43) + 0x3000, 1 << 42, 1 << 44, (1 << 52) - 1])
@pytest.mark.parametrize("how", ["page", "cr3"])
def test_the_vmms_pages_have_no_guest_physical_address(address: int, how: str) -> None:
    """VMCB and save area lie above what a page-table entry can name (MAXPHYADDR is 40)."""
    page = address & ~0xFFF
    if how == "cr3":
        result = faults(f"mov rax, {page:#x}\nmov cr3, rax\nmov rax, [0x200000]")
        assert result.outcome.kind == "died" or result.records
        return
    guest = Micro("mov rbx, 0x4000000000\nfault: mov rax, [rbx]\nmov [rbx], rax\nEXIT 1\n"
                  "next: EXIT 2")
    guest.abandon("next")
    guest.pages.map(0x40_0000_0000, page & 0xF_FFFF_FFFF_F000, micro.P | micro.W)
    before = bytes(guest.machine.vcpu.window_map)
    result = guest.run()
    assert [(r.vector, r.error & 9) for r in result.records] == [(14, 9)]
    changed = bytes(guest.machine.vcpu.window_map)
    assert changed[0x4000:] == before[0x4000:]          # the permission maps


@pytest.mark.parametrize("bits", [
    "0x2000", "0x100", "0x40000", "0x200000", "0x100000", "0x400000", "0x1000", "0x800"])
def test_control_register_bits_that_are_not_there(bits: str) -> None:
    """CR4.VMXE, SMXE, OSXSAVE, SMAP, SMEP, PKE, LA57, UMIP; 0x100 is PCE, which is."""
    result = faults(f"mov rax, cr4\nor rax, {bits}\nmov cr4, rax")
    if bits == "0x100":
        assert result.outcome.status == 1 and not result.records
    else:
        assert [(r.vector, r.error) for r in result.records] == [(GP, 0)]


@pytest.mark.parametrize("code", [
    "mov rax, cr0\nbtr rax, 0\nmov cr0, rax", "mov rax, cr0\nbts rax, 29\nmov cr0, rax",
    "mov rax, cr0\nbts rax, 40\nmov cr0, rax", "mov rax, cr4\nbtr rax, 5\nmov cr4, rax",
    f"mov ecx, {EFER:#x}\nrdmsr\nbtr eax, 8\nwrmsr", "mov eax, 16\nmov cr8, rax"])
def test_values_that_hardware_refuses(code: str) -> None:
    result = faults(code)
    assert [(r.vector, r.error) for r in result.records] == [(GP, 0)]


def test_a_null_tr_and_a_call_gate() -> None:
    """QEMU alone would abort the process here: it loads a null TR, and trusts TR's type."""
    result = faults("xor eax, eax\nltr ax")
    assert [(r.vector, r.error) for r in result.records] == [(GP, 0)]
    guest = Micro(f"""
        push {micro.UDATA}
        push {micro.USER_STACK}
        push 2
        push {micro.UCODE32}
        push user_code
        iretd
        .section user
    user_code: call 0x58, 0
        .section text
    landed: mov eax, cs
        and eax, 3
        EXIT 3
    next: EXIT 2
    """.replace("call 0x58, 0", ".byte 0x9a, 0, 0, 0, 0, 0x58, 0"), 32, paging=2)
    guest.abandon("next")
    landed = guest.symbol("landed")
    gate = landed & 0xFFFF | micro.KCODE32 << 16 | 0xEC << 40 | (landed >> 16) << 48
    guest.set_descriptor(0x58, gate)
    result = guest.run()
    assert result.outcome.status == 3, (result.outcome, result.records)


def test_a_triple_fault_is_reported() -> None:
    outcome = faults("push 0\npush 0\nlidt [rsp]\nud2").outcome
    assert outcome.kind == "died" and "triple fault" in outcome.report
    assert "real CPL 0" in outcome.report


def test_the_guest_stays_in_guest_mode() -> None:
    """Every block of a guest with tasks, faults and interrupts ran in guest mode."""
    out = bytearray()
    machine = Machine(engine="hvm", audit=True, console=out.extend)
    machine.load(guests.image("tasks"))
    assert machine.run(60).kind == "powered-off"
    assert b"user code was preempted: yes" in out
    audit = machine.stats.to_json()["audit"]
    assert audit["blocks"] > 1000 and audit["ring0"] == 0
    assert machine.vcpu.real_cpl == 0


# Segments and stacks that user code reaches only through the CPU ----------------------------------

@pytest.mark.parametrize("code", [
    f"mov eax, {micro.UDATA}\nmov ds, ax", f"mov eax, {micro.UDATA}\nlar ebx, eax",
    f"mov eax, {KDATA}\nlsl ebx, eax", f"mov eax, {TSS_SEL}\nverr ax",
    f"push {micro.UCODE32}\nmov eax, back\npush rax\nretfq\nback: .byte 0x90"])
def test_user_code_loads_segments_from_tables_it_cannot_read(code: str) -> None:
    guest = Micro(f"""
        push {micro.UDATA}
        push {micro.USER_STACK}
        push 2
        push {micro.UCODE}
        push user_code
        iretq
        .section user
    user_code: {code}
        int 0x80
        .section text
    next: EXIT 2
    """)
    guest.set_gate(0x80, 0xEE)
    guest.abandon("next")
    result = guest.run()
    assert [r.vector for r in result.records] == [0x80], result.records


# Interrupt windows --------------------------------------------------------------------------------

@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("opens", [
    "sti\nnop\ncli", "pushfq\nor qword ptr [rsp], 0x200\npopfq\ncli", "call opener\ncli"])
def test_a_window_of_one_instruction_is_enough(opens: str, deterministic: bool) -> None:
    """A loop that opens interrupts for a moment is interrupted at that moment."""
    guest = Micro(f"""
        mov edx, 0x3f0
        out dx, al
        mov r15d, 100000
    again: {opens}
        dec r15d
        jnz again
        EXIT 1
    opener: sti
        ret
    next: mov [0x200000], r15d
        EXIT 2
    """, deterministic=deterministic)
    guest.abandon("next")
    vcpu = guest.machine.vcpu
    guest.machine.on_exit("port write")(
        lambda exit: vcpu.set_intr(True) if exit.port == 0x3F0 else None)
    result = guest.run()
    assert result.outcome.status == 2, result.outcome
    if "call" not in opens:
        assert result.d(0x200000) > 99990
    assert CODE <= result.records[0].ip < CODE + 0x100


# The second level of translation ----------------------------------------------------------------

def test_pages_are_there_once_touched() -> None:
    guest = Micro("mov eax, [0x200000]\nmov [0x300000], eax\nmov eax, [0x200008]\nEXIT 1")
    seen = []
    guest.machine.on_exit("page not there yet")(lambda exit: seen.append(exit.gpa))
    codes = []
    guest.machine.on_exit("page not there yet")(lambda exit: codes.append(exit.hardware_code))
    guest.enter()
    before = guest.machine.second_level.allocated
    result = guest.run()
    assert result.outcome.status == 1
    assert seen.count(0x200000) == 1 and seen.count(0x300000) == 1 and set(codes) == {0x400}
    assert guest.machine.second_level.allocated == before + 4096 * len(seen)
    assert result.exit("page not there yet") == len(seen)


def test_read_only_memory_drops_stores_and_keeps_its_bytes() -> None:
    guest = Micro("""
        mov eax, [0x200000]
        mov dword ptr [0x200000], 5
        mov ebx, [0x200000]
        add dword ptr [0x200004], 1
        lock inc dword ptr [0x200004]
        mov r15d, [0x200004]
        mov rsp, 0x200010
        push rax
        mov [0x201000], ebx
        int3
        EXIT 1
    next: EXIT 2
    """)
    guest.abandon("next")
    guest.ram.write(0x200000, (77).to_bytes(4, "little") + (99).to_bytes(4, "little"))
    level = guest.machine.second_level
    level.protect(0x200000, 4096)
    dropped = []
    guest.machine.on_exit("protected memory written")(
        lambda exit: dropped.append((exit.gpa, exit.access, exit.hardware_code)))
    result = guest.run()
    assert result.outcome.status == 2
    assert result.d(0x200000) == 77 and result.d(0x200004) == 99 and result.d(0x201000) == 77
    assert result.regs["r15"] == 99
    assert (0x200000, "write", 0x400) in dropped and (0x200008, "write", 0x400) in dropped
    # The frame of INT3 was to be pushed there too.
    assert any(0x200000 <= gpa < 0x200008 for gpa, _, _ in dropped[-12:])
    for gpa, length in ((micro.RAM, 1), (0, 0), (micro.RAM - 1, 2), (-1, 1)):
        with pytest.raises(InputError):
            level.protect(gpa, length)
    with pytest.raises(InputError, match="hvm"):
        _ = Machine(engine="bt").second_level


def test_written_pages_are_tracked() -> None:
    guest = Micro("mov eax, [0x200000]\nmov [0x300000], eax\nmov [0x300008], eax\nEXIT 1")
    level = guest.machine.second_level
    guest.enter()
    level.track()
    result = guest.run()

    def pages(bitmap: bytes) -> set[int]:
        return {n for n in range(micro.RAM >> 12) if bitmap[n >> 3] >> (n & 7) & 1}

    written = pages(level.written())
    assert 0x300 in written and 0x200 not in written
    assert micro.TABLES >> 12 in written                # accessed bits
    assert result.exit("page first written") >= 1
    assert not pages(level.written())
    guest.machine.dma.writable(0x400000, 8)[:] = bytes(8)
    assert pages(level.written()) == {0x400}
