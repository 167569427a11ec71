# SPDX-License-Identifier: GPL-2.0-or-later
"""vcpu_op, timers and clock, by <xen/vcpu.h> and the formula in <xen/xen.h>; sched_op."""

import struct

import pytest
from xenrig import BASE, NOWHERE, NR_PAGES, SCHED_OP, SCRATCH, SET_TIMER_OP, VCPU_OP

from bt.xen import abi

(INITIALISE, UP, DOWN, IS_UP, GET_RUNSTATE, REGISTER_RUNSTATE, SET_PERIODIC, STOP_PERIODIC,
 SET_SINGLE, STOP_SINGLE, REGISTER_INFO, SEND_NMI, GET_PHYSID, REGISTER_TIME) = range(14)
EINVAL, ENOENT, EFAULT, ENOSYS, EEXIST, ETIME = -22, -2, -14, -38, -17, -62
AREA = SCRATCH + 0x2000
FUTURE = 1


@pytest.fixture
def timer_port(rig):
    assert rig.event(abi.EVTCHNOP_bind_virq, struct.pack("<III", 0, 0, 0)) == 0
    return rig.word(SCRATCH + 8, "<I")


def vcpu_op(rig, operation, data=b"\0", vcpu=0):
    return rig.call(VCPU_OP, operation, vcpu, rig.put(data))


def single(rig, deadline, flags=0):
    return vcpu_op(rig, SET_SINGLE, struct.pack("<QI4x", deadline, flags))


def test_there_is_one_vcpu(rig):
    for vcpu in (1, 2, 31, 32, 0xFFFF_FFFF):
        assert rig.call(VCPU_OP, INITIALISE, vcpu, 0) == ENOENT
    assert rig.call(VCPU_OP, INITIALISE, 0, 0) == EEXIST
    assert rig.call(VCPU_OP, UP, 0, 0) == 0


def test_the_last_vcpu_going_down_is_power_off(rig):
    assert rig.call(VCPU_OP, DOWN, 0, 0) == 0
    assert rig.reasons == [0]


def test_runstate(rig):
    rig.core.now = 5000
    assert vcpu_op(rig, REGISTER_RUNSTATE, struct.pack("<Q", BASE + AREA)) == 0
    state, entered, *spent = struct.unpack("<i4xQ4Q", rig.get(48, AREA))
    assert state == 0 and entered + 0 == 5000
    assert spent[1] == spent[3] == 0        # nothing stolen
    rig.core.now = 9000
    assert vcpu_op(rig, GET_RUNSTATE) == 0
    state, entered, *spent = struct.unpack("<i4xQ4Q", rig.get(48))
    assert state == 0 and sum(spent) + 9000 - entered == 9000


def test_runstate_nowhere(rig):
    assert vcpu_op(rig, REGISTER_RUNSTATE, struct.pack("<Q", NOWHERE)) == EFAULT
    assert vcpu_op(rig, REGISTER_RUNSTATE, struct.pack("<Q", 0)) == 0


def test_single_shot(rig, timer_port):
    assert single(rig, 5000) == 0
    rig.advance(3999)
    assert rig.pending() == set()
    rig.advance(1)
    assert rig.pending() == {timer_port} and rig.upcall == 1
    rig.clear()
    rig.advance(10_000_000)
    assert rig.pending() == set()


def test_a_new_deadline_replaces_the_old(rig, timer_port):
    single(rig, 2000)
    single(rig, 9000)
    rig.advance(4000)
    assert rig.pending() == set()
    rig.advance(4000)
    assert rig.pending() == {timer_port}


def test_stopping(rig, timer_port):
    single(rig, 2000)
    assert rig.call(VCPU_OP, STOP_SINGLE, 0, 0) == 0
    rig.advance(5000)
    assert rig.pending() == set() and rig.timers.next_deadline() is None


def test_a_deadline_in_the_past(rig, timer_port):
    assert single(rig, 999, FUTURE) == ETIME
    assert rig.pending() == set()
    assert single(rig, 999) == 0
    assert rig.pending() == {timer_port}


