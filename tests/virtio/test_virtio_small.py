# SPDX-License-Identifier: GPL-2.0-or-later
"""Entropy, console and 9P device: each a queue or two with not much behind it."""

from __future__ import annotations

from pathlib import Path

import pytest
from virtiorig import WRITE, Rig

from bt.machine.timers import TimerQueue
from bt.ninep import wire
from bt.ninep.folder import Folder
from bt.ninep.server import Server
from bt.virtio import console as console_module
from bt.virtio import rng as rng_module
from bt.virtio.console import VirtioConsole
from bt.virtio.device import VirtioDevice
from bt.virtio.ninep import VirtioNinep
from bt.virtio.rng import VirtioRng, seeded_source


class Clock:
    ns = 0

    def now_ns(self) -> int:
        return self.ns


def refused(device: VirtioDevice, queue: int, *buffers: tuple[int, int, int]) -> None:
    r = Rig(device)
    assert r.queues[queue].submit(*buffers) == []
    assert len(r.transport.whys) == 1


# Entropy


def test_random_bytes_differ_and_repeat_when_asked_to():
    def some(source) -> bytes:
        clock = Clock()
        r = Rig(VirtioRng(TimerQueue(clock), clock.now_ns, source))
        assert r.queues[0].submit((0x2000, 64, WRITE), (0x3000, 36, WRITE)) == [(0, 100)]
        return r.ram.read(0x2000, 64) + r.ram.read(0x3000, 36)

    assert some(seeded_source()) == some(seeded_source())
    assert some(rng_module.os.urandom) != some(rng_module.os.urandom)


def test_random_bytes_come_at_a_bounded_rate():
    clock = Clock()
    timers = TimerQueue(clock)
    r = Rig(VirtioRng(timers, clock.now_ns))
    got = []
    for _ in range(4):
        got += r.queues[0].submit((0x40000, 30_000, WRITE))
    assert sum(length for _, length in got) == rng_module.BURST
    assert [length for _, length in got] == [30_000, 30_000, 5536], "the fourth has to wait"
    clock.ns = rng_module.PERIOD_NS
    timers.run_due()
    assert [length for _, length in r.queues[0].used()] == [30_000]


def test_buffers_for_random_bytes_can_be_filled():
    clock = Clock()
    refused(VirtioRng(TimerQueue(clock), clock.now_ns), 0, (0x2000, 8, 0))
    refused(VirtioRng(TimerQueue(clock), clock.now_ns), 0, (0x2000, 8, 0), (0x3000, 8, WRITE))


# Console


def test_output_comes_out_at_once():
    out: list[bytes] = []
    r = Rig(VirtioConsole(out.append, (80, 25)))
    r.ram.write(0x2000, b"hello")
    r.queues[1].offer(r.queues[1].chain((0x2000, 3, 0)))
    assert r.queues[1].submit((0x2003, 2, 0)) == [(0, 0), (1, 0)]
    assert out == [b"hello"] and r.transport.queue_interrupts == [1]
    assert r.device.config_read(0, 4) == b"\x50\0\x19\0" and r.device.features


def test_input_waits_for_buffers():
    r = Rig(VirtioConsole(lambda data: None))
    console = r.device
    assert isinstance(console, VirtioConsole)
    assert console.feed(b"some input") == 10 and console.pending_input == 10
    assert r.queues[0].submit((0x2000, 4, WRITE)) == [(0, 4)]
    assert r.queues[0].submit((0x3000, 100, WRITE)) == [(1, 6)]
    assert r.ram.read(0x2000, 4) + r.ram.read(0x3000, 6) == b"some input"
    assert r.queues[0].submit((0x4000, 100, WRITE)) == []
    console.feed(b"more")
    assert r.queues[0].used() == [(2, 4)] and console.pending_input == 0


def test_input_and_output_are_bounded(monkeypatch: pytest.MonkeyPatch):
    console = VirtioConsole(lambda data: None)
    Rig(console)
    assert console.feed(bytes(2 << 20)) == console_module.INPUT_CAP
    assert console.feed(b"x") == 0
    monkeypatch.setattr(console_module, "OUTPUT_CAP", 100)
    refused(VirtioConsole(lambda data: None), 1, (0x2000, 101, 0))
    refused(VirtioConsole(lambda data: None), 1, (0x2000, 8, WRITE))


def test_buffers_for_input_can_be_filled():
    console = VirtioConsole(lambda data: None)
    r = Rig(console)
    console.feed(b"x")
    assert r.queues[0].submit((0x2000, 8, 0)) == [] and len(r.transport.whys) == 1


# 9P


def ninep(tmp_path: Path) -> VirtioNinep:
    (tmp_path / "file").write_bytes(b"hello")
    return VirtioNinep(Server(Folder(tmp_path, False)), b"share")


def test_a_9p_message_is_answered(tmp_path: Path):
    r = Rig(ninep(tmp_path))
    assert r.device.config_read(0, 8) == b"\5\0share\0"[:8]
    request = wire.request("version", 0, 8192, wire.VERSION)
    r.ram.write(0x2000, request)
    half = len(request) // 2
    ((_, written),) = r.queues[0].submit((0x2000, half, 0), (0x2000 + half, len(request) - half, 0),
                                         (0x4000, 5, WRITE), (0x5000, 100, WRITE))
    answer = r.ram.read(0x4000, 5) + r.ram.read(0x5000, written - 5)
    assert wire.unpack("Is", answer[7:]) == [8192, wire.VERSION]


def test_what_is_no_9p_message_stops_the_device(tmp_path: Path):
    refused(ninep(tmp_path), 0, (0x2000, 6, 0), (0x3000, 100, WRITE))
    refused(ninep(tmp_path), 0, (0x2000, 7, 0), (0x3000, 10, WRITE))
    refused(ninep(tmp_path), 0, (0x2000, 7, 0))
    refused(ninep(tmp_path), 0, (0x2000, 7, WRITE))
    refused(ninep(tmp_path), 0, *[(0x0, 0x80000, 0)] * 2, (0x3000, 100, WRITE))
