# SPDX-License-Identifier: GPL-2.0-or-later
"""memory_op, by <xen/memory.h>; machine frames have the numbers of the pages."""

import struct

import pytest
from xenrig import BASE, MEMORY_OP, NOWHERE, NR_PAGES, SCRATCH

from bt.xen.frames import m2p_window

INCREASE, DECREASE, MAX_RAM, CURRENT, MAXIMUM, POPULATE, MAP, EXCHANGE, M2P_MAP, MAX_GPFN = (
    0, 1, 2, 3, 4, 6, 9, 11, 12, 14)
EINVAL, EPERM, ESRCH, EFAULT, ENOMEM, ENOSYS = -22, -1, -3, -14, -12, -38
SELF = 0x7FF0
LIST = SCRATCH + 0x1000
INVALID = (1 << 64) - 1


def reservation(pointer, extents, order=0, flags=0, domid=SELF):
    return struct.pack("<QQIIH6x", pointer, extents, order, flags, domid)


def balloon(rig, operation, pages, order=0, domid=SELF):
    where = rig.put(struct.pack(f"<{len(pages)}Q", *pages), LIST)
    return rig.op(MEMORY_OP, operation, reservation(where, len(pages), order, domid=domid))


def m2p(rig, frame):
    return rig.word(rig.domain.m2p_gpa + frame * 8)


def current(rig):
    return rig.op(MEMORY_OP, CURRENT, struct.pack("<H", SELF))


def test_sizes(rig):
    assert rig.op(MEMORY_OP, MAXIMUM, struct.pack("<H", SELF)) == NR_PAGES
    assert rig.op(MEMORY_OP, MAXIMUM, struct.pack("<H", 1)) == NR_PAGES
    assert rig.op(MEMORY_OP, MAX_GPFN, struct.pack("<H", SELF)) == NR_PAGES - 1
    assert rig.call(MEMORY_OP, MAX_RAM, 0) == NR_PAGES - 1
    assert current(rig) == NR_PAGES
    assert rig.op(MEMORY_OP, MAXIMUM, struct.pack("<H", 0)) == EPERM
    assert rig.op(MEMORY_OP, CURRENT, struct.pack("<H", 2)) == ESRCH


def test_memory_map_is_one_piece_of_ram(rig):
    buffer = BASE + LIST
    assert rig.op(MEMORY_OP, MAP, struct.pack("<I4xQ", 128, buffer)) == 0
    assert rig.word(SCRATCH, "<I") == 1
    assert struct.unpack("<QQI", rig.get(20, LIST)) == (0, NR_PAGES << 12, 1)


def test_memory_map_without_room(rig):
    assert rig.op(MEMORY_OP, MAP, struct.pack("<I4xQ", 0, NOWHERE)) == 0
    assert rig.word(SCRATCH, "<I") == 0
    assert rig.op(MEMORY_OP, MAP, struct.pack("<I4xQ", 1, NOWHERE)) == EFAULT


def test_where_the_m2p_is(rig):
    assert rig.op(MEMORY_OP, M2P_MAP, bytes(24)) == 0
    assert struct.unpack("<QQQ", rig.get(24)) == (
        0xFFFF_8000_0000_0000 + (m2p_window(NR_PAGES) << 12), 0xFFFF_8040_0000_0000, NR_PAGES - 1)


def test_balloon_down_and_up(rig):
    assert balloon(rig, DECREASE, [100, 101, 7]) == 3
    assert current(rig) == NR_PAGES - 3
    assert m2p(rig, 100) == INVALID and m2p(rig, 99) == 99
    assert balloon(rig, POPULATE, [7, 100]) == 2
    assert struct.unpack("<QQ", rig.get(16, LIST)) == (7, 100)
    assert m2p(rig, 7) == 7 and m2p(rig, 101) == INVALID
    assert current(rig) == NR_PAGES - 1


def test_balloon_in_larger_extents(rig):
    assert balloon(rig, DECREASE, [64], order=3) == 1
    assert current(rig) == NR_PAGES - 8
    assert balloon(rig, POPULATE, [72], order=3) == 0
    assert balloon(rig, POPULATE, [64], order=3) == 1
    assert current(rig) == NR_PAGES


@pytest.mark.parametrize("bad", [NR_PAGES, NR_PAGES + 1, 5, 1 << 63, INVALID])
def test_the_balloon_stops_at_the_first_bad_page(rig, bad):
    assert balloon(rig, DECREASE, [5, bad, 6]) == 1
    assert current(rig) == NR_PAGES - 1


