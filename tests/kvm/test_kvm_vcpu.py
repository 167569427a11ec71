# SPDX-License-Identifier: GPL-2.0-or-later
"""Small guests on the host's KVM. Nothing here may hang: each run has a time limit."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest
from micro import RAM, Micro, Result
from ticking import timer

import guests
from bt.boot.entry import EntryState
from bt.machine.cpu import Stop
from bt.machine.machine import Machine, Outcome

pytestmark = pytest.mark.kvm
LIMIT_S = 60


def micro(source: str, bits: int = 64, **options) -> Micro:
    return Micro(source, bits, engine="kvm", deterministic=False, **options)


def run(source: str, bits: int = 64, **options) -> Result:
    return micro(source, bits, **options).run(LIMIT_S)


def guest(name: str, engine: str) -> tuple[Outcome, str, Machine]:
    out = bytearray()
    machine = Machine(engine=engine, console=out.extend)
    machine.load(guests.image(name))
    return machine.run(LIMIT_S), out.decode(), machine


# Guests ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hello", "tasks", "apic"])
def test_a_guest_prints_what_it_prints_under_bt(name: str) -> None:
    outcome, text, machine = guest(name, "kvm")
    assert (outcome.kind, outcome.status) == ("powered-off", 0), text
    assert text == guest(name, "bt")[1]
    exits = machine.stats.exits
    assert exits["control"]["OUT"] > 50 and exits["control"]["port access to a device"] > 50


def test_nano_runs_its_seven() -> None:
    out = bytearray()
    machine = Machine(engine="kvm", console=out.extend)
    machine.load(guests.image("nano"), cmdline="8")
    outcome = machine.run(LIMIT_S)
    assert (outcome.kind, outcome.status) == ("powered-off", 0), outcome.report
    rows = {line.split()[0] for line in out.decode().splitlines()}
    assert rows == {"syscall", "in", "cr8wr", "callret", "pgfault", "divzero", "ptemod"}


def test_the_command_line() -> None:
    done = subprocess.run([sys.executable, "-m", "bt", "run", "hello", "--engine", "kvm",
                           "--timeout", "30"], capture_output=True, text=True, timeout=90,
                          check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Hello from ring 0 (or so it thinks), CS=0x8 CPL=0, 64-bit")


@pytest.mark.parametrize("bits", [16, 32])
def test_other_modes_without_paging(bits: int) -> None:
    result = run("mov eax, 42\nEXIT 9", bits, paging=0)
    assert (result.outcome.kind, result.outcome.status) == ("powered-off", 9)
    assert result.regs["rax"] & 0xFFFF_FF00 == 0


# Kicks and time -------------------------------------------------------------------------------

SPIN = "@l: inc r15\njmp @l"


def test_a_spinning_guest_is_stopped() -> None:
    assert micro(SPIN).run(0.3).outcome.kind == "timeout"


def test_it_runs_on_another_thread() -> None:
    found = []
    thread = threading.Thread(
        target=lambda: found.append(micro(SPIN).run(0.3).outcome.kind), daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    assert found == ["timeout"]


def test_a_kick_before_the_run_is_not_lost() -> None:
    guest = micro(SPIN)
    guest.enter()
    guest.machine.vcpu.kick()
    assert guest.machine.vcpu.run() == Stop.KICKED


def test_no_kick_is_lost_in_a_hail_of_them() -> None:
    """Each kick is answered, wherever it hits: the run ends only because the next kick comes."""
    guest = micro(SPIN)
    guest.enter()
    vcpu = guest.machine.vcpu
    answered = threading.Semaphore(0)
    done = threading.Event()
    late = []

    def kick() -> None:
        for i in range(300):
            time.sleep(0.0001 * (i % 5))
            vcpu.kick()
            if not answered.acquire(timeout=20):
                late.append(i)
                break
        done.set()
        vcpu.kick()

    thread = threading.Thread(target=kick, daemon=True)
    thread.start()
    while not done.is_set():
        assert vcpu.run(vcpu.now_ns() + 30_000_000_000) == Stop.KICKED
        answered.release()
    thread.join(20)
    assert not late


def test_a_deadline_ends_the_run() -> None:
    guest = micro(SPIN)
    guest.enter()
    vcpu = guest.machine.vcpu
    until = vcpu.now_ns() + 5_000_000
    assert vcpu.run(until) == Stop.KICKED
    assert vcpu.now_ns() >= until


def test_the_guest_goes_on_where_it_was() -> None:
    """A loop with a port in it, kicked all the time, must come out exact."""
    guest = micro("""
        mov ecx, 3000
        xor r15d, r15d
    @l: inc r15
        in al, 0x80
        dec ecx
        jnz @l
        EXIT""")
    stop = threading.Event()

    def kick() -> None:
        while not stop.wait(0.0003):
            guest.machine.vcpu.kick()

    thread = threading.Thread(target=kick, daemon=True)
    thread.start()
    result = guest.run(LIMIT_S)
    stop.set()
    thread.join(10)
    assert result.outcome.kind == "powered-off" and result.regs["r15"] == 3000
    assert result.exit("IN") == 3000 and result.exit("quantum used up") > 3


def test_a_halted_guest_sleeps_until_an_interrupt() -> None:
    guest = micro("sti\nhlt\n@l: jmp @l")
    guest.enter()
    machine = guest.machine
    assert machine.vcpu.run() == Stop.HALTED
    assert machine.vcpu.interrupts_enabled
    assert machine.vcpu.run() == Stop.HALTED, "it woke by itself"


def test_halt_with_interrupts_off_is_the_end() -> None:
    assert run("hlt").outcome.kind == "halted"


@pytest.mark.parametrize("wait", ["hlt", "nop"])
def test_timer_interrupts(wait: str) -> None:
    guest = timer(f"""
