# SPDX-License-Identifier: GPL-2.0-or-later
"""The console ring, by <xen/io/console.h>, and console_io."""

import pytest
from xenrig import BASE, CONSOLE, CONSOLE_IO, NOWHERE, NR_PAGES, SCRATCH

PORT = 2
IN, OUT, IN_CONS, IN_PROD, OUT_CONS, OUT_PROD = 0, 1024, 3072, 3076, 3080, 3084
EFAULT, ENOSYS, E2BIG = -14, -38, -7


def index(rig, offset, value=None):
    if value is None:
        return rig.word(CONSOLE + offset, "<I")
    rig.set_word(CONSOLE + offset, value & 0xFFFF_FFFF, "<I")


def write(rig, data):
    """What a guest's driver does; gives how much fitted."""
    produced, consumed = index(rig, OUT_PROD), index(rig, OUT_CONS)
    data = data[:2048 - (produced - consumed & 0xFFFF_FFFF)]
    for at, byte in enumerate(data, produced):
        rig.ram.view[CONSOLE + OUT + at % 2048] = byte
    index(rig, OUT_PROD, produced + len(data))
    return len(data)


def read(rig):
    produced, consumed = index(rig, IN_PROD), index(rig, IN_CONS)
    data = bytes(rig.ram.view[CONSOLE + IN + at % 1024]
                 for at in range(consumed, consumed + (produced - consumed & 0xFFFF_FFFF)))
    index(rig, IN_CONS, produced)
    return data


def test_output(rig):
    write(rig, b"hello ")
    write(rig, b"world\n")
    assert rig.console == b""
    assert rig.send(PORT) == 0
    assert rig.console == b"hello world\n"
    assert index(rig, OUT_CONS) == index(rig, OUT_PROD) == 12
    assert rig.pending() == set()       # nobody waits for room


def test_output_around_the_end_of_ring_and_index(rig):
    for start in (2040, 0xFFFF_FFF8):
        rig.console.clear()
        index(rig, OUT_CONS, start)
        index(rig, OUT_PROD, start)
        write(rig, b"0123456789abcdef")
        rig.send(PORT)
        assert rig.console == b"0123456789abcdef"
        assert index(rig, OUT_CONS) == start + 16 & 0xFFFF_FFFF


def test_a_writer_that_filled_the_ring_is_told_of_the_room(rig):
    assert write(rig, bytes(3000)) == 2048
    rig.send(PORT)
    assert len(rig.console) == 2048 and rig.pending() == {PORT}


@pytest.mark.parametrize(("consumed", "produced"), [(0, 2049), (5, 4), (0, 1 << 31)])
def test_output_indices_without_sense(rig, consumed, produced):
    index(rig, OUT_CONS, consumed)
    index(rig, OUT_PROD, produced)
    assert rig.send(PORT) == 0
    assert rig.console == b"" and index(rig, OUT_CONS) == consumed


def test_input(rig):
    assert rig.xen.console.feed(b"ls\n") == 3
    assert rig.pending() == {PORT}
    assert rig.xen.console.pending_input == 3
    assert read(rig) == b"ls\n"
    assert rig.xen.console.pending_input == 0


def test_more_input_than_the_ring_holds(rig):
    text = bytes(range(256)) * 20
    assert rig.xen.console.feed(text) == len(text)
    got = b""
    while part := read(rig):
        got += part
        rig.send(PORT)
    assert got == text


def test_input_nobody_reads_is_bounded(rig):
    total = 0
    while taken := rig.xen.console.feed(bytes(10_000)):
        total += taken
    assert total == (1 << 16) + 1024
    assert rig.xen.console.pending_input == total


@pytest.mark.parametrize(("consumed", "produced"), [(0, 1025), (1, 0), (0, 1 << 31)])
def test_input_indices_without_sense(rig, consumed, produced):
    index(rig, IN_CONS, consumed)
    index(rig, IN_PROD, produced)
    assert rig.xen.console.feed(b"x") == 1
    assert index(rig, IN_PROD) == produced and rig.pending() == set()
    index(rig, IN_CONS, produced)
    rig.send(PORT)
    assert read(rig) == b"x"


def test_console_io(rig):
    assert rig.call(CONSOLE_IO, 0, 5, rig.put(b"early")) == 0
    assert rig.raw == b"early" and rig.console == b""
    assert rig.call(CONSOLE_IO, 1, 100, BASE + SCRATCH) == 0
    assert rig.call(CONSOLE_IO, 2, 1, BASE + SCRATCH) == ENOSYS


def test_console_io_with_large_and_bad_buffers(rig):
    assert rig.call(CONSOLE_IO, 0, 100_000, BASE) == 0
    assert len(rig.raw) == 100_000
    assert rig.call(CONSOLE_IO, 0, (1 << 20) + 1, BASE) == E2BIG
    assert rig.call(CONSOLE_IO, 0, 4, NOWHERE) == EFAULT
    assert rig.call(CONSOLE_IO, 0, 0, NOWHERE) == 0
    end = (NR_PAGES << 12) - 4096
    assert rig.call(CONSOLE_IO, 0, 8192, BASE + end) == EFAULT
