# SPDX-License-Identifier: GPL-2.0-or-later
"""The backend of a paravirtual disk, against a frontend in Python: <xen/io/blkif.h>."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from xenrig import GRANT_TABLE_OP, SCRATCH, Rig

from bt.devices.disk import RO, RW, Disk
from bt.machine.dma import Dma
from bt.xen import abi
from bt.xen.blkback import RING_SLOTS

FRONT = "/local/domain/1/device/vbd/51712"
BACK = "/local/domain/0/backend/vbd/1/51712"
RING, DATA = 40, 50     # pages of the frontend's
SECTORS = 64
READ, WRITE, FLUSH = 0, 1, 3


class Front(Rig):
    """A domain with one disk and its frontend. Grant n is of page n."""

    def __init__(self, folder: Path, mode: str = RW) -> None:
        super().__init__()
        self.image = folder / "disk.img"
        self.image.write_bytes(bytes(i // 512 & 0xFF for i in range(SECTORS * 512)))
        self.disk = Disk(self.image, mode)
        self.reports: list[str] = []
        self.announced: list[tuple[int, int]] = []
        dma = Dma(self.ram, lambda gpa, length: self.announced.append((gpa, length)))
        self.xen.add_disk(self.disk, dma, self.reports.append)
        self.produced = self.seen = 0

    def start(self) -> None:
        """What xen-blkfront does up to the connected state."""
        where = self.put(bytes(8), SCRATCH + 64)
        setup = struct.pack("<H2xIh6xQ", 0x7FF0, 1, 99, where)
        assert self.call(GRANT_TABLE_OP, abi.GNTTABOP_setup_table, self.put(setup), 1) == 0
        self.table = self.word(SCRATCH + 64) << 12
        self.grant(RING)
        self.set_word(RING * 4096 + abi.BLKIF_REQ_EVENT, 1, "<I")
        self.set_word(RING * 4096 + abi.BLKIF_RSP_EVENT, 1, "<I")
        assert self.event(abi.EVTCHNOP_alloc_unbound,
                          abi.ALLOC_UNBOUND.pack(0x7FF0, 0, 0)) == 0
        self.port = abi.ALLOC_UNBOUND.unpack(self.get(abi.ALLOC_UNBOUND.size))[2]
        tx = self.xen.store.start()
        for name, value in (("ring-ref", RING), ("event-channel", self.port),
                            ("protocol", "x86_64-abi")):
            self.xen.store.write(f"{FRONT}/{name}", str(value).encode(), tx)
        self.xen.store.end(tx, True)
        self.state(3)

    def state(self, state: int) -> None:
        self.xen.store.write(f"{FRONT}/state", str(state).encode())

    def back(self, name: str = "state") -> bytes | None:
        return self.xen.store.get(f"{BACK}/{name}")

    def grant(self, page: int, flags: int = 1, domid: int = 0,
              reference: int | None = None) -> None:
        at = self.table + 8 * (page if reference is None else reference)
        self.ram.write(at, struct.pack("<HHI", flags, domid, page))

    def request(self, operation: int, sector: int, *segments: tuple[int, int, int],
                count: int | None = None) -> None:
        slot = RING * 4096 + 64 + 112 * (self.produced % RING_SLOTS)
        data = struct.pack("<BBH4xQQ", operation, len(segments) if count is None else count, 51712,
                           self.produced + 1000, sector)
        data += b"".join(struct.pack("<IBB2x", *segment) for segment in segments)
        self.ram.write(slot, data)
        self.produced += 1
        self.set_word(RING * 4096, self.produced & 0xFFFFFFFF, "<I")

    def submit(self, *request) -> int:
        """The status of one request."""
        self.request(*request)
        self.send(self.port)
        (answer,) = self.answers()
        assert answer[:2] == (self.produced + 999, request[0])
        return answer[2]

    def answers(self) -> list[tuple[int, int, int]]:
        produced = self.word(RING * 4096 + 8, "<I")
        found = []
        while self.seen != produced:
            slot = RING * 4096 + 64 + 112 * (self.seen % RING_SLOTS)
            found.append(struct.unpack("<QBxh", self.ram.read(slot, 12)))
            self.seen += 1
        return found


@pytest.fixture
def front(tmp_path: Path) -> Front:
    rig = Front(tmp_path)
    rig.start()
    return rig


def test_the_handshake(tmp_path: Path) -> None:
    rig = Front(tmp_path)
    store = rig.xen.store
    assert store.read(f"{FRONT}/backend") == BACK.encode()
    assert store.read(f"{BACK}/sectors") == b"64" and store.read(f"{BACK}/mode") == b"w"
    assert rig.back() == b"2"
    rig.start()
    assert rig.back() == b"4" and not rig.reports
    rig.state(4)
    assert rig.back() == b"4"
    for state, answer in ((5, b"5"), (6, b"6"), (1, b"2"), (3, b"4")):
        rig.state(state)
        assert rig.back() == answer, state
        if state == 6:      # it closes its channel, and opens a new one to come back
            rig.event(abi.EVTCHNOP_close, abi.PORT.pack(rig.port))
            rig.event(abi.EVTCHNOP_alloc_unbound, abi.ALLOC_UNBOUND.pack(0x7FF0, 0, 0))


def test_read_and_write(front: Front) -> None:
    image = front.image.read_bytes()
    front.grant(DATA)
    front.grant(DATA + 1)
    assert front.submit(READ, 3, (DATA, 1, 2), (DATA + 1, 0, 7)) == 0
    assert front.ram.read(DATA * 4096 + 512, 1024) == image[3 * 512:5 * 512]
    assert front.ram.read((DATA + 1) * 4096, 4096) == image[5 * 512:13 * 512]
    assert (DATA * 4096 + 512, 1024) in front.announced
    front.ram.write(DATA * 4096, b"w" * 4096)
    front.grant(DATA, flags=5)          # read-only is enough to write to the disk
    assert front.submit(WRITE, 60, (DATA, 0, 3)) == 0
    assert front.image.read_bytes()[60 * 512:] == b"w" * 2048
    assert front.submit(FLUSH, 0) == 0
    assert front.port in front.pending()


def test_interrupts_as_asked_for(front: Front) -> None:
    front.grant(DATA)
    front.clear()
    front.set_word(RING * 4096 + abi.BLKIF_RSP_EVENT, 3, "<I")
    for _ in range(2):
        front.submit(READ, 0, (DATA, 0, 0))
    assert front.port not in front.pending()
    front.submit(READ, 0, (DATA, 0, 0))
    assert front.port in front.pending()
    assert front.word(RING * 4096 + abi.BLKIF_REQ_EVENT, "<I") == 4


def test_many_requests_round_the_ring(front: Front) -> None:
    front.grant(DATA)
    for _ in range(5):
        for i in range(RING_SLOTS):
            front.request(READ, i % SECTORS, (DATA, 0, 0))
        front.send(front.port)
        answers = front.answers()
        assert [answer[2] for answer in answers] == [0] * RING_SLOTS
        assert len({answer[0] for answer in answers}) == RING_SLOTS


@pytest.mark.parametrize("request_", [
    (READ, SECTORS, (DATA, 0, 0)), (READ, SECTORS - 1, (DATA, 0, 1)),
    (WRITE, SECTORS, (DATA, 0, 0)), (READ, (1 << 64) - 1, (DATA, 0, 0)),
    (READ, 0, (DATA, 1, 0)), (READ, 0, (DATA, 0, 8)),
    (READ, 0, (DATA + 9, 0, 0)), (READ, 0, (1 << 20, 0, 0)), (READ, 0, ((1 << 32) - 1, 0, 0)),
    (READ, 0), (WRITE, 0),
])
def test_requests_that_fail(front: Front, request_: tuple) -> None:
    front.grant(DATA)
    before, ram = front.image.read_bytes(), front.ram.read(DATA * 4096, 4096)
    assert front.submit(*request_) == -1
    assert front.image.read_bytes() == before and front.ram.read(DATA * 4096, 4096) == ram


def test_unknown_requests_and_counts(front: Front) -> None:
    assert front.submit(5, 0) == -2
    front.request(READ, 0, count=12)
    front.send(front.port)
    assert front.answers()[0][2] == -1


def test_pages_that_may_not_be_written(front: Front) -> None:
    """A grant for another domain, read-only, of nothing; a page table; a frame of the VMM's."""
    for page, flags, domid in ((DATA, 1, 3), (DATA, 5, 0), (DATA, 0, 0), (DATA, 2, 0)):
        front.grant(page, flags, domid)
        assert front.submit(READ, 0, (DATA, 0, 0)) == -1
    front.core.readonly.add(DATA)
    front.grant(DATA)
    assert front.submit(READ, 0, (DATA, 0, 0)) == -1
    assert front.submit(WRITE, 0, (DATA, 0, 0)) == 0, "reading a page table hurts nobody"
    for mfn in (front.shared_info >> 12, front.table >> 12, 1 << 31):
        front.grant(mfn, reference=DATA)
        assert front.submit(READ, 0, (DATA, 0, 0)) == -1


