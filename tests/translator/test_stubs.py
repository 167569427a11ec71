# SPDX-License-Identifier: GPL-2.0-or-later
"""Stubs run on plain Unicorn at ring 1 and must do what the instruction does at ring 0."""

import copy
from functools import cache

import pytest
import unicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from ring_cpu import (
    ARITHMETIC,
    CODE,
    DF,
    ID,
    IF,
    IOPL,
    NAMES,
    STACK,
    STACK_SIZE,
    STUB,
    UNMAPPED,
    VCPU,
    RingCpu,
    State,
)

from translator import stubs, vcpupage
from translator.rewriter import absorbable, jump

ABSORBED = {
    64: ["90", "4889c8", "51", "5a", "4801d1", "488d4c0a08", "31d2", "4150", "415f", "4883e908",
         "488b0c24", "48011424", "8f0424"],
    32: ["90", "89c8", "51", "5a", "01d1", "8d4c0a08", "31d2", "6a07", "40", "8b0c24",
         "011424"],
}
LOADS = {
    64: [("MOV_FROM_SEG", code) for code in (
        "8cc8", "8cd1", "8ccc", "668cc8", "418cca", "488cd2", "66418cd7", "448cc8")]
    + [("MOV_FROM_CR", code) for code in (
        "0f20c0", "0f20d1", "0f20da", "0f20e7", "410f20d8", "0f2003", "480f20c4")],
    32: [("MOV_FROM_SEG", code) for code in ("8cc8", "8cd1", "8ccc", "668cd3")]
    + [("MOV_FROM_CR", code) for code in ("0f20c0", "0f20d1", "0f20da", "0f20e7")]
    + [("PUSH_SEG", "0e"), ("PUSH_SEG", "16")],
}
FLAG_ROWS = [("CLI", "fa"), ("STI", "fb"), ("PUSHF", "9c"), ("POPF", "9d")]
BITS = [64, 32]
FIELDS = {"CS": 0x10, "SS": 0x18, "CR0": 0x80050033, "CR2": 0x12345678, "CR3": 0x1AD000,
          "CR4": 0x6F0}


@cache
def cpu(bits: int, ring: int) -> RingCpu:
    return RingCpu(bits, ring)


def padded(code: bytes, absorbed=()) -> list[bytes]:
    """Enough absorbed instructions for the jump to fit over the site."""
    short = 5 - len(code) - sum(map(len, absorbed))
    return [*absorbed, *[b"\x90"] * max(short, 0)]


def build(bits: int, row: str, code: bytes, absorbed=()) -> stubs.Stub:
    stub = stubs.make_stub(row, code, padded(code, absorbed), CODE, STUB, VCPU[bits], bits)
    assert stub is not None and len(stub.code) <= stubs.MAX_STUB
    return stub


