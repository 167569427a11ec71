# SPDX-License-Identifier: GPL-2.0-or-later
"""The split virtqueue against a driver that keeps the rules, and against one that does not."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtiorig import INDIRECT, NEXT, RAM_BYTES, WRITE, Rig

from bt.virtio.device import F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, VirtioDevice
from bt.virtio.queue import Chain

ALL = F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX


class Echo(VirtioDevice):
    """Answers with what it was sent."""

    queue_sizes = (64,)

    def notify(self, index: int) -> None:
        queue = self.queues[index]
        while (chain := queue.pop()) is not None:
            data = chain.read(0, min(chain.readable_bytes, 4096))
            queue.push(chain, chain.write(data))
        self.interrupt(index)


def rig(features: int = ALL, size: int = 8) -> Rig:
    return Rig(Echo(), features=features, size=size)


def refused(r: Rig, text: str) -> None:
    """The device stopped, said why once, and does nothing more."""
    assert len(r.transport.whys) == 1 and text in r.transport.whys[0], r.transport.whys
    r.device.notify(0)
    assert r.queues[0].used() == [] and len(r.transport.whys) == 1
    assert r.device.queues[0].pop() is None


def test_a_chain_is_answered() -> None:
    r = rig()
    r.ram.write(0x2000, b"hello, ")
    r.ram.write(0x3000, b"world")
    used = r.queues[0].submit((0x2000, 7, 0), (0x3000, 5, 0), (0x4000, 4, WRITE),
                              (0x5000, 99, WRITE))
    assert used == [(0, 12)]
    assert r.ram.read(0x4000, 4) + r.ram.read(0x5000, 9) == b"hello, world\0"
    assert r.transport.queue_interrupts == [0]
    assert {(0x4000, 4), (0x5000, 8)} <= set(r.written), "the vCPU is told before each write"


def test_many_chains_round_the_ring() -> None:
    r = rig()
    for i in range(66_000):  # the 16-bit indexes wrap as well
        r.ram.view[0x2000:0x2004] = struct.pack("<I", i)
        head = i % 8
        r.queues[0].free = head
        assert r.queues[0].submit((0x2000, 4, 0)) == [(head, 0)]
    assert not r.transport.whys


def test_indirect_tables() -> None:
    r = rig()
    r.ram.write(0x2000, b"abc")
    table = struct.pack("<QIHH", 0x2000, 3, NEXT, 2) + bytes(16) + \
        struct.pack("<QIHH", 0x3000, 3, WRITE, 0)
    r.ram.write(0x6000, table)
    assert r.queues[0].submit((0x6000, len(table), INDIRECT)) == [(0, 3)]
    assert r.ram.read(0x3000, 3) == b"abc"


def test_event_index() -> None:
    r = rig()
    q = r.queues[0]
    q.used_event(1)  # interrupt when the second one is used
    q.submit((0x2000, 1, 0))
    assert r.transport.queue_interrupts == [] and q.avail_event() == 1
    q.submit((0x2000, 1, 0))
    assert r.transport.queue_interrupts == [0] and q.avail_event() == 2


def test_no_interrupt_flag() -> None:
    r = rig(F_VERSION_1)
    struct.pack_into("<H", r.ram.view, r.queues[0].driver, 1)
    r.queues[0].submit((0x2000, 1, 0))
    assert r.transport.queue_interrupts == []
    struct.pack_into("<H", r.ram.view, r.queues[0].driver, 0)
    r.queues[0].submit((0x2000, 1, 0))
    assert r.transport.queue_interrupts == [0]


@pytest.mark.parametrize(("buffers", "text"), [
    ([(0x2000, 0, 0)], "not RAM"),
    ([(RAM_BYTES - 1, 2, 0)], "not RAM"),
    ([(0xFFFFFFFFFFFFFFFF, 2, WRITE)], "not RAM"),
    ([(0x2000, 0xFFFFFFFF, 0)], "not RAM"),
    ([(0x2000, 1, WRITE), (0x3000, 1, 0)], "behind one to write"),
    ([(0x2000, 15, INDIRECT)], "indirect"),
    ([(0x2000, 16, INDIRECT), (0x2000, 1, 0)], "indirect"),
    ([(0x10000, 16, WRITE)], "over the queue itself"),
])
def test_bad_descriptors(buffers: list[tuple[int, int, int]], text: str) -> None:
    r = rig()
    r.queues[0].submit(*buffers)
    refused(r, text)


def test_loop() -> None:
    r = rig()
    r.queues[0].describe(0, 0x2000, 1, NEXT, 1)
    r.queues[0].describe(1, 0x2000, 1, NEXT, 0)
    r.queues[0].offer(0)
    r.device.notify(0)
    refused(r, "loop")


def test_loop_of_indirect_tables() -> None:
    r = rig()
    r.ram.write(0x6000, struct.pack("<QIHH", 0x6000, 16, INDIRECT, 0))
    r.queues[0].submit((0x6000, 16, INDIRECT))
    refused(r, "indirect")
    r = rig()
    r.ram.write(0x6000, struct.pack("<QIHH", 0x2000, 16, NEXT, 0))
    r.queues[0].submit((0x6000, 16, INDIRECT))
    refused(r, "loop")


def test_indirect_without_the_feature() -> None:
    r = rig(F_VERSION_1)
    r.ram.write(0x6000, struct.pack("<QIHH", 0x2000, 16, 0, 0))
    r.queues[0].submit((0x6000, 16, INDIRECT))
    refused(r, "indirect")


@pytest.mark.parametrize("head", [8, 0xFFFF])
def test_head_outside_the_table(head: int) -> None:
    r = rig()
    r.queues[0].offer(head)
    r.device.notify(0)
    refused(r, "descriptor")


def test_next_outside_the_table() -> None:
    r = rig()
    r.queues[0].describe(0, 0x2000, 1, NEXT, 8)
    r.queues[0].offer(0)
    r.device.notify(0)
    refused(r, "descriptor 8 of 8")


def test_index_jumps() -> None:
    r = rig()
    struct.pack_into("<H", r.ram.view, r.queues[0].driver + 2, 9)
    r.device.notify(0)
    refused(r, "jumps")


def test_more_than_the_queue_at_once() -> None:
    """A driver that offers new chains before the old ones came back has lost count."""
    r = rig()
    queue = r.device.queues[0]
    for i in range(8):
        r.queues[0].offer(r.queues[0].chain((0x2000 + i, 1, 0)))
    kept = [queue.pop() for _ in range(8)]
    assert all(kept) and not r.transport.whys
    r.queues[0].offer(0)
    assert queue.pop() is None
    refused(r, "jumps")


def test_more_than_4_gb() -> None:
    r = Rig(Echo(), features=ALL, size=64, ram_bytes=128 << 20)
    r.queues[0].submit(*[(0x100000, 127 << 20, 0)] * 34)
    refused(r, "4 GB")


@pytest.mark.parametrize(("field", "value", "text"), [
    ("size", 0, "size"), ("size", 3, "size"), ("size", 128, "size"),
    ("descriptors", 0x2008, "multiple of 16"), ("driver", 0x2001, "multiple of 2"),
    ("device", 0x2002, "multiple of 4"), ("descriptors", RAM_BYTES - 16, "not RAM"),
    ("device", 1 << 63, "not RAM"), ("driver", 0x10010, "overlap"), ("device", 0x10000, "overlap"),
])
def test_where_the_areas_may_not_be(field: str, value: int, text: str) -> None:
    r = rig()
    queue = r.device.queues[0]
    queue.ready = False
    setattr(queue, field, value)
    queue.enable()
    assert not queue.ready
    refused(r, text)


def test_reset_makes_it_good_again() -> None:
    r = rig()
    r.queues[0].offer(8)
    r.device.notify(0)
    assert r.device.why_broken
    r.device.full_reset()
    assert r.device.why_broken is None and not r.device.queues[0].ready


def test_a_chain_pushed_after_reset_is_dropped() -> None:
    r = rig()
    r.queues[0].offer(r.queues[0].chain((0x2000, 1, WRITE)))
    queue = r.device.queues[0]
    chain = queue.pop()
    assert chain is not None
    r.device.full_reset()
    before = bytes(r.ram.view)
    queue.push(chain, 1)
    assert bytes(r.ram.view) == before


def test_ranges_of_a_chain() -> None:
    r = rig()
    data = bytes(range(60))
    r.ram.write(0x2000, data)
    r.ram.write(0x3000, data)
    chain = Chain(r.dma, 0, [(0x2000, 60), (0x3000, 60)], [(0x5000, 10), (0x6000, 10)])
    whole = data + data
    for at in range(0, 120, 7):
        for length in (0, 1, 50, 61, 200):
            assert chain.read(at, length) == whole[at:at + length]
    assert chain.write(b"x" * 50, 5) == 15
    assert r.ram.read(0x5000, 11) == bytes(5) + b"xxxxx\0"
    assert r.ram.read(0x6000, 11) == b"x" * 10 + b"\0"


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0, 1, 0x2000, 0x6000, 0x10000, 0x10080, RAM_BYTES - 1,
                                           1 << 40, (1 << 64) - 1]),
                          st.sampled_from([0, 1, 16, 48, 4096, 0xFFFFFFFF]),
                          st.integers(0, 7), st.integers(0, 9)), min_size=8, max_size=8),
       st.lists(st.integers(0, 9), max_size=12), st.integers(0, 20))
def test_anything_in_the_ring(table: list[tuple[int, int, int, int]], heads: list[int],
                              index: int) -> None:
    """No ring content makes the device raise, or write where it must not."""
    r = rig()
    q = r.queues[0]
    for slot, entry in enumerate(table):
        q.describe(slot, *entry)
    for i, head in enumerate(heads):
        struct.pack_into("<H", r.ram.view, q.driver + 4 + 2 * (i % 8), head)
    struct.pack_into("<H", r.ram.view, q.driver + 2, index)
    before = bytes(r.ram.view)
    r.device.notify(0)
    after = bytes(r.ram.view)
    assert after[q.descriptors:q.device] == before[q.descriptors:q.device]
    told = bytearray(RAM_BYTES)
    for gpa, length in r.written:
        told[gpa:gpa + length] = b"\1" * length
    if before != after:
        assert all(told[i] for i in range(RAM_BYTES) if before[i] != after[i])
