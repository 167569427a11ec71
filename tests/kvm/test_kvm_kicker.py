# SPDX-License-Identifier: GPL-2.0-or-later
"""Kicks: none is lost, on whatever thread the vCPU runs. No KVM is needed."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import pytest

from bt.kvm import abi
from bt.kvm.kicker import SIGNAL, Kicker

NEVER_S = 20.0


class Rig:
    def __init__(self) -> None:
        self.page = memoryview(bytearray(4096))
        self.masks: list[set[int]] = []
        self.kicker = Kicker(self.page, self.masks.append)


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield rig
    rig.kicker.close()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def soon(seconds: float, call) -> threading.Timer:
    timer = threading.Timer(seconds, call)
    timer.daemon = True
    timer.start()
    return timer


def elapsed(call) -> float:
    start = time.monotonic()
    call()
    return time.monotonic() - start


def in_thread(call) -> None:
    failed = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            failed.append(error)
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(NEVER_S)
    assert not thread.is_alive(), "it hangs"
    assert not failed, failed


def test_a_kick_before_is_not_lost(rig: Rig) -> None:
    rig.kicker.kick()
    assert rig.page[abi.RUN_IMMEDIATE_EXIT] == 1
    assert elapsed(lambda: rig.kicker.wait(None)) < 5
    assert not rig.kicker.kicked and rig.page[abi.RUN_IMMEDIATE_EXIT] == 0


def test_a_kick_while_it_sleeps(rig: Rig) -> None:
    soon(0.05, rig.kicker.kick)
    assert elapsed(lambda: rig.kicker.wait(None)) < NEVER_S


def test_on_another_thread(rig: Rig) -> None:
    soon(0.05, rig.kicker.kick)
    in_thread(lambda: rig.kicker.wait(None))


def test_a_deadline_ends_the_sleep(rig: Rig) -> None:
    until = time.monotonic_ns() + 20_000_000
    rig.kicker.wait(until)
    assert time.monotonic_ns() >= until
    rig.kicker.wait(until)      # long past


def test_kicks_in_a_row_are_one(rig: Rig) -> None:
    for _ in range(10):
        rig.kicker.kick()
    rig.kicker.wait(None)
    until = time.monotonic_ns() + 10_000_000
    rig.kicker.wait(until)
    assert time.monotonic_ns() >= until, "an old kick came back"


def test_the_timer_kicks(rig: Rig) -> None:
    until = time.monotonic_ns() + 20_000_000
    rig.kicker.arm(until)
    rig.kicker.wait(None)
    assert time.monotonic_ns() >= until


def test_an_earlier_deadline_counts(rig: Rig) -> None:
    rig.kicker.arm(time.monotonic_ns() + int(NEVER_S * 1e9))
    rig.kicker.arm(time.monotonic_ns() + 10_000_000)
    assert elapsed(lambda: rig.kicker.wait(None)) < NEVER_S / 2


def test_a_deadline_taken_back(rig: Rig) -> None:
    rig.kicker.arm(time.monotonic_ns() + 10_000_000)
    rig.kicker.arm(None)
    time.sleep(0.05)
    assert not rig.kicker.kicked


def test_a_signal_handler_may_kick(rig: Rig) -> None:
    """Ctrl-C's handler runs on the thread that sleeps, wherever it is."""
    old = signal.signal(signal.SIGUSR2, lambda *_: rig.kicker.kick())
    try:
        me = threading.get_ident()
        soon(0.05, lambda: signal.pthread_kill(me, signal.SIGUSR2))
        assert elapsed(lambda: rig.kicker.wait(None)) < NEVER_S
    finally:
        signal.signal(signal.SIGUSR2, old)


def test_while_it_runs_the_signal_is_blocked_for_us_and_open_for_kvm(rig: Rig) -> None:
    rig.kicker.enter()
    assert SIGNAL in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    rig.kicker.kick()
    assert SIGNAL in signal.sigpending()
    rig.kicker.drain()
    assert SIGNAL not in signal.sigpending()
    rig.kicker.leave()
    assert rig.masks == [set()]


def test_what_the_program_blocks_stays_blocked(rig: Rig) -> None:
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        rig.kicker.enter()
        rig.kicker.leave()
        assert rig.masks == [{int(signal.SIGUSR1)}]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def test_no_signal_is_sent_to_a_thread_that_left(rig: Rig) -> None:
    in_thread(lambda: (rig.kicker.enter(), rig.kicker.leave()))
    rig.kicker.kick()       # the thread is gone: this must not touch it
    assert rig.kicker.kicked


def test_closing_ends_the_timer(rig: Rig) -> None:
    rig.kicker.arm(time.monotonic_ns() + int(NEVER_S * 1e9))
    thread = rig.kicker._timer
    assert thread is not None and thread.is_alive()
    rig.kicker.close()
    thread.join(5)
    assert not thread.is_alive()