def test_read_only(tmp_path: Path) -> None:
    rig = Front(tmp_path, RO)
    rig.start()
    rig.grant(DATA)
    assert rig.back("mode") == b"r" and rig.back("info") == b"4"
    assert rig.submit(WRITE, 0, (DATA, 0, 0)) == -1 and rig.submit(READ, 0, (DATA, 0, 0)) == 0


@pytest.mark.parametrize(("node", "value"), [
    ("ring-ref", "7"), ("ring-ref", "x"), ("ring-ref", "99999999999999999999"), ("ring-ref", "-1"),
    ("event-channel", "1"), ("event-channel", "4000"), ("event-channel", ""),
    ("protocol", "x86_32-abi")])
def test_a_frontend_that_lies_is_refused(tmp_path: Path, node: str, value: str) -> None:
    rig = Front(tmp_path)
    rig.start()
    rig.state(6)
    rig.event(abi.EVTCHNOP_close, abi.PORT.pack(rig.port))
    rig.event(abi.EVTCHNOP_alloc_unbound, abi.ALLOC_UNBOUND.pack(0x7FF0, 0, 0))
    rig.xen.store.write(f"{FRONT}/{node}", value.encode())
    rig.state(3)
    assert rig.back() == b"5" and len(rig.reports) == 1


