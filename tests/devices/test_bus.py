# SPDX-License-Identifier: GPL-2.0-or-later
import pytest

from bt.machine.bus import ABSENT, ASK, PUBLISHED, Bus


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