def test_a_deadline_that_never_comes(rig, timer_port):
    assert single(rig, (1 << 64) - 1) == 0
    assert rig.timers.next_deadline() is None


def test_set_timer_op(rig, timer_port):
    assert rig.call(SET_TIMER_OP, 5_000_000_000) == 0
    assert rig.timers.next_deadline() == 5_000_000_000
    assert rig.call(SET_TIMER_OP, 0) == 0
    assert rig.timers.next_deadline() is None


def test_periodic(rig, timer_port):
    assert vcpu_op(rig, SET_PERIODIC, struct.pack("<Q", 999_999)) == EINVAL
    assert vcpu_op(rig, SET_PERIODIC, struct.pack("<Q", (1 << 64) - 1)) == EINVAL
    assert vcpu_op(rig, SET_PERIODIC, struct.pack("<Q", 1_000_000)) == 0
    for _ in range(3):
        rig.advance(1_000_000)
        assert rig.pending() == {timer_port}
        rig.clear()
    assert rig.call(VCPU_OP, STOP_PERIODIC, 0, 0) == 0
    rig.advance(5_000_000)
    assert rig.pending() == set()


def test_a_timer_nobody_listens_to(rig):
    assert single(rig, 2000) == 0
    rig.advance(5000)
    assert rig.upcall == 0


def test_armed_timers_do_not_pile_up(rig):
    for deadline in range(100_000, 110_000):
        single(rig, deadline)
    assert len(rig.timers._heap) < 200


@pytest.mark.parametrize(("frame", "offset"), [
    (NR_PAGES, 0), (1 << 60, 0), (20, 4096 - 56), (20, 0xFFFF_FFFF), (20, 4)])
def test_vcpu_info_has_to_lie_in_a_page_of_the_guest(rig, frame, offset):
    before = rig.core.vcpu_info
    assert vcpu_op(rig, REGISTER_INFO, struct.pack("<QII", frame, offset, 0)) == EINVAL
    assert rig.core.vcpu_info == before
    assert vcpu_op(rig, REGISTER_INFO, struct.pack("<QII", 20, 4032, 0)) == 0
    assert vcpu_op(rig, REGISTER_INFO, struct.pack("<QII", 21, 0, 0)) == EINVAL


def test_vcpu_info_not_in_a_page_table(rig):
    rig.core.readonly.add(20)
    assert vcpu_op(rig, REGISTER_INFO, struct.pack("<QII", 20, 0, 0)) == EINVAL
    assert rig.core.vcpu_info == rig.shared_info


def system_time(record: bytes, tsc: int) -> int:
    """The formula of <xen/xen.h>, struct vcpu_time_info."""
    version, stamp, system, mul, shift = struct.unpack_from("<I4xQQIb", record)
    assert version and version % 2 == 0
    delta = tsc - stamp & (1 << 64) - 1     # a guest reckons without a sign
    delta = delta << shift & (1 << 64) - 1 if shift >= 0 else delta >> -shift
    return system + (delta * mul >> 32)


def test_the_guest_computes_our_time_from_its_tsc(rig):
    record = rig.ram.read(rig.shared_info + 32, 32)
    # From power-on: the clock that ran while the machine was made (the rig's says 1000) is set back
    # when the guest starts.
    for tsc in (0, 1, 1000, 123_456_789_012_345, 1 << 60):
        assert system_time(record, tsc) == tsc
    rig.core.now = 77_000
    assert vcpu_op(rig, REGISTER_INFO, struct.pack("<QII", 20, 64, 0)) == 0
    assert system_time(rig.ram.read((20 << 12) + 96, 32), 80_000) == 80_000
    assert vcpu_op(rig, REGISTER_TIME, struct.pack("<Q", BASE + AREA)) == 0
    assert system_time(rig.get(32, AREA), 80_000) == 80_000
    assert rig.ram.view[AREA + 29] & 1      # the TSC is stable: programs may use it


def test_wall_clock(rig):
    version, seconds, nanoseconds, high = struct.unpack("<IIII",
                                                        rig.ram.read(rig.shared_info + 3072, 16))
    assert version % 2 == 0
    assert (high << 32 | seconds, nanoseconds) == (1_700_000_000, 0)


