# SPDX-License-Identifier: GPL-2.0-or-later
"""Event channels, by <xen/event_channel.h> and the comment of struct shared_info in <xen/xen.h>."""

import struct

import pytest
from xenrig import BASE, EVENT_CHANNEL_OP, NOWHERE, SCRATCH

from bt.xen import abi

STORE, CONSOLE = 1, 2
EINVAL, ENOENT, EEXIST, EPERM, ESRCH, EFAULT, ENOSYS, ENOSPC = (
    -22, -2, -17, -1, -3, -14, -38, -28)
BIND_INTERDOMAIN, BIND_VIRQ, BIND_PIRQ, CLOSE, SEND, STATUS, ALLOC, BIND_IPI, BIND_VCPU, UNMASK, \
    RESET, INIT_CONTROL, EXPAND, PRIORITY = range(14)
TIMER, DEBUG, CON_RING = 0, 1, 8


def bind_virq(rig, virq, vcpu=0):
    status = rig.event(BIND_VIRQ, struct.pack("<III", virq, vcpu, 0))
    return status or rig.word(SCRATCH + 8, "<I")


def bind_ipi(rig, vcpu=0):
    status = rig.event(BIND_IPI, struct.pack("<II", vcpu, 0))
    return status or rig.word(SCRATCH + 4, "<I")


def alloc(rig, dom=0x7FF0, remote=0x7FF0):
    status = rig.event(ALLOC, struct.pack("<HHI", dom, remote, 0))
    return status or rig.word(SCRATCH + 4, "<I")


def status_of(rig, port, dom=0x7FF0):
    result = rig.event(STATUS, struct.pack("<H2xIII8s", dom, port, 99, 99, b""))
    return result or struct.unpack("<II8s", rig.get(16, SCRATCH + 8))


def selector(rig):
    return rig.word(rig.core.vcpu_info + 8)


def test_an_ipi_goes_up_through_all_three_levels(rig):
    port = bind_ipi(rig)
    assert port == 3            # behind xenstore and console
    assert rig.send(port) == 0
    assert rig.pending() == {port} and selector(rig) == 1 and rig.upcall == 1


def test_a_masked_event_stops_at_its_bit(rig):
    port = bind_ipi(rig)
    rig.mask(port)
    rig.send(port)
    assert rig.pending() == {port} and selector(rig) == 0 and rig.upcall == 0
    assert rig.event(UNMASK, struct.pack("<I", port)) == 0
    assert selector(rig) == 1 and rig.upcall == 1


def test_unmask_without_an_event_raises_nothing(rig):
    port = bind_ipi(rig)
    rig.mask(port)
    assert rig.event(UNMASK, struct.pack("<I", port)) == 0
    assert rig.upcall == 0 and rig.word(rig.shared_info + 2560) == 0


def test_events_of_a_high_port_select_their_own_word(rig):
    ports = [bind_ipi(rig) for _ in range(100)]
    assert ports[-1] == 102
    rig.send(102)
    assert rig.pending() == {102} and selector(rig) == 1 << 1


def test_an_event_already_pending_raises_no_second_upcall(rig):
    port = bind_ipi(rig)
    rig.send(port)
    rig.ram.view[rig.core.vcpu_info] = 0
    rig.send(port)
    assert rig.upcall == 0


def test_virqs(rig):
    port = bind_virq(rig, TIMER)
    assert port == 3
    assert bind_virq(rig, TIMER) == EEXIST
    assert bind_virq(rig, 24) == EINVAL
    assert bind_virq(rig, TIMER, vcpu=1) == ENOENT
    assert bind_virq(rig, CON_RING, vcpu=1) == EINVAL
    rig.xen.events.raise_virq(DEBUG)
    assert rig.pending() == set()
    rig.xen.events.raise_virq(TIMER)
    assert rig.pending() == {port}
    assert rig.send(port) == EINVAL
    rig.clear()
    assert rig.event(CLOSE, struct.pack("<I", port)) == 0
    rig.xen.events.raise_virq(TIMER)
    assert rig.pending() == set()
    assert bind_virq(rig, TIMER) == port


def test_ipi_of_another_vcpu(rig):
    assert bind_ipi(rig, vcpu=1) == ENOENT


def test_status(rig):
    assert status_of(rig, STORE) == (2, 0, struct.pack("<HHI", 0, 0, STORE))
    assert status_of(rig, bind_virq(rig, DEBUG)) == (4, 0, struct.pack("<II", DEBUG, 0))
    assert status_of(rig, bind_ipi(rig))[0] == 5
    assert status_of(rig, alloc(rig, remote=7)) == (1, 0, struct.pack("<HHI", 7, 0, 0))
    assert status_of(rig, 77) == (0, 0, bytes(8))
    assert status_of(rig, 4096) == EINVAL
    assert status_of(rig, STORE, dom=9) == ESRCH
    assert status_of(rig, STORE, dom=0) == EPERM


def test_both_ends_in_one_domain(rig):
    far = alloc(rig)
    assert rig.send(far) == 0       # nobody there: dropped
    assert rig.pending() == set()
    assert rig.event(BIND_INTERDOMAIN, struct.pack("<H2xII", 0x7FF0, far, 0)) == 0
    near = rig.word(SCRATCH + 8, "<I")
    assert near not in (far, STORE, CONSOLE)
    rig.clear()
    rig.send(far)
    assert rig.pending() == {near}
    rig.clear()
    rig.send(near)
    assert rig.pending() == {far}
    assert rig.event(CLOSE, struct.pack("<I", near)) == 0
    assert status_of(rig, far)[0] == 1