def test_an_index_that_jumps_ends_the_connection(front: Front) -> None:
    front.set_word(RING * 4096, RING_SLOTS + 1, "<I")
    front.send(front.port)
    assert front.back() == b"5" and "33 requests" in front.reports[0]
    front.send(front.port)
    assert len(front.reports) == 1 and front.answers() == []


@pytest.mark.parametrize("how", ["revoked", "page table"])
def test_a_ring_that_went_away(front: Front, how: str) -> None:
    if how == "revoked":
        front.grant(RING, flags=0)
    else:
        front.core.readonly.add(RING)
    front.request(READ, 0, (DATA, 0, 0))
    front.send(front.port)
    assert front.back() == b"5" and front.answers() == []


def test_anything_in_the_ring(tmp_path: Path) -> None:
    """No content of ring, grants or store raises, or changes a page that was not granted."""
    rng = random.Random(5)
    rig = Front(tmp_path)
    rig.start()
    secret = 300
    for round_ in range(600):
        base = RING * 4096
        for _ in range(rng.randrange(8)):
            rig.grant(rng.choice([RING, DATA, DATA + 1]), rng.choice([1, 1, 5, 0, 3]),
                      rng.choice([0, 0, 1]), rng.randrange(64))
        at = rng.choice([0, 4, 8, 12])
        if rng.random() < 0.2:
            rig.set_word(base + at, rng.getrandbits(32), "<I")
        for _ in range(rng.randrange(4)):
            slot = base + 64 + 112 * rng.randrange(RING_SLOTS)
            rig.ram.write(slot, struct.pack("<BB6xQQ", rng.choice([0, 1, 3, 5, 255]),
                                            rng.choice([0, 1, 2, 11, 255]), 0,
                                            rng.choice([0, 5, 63, rng.getrandbits(64)])))
            rig.ram.write(slot + 24, b"".join(
                struct.pack("<IBB2x", rng.randrange(70), rng.randrange(9), rng.randrange(9))
                for _ in range(11)))
        rig.set_word(base, rig.word(base, "<I") + rng.randrange(3) & 0xFFFFFFFF, "<I")
        rig.send(rig.port)
        if rig.back() != b"4":
            for state in (6, 1, 3):
                rig.state(state)
            if rig.back() != b"4":
                rig.event(abi.EVTCHNOP_close, abi.PORT.pack(rig.port))
                rig.ram.write(base, bytes(64))
                rig.start()
                rig.state(rng.choice([3, 4]))
        assert rig.ram.read(secret * 4096, 4096) == bytes(4096), round_