@pytest.mark.parametrize("operation", [
    GET_RUNSTATE, REGISTER_RUNSTATE, SET_PERIODIC, SET_SINGLE, REGISTER_INFO, REGISTER_TIME])
def test_bad_pointers(rig, operation):
    for pointer in (0, NOWHERE, (1 << 64) - 4, 0xFFFF_8000_0000_0000):
        assert rig.call(VCPU_OP, operation, 0, pointer) == EFAULT


@pytest.mark.parametrize("operation", [SEND_NMI, GET_PHYSID, 14, 0xFFFF_FFFF])
def test_what_is_not_there(rig, operation):
    assert vcpu_op(rig, operation) == ENOSYS


# sched_op -----------------------------------------------------------------------------------------

YIELD, SHUTDOWN, POLL = 0, 2, 3


def poll(rig, ports, timeout=0, count=None):
    where = rig.put(struct.pack(f"<{len(ports)}I", *ports), AREA)
    count = len(ports) if count is None else count
    return rig.op(SCHED_OP, POLL, struct.pack("<QI4xQ", where, count, timeout))


def test_yield(rig):
    assert rig.call(SCHED_OP, YIELD, 0) == 0
    assert not rig.core.blocked


@pytest.mark.parametrize("reason", [0, 1, 3, 4, 5, 77])
def test_shutdown(rig, reason):
    assert rig.op(SCHED_OP, SHUTDOWN, struct.pack("<I", reason)) == 0
    assert rig.reasons == [reason]


def test_suspend_is_cancelled(rig):
    assert rig.op(SCHED_OP, SHUTDOWN, struct.pack("<I", 2)) == 1
    assert rig.reasons == []


def test_poll_wakes_for_a_masked_port(rig, timer_port):
    rig.mask(timer_port)
    assert poll(rig, [timer_port]) == 0
    assert rig.core.blocked
    rig.xen.events.raise_virq(0)
    assert not rig.core.blocked


def test_poll_does_not_sleep_on_what_is_there(rig, timer_port):
    rig.mask(timer_port)
    rig.xen.events.raise_virq(0)
    assert poll(rig, [timer_port]) == 0
    assert not rig.core.blocked


def test_poll_sleeps_through_other_masked_ports(rig, timer_port):
    rig.mask(timer_port)
    rig.mask(2)
    poll(rig, [2])
    rig.xen.events.raise_virq(0)
    assert rig.core.blocked
    rig.xen.console.feed(b"x")
    assert not rig.core.blocked


def test_poll_wakes_for_an_upcall(rig, timer_port):
    poll(rig, [2])
    rig.xen.events.raise_virq(0)
    assert not rig.core.blocked


def test_poll_with_a_timeout(rig):
    assert poll(rig, [2], timeout=6000) == 0
    rig.advance(4999)
    assert rig.core.blocked
    rig.advance(1)
    assert not rig.core.blocked
    assert poll(rig, [2], timeout=6000) == 0       # has passed
    assert not rig.core.blocked


def test_a_timeout_not_used_is_gone(rig):
    poll(rig, [2], timeout=6000)
    rig.xen.console.feed(b"x")
    assert not rig.core.blocked and rig.timers.next_deadline() is None


def test_poll_with_nonsense(rig):
    assert poll(rig, [1] * 129) == EINVAL
    assert poll(rig, [4096]) == EINVAL
    assert poll(rig, [], count=0xFFFF_FFFF) == EINVAL
    assert rig.op(SCHED_OP, POLL, struct.pack("<QI4xQ", NOWHERE, 1, 0)) == EFAULT
    assert not rig.core.blocked


def test_sched_op_bad_pointers_and_operations(rig):
    for operation in (SHUTDOWN, POLL):
        assert rig.call(SCHED_OP, operation, NOWHERE) == EFAULT
    for operation in (4, 5, 6, 7, 99):
        assert rig.call(SCHED_OP, operation, BASE + SCRATCH) == ENOSYS
    assert rig.reasons == []
