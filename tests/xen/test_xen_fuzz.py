# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever a guest calls with whatever arguments: a number comes back, and nothing else is hurt."""

import struct

from hypothesis import given, settings
from hypothesis import strategies as st
from xenrig import BASE, CONSOLE, NR_PAGES, SCRATCH, XENSTORE, Rig

FAMILIES = (12, 15, 17, 18, 20, 24, 29, 32, 33)
END = BASE + (NR_PAGES << 12)
# Arguments that a 64-bit field can hold, with those that matter more often.
words = st.one_of(
    st.integers(0, 64), st.integers(0, (1 << 64) - 1),
    st.sampled_from([BASE + SCRATCH, BASE + SCRATCH + 0x800, END - 8, END - 1, END, BASE,
                     0xFFFF_8000_0000_0000, (1 << 64) - 1, 1 << 63, NR_PAGES, NR_PAGES - 1,
                     BASE + CONSOLE, BASE + XENSTORE, 0x7FF0, 1 << 32, (1 << 32) - 1]))
memory = st.lists(words, max_size=24).map(lambda values: struct.pack(f"<{len(values)}Q", *values))
calls = st.lists(st.tuples(st.one_of(st.sampled_from(FAMILIES), words), st.lists(words, max_size=5),
                           memory, st.integers(0, 4095)), min_size=1, max_size=12)


@settings(max_examples=400, deadline=None)
@given(calls)
def test_random_hypercalls(sequence):
    rig = Rig()
    m2p = rig.domain.m2p_gpa
    for number, arguments, data, at in sequence:
        rig.put(data, SCRATCH + at)
        result = rig.call(number, *arguments)
        assert -(1 << 63) <= result < 1 << 63
        rig.advance(1_000_000)
    # The VMM's own table holds nothing but pages and "none".
    for frame in range(NR_PAGES):
        assert rig.word(m2p + frame * 8) in (frame, (1 << 64) - 1)
    assert rig.core.vcpu_info + 64 <= rig.ram.size
    assert rig.timers.next_deadline() is None or rig.timers.next_deadline() < 1 << 63


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 23), st.integers(0, 3),
                          st.lists(st.sampled_from(["data", "data/x", "/", "", "control", "T", "F",
                                                    "0", "1", "n1", "/local/domain/1/data/y",
                                                    "@releaseDomain", "\xff", "a" * 400]),
                                   max_size=4),
                          st.booleans()), max_size=20))
def test_random_xenstore_requests(requests):
    rig = Rig()
    produced = 0
    for kind, transaction, words, ended in requests:
        body = "\0".join(words).encode("latin-1") + (b"\0" if ended else b"")
        data = struct.pack("<IIII", kind, 7, transaction, len(body)) + body
        for at in range(0, len(data), 512):
            part = data[at:at + 512]
            for offset, byte in enumerate(part, produced):
                rig.ram.view[XENSTORE + offset % 1024] = byte
            produced += len(part)
            rig.set_word(XENSTORE + 2052, produced, "<I")
            assert rig.send(1) == 0
            for _ in range(200):
                taken = rig.word(XENSTORE + 2060, "<I")
                if rig.word(XENSTORE + 2056, "<I") == taken:
                    break
                rig.set_word(XENSTORE + 2056, taken, "<I")
                rig.send(1)
    assert rig.word(XENSTORE + 2072, "<I") == 0
    # Everything was read and answered, and nothing of the toolstack's was changed.
    assert rig.word(XENSTORE + 2048, "<I") == produced
    assert rig.xen.store.get("/local/domain/1/name") == b"ring1"


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=64), st.lists(st.integers(0, (1 << 32) - 1), min_size=9, max_size=9))
def test_random_rings(data, indices):
    rig = Rig()
    rig.put(data, XENSTORE)
    for number, value in enumerate(indices[:4]):
        rig.set_word(CONSOLE + 3072 + 4 * number, value, "<I")
    for number, value in enumerate(indices[4:]):
        rig.set_word(XENSTORE + 2048 + 4 * number, value, "<I")
    before = rig.ram.read(5 << 12, 4096 * 4)
    for port in (1, 2, 1, 2):
        assert rig.send(port) == 0
        rig.xen.console.feed(b"abc")
    assert rig.ram.read(5 << 12, 4096 * 4) == before
    assert len(rig.console) <= 4 * 2048