@l: {wait}
    cmp r15d, 5
    jb @l
    """, 11932, engine="kvm", deterministic=False)     # 100 Hz
    start = time.monotonic()
    result = guest.run(LIMIT_S)
    assert (result.outcome.kind, result.outcome.status) == ("powered-off", 1)
    assert result.regs["r15"] == 5 and result.exit("interrupt injected") == 5
    assert time.monotonic() - start > 0.03


APIC = """
    mov ebx, 0x600000           ; the local APIC
    mov dword ptr [rbx + 0xf0], 0x1ff
    mov eax, 5
    mov cr8, rax                ; holds class 4 back
    mov dword ptr [rbx + 0x3e0], 0xb
    mov dword ptr [rbx + 0x320], 0x40
    mov dword ptr [rbx + 0x380], 1000
    xor r15d, r15d
    sti
    mov ecx, 3000
@l: in al, 0x80
    dec ecx
    jnz @l
    mov r14, r15
    mov r13d, [rbx + 0x220]     ; IRR: vector 0x40 waits
    xor eax, eax
    mov cr8, rax
@w: test r15, r15
    jz @w
    mov r12d, [rbx + 0x80]
    EXIT 6
tick:
    inc r15
    mov dword ptr [rbx + 0xb0], 0
    iretq
"""


def test_the_local_apics_timer_and_the_task_priority() -> None:
    guest = micro(APIC)
    assert guest.pages is not None
    guest.pages.put(guest.pages.slot(0x600000, 2), 0)
    guest.pages.map(0x600000, 0xFEE0_0000, 3)
    guest.set_gate(0x40, target=guest.symbol("tick"))
    result = guest.run(LIMIT_S)
    assert result.outcome.status == 6, result.outcome.report
    regs = result.regs
    assert (regs["r14"], regs["r13"], regs["r15"], regs["r12"]) == (0, 1, 1, 0)


@pytest.mark.parametrize(("board", "apic"), [("pc", 1), ("legacy", 0)])
def test_cpuid_says_whether_there_is_an_apic(board: str, apic: int) -> None:
    guest = micro("mov eax, 1\ncpuid\nmov r15, rdx\nEXIT", board=board)
    assert guest.run(LIMIT_S).regs["r15"] >> 9 & 1 == apic


def test_an_interrupt_waits_for_sti() -> None:
    guest = micro("""
        mov ecx, 100
    @l: in al, 0x80
        dec ecx
        jnz @l
        mov r14, r15
        sti
    @w: test r15, r15
        jz @w
        EXIT
    tick:
        inc r15
        iretq""")
    guest.set_gate(0x30, target=guest.symbol("tick"))
    guest.machine.acknowledge = lambda: guest.machine.vcpu.set_intr(False) or 0x30
    guest.enter()
    guest.machine.vcpu.set_intr(True)
    outcome = guest.machine.run(LIMIT_S)
    regs = guest.machine.vcpu.registers()
    assert outcome.kind == "powered-off"
    assert (regs["r14"], regs["r15"]) == (0, 1)


# Exits ----------------------------------------------------------------------------------------


class Recorder:
    """A device that writes down what is asked of it."""

    wide = True

    def __init__(self, answers: list[int]) -> None:
        self.answers, self.seen = answers, []

    def read_port(self, port: int, size: int) -> int:
        self.seen.append(("in", port, size))
        return self.answers.pop(0)

    def write_port(self, port: int, size: int, value: int) -> None:
        self.seen.append(("out", port, size, value))

    def read_mmio(self, gpa: int, size: int) -> int:
        self.seen.append(("read", gpa, size))
        return self.answers.pop(0)

    def write_mmio(self, gpa: int, size: int, value: int) -> None:
        self.seen.append(("write", gpa, size, value))


def test_ports_of_all_sizes_and_strings() -> None:
    device = Recorder([0x11, 0x2222, 0x33333333, 0xA0, 0xA1, 0xA2])
    guest = micro("""
        mov dx, 0x600
        mov eax, 0x87654321
        out dx, al
        out dx, ax
        out dx, eax
        xor eax, eax
        in al, dx
        mov r13, rax
        in ax, dx
        mov r14, rax
        in eax, dx
        mov r15, rax
        cld
        mov esi, words
        mov ecx, 2
        rep outsd
        mov edi, 0x300000
        mov ecx, 3
        rep insb
        EXIT
    words: .long 0x01020304, 0x05060708""")
    guest.machine.bus.claim(device, 0x600, 4)
    result = guest.run(LIMIT_S)
    assert result.outcome.kind == "powered-off", result.outcome.report
    assert device.seen == [
        ("out", 0x600, 1, 0x21), ("out", 0x600, 2, 0x4321), ("out", 0x600, 4, 0x87654321),
        ("in", 0x600, 1), ("in", 0x600, 2), ("in", 0x600, 4),
        ("out", 0x600, 4, 0x01020304), ("out", 0x600, 4, 0x05060708),
        ("in", 0x600, 1), ("in", 0x600, 1), ("in", 0x600, 1)]
    assert [result.regs[name] for name in ("r13", "r14", "r15")] == [0x11, 0x2222, 0x33333333]
    assert result.machine.ram.read(0x300000, 3) == b"\xa0\xa1\xa2"


def test_published_and_absent_ports() -> None:
    guest = micro("""
        xor eax, eax
        mov dx, 0x600
        in al, dx
        mov r14, rax
        mov dx, 0x700
        in eax, dx
        mov r15, rax
        EXIT""")
    guest.machine.bus.claim(Recorder([]), 0x600, 1)
    guest.machine.bus.publish(0x600, 0x5A)
    result = guest.run(LIMIT_S)
    assert (result.regs["r14"], result.regs["r15"]) == (0x5A, 0xFFFF_FFFF)
    assert result.exit("port access to a device") == 1      # the exit device


def test_device_memory_and_absent_memory() -> None:
    device = Recorder([0x1122334455667788, 0x99])
    guest = micro("""
        mov ebx, 0x600000
        mov rax, [rbx]
        mov r14, rax
        movzx eax, byte ptr [rbx + 9]
        mov r15, rax
        mov dword ptr [rbx + 4], 0xdeadbeef
        mov r13, [rbx + 0x10000]
        mov qword ptr [rbx + 0x10000], 1
        EXIT""")
    assert guest.pages is not None
    for gpa, to in ((0x600000, 0xFEB0_0000), (0x610000, 0xFED0_0000)):
        # A small page in the place of part of a large one.
        if gpa == 0x600000:
            guest.pages.put(guest.pages.slot(0x600000, 2), 0)
        guest.pages.map(gpa, to, 3)
    guest.machine.bus.claim_mmio(device, 0xFEB0_0000, 0x1000)
    result = guest.run(LIMIT_S)
    assert result.outcome.kind == "powered-off", result.outcome.report
    assert device.seen == [("read", 0xFEB0_0000, 8), ("read", 0xFEB0_0009, 1),
                           ("write", 0xFEB0_0004, 4, 0xDEADBEEF)]
    assert (result.regs["r14"], result.regs["r15"]) == (0x1122334455667788, 0x99)
    assert result.regs["r13"] == (1 << 64) - 1
    assert result.exit("mmio") == 3 and result.exit("absent memory") == 2


def test_an_access_that_begins_in_ram_and_ends_in_a_device() -> None:
    device = Recorder([0xA1, 0xA2, 0xA3])
    guest = micro("mov eax, [0x600fff]\nmov r15, rax\nEXIT")
    assert guest.pages is not None
    guest.pages.put(guest.pages.slot(0x600000, 2), 0)
    guest.pages.map(0x600000, 0x600000, 3)
    guest.pages.map(0x601000, 0xFEB0_0000, 3)
    guest.ram.write(0x600FFF, b"\x55")
    guest.machine.bus.claim_mmio(device, 0xFEB0_0000, 0x1000)
    result = guest.run(LIMIT_S)
    assert result.outcome.kind == "powered-off", result.outcome.report
    assert result.regs["r15"] == 0xA3A2A155
    assert {size for _, _, size in device.seen} <= {1, 2, 4, 8}


def test_msrs_that_kvm_does_not_know_are_the_policys() -> None:
    guest = micro("""
        mov ecx, 0x12345
        rdmsr
        mov r13, rax
        mov r14, rdx
        mov eax, 7
        xor edx, edx
        wrmsr
        mov ecx, 0x12346
        mov r15d, 1
        rdmsr
        mov r15d, 2
        EXIT""")
    written = []
    guest.machine.read_msr = lambda index: 0x1_0000_0002 if index == 0x12345 else None
    guest.machine.write_msr = lambda index, value: written.append((index, value)) or True
    result = guest.run(LIMIT_S)
    assert (result.regs["r13"], result.regs["r14"], result.regs["r15"]) == (2, 1, 1)
    assert written == [(0x12345, 7)]
    assert [record.vector for record in result.records] == [13]
    assert result.exit("RDMSR") == 2 and result.exit("WRMSR") == 1


def test_cpuid_is_the_policys() -> None:
    result = run("""
        mov eax, 0x40000000
        cpuid
        mov r12, rbx
        mov eax, 1
        cpuid
        mov r15, rcx
        EXIT""")
    assert result.regs["r12"].to_bytes(4, "little") == b"Ring"
    # kvm_pvm adds features of the host that it cannot hide from user code: no test of absence.
    assert result.regs["r15"] & 1 << 31


# Death ----------------------------------------------------------------------------------------


def test_a_triple_fault_is_reported() -> None:
    result = run("lidt [none]\nud2\nnone: .word 0\n.quad 0")
    assert result.outcome.kind == "died" and result.outcome.status == 3
    report = result.outcome.report
    assert "triple fault" in report and "64-bit code" in report
    assert "newest blocks" not in report


def test_code_where_no_memory_is() -> None:
    guest = micro("mov eax, 0x600000\njmp rax")
    assert guest.pages is not None
    guest.pages.put(guest.pages.slot(0x600000, 2), 0)
    guest.pages.map(0x600000, 0xFED0_0000, 3)
    outcome = guest.run(20).outcome
    # What it comes to is KVM's affair: it must come to an end, by itself or by the time limit.
    assert outcome.kind in ("died", "timeout")


def test_a_state_that_cannot_be_is_bad_input() -> None:
    machine = Machine(engine="kvm", ram_bytes=RAM)
    from bt.errors import InputError
    try:
        machine.vcpu.enter(EntryState(bits=64, rip=0, cr3=1 << 63))
    except InputError as error:
        assert "first state" in str(error)
    else:
        assert machine.run(5).kind in ("died", "timeout")


# Looking at it --------------------------------------------------------------------------------


def test_registers_and_memory() -> None:
    guest = micro("mov eax, 0x1234\nmov rbx, 0x5555555555555555\nEXIT")
    result = guest.run(LIMIT_S)
    vcpu = result.machine.vcpu
    regs = vcpu.registers()
    bt_regs = Micro("EXIT").run().machine.vcpu.registers()
    assert set(regs) == set(bt_regs)
    assert regs["rbx"] == 0x5555555555555555 and regs["cpl"] == 0 and vcpu.bits == 64
    assert regs["cr3"] == guest.pages.root and regs["cs"] == 0x10
    # The OUT that ended the run is done: RIP is behind it.
    assert vcpu.read_virtual(vcpu.linear_rip, 1) == b"\xf4"
    assert vcpu.translate_address(0x123456) == 0x123456
    assert vcpu.translate_address(0x7000_0000_0000) is None
    assert vcpu.read_virtual(0x7000_0000_0000, 4) is None
    assert vcpu.write_virtual(0x2FFFFE, b"abcd") and vcpu.read_virtual(0x2FFFFE, 4) == b"abcd"
    assert not vcpu.write_virtual(0x7000_0000_0000, b"x")
    for name, value in (("rax", 7), ("rip", 0x100000), ("fs_base", 1 << 40), ("cr2", 5),
                        ("kernel_gs_base", 0x1000)):
        vcpu.write_register(name, value)
        assert vcpu.read_register(name) == value
    with pytest.raises(KeyError):
        vcpu.write_register("cs", 8)
    with pytest.raises(ValueError, match="canonical"):
        vcpu.write_register("rip", 1 << 60)


def test_many_machines_leave_nothing_behind() -> None:
    import gc
    import os
    gc.collect()
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(5):
        assert run("EXIT").outcome.kind == "powered-off"
    for _ in range(50):         # threads take a moment to end
        gc.collect()
        now = len(os.listdir("/proc/self/fd")), threading.active_count()
        if now[0] <= before[0] and now[1] <= before[1]:
            return
        time.sleep(0.1)
    raise AssertionError(f"descriptors and threads: {before} before, {now} now")