@pytest.mark.parametrize(("remote", "port", "error"), [
    (0, 1, EINVAL), (5, 1, ESRCH), (0x7FF0, 1, EINVAL), (0x7FF0, 4000, EINVAL)])
def test_nothing_else_to_bind_to(rig, remote, port, error):
    assert rig.event(BIND_INTERDOMAIN, struct.pack("<H2xII", remote, port, 0)) == error


def test_an_end_reserved_for_somebody_else(rig):
    port = alloc(rig, remote=9)
    assert rig.event(BIND_INTERDOMAIN, struct.pack("<H2xII", 0x7FF0, port, 0)) == EINVAL


def test_bind_vcpu(rig):
    assert rig.event(BIND_VCPU, struct.pack("<II", CONSOLE, 0)) == 0
    assert rig.event(BIND_VCPU, struct.pack("<II", CONSOLE, 1)) == ENOENT
    assert rig.event(BIND_VCPU, struct.pack("<II", 99, 0)) == EINVAL
    assert rig.event(BIND_VCPU, struct.pack("<II", bind_virq(rig, TIMER), 0)) == EINVAL
    assert rig.event(BIND_VCPU, struct.pack("<II", bind_ipi(rig), 0)) == EINVAL
    assert rig.event(BIND_VCPU, struct.pack("<II", bind_virq(rig, CON_RING), 0)) == 0


@pytest.mark.parametrize("operation", [INIT_CONTROL, EXPAND, PRIORITY, 14, 0xFFFF_FFFF])
def test_no_fifo_channels(rig, operation):
    assert rig.event(operation, bytes(64)) == ENOSYS


def test_physical_interrupts_are_not_for_us(rig):
    assert rig.event(BIND_PIRQ, bytes(12)) == EPERM


@pytest.mark.parametrize("port", [0, 3, 4095, 4096, 0xFFFF_FFFF])
@pytest.mark.parametrize("operation", [SEND, CLOSE])
def test_ports_that_are_not_open(rig, operation, port):
    assert rig.event(operation, struct.pack("<I", port)) == EINVAL


def test_unmask_needs_no_open_port_but_a_possible_one(rig):
    assert rig.event(UNMASK, struct.pack("<I", 4095)) == 0
    assert rig.event(UNMASK, struct.pack("<I", 4096)) == EINVAL


def test_ports_run_out_and_come_back(rig):
    last = 0
    while (port := bind_ipi(rig)) > 0:
        last = port
    assert port == ENOSPC and last == 4095
    assert rig.event(CLOSE, struct.pack("<I", 1234)) == 0
    assert bind_ipi(rig) == 1234


def test_reset_closes_all(rig):
    bind_virq(rig, TIMER)
    assert rig.event(RESET, struct.pack("<H", 5)) == ESRCH
    assert rig.event(RESET, struct.pack("<H", 0x7FF0)) == 0
    assert rig.send(CONSOLE) == EINVAL
    assert bind_virq(rig, TIMER) == 1


def test_a_closed_console_port_belongs_to_its_new_user(rig):
    assert rig.event(CLOSE, struct.pack("<I", CONSOLE)) == 0
    assert bind_ipi(rig) == CONSOLE
    rig.xen.console.feed(b"x")
    assert rig.pending() == set()


def test_a_port_number_that_cannot_be_told_is_free_again(rig):
    rig.core.readonly.add(SCRATCH >> 12)
    assert bind_virq(rig, TIMER) == EFAULT
    assert bind_ipi(rig) == EFAULT
    rig.core.readonly.clear()
    assert bind_virq(rig, TIMER) == 3


@pytest.mark.parametrize("operation", range(11))
def test_bad_pointers(rig, operation):
    expected = EPERM if operation == BIND_PIRQ else EFAULT
    for pointer in (0, NOWHERE, BASE - 2, (1 << 64) - 2, 1 << 63, 0xFFFF_8000_0000_0000):
        assert rig.call(EVENT_CHANNEL_OP, operation, pointer) == expected


def test_the_guest_may_write_anything_into_shared_info(rig):
    port = bind_ipi(rig)
    rig.ram.view[rig.shared_info:rig.shared_info + 4096] = b"\xff" * 4096
    assert rig.send(port) == 0
    assert rig.event(UNMASK, struct.pack("<I", port)) == 0
    assert rig.ram.view[rig.shared_info:rig.shared_info + 1].tobytes() == b"\xff"


def test_moved_vcpu_info_loses_nothing(rig):
    port = bind_ipi(rig)
    rig.send(port)
    place = 20 << 12
    rig.ram.view[rig.core.vcpu_info + 1] = 1
    assert rig.call(24, abi.VCPUOP_register_vcpu_info, 0,
                    rig.put(struct.pack("<QII", 20, 0x80, 0))) == 0
    assert rig.core.vcpu_info == place + 0x80 and rig.core.held >= {20}
    assert rig.ram.view[place + 0x81] == 1
    assert rig.upcall == 1 and selector(rig) == (1 << 64) - 1
    rig.clear()
    rig.send(port)
    assert selector(rig) == 1 and rig.upcall == 1
