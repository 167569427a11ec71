# SPDX-License-Identifier: GPL-2.0-or-later
import pytest

from bt.machine.bus import ABSENT, ASK, MAX_MMIO_CLAIMS, PUBLISHED, Bus


class Recorder:
    def __init__(self, wide=False):
        self.wide = wide
        self.log = []

    def read_port(self, port, size):
        self.log.append(("r", port, size))
        return 0x1234567890 + port

    def write_port(self, port, size, value):
        self.log.append(("w", port, size, value))


@pytest.mark.parametrize("size, ones", [(1, 0xFF), (2, 0xFFFF), (4, 0xFFFFFFFF)])
def test_nothing_there_reads_as_ones_and_drops_writes(size, ones):
    bus = Bus()
    assert bus.read(0x1F0, size) == ones
    bus.write(0x1F0, size, 0)
    assert bus.read_kind[0x1F0] == bus.write_kind[0x1F0] == ABSENT


def test_wide_access_to_a_byte_device_is_split_low_byte_first():
    bus, device = Bus(), Recorder()
    bus.claim(device, 0x300, 4)
    bus.write(0x300, 4, 0x44332211)
    assert device.log == [("w", 0x300 + i, 1, 0x11 * (i + 1)) for i in range(4)]
    device.log.clear()
    assert bus.read(0x302, 2) == 0x9392
    assert device.log == [("r", 0x302, 1), ("r", 0x303, 1)]


def test_split_access_runs_off_the_device_and_off_the_port_space():
    bus, device = Bus(), Recorder()
    bus.claim(device, 0xFFFF, 1)
    assert bus.read(0xFFFF, 4) == 0xFFFFFF00 | (0x90 + 0xFFFF) & 0xFF
    bus.write(0xFFFF, 4, 0xAABBCCDD)
    assert device.log == [("r", 0xFFFF, 1), ("w", 0xFFFF, 1, 0xDD)]


def test_wide_device_gets_the_access_whole():
    bus, device = Bus(), Recorder(wide=True)
    bus.claim(device, 0x300, 4)
    assert bus.read(0x300, 4) == 0x34567890 + 0x300
    bus.write(0x300, 2, 0xABCDE)
    assert device.log == [("r", 0x300, 4), ("w", 0x300, 2, 0xBCDE)]


def test_the_first_port_decides_whether_anything_is_there():
    bus, device = Bus(), Recorder()
    bus.claim(device, 0xCF9, 1)
    bus.write(0xCF8, 4, 0xFFFFFFFF)
    assert bus.read(0xCF8, 4) == 0xFFFFFFFF
    assert device.log == []


def test_published_value_is_read_without_the_device():
    bus, device = Bus(), Recorder()
    tables = bus.read_kind, bus.write_kind, bus.value
    bus.claim(device, 0x300, 2)
    bus.publish(0x300, 0x5A)
    assert bus.read_kind[0x300] == PUBLISHED and bus.value[0x300] == 0x5A
    assert bus.read(0x300, 1) == 0x5A
    assert device.log == []
    assert bus.read(0x300, 2) == 0x9100 | 0x5A
    bus.publish(0x300, None)
    assert bus.read_kind[0x300] == ASK
    assert bus.read(0x300, 1) == 0x90
    # The compiled core holds their addresses.
    assert all(a is b for a, b in zip(tables, (bus.read_kind, bus.write_kind, bus.value),
                                      strict=True))
    assert len(bus.read_kind) == len(bus.write_kind) == len(bus.value) == 0x10000


class Memory:
    def __init__(self, name):
        self.name = name
        self.log = []

    def read_mmio(self, gpa, size):
        self.log.append(("r", gpa, size))
        return -1

    def write_mmio(self, gpa, size, value):
        self.log.append(("w", gpa, size, value))


def ranges(bus):
    table = bus.mmio_ranges
    return [(table[1 + 2 * i], table[2 + 2 * i]) for i in range(table[0])]


def test_device_memory_is_asked_by_range():
    bus, device = Bus(), Memory("a")
    bus.claim_mmio(device, 0x1000, 0x100)
    assert bus.read_mmio(0x10FF, 8) == (1 << 64) - 1
    bus.write_mmio(0x1000, 2, 0x12345)
    assert bus.read_mmio(0x1100, 4) == 0xFFFFFFFF and bus.read_mmio(0xFFF, 1) == 0xFF
    bus.write_mmio(0x1100, 4, 0)
    assert device.log == [("r", 0x10FF, 8), ("w", 0x1000, 2, 0x2345)]
    bus.unclaim_mmio(device)
    assert ranges(bus) == [] and bus.read_mmio(0x1000, 1) == 0xFF


def test_a_later_claim_of_device_memory_wins_while_it_lasts():
    bus = Bus()
    below, above, edge = Memory("below"), Memory("above"), Memory("edge")
    bus.claim_mmio(below, 0, 0x3000)
    bus.claim_mmio(above, 0x1000, 0x1000)
    bus.claim_mmio(edge, 0x2FFF, 0x10)
    assert ranges(bus) == [(0, 0x1000), (0x1000, 0x2000), (0x2000, 0x2FFF), (0x2FFF, 0x300F)]
    for gpa in (0, 0xFFF, 0x1000, 0x1FFF, 0x2000, 0x2FFF, 0x300E):
        bus.read_mmio(gpa, 1)
    assert [gpa for _, gpa, _ in below.log] == [0, 0xFFF, 0x2000]
    assert [gpa for _, gpa, _ in above.log] == [0x1000, 0x1FFF]
    assert [gpa for _, gpa, _ in edge.log] == [0x2FFF, 0x300E]
    bus.unclaim_mmio(above, 0x1000)
    assert ranges(bus) == [(0, 0x2FFF), (0x2FFF, 0x300F)]


def test_claims_of_device_memory_are_bounded():
    bus, device = Bus(), Memory("a")
    table = bus.mmio_ranges
    address = table.buffer_info()
    for i in range(MAX_MMIO_CLAIMS - 1):
        bus._mmio_claims.append((i * 0x1000 + 1, i * 0x1000 + 2, device))
    bus.claim_mmio(device, 0xFFF0000, 1)
    assert len(ranges(bus)) == MAX_MMIO_CLAIMS
    assert bus.mmio_ranges is table and table.buffer_info() == address
    for gpa, length in ((0, 1), (0x1000, 0), (-1, 1)):
        with pytest.raises(ValueError, match="no device memory"):
            bus.claim_mmio(device, gpa, length)


def test_ports_are_given_back():
    bus, device, other = Bus(), Recorder(wide=True), Recorder()
    bus.claim(device, 0x300, 4)
    bus.claim(other, 0x302, 1)
    bus.unclaim(device, 0x2FE, 8)
    assert bus.read(0x300, 1) == 0xFF and bus.read(0x302, 1) == 0x92
    assert bus.read_kind[0x300] == bus.write_kind[0x303] == ABSENT
