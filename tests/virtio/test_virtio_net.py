# SPDX-License-Identifier: GPL-2.0-or-later
"""The network card on a link of the test's own, with a driver that keeps the rules or not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtiorig import WRITE, Rig

from bt.net import header
from bt.net.header import GSO_TCPV4, NEEDS_CSUM
from bt.net.link import Link, Views
from bt.virtio.net import (
    F_CSUM,
    F_GUEST_CSUM,
    F_GUEST_TSO4,
    F_HOST_TSO4,
    F_MRG_RXBUF,
    VirtioNet,
)

V1 = 1 << 32
MAC = b"\x52\x54\0\x72\x31\1"
BUFFERS = 0x40000
TCP = bytes.fromhex("525400000002525400000001080045000028abcd40004006000a0a000101"
                    "0a00010212340050000010000000000050180000ffff0000")


class Pipe(Link):
    """``sent`` has what the card sent, ``coming`` what it will receive."""

    def __init__(self) -> None:
        super().__init__()
        self.up = True
        self.sent: list[bytes] = []
        self.coming: list[bytes] = []
        self.room = 1 << 30
        self.agreed = (False, False, False)
        self.asked_again = 0

    def agree(self, checksum: bool, tcp4: bool, tcp6: bool) -> None:
        self.agreed = (checksum, tcp4, tcp6)

    def send(self, views: Views) -> bool:
        if len(self.sent) >= self.room:
            return False
        self.sent.append(b"".join(views))
        return True

    def receive(self, views: Views) -> int:
        if not self.coming:
            return 0
        frame = self.coming.pop(0)
        done = 0
        for view in views:
            part = frame[done:done + len(view)]
            view[:len(part)] = part
            done += len(part)
        return done

    def later(self) -> None:
        self.asked_again += 1


class CardRig(Rig):
    """A card with ``count`` buffers of ``size`` bytes to receive into."""

    def __init__(self, features: int, count: int = 0, size: int = 4096) -> None:
        self.link = Pipe()
        self.card = VirtioNet(self.link, MAC)
        super().__init__(self.card, features=V1 | features, size=256, ram_bytes=4 << 20)
        self.size = size
        self.offered = 0
        self.offer(count)

    def offer(self, count: int) -> None:
        for _ in range(count):
            gpa = BUFFERS + self.offered % 256 * self.size
            self.queues[0].offer(self.queues[0].chain((gpa, self.size, WRITE)))
            self.offered += 1
        self.device.notify(0)

    def frames(self) -> list[bytes]:
        """What the driver gets, put together as it would."""
        frames, parts = [], 0
        for head, written in self.queues[0].used():
            data = self.ram.read(BUFFERS + head * self.size, written)
            if parts:
                frames[-1] += data
                parts -= 1
            else:
                frames.append(data)
                parts = data[header.NUM_BUFFERS_AT] - 1
        assert not parts
        return frames


def frame(length: int, *fields: int) -> bytes:
    """A frame as it comes from a link."""
    told = header.HEADER.pack(*fields, 0) if fields else header.PLAIN
    return told + bytes(i * 13 & 0xFF for i in range(length))


def without_header(frames: list[bytes]) -> list[bytes]:
    return [data[header.SIZE:] for data in frames]


def test_the_configuration():
    r = CardRig(0)
    assert r.device.config_read(0, 6) == MAC and r.device.config_read(6, 2) == b"\1\0"
    r.link.up = False
    r.card.cable_changed()
    assert r.device.config_read(6, 2) == b"\0\0" and r.transport.config_interrupts == 1
    assert r.device.config_read(4000, 8) == bytes(8)


def test_what_a_link_cannot_take_is_not_offered():
    link = Pipe()
    link.offloads = False
    assert not VirtioNet(link, MAC).features & (F_CSUM | F_HOST_TSO4)
    assert VirtioNet(Pipe(), MAC).features & F_HOST_TSO4


def test_a_frame_is_sent_from_where_it_lies():
    r = CardRig(F_CSUM)
    r.ram.write(0x40000, header.PLAIN)
    r.ram.write(0x50000, b"x" * 60)
    assert r.queues[1].submit((0x40000, 12, 0), (0x50000, 60, 0)) == [(0, 0)]
    assert r.link.sent == [header.PLAIN + b"x" * 60]
    assert r.transport.queue_interrupts == [1]


def test_what_finds_no_room_is_sent_later_and_in_order():
    r = CardRig(0)
    r.link.room = 1
    for i in range(3):
        r.ram.write(0x40000 + 0x100 * i, header.PLAIN + bytes([i]) * 60)
        used = r.queues[1].submit((0x40000 + 0x100 * i, 72, 0))
        assert bool(used) == (i == 0)
    r.link.room = 10
    r.card.room_came()
    assert [sent[12] for sent in r.link.sent] == [0, 1, 2]
    assert [head for head, _ in r.queues[1].used()] == [1, 2]


@pytest.mark.parametrize("size", [1536, 4096, 65536])
@pytest.mark.parametrize("length", [14, 1500, 20_000, 65_000])
def test_a_frame_takes_as_many_buffers_as_it_needs(size: int, length: int):
    r = CardRig(F_MRG_RXBUF, 50, size)
    r.link.coming = [frame(length), frame(60)]
    r.card.frames_came()
    frames = r.frames()
    assert without_header(frames) == [frame(length)[12:], frame(60)[12:]]
    assert frames[0][header.NUM_BUFFERS_AT] == -(-(length + 12) // size)
    assert r.transport.queue_interrupts[-1] == 0


def test_frames_wait_for_buffers():
    r = CardRig(F_MRG_RXBUF)
    r.link.coming = [frame(5000), frame(60)]
    r.card.frames_came()
    assert r.frames() == [] and len(r.link.coming) == 1, "no more than one is taken"
    r.offer(1)
    assert r.frames() == []
    r.offer(2)
    assert without_header(r.frames()) == [frame(5000)[12:], frame(60)[12:]]


def test_without_merging_a_frame_has_one_chain():
    r = CardRig(0, 4, 1526)
    r.link.coming = [frame(1514), frame(1515), frame(100)]
    r.card.frames_came()
    assert without_header(r.frames()) == [frame(1514)[12:], frame(100)[12:]]
    assert r.card.dropped == 1


def test_open_checksums_go_to_those_who_take_them():
    fields = (NEEDS_CSUM, 0, 0, 0, 34, 16)
    r = CardRig(F_MRG_RXBUF | F_GUEST_CSUM, 40)
    assert r.link.agreed == (True, False, False)
    r.link.coming = [header.HEADER.pack(*fields, 0) + TCP]
    r.card.frames_came()
    (got,) = r.frames()
    assert got[:12] == header.HEADER.pack(*fields, 1) and got[12:] == TCP
    r = CardRig(F_MRG_RXBUF, 40)
    r.link.coming = [header.HEADER.pack(*fields, 0) + TCP]
    r.card.frames_came()
    (got,) = r.frames()
    assert got[:12] == header.PLAIN and got[12:62] == TCP[:50] and got[62:64] != TCP[50:52]


@pytest.mark.parametrize("features", [0, F_MRG_RXBUF, F_MRG_RXBUF | F_GUEST_CSUM])
def test_uncut_tcp_is_cut_for_those_who_do_not_take_it(features: int):
    r = CardRig(features, 40)
    r.link.coming = [header.HEADER.pack(NEEDS_CSUM, GSO_TCPV4, 54, 1000, 34, 16, 0)
                     + TCP + bytes(2500)]
    r.card.frames_came()
    assert [len(data) - 12 - 54 for data in r.frames()] == [1000, 1000, 500]
    r = CardRig(F_MRG_RXBUF | F_GUEST_CSUM | F_GUEST_TSO4, 40)
    r.link.coming = [header.HEADER.pack(NEEDS_CSUM, GSO_TCPV4, 54, 1000, 34, 16, 0)
                     + TCP + bytes(2500)]
    r.card.frames_came()
    assert [len(data) - 12 - 54 for data in r.frames()] == [2500]


@pytest.mark.parametrize("bad", [
    b"x", header.PLAIN, header.PLAIN + bytes(13), bytes(header.MAX_FRAME + 1),
    frame(60, NEEDS_CSUM, 0, 0, 0, 50, 9), frame(60, NEEDS_CSUM, 1, 0, 0, 34, 16),
    frame(60, 0, 1, 54, 1000, 0, 0), frame(60, NEEDS_CSUM, 3, 54, 1000, 34, 16),
    frame(60, NEEDS_CSUM, 1, 61, 1000, 34, 16),
])
@pytest.mark.parametrize("buffers", [0, 40])
def test_a_peers_lies_end_here(bad: bytes, buffers: int):
    r = CardRig(F_MRG_RXBUF | F_GUEST_CSUM | F_GUEST_TSO4, buffers)
    r.link.coming = [bad, frame(60)]
    r.card.frames_came()
    r.offer(40)
    assert without_header(r.frames()) == [frame(60)[12:]]
    assert r.card.dropped == 1 and not r.transport.whys


def test_a_flood_lets_the_guest_run():
    r = CardRig(F_MRG_RXBUF, 40)
    r.link.coming = [b"junk"] * 10_000
    r.card.frames_came()
    assert r.link.asked_again == 1 and len(r.link.coming) > 5000


@pytest.mark.parametrize("buffers", [
    [(0x40000, 11, 0)], [(0x40000, 25, 0)], [(0x40000, 60, 0), (0x50000, 4, WRITE)],
    [(0x40000, 70_000, 0)],
])
def test_frames_to_send_that_are_none(buffers):
    r = CardRig(0)
    assert r.queues[1].submit(*buffers) == []
    assert len(r.transport.whys) == 1 and not r.link.sent
    r.link.coming = [frame(60)]
    r.card.frames_came()
    r.card.room_came()


@pytest.mark.parametrize("buffer", [(0x40000, 100, 0), (0x40000, 11, WRITE)])
@pytest.mark.parametrize("features", [0, F_MRG_RXBUF])
def test_buffers_that_are_none(buffer, features: int):
    r = CardRig(features)
    r.queues[0].offer(r.queues[0].chain(buffer))
    r.link.coming = [frame(60)]
    r.card.frames_came()
    assert len(r.transport.whys) == 1


def test_a_reset_forgets():
    r = CardRig(F_MRG_RXBUF, 2)
    r.link.coming = [frame(20_000)]
    r.card.frames_came()
    r.link.room = 0
    r.queues[1].submit((0x40000, 60, 0))
    r.device.full_reset()
    r.card.frames_came()
    r.card.room_came()
    assert r.link.agreed == (False, False, False) and not r.transport.whys


@given(st.lists(st.sampled_from([60, 1400, 3000, 30_000, 65_000]), max_size=12),
       st.lists(st.integers(1, 20), min_size=1, max_size=12), st.sampled_from([64, 1536, 4096]))
def test_nothing_is_lost_or_mixed_up(lengths: list[int], offers: list[int], size: int):
    r = CardRig(F_MRG_RXBUF, 0, size)
    r.link.coming = [frame(length) for length in lengths]
    got = []
    for count in offers:
        r.offer(min(count, 200))
        got += r.frames()
    assert without_header(got) == [frame(length)[12:] for length in lengths[:len(got)]]
    assert not r.transport.whys