def test_populate_takes_only_what_was_given_back(rig):
    balloon(rig, DECREASE, [5])
    assert balloon(rig, POPULATE, [6]) == 0
    assert balloon(rig, POPULATE, [5, 5]) == 1


def test_there_is_no_memory_beyond_the_domains_own(rig):
    assert balloon(rig, INCREASE, [0]) == 0


def test_balloon_requests_without_sense(rig):
    assert balloon(rig, DECREASE, [5], domid=0) == 0
    assert balloon(rig, DECREASE, [0], order=10) == 0
    assert balloon(rig, DECREASE, [0], order=0xFFFF_FFFF) == 0
    assert rig.op(MEMORY_OP, DECREASE, reservation(NOWHERE, 5)) == 0
    assert rig.op(MEMORY_OP, DECREASE, reservation(BASE + LIST, INVALID)) <= NR_PAGES
    assert current(rig) >= 0


def test_populate_into_a_list_that_cannot_be_written(rig):
    balloon(rig, DECREASE, [5])
    rig.core.readonly.add(LIST >> 12)
    assert rig.op(MEMORY_OP, POPULATE, reservation(BASE + LIST, 1)) == 0
    assert current(rig) == NR_PAGES - 1


def test_a_list_at_the_end_of_mapped_memory(rig):
    at = (NR_PAGES << 12) - 16
    rig.put(struct.pack("<QQ", 9, 10), at)
    assert rig.op(MEMORY_OP, DECREASE, reservation(BASE + at, 400)) == 2


def exchange(rig, frames, pages, in_order=0, out_order=0, flags=0, done=0, domid=SELF):
    first = rig.put(struct.pack(f"<{len(frames)}Q", *frames), LIST)
    second = rig.put(struct.pack(f"<{len(pages)}Q", *pages), LIST + 0x800)
    return rig.op(MEMORY_OP, EXCHANGE, reservation(first, len(frames), in_order, 0, domid)
                  + reservation(second, len(pages), out_order, flags, domid)
                  + struct.pack("<Q", done))


def test_exchange_for_contiguous_frames(rig):
    """What Linux does for a DMA buffer: 4 single frames for one extent of order 2."""
    assert exchange(rig, [40, 41, 42, 43], [40], out_order=2) == 0
    assert rig.word(SCRATCH + 64) == 4
    assert rig.word(LIST + 0x800) == 40
    assert exchange(rig, [40], [40, 41, 42, 43], in_order=2) == 0


@pytest.mark.parametrize(("arguments", "error"), [
    (dict(frames=[40, 41], pages=[50], out_order=1), ENOMEM),
    (dict(frames=[40, 40], pages=[40], out_order=1), ENOMEM),
    (dict(frames=[40, 41, 42], pages=[40], out_order=1), EINVAL),
    (dict(frames=[40], pages=[40], done=2), EINVAL),
    (dict(frames=[40], pages=[40], domid=0), EPERM),
    (dict(frames=[NR_PAGES], pages=[NR_PAGES]), ENOMEM),
    (dict(frames=[40], pages=[40], in_order=10, out_order=10), EPERM),
    (dict(frames=[40], pages=[40], flags=17), ENOMEM),
])
def test_exchanges_that_cannot_be(rig, arguments, error):
    assert exchange(rig, **arguments) == error
    assert rig.word(SCRATCH + 64) == arguments.get("done", 0)


def test_exchange_with_huge_counts_is_refused_at_once(rig):
    data = reservation(BASE + LIST, 1 << 60) + reservation(BASE + LIST, 1 << 60) + bytes(8)
    assert rig.op(MEMORY_OP, EXCHANGE, data) == EINVAL
    data = reservation(NOWHERE, 4) + reservation(NOWHERE, 4) + bytes(8)
    assert rig.op(MEMORY_OP, EXCHANGE, data) == EFAULT


@pytest.mark.parametrize("operation", [CURRENT, DECREASE, POPULATE, MAP, EXCHANGE, M2P_MAP])
def test_bad_pointers(rig, operation):
    for pointer in (0, NOWHERE, (1 << 64) - 1, 0xFFFF_8000_0000_0000):
        assert rig.call(MEMORY_OP, operation, pointer) == EFAULT


@pytest.mark.parametrize("operation", [5, 7, 8, 10, 13, 15, 26, 1 << 31])
def test_what_is_not_there(rig, operation):
    assert rig.call(MEMORY_OP, operation, BASE + SCRATCH) == ENOSYS
