# SPDX-License-Identifier: GPL-2.0-or-later
"""Stops from another thread: the guest never notices, whatever it was doing."""

from __future__ import annotations

import gc
import os
import threading
import time

import pytest
from micro import CTL, Micro

from bt.core import vcpu as core

RESULT = CTL + 32
COUNTING = f"""
    mov ebx, {RESULT}
    mov rsp, STACK
    mov r14d, {{rounds}}
@again:
    inc dword ptr [rbx]
    lock inc dword ptr [rbx+8]
    mov eax, 1
    lock xadd [rbx+16], eax
    call @sub
    {{extra}}
    push r14
    pop r13
    add [rbx+24], r13
    mov edi, {RESULT + 64}
    mov ecx, 8
    mov eax, r14d
    rep stosd
    pushfq
    pop rax
    add qword ptr [rbx+32], 1
    dec r14d
    jnz @again
    EXIT 1
@sub:
    inc dword ptr [rbx+40]
    ret
"""
#: Goes before COUNTING: SYSCALL in ring 0 enters @lstar, which goes back by a jump.
SYSCALLS = """
    mov ecx, 0xc0000080
    rdmsr
    or eax, 1
    wrmsr
    mov ecx, 0xc0000081
    xor eax, eax
    mov edx, KCODE
    wrmsr
    mov ecx, 0xc0000082
    lea rax, [@lstar]
    xor edx, edx
    wrmsr
    jmp @counting
@lstar:
    inc dword ptr [rbx+48]
    jmp rcx
@counting:
"""
ROUNDS = 150_000


def kicked_often(source: str, **options: int) -> Micro:
    """Run such guests until a few stops have landed in them; gives the first, to look at.

    On an idle machine hundreds land in one. On a fast one whose cores are all busy, a guest can be
    over before the other thread has had its turn.
    """
    first = None
    kicks = 0
    for _ in range(30):
        micro = Micro(source, deterministic=False, **options)
        first = first or micro
        kicks += kicked(micro)
        if kicks >= 3:
            return first
    pytest.fail(f"{kicks} stops in 30 guests")


def kicked(micro: Micro) -> int:
    """Run while a thread kicks the vCPU as fast as it can; the number of stops that came of it."""
    done = threading.Event()

    def kick() -> None:
        while not done.is_set():
            micro.machine.vcpu.kick()
            time.sleep(0.00005)

    thread = threading.Thread(target=kick)
    thread.start()
    try:
        result = micro.run(60)
    finally:
        done.set()
        thread.join()
    assert result.outcome.status == 1, result.outcome
    d, q = result.d, result.q
    assert (d(RESULT), d(RESULT + 8), d(RESULT + 16), q(RESULT + 32), d(RESULT + 40)) == (
        (ROUNDS,) * 5)
    assert q(RESULT + 24) == ROUNDS * (ROUNDS + 1) // 2
    return result.exit("quantum used up")


@pytest.mark.parametrize("hot", [0, 64])
def test_counting_is_exact_under_many_kicks(hot: int) -> None:
    micro = kicked_often(COUNTING.format(rounds=ROUNDS, extra=""), hot=hot)
    assert micro.machine.vcpu.asynchronous, "the self-test says stops are not exact here"


def test_counting_is_exact_around_syscalls() -> None:
    """SYSCALL leaves its block by a call of our own, behind which a stop may wait."""
    source = SYSCALLS + COUNTING.format(rounds=ROUNDS, extra="syscall")
    kicked_often(source)
    micro = Micro(source, deterministic=False)
    result = micro.run(60)
    assert result.d(RESULT + 48) == ROUNDS


def test_counting_is_exact_around_rdtsc() -> None:
    """RDTSC's hook turns Unicorn's search for RIP off, and a stop needs it on."""
    source = COUNTING.format(rounds=ROUNDS, extra="rdtsc")
    kicked_often(source)
    assert Micro(source, deterministic=False).run(60).exit("RDTSC") == ROUNDS


def test_the_fallback_stops_from_the_block_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    real = core.Vcpu
    monkeypatch.setattr(core, "Vcpu", lambda *a, **k: real(*a, asynchronous=False, **k))
    micro = kicked_often(COUNTING.format(rounds=ROUNDS, extra=""))
    assert not micro.machine.vcpu.asynchronous


def test_a_kick_that_comes_before_the_run_is_not_lost() -> None:
    micro = Micro("@l: jmp @l", deterministic=False)
    micro.enter()
    micro.machine.vcpu.kick()
    assert micro.machine.vcpu.run() == core.KICKED


def test_deadline_of_virtual_time_ends_the_run() -> None:
    for deterministic in (True, False):
        micro = Micro("@l: jmp @l", deterministic=deterministic)
        micro.enter()
        vcpu = micro.machine.vcpu
        until = vcpu.now_ns() + 2_000_000
        assert vcpu.run(until) == core.KICKED
        assert vcpu.now_ns() >= until


def test_wait_is_woken_by_a_kick() -> None:
    micro = Micro("hlt", deterministic=False)
    vcpu = micro.machine.vcpu
    threading.Timer(0.05, vcpu.kick).start()
    vcpu.wait(None)


def test_stop_and_timeout_end_a_run_that_spins() -> None:
    micro = Micro("@l: jmp @l", deterministic=False)
    threading.Timer(0.05, micro.machine.stop, ["enough"]).start()
    assert micro.run().outcome.kind == "stopped"
    micro = Micro("@l: jmp @l", deterministic=False)
    outcome = micro.run(0.05).outcome
    assert (outcome.kind, outcome.status) == ("timeout", 124)


def test_machines_come_and_go() -> None:
    """A machine leaves no thread behind, and its memory goes in the right order."""
    def threads() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/task"))

    before = threads()
    for _ in range(20):
        assert Micro("EXIT 3", deterministic=False).run().outcome.status == 3
    deadline = time.monotonic() + 5
    while threads() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() <= before


class Leaver:
    """A device that has the vCPU leave: what every timer that is set does."""

    def __init__(self, micro: Micro) -> None:
        self.vcpu = micro.machine.vcpu

    def read_port(self, port: int, size: int) -> int:
        return 0

    def write_port(self, port: int, size: int, value: int) -> None:
        self.vcpu.leave()


def test_hooks_of_instructions_behind_a_stop_are_called() -> None:
    """Of one block: OUT asks for a stop; the RDTSC behind it shows virtual time."""
    micro = Micro(f"""
    mov ebx, {RESULT}
    mov dx, 0x600
    rdtsc
    mov [rbx], eax
    mov [rbx+4], edx
    mov dx, 0x600
    out dx, al
    rdtsc
    mov [rbx+8], eax
    mov [rbx+12], edx
    EXIT 1
""", engine="hvm", deterministic=False)
    micro.machine.bus.claim(Leaver(micro), 0x600, 1)
    result = micro.run()
    before, after = result.q(RESULT), result.q(RESULT + 8)
    assert before < after < before + 60_000_000_000
    assert result.exit("quantum used up") >= 1