@st.composite
def states(draw, bits):
    value = st.integers(0, (1 << bits) - 1)
    flags = draw(st.integers(0, 0xFFFFFFFF)) & (ARITHMETIC | DF | ID)
    return State(CODE, STACK + draw(st.integers(0x200, 0x1E00)), flags,
                 {name: draw(value) for name in NAMES[bits]},
                 draw(st.binary(min_size=64, max_size=64)) * (STACK_SIZE // 64),
                 draw(st.integers(0, (1 << 47) - 1)) if bits == 64 else 0)


def absorbed_lists(bits):
    return st.lists(st.sampled_from([bytes.fromhex(code) for code in ABSORBED[bits]]), max_size=4)


def place(machine: RingCpu, stub: stubs.Stub) -> None:
    """The site is the jump alone: whatever else runs there is INT3."""
    machine.uc.mem_write(CODE, b"\xcc" * 64)
    machine.uc.mem_write(STUB, stub.code.ljust(stubs.MAX_STUB, b"\xcc"))
    machine.uc.mem_write(CODE, jump(CODE, STUB, machine.bits))
    machine.uc.mem_write(CODE + stub.region, b"\x90")


def native(bits: int, state: State, code: bytes, real: int) -> State:
    """The instruction and its followers at ring 0, with the real IF and IOPL given."""
    machine = cpu(bits, 0)
    state = copy.deepcopy(state)
    state.flags |= real
    machine.uc.mem_write(CODE, code + b"\x90")
    machine.load(state)
    machine.run(CODE + len(code))
    assert not machine.traps
    return machine.save()


def virtual(machine: RingCpu) -> State:
    """The state as the guest sees it: its IF and IOPL are on the vCPU page."""
    state = machine.save()
    assert not state.flags & (IF | IOPL)
    state.flags |= machine.field(vcpupage.VIF) | machine.field(vcpupage.VIOPL)
    return state


def set_stack_word(state: State, bits: int, value: int) -> None:
    at = state.sp - STACK
    state.stack = (state.stack[:at] + value.to_bytes(bits // 8, "little")
                   + state.stack[at + bits // 8:])


def run_stub(bits, state, stub, interrupt_at=None, **fields):
    """Runs a stub from its site to the end of the region. ``interrupt_at``: a point of the stub
    where a VMM takes the vCPU out, with the scratch fields used by someone else, and back in."""
    machine = cpu(bits, 1)
    place(machine, stub)
    machine.load(state)
    machine.set_fields(**FIELDS, **fields)
    end = CODE + stub.region
    if interrupt_at is not None:
        machine.run(STUB + interrupt_at.offset, end)
        if not machine.traps and machine.uc.reg_read(machine.ip) == STUB + interrupt_at.offset:
            machine.leave(interrupt_at)
            machine.set_fields(SAVE0=0xDEAD, SAVE1=0xBEEF)
            machine.enter(stub)
    if not machine.traps and machine.uc.reg_read(machine.ip) != end:
        machine.run(end)
    return machine


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("row,code", FLAG_ROWS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_flag_instruction_does_what_the_native_one_does(bits, row, code, data):
    code = bytes.fromhex(code)
    state = data.draw(states(bits))
    vif, viopl = data.draw(st.sampled_from([0, IF])), data.draw(st.sampled_from([0, 0x1000, IOPL]))
    image = data.draw(st.integers(0, (1 << 32) - 1)) & (ARITHMETIC | DF | ID | IF | 2) | viopl
    set_stack_word(state, bits, image)
    absorbed = data.draw(absorbed_lists(bits))
    stub = build(bits, row, code, absorbed)
    point = data.draw(st.sampled_from([None, *stub.points]))
    machine = run_stub(bits, state, stub, point, VIF=vif, VIOPL=viopl, PENDING=0)
    assert not machine.traps
    expected = native(bits, state, code + b"".join(padded(code, absorbed)), vif | viopl)
    result = virtual(machine)
    if row == "PUSHF":
        # What an interrupted attempt left below the stack pointer is nobody's.
        assert result.stack == expected.stack
    assert result == expected


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("ending,target", [
    ("c3", CODE + 0x80), ("eb10", CODE + 0x14), ("ebfb", CODE - 1 + 0),
    ("e900010000", CODE + 0x107),
])
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_absorbed_branch_goes_where_it_went(bits, ending, target, data):
    state = data.draw(states(bits))
    set_stack_word(state, bits, CODE + 0x80)
    absorbed = [b"\x90", bytes.fromhex(ending)]
    stub = stubs.make_stub("CLI", b"\xfa", absorbed, CODE, STUB, VCPU[bits], bits)
    machine = cpu(bits, 1)
    place(machine, stub)
    machine.load(state)
    machine.set_fields(VIF=IF, VIOPL=0)
    machine.run(target)
    assert machine.field(vcpupage.VIF) == 0
    expected = copy.deepcopy(state)
    expected.ip = target
    if ending == "c3":
        expected.sp += bits // 8
    assert machine.save() == expected
    # Each point from the absorbed part on stands for the instruction at the same place.
    assert [p.orig - CODE for p in stub.points if p.clean] == [1, 2]


@pytest.mark.parametrize("bits", BITS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_loads_show_the_guests_view_and_change_nothing_else(bits, data):
    row, text = data.draw(st.sampled_from(LOADS[bits]))
    code = bytes.fromhex(text)
    state = data.draw(states(bits))
    stub = build(bits, row, code)
    machine = run_stub(bits, state, stub, data.draw(st.sampled_from([None, *stub.points])),
                       VIF=IF, VIOPL=0)
    rex = next((byte for byte in code[:2] if bits == 64 and 0x40 <= byte <= 0x4F), 0)
    expected = copy.deepcopy(state)
    expected.ip = CODE + stub.region
    expected.flags |= IF
    if row == "PUSH_SEG":
        expected.sp -= 4
        set_stack_word(expected, bits, FIELDS["CS" if code == b"\x0e" else "SS"])
    else:
        modrm = code[-1]
        source = modrm >> 3 & 7
        number = modrm & 7 | (rex & 1) << 3
        name = ("rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15" if bits == 64 else
                "eax ecx edx ebx esp ebp esi edi").split()[number]
        if row == "MOV_FROM_SEG":
            value = FIELDS["CS" if source == 1 else "SS"]
        else:
            value = FIELDS[f"CR{source}"]
        old = expected.sp if number == 4 else expected.gpr[name]
        if code[0] == 0x66:
            value |= old & ~0xFFFF
        if number == 4:
            expected.sp = value
        else:
            expected.gpr[name] = value
    assert virtual(machine) == expected


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_swapgs_exchanges_the_bases(data):
    state = data.draw(states(64))
    other = data.draw(st.integers(0, (1 << 47) - 1))
    absorbed = data.draw(absorbed_lists(64))
    stub = build(64, "SWAPGS", b"\x0f\x01\xf8", absorbed)
    machine = run_stub(64, state, stub, data.draw(st.sampled_from([None, *stub.points])),
                       VIF=0, VIOPL=0, KGSBASE=other)
    expected = native(64, state, b"\x0f\x1f\x00" + b"".join(padded(b"---", absorbed)), 0)
    expected.gs_base = other
    assert virtual(machine) == expected
    assert machine.field(vcpupage.KGSBASE) == state.gs_base


@pytest.mark.parametrize("bits", BITS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_sti_traps_exactly_when_an_interrupt_waits(bits, data):
    state, vif = data.draw(states(bits)), data.draw(st.sampled_from([0, IF]))
    stub = build(bits, "STI", b"\xfb")
    machine = run_stub(bits, state, stub, data.draw(st.sampled_from([None, *stub.points])),
                       VIF=vif, VIOPL=0, PENDING=IF)
    assert machine.traps == [3]
    after = machine.save()
    assert after.ip - 1 - STUB in stub.slow_traps
    after.ip = state.ip
    assert after == state                       # registers, flags and stack as at the site
    assert machine.field(vcpupage.VIF) == vif
    machine.uc.reg_write(machine.ip, STUB + stub.resume)       # the VMM has done the STI
    machine.run(CODE + stub.region)
    after.ip = CODE + stub.region
    assert machine.save() == after


@pytest.mark.parametrize("bits", BITS)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_popf_traps_exactly_when_it_must(bits, data):
    state = data.draw(states(bits))
    image = 2 | data.draw(st.integers(0, 0xFFFFFFFF)) & (ARITHMETIC | DF | ID | IF)
    if data.draw(st.booleans()):
        image |= data.draw(st.sampled_from(
            [1 << bit for bit in (8, 12, 13, 14, 16, 17, 18, 19, 20)]))
    viopl = data.draw(st.sampled_from([0, 0x1000, 0x3000]))
    pending = data.draw(st.sampled_from([0, IF]))
    set_stack_word(state, bits, image)
    must = bool(image & 0x1F4100 or image & IOPL != viopl or (pending and image & IF))
    stub = build(bits, "POPF", b"\x9d")
    machine = run_stub(bits, state, stub, data.draw(st.sampled_from([None, *stub.points])),
                       VIF=0, VIOPL=viopl, PENDING=pending)
    assert machine.traps == [3] * must
    if must:
        after = machine.save()
        assert after.ip - 1 - STUB in stub.slow_traps
        assert machine.field(vcpupage.VIF) == 0
        # POPF loads the arithmetic flags anyway; everything else is as at the site.
        after.ip, after.flags = state.ip, after.flags & ~ARITHMETIC
        state.flags &= ~ARITHMETIC
        assert after == state


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("row,code", [("PUSHF", b"\x9c"), ("POPF", b"\x9d")])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_own_stack_fault_is_at_a_point_that_rolls_back(bits, row, code, data):
    state = data.draw(states(bits))
    state.sp = UNMAPPED + data.draw(st.integers(0, 64))
    stub = build(bits, row, code)
    with pytest.raises(unicorn.UcError):
        run_stub(bits, state, stub, VIF=IF, VIOPL=0, PENDING=0)
    machine = cpu(bits, 1)
    where = machine.uc.reg_read(machine.ip) - STUB
    point = next(point for point in stub.points if point.offset == where)
    assert point.kind == stubs.ROLLBACK
    machine.leave(point)
    assert machine.save() == state
    assert machine.field(vcpupage.VIF) == IF


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("row,code", [*FLAG_ROWS, ("MOV_FROM_SEG", "8cc8")])
def test_points_are_in_order_and_cover_the_absorbed_instructions(bits, row, code):
    absorbed = [bytes.fromhex(piece) for piece in ABSORBED[bits][:3]]
    stub = build(bits, row, bytes.fromhex(code), absorbed)
    offsets = [point.offset for point in stub.points]
    assert offsets == sorted(set(offsets)) and offsets[0] == 0
    clean = [point for point in stub.points if point.clean]
    assert clean[-4].offset == stub.resume
    origin, at = CODE + len(code) // 2, stub.resume
    for point, piece in zip(clean[-4:], [*absorbed, b""], strict=True):
        assert (point.offset, point.orig) == (at, origin)
        assert stub.code[at:at + len(piece)] == piece
        at, origin = at + len(piece), origin + len(piece)
    assert stub.region == origin - CODE
    assert stub.absorbed == 3


@pytest.mark.parametrize("bits", BITS)
def test_the_absorbed_instructions_of_these_tests_are_absorbable(bits):
    assert all(absorbable(bytes.fromhex(code), bits) for code in ABSORBED[bits])


def test_absorbed_jump_to_address_zero_is_moved_too():
    stub = stubs.make_stub("CLI", b"\xfa", [jump(CODE + 1, 0)], CODE, STUB, VCPU[64])
    assert stub.code[stub.resume:] == jump(STUB + stub.resume, 0)


@pytest.mark.parametrize("row,code,bits", [
    ("PUSHF", "669c", 64), ("POPF", "669d", 32), ("MOV_FROM_CR", "440f20c0", 64),
    ("MOV_FROM_CR", "0f20c8", 64), ("MOV_FROM_SEG", "8c08", 64), ("CLI", "2efa", 64),
    ("IRET", "48cf", 64), ("CPUID", "0fa2", 64), ("SWAPGS", "0f01f8", 32), ("CLI", "fa", 16),
    ("MOV_FROM_CR", "f00f20c0", 32),
])
def test_forms_without_a_stub(row, code, bits):
    vcpu = VCPU.get(bits, VCPU[32])
    assert stubs.make_stub(row, bytes.fromhex(code), (), CODE, STUB, vcpu, bits) is None


def test_a_stub_out_of_reach_is_none():
    assert stubs.make_stub("CLI", b"\xfa", (b"\x90",) * 4, CODE, 1 << 40, VCPU[64]) is None


def test_a_stub_may_not_cross_a_page():
    with pytest.raises(ValueError, match="page boundary"):
        stubs.make_stub("CLI", b"\xfa", (), CODE, STUB + 0xFF8, VCPU[64])


@pytest.mark.parametrize("address,bits,ok", [
    (0x7FFFF000, 64, False), (0xFFFFFFFF80000000, 64, True),
    (0xFFFFFFFF7FFFFFF8, 64, False), (0xFFFFFFFFFFFFF000, 64, True), (0xFFFFF000, 32, True),
    (1 << 32, 32, False),
])
def test_reach_of_the_vcpu_page(address, bits, ok):
    assert vcpupage.reachable(address, bits) is ok
    if not ok:
        with pytest.raises(ValueError, match="out of reach"):
            stubs.make_stub("CLI", b"\xfa", (), CODE, STUB, address, bits)


def test_high_page_is_addressed_by_a_sign_extended_displacement():
    stub = build(64, "CLI", b"\xfa")
    assert stub.code.startswith(bytes.fromhex("c704250000feff00000000"))
