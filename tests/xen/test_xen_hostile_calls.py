# SPDX-License-Identifier: GPL-2.0-or-later
"""Hostile hypercalls: pointers, counts, callbacks, frames. Xen's error, or a clean death."""

import struct
import threading
import time

import pytest
from bt.core.vcpu import KICKED
from hostile import (
    CALLBACK_OP,
    DOMID_SELF,
    EFAULT,
    EINVAL,
    ENOENT,
    ENOSYS,
    EVENT,
    FREE,
    GP,
    L1,
    L2,
    L3,
    L4,
    MMU_UPDATE,
    MMUEXT_OP,
    MULTICALL,
    PF,
    PHYSDEV_OP,
    SCHED_OP,
    SET_CALLBACKS,
    SET_GDT,
    SET_SEGMENT_BASE,
    SET_TRAP_TABLE,
    STACK_SWITCH,
    SYSCALL,
    UD,
    UPDATE_VA_MAPPING,
    VCPU_OP,
    XEN_VERSION,
    A,
    D,
    Hostile,
    P,
    U,
    W,
    entry,
    gva,
    iret_frame,
    violations,
)

TABLE = P | W | U | A | D
M2P = 0xFFFF_8000_0000_0000
TOP = (1 << 64) - 8
#: Pointers that lead nowhere a hypercall may read.
NOWHERE = (0x1000, 0x7FFF_FFFF_FFF8, 0x8000_0000_0000, 1 << 63, M2P, M2P - 8, M2P + 0x1000,
           0xFFFF_87FF_FFFF_FFF8, TOP, (1 << 64) - 1)
NONCANONICAL = (1 << 47, 1 << 63, 0xFFFF_0000_0000_0000, 0xFFFF_7FFF_FFFF_FFFF)


@pytest.fixture
def guest():
    guest = Hostile()
    yield guest
    if guest.came_back:
        assert guest.call(XEN_VERSION, 0, 0) == 0x40011
        assert violations(guest) == []


# Pointers -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("pointer", NOWHERE)
def test_pointers_to_nowhere(guest, pointer):
    for call in ((MMU_UPDATE, pointer, 1, 0, DOMID_SELF), (MMUEXT_OP, pointer, 1, 0, DOMID_SELF),
                 (MULTICALL, pointer, 1), (SET_GDT, pointer, 512), (SET_TRAP_TABLE, pointer),
                 (CALLBACK_OP, 0, pointer), (XEN_VERSION, 1, pointer), (VCPU_OP, 5, 0, pointer),
                 (SCHED_OP, 2, pointer), (12, 1, pointer), (20, 6, pointer, 1), (32, 1, pointer),
                 (PHYSDEV_OP, 6, pointer), (18, 0, 4, pointer)):
        assert guest.call(*call) == EFAULT, call


def test_which_vcpus_are_up(guest):
    """Compiled, so asked here: number 0 is, and there is no other."""
    for vcpu in (0, 1 << 32):
        assert guest.call(VCPU_OP, 3, vcpu) == 1
    for vcpu in (1, 31, 8191, 0xFFFF_FFFF, (1 << 64) - 1):
        assert guest.call(VCPU_OP, 3, vcpu) == ENOENT


def test_results_to_nowhere(guest):
    at = guest.put_many(33, (L1 << 12) + 60 * 8, entry(60))
    for pointer in (*NOWHERE, gva(L1)):
        assert guest.call(MMU_UPDATE, at, 1, pointer, DOMID_SELF) == EFAULT
        assert guest.call(XEN_VERSION, 1, pointer) == EFAULT
    assert guest.get(L1, 0) & ~A == entry(0) & ~A


def test_a_structure_that_ends_where_memory_does(guest):
    assert guest.call(UPDATE_VA_MAPPING, gva(71), 0, 2) == 0
    end = gva(71)
    for call in ((MMU_UPDATE, end - 8, 1, 0, DOMID_SELF), (MULTICALL, end - 56, 1),
                 (MMUEXT_OP, end - 16, 1, 0, DOMID_SELF), (CALLBACK_OP, 0, end - 8)):
        assert guest.call(*call) == EFAULT, call
    # The part of a list that is there is done.
    guest.put(70, 510, (L1 << 12) + 60 * 8)
    guest.put(70, 511, entry(61))
    assert guest.call(MMU_UPDATE, end - 16, 2, gva(33), DOMID_SELF) == EFAULT
    assert guest.get(33, 0) & 0xFFFF_FFFF == 1 and guest.get(L1, 60) == entry(61)


def test_multicall_results_need_writable_memory(guest):
    guest.put_many(72, XEN_VERSION, 99, 0, 0)
    assert guest.map(72, entry(72, P | A)) == 0
    assert guest.call(MULTICALL, gva(72), 1) == EFAULT
    assert guest.get(72, 1) == 99


# Counts -------------------------------------------------------------------------------------------

def endless(guest, frame):
    """Map all 256 GB from 0 on to one frame, with three tables; the address where it begins."""
    for table in (80, 81, 82):
        guest.clear(table)
    guest.read_only(80, 81, 82)
    for index in range(512):
        guest.put(80, index, entry(frame))
        guest.put(81, index, entry(80, TABLE))
        guest.put(82, index, entry(81, TABLE))
    assert guest.mmu_update(L4 << 12, entry(82, TABLE)) == 0
    return 0


def multicall_of_nothing(guest):
    guest.ram.write(90 << 12, struct.pack("<8Q", XEN_VERSION, 0, 0, 0, 0, 0, 0, 0) * 64)
    return MULTICALL, endless(guest, 90), (1 << 32) - 1


def updates(guest):
    guest.ram.write(90 << 12, struct.pack("<2Q", (L1 << 12) + 60 * 8, entry(60)) * 256)
    return MMU_UPDATE, endless(guest, 90), (1 << 31) - 1, 0, DOMID_SELF


def flushes(guest):
    # 4096 is no multiple of 24; with every qword 12, each entry is FLUSH_CACHE all the same.
    guest.ram.write(90 << 12, struct.pack("<Q", 12) * 512)
    return MMUEXT_OP, endless(guest, 90), (1 << 31) - 1, 0, DOMID_SELF


def updates_in_a_multicall(guest):
    number, *arguments = updates(guest)
    guest.put_many(33, number, 0, *arguments, 0, 0)
    return MULTICALL, gva(33), 1


@pytest.mark.parametrize("make", [multicall_of_nothing, updates, flushes, updates_in_a_multicall])
def test_an_endless_list_does_not_hold_the_vmm(guest, make):
    guest.prepare(make(guest))
    for _ in range(3):
        assert not guest.go(500_000)        # virtual time is up, and we are back in control
    assert guest.why == KICKED
    guest.came_back = False
    assert violations(guest) == []


def test_an_interrupted_list_goes_on(guest):
    """Each item once, in order, with the count of all at the end."""
    requests = [((L1 << 12) + (60 + n % 8) * 8, entry(60 + n % 8)) for n in range(2048)]
    guest.ram.write(200 << 12, struct.pack("<4096Q", *sum(requests, ())))
    seen = []
    original = guest.vcpu.run

    def run(deadline):
        seen.append(1)
        return original(guest.vcpu.now_ns() + 20)       # virtual ns: a few hundred items at most

    class Short:
        def __getattr__(self, name):
            return run if name == "run" else getattr(vcpu, name)

    vcpu, guest.vcpu = guest.vcpu, Short()
    assert guest.call(MMU_UPDATE, gva(200), 2048, gva(33), DOMID_SELF) == 0
    assert len(seen) > 5
    assert guest.get(33, 0) & 0xFFFF_FFFF == 2048
    seen.clear()
    guest.ram.write(200 << 12, struct.pack("<8Q", XEN_VERSION, 99, 0, 0, 0, 0, 0, 0) * 256)
    assert guest.call(MULTICALL, gva(200), 256) == 0
    assert len(seen) > 1
    assert {guest.get(200 + n // 64, n % 64 * 8 + 1) for n in range(256)} == {0x40011}


def test_a_kick_ends_an_endless_list():
    """Real time: the timeout's thread gets through."""
    guest = Hostile(deterministic=False)
    call = updates(guest)
    guest.prepare(call)
    began = time.monotonic()
    outcome = guest.machine.run(timeout=0.3)
    assert outcome.kind == "timeout"
    assert time.monotonic() - began < 60


def test_counts_are_32_bits(guest):
    for count in (1 << 63, 1 << 32, 0xFFFF_FFFF_0000_0000):
        assert guest.call(MULTICALL, 0x1000, count) == 0
        assert guest.call(MMU_UPDATE, 0x1000, count, 0, DOMID_SELF) == 0
        assert guest.call(MMUEXT_OP, 0x1000, count, 0, DOMID_SELF) == 0
    assert guest.call(20, 6, 0x1000, (1 << 32) - 1) < 0


def test_multicalls_do_not_nest(guest):
    guest.put_many(33, MULTICALL, 99, gva(33), 1, 0, 0, 0, 0, 23, 99, 0, 0, 0, 0, 0, 0)
    assert guest.call(MULTICALL, gva(33), 2) == 0
    assert guest._signed(guest.get(33, 1)) == ENOSYS        # itself
    assert guest._signed(guest.get(33, 9)) == ENOSYS        # iret


def test_sleeping_inside_a_multicall_does_not_lose_the_rest(guest):
    guest.put_many(33, SCHED_OP, 99, 1, 0, 0, 0, 0, 0, XEN_VERSION, 99, 0, 0, 0, 0, 0, 0)
    guest.calls((MULTICALL, gva(33), 2))
    assert not guest.came_back and guest.get(33, 9) == 99
    guest.vcpu.xen_wake()
    assert guest.go()
    assert guest.get(33, 9) == 0x40011
    guest.came_back = True


# Handlers and callbacks ---------------------------------------------------------------------------

@pytest.mark.parametrize("address", NONCANONICAL)
def test_handlers_at_addresses_that_are_none(guest, address):
    at = guest.put_many(33, 13 | 0xE033 << 16, address, 0, 0)
    assert guest.call(SET_TRAP_TABLE, at) == EINVAL
    for kind in (0, 1, 2, 5, 7):
        assert guest.call(CALLBACK_OP, 0, guest.put_many(33, kind, address)) == EINVAL
    event, failsafe, syscall = guest.callbacks
    for bad in ((address, failsafe, syscall), (event, address, syscall),
                (event, failsafe, address)):
        assert guest.call(SET_CALLBACKS, *bad) == EINVAL
    for which in range(3):
        assert guest.call(SET_SEGMENT_BASE, which, address) == EINVAL
    assert guest.run("ud2").vector == UD


def test_callbacks_that_do_not_exist(guest):
    for kind in (3, 4, 6, 8, 200, 0xFFFF):
        assert guest.call(CALLBACK_OP, 0, guest.put_many(33, kind, gva(1))) == ENOSYS
    assert guest.call(CALLBACK_OP, 2, gva(33)) == ENOSYS


def test_a_trap_table_without_an_end(guest):
    guest.ram.write(200 << 12, struct.pack("<2Q", 3 | 0xE033 << 16, gva(1)) * 512)
    assert guest.call(SET_TRAP_TABLE, gva(200)) == EINVAL


@pytest.mark.parametrize("selector", [0, 3, 7, 0x33, 0xE033, 0xE02B, 0xE060, 0xFFFF, 1 << 40 | 5])
def test_gs_selectors(guest, selector):
    assert guest.call(SET_SEGMENT_BASE, 3, selector) == 0
    assert guest.call(SET_SEGMENT_BASE, 4, 0) == EINVAL
    guest.user_space()
    assert guest.enter_user("ud2").vector == UD


# IRETQ itself, in the kernel ----------------------------------------------------------------------

@pytest.mark.parametrize("flags", [0x202, 0x2, 0xAD7, 0x247, 0x602, 0x200202, 0x3202], ids=hex)
@pytest.mark.parametrize("stack", [8, 0, 0x58])
def test_iretq_to_the_kernel(guest, flags, stack):
    """Linux serialises with it. The first is the CPU's, the others are ours (bt/core/iret.pxi)."""
    out = gva(FREE + 8)
    end = guest.place("mov rsp, rbp\n mov rax, back\n jmp rax")
    there = guest.place(f"""
        pushfq
        pop qword ptr [r13]
        mov [r13+8], rsp
        mov rsp, rbp
        add r13, 16
        mov rax, {end}
        dec ebx
        cmovnz rax, r14
        jmp rax""")
    again = guest.place(f"""
        mov eax, ss
        push rax
        lea rax, [rsp+{stack}]
        push rax
        push {flags}
        mov eax, cs
        push rax
        mov rax, {there}
        push rax
        cmp rax, rbx
        iretq""")
    setup = f"mov r13, {out}\n mov ebx, 5\n mov rbp, rsp\n mov r14, {again}\n jmp r14"
    assert guest.run(setup) is None
    turns = {(guest.get(FREE + 8, 2 * i), guest.get(FREE + 8, 2 * i + 1)) for i in range(5)}
    [(found, rsp)] = turns
    # IF is Xen's, and so is IOPL.
    assert found == flags & ~0x3000 | 0x202
    assert rsp & 0xFFF == (-8 + stack) & 0xFFF


# Death: the domain's, never the VMM's ------------------------------------------------------------

STACKS = {"unmapped": 0x1000, "not canonical": 1 << 63, "read-only": gva(L1 + 1), "M2P": M2P + 4096,
          "VMM": 0xFFFF_FFFF_FFE7_5000}


@pytest.mark.parametrize("where", STACKS)
def test_a_kernel_stack_that_takes_no_frame(guest, where):
    guest.user_space()
    guest.ram.write(44 << 12, b"\x0f\x05")
    assert guest.call(STACK_SWITCH, 0xE02B, STACKS[where]) == 0
    outcome = guest.die(iret_frame(0x400000, 0xE033, 0x202, 0x401000, 0xE02B))
    assert (outcome.kind, outcome.status) == ("died", 3)
    assert "bounce frame" in outcome.report
    assert violations(guest) == []
    guest.came_back = False


@pytest.mark.parametrize("where", STACKS)
def test_an_exception_on_such_a_stack(guest, where):
    outcome = guest.die(f"mov rsp, {STACKS[where]}\n ud2")
    assert (outcome.kind, outcome.status) == ("died", 3)
    assert violations(guest) == []
    guest.came_back = False


@pytest.mark.parametrize("where", STACKS)
def test_iret_without_a_frame(guest, where):
    stack = STACKS[where] if where != "read-only" else 0x2000
    outcome = guest.die(f"mov rsp, {stack}\n mov eax, 23\n syscall")
    assert (outcome.kind, outcome.status) == ("died", 3)
    assert violations(guest) == []
    guest.came_back = False


@pytest.mark.parametrize("where", STACKS)
def test_iretq_without_a_frame(guest, where):
    """Four times there is one."""
    there = guest._next_code
    guest.place("mov rsp, r13\n dec ebx\n cmovz rsp, r15\n iretq")
    for index, word in enumerate((there, 0xE031, 0x202, gva(FREE + 8, 256), 0xE029)):
        guest.put(FREE + 8, index, word)
    outcome = guest.die(f"mov r13, {gva(FREE + 8)}\n mov r15, {STACKS[where]}\n mov ebx, 5\n"
                        f"mov rax, {there}\n jmp rax")
    assert (outcome.kind, outcome.status) == ("died", 3)
    assert guest.vcpu.registers()["rbx"] == 0
    assert violations(guest) == []
    guest.came_back = False


def test_user_mode_without_page_tables_is_death(guest):
    """Frame 0 is not what user mode's tables are then: it holds whatever the guest likes."""
    for slot in range(512):
        guest.put(0, slot, entry(0, TABLE))
    guest.put(0, 2, entry(guest.domain.m2p_gpa >> 12, TABLE))
    outcome = guest.die(iret_frame(0x2000, 0xE033, 0x202, 0x2800, 0xE02B))
    assert (outcome.kind, outcome.status) == ("died", 3)
    assert "without page tables" in outcome.report
    guest.came_back = False


@pytest.mark.parametrize(("rip", "cs", "flags", "rsp", "ss", "vector"), [
    (1 << 63, 0xE033, 0x202, 0x401000, 0xE02B, GP),
    (0x5000, 0xE033, 0x202, 0x401000, 0xE02B, PF),
    (0x400000, 0xE033, (1 << 64) - 1 & ~0x4100, 1 << 63, 0xE02B, UD),
    (0x400000, 0xFFFF, 0x202, 0x401000, 0xFFFF, UD),
    (0x400000, 3, 0x202, 0x401000, 0, UD),
    (0x400000, 0x7, 0x202, 0x401000, 0x7, UD),
    (0x400000, 0xE02B, 0x202, 0x401000, 0xE033, UD),
    (gva(1), 0xE033, 0x202, gva(13), 0xE02B, PF)])
def test_iret_to_garbage(guest, rip, cs, flags, rsp, ss, vector):
    guest.user_space()
    guest.ram.write(44 << 12, b"\x0f\x0b")
    assert guest.call(STACK_SWITCH, 0xE02B, gva(14)) == 0
    trap = guest.run(iret_frame(rip, cs, flags, rsp, ss))
    assert trap.vector == vector
    assert trap.cs & 3 == 3 and trap.flags & 0x3000 == 0 and trap.flags & ~0x3F7FD7 == 0
    assert guest.run("pushfq\n pop rax\n test eax, 0x3000\n je back\n ud2") is None


def test_iret_within_the_kernel_keeps_the_privilege(guest):
    for cs in (0xE030, 0xE031, 0xE032, 0, 8, 0xFFFC):
        at = guest.place("ud2")
        trap = guest.run(iret_frame(at, cs, (1 << 64) - 1 & ~0x4100, gva(14), 0))
        assert (trap.vector, trap.rip, trap.cs & 3) == (UD, at, 0)
        assert trap.flags & 0x3000 == 0


# User mode ----------------------------------------------------------------------------------------

def test_user_mode_makes_no_hypercalls(guest):
    guest.user_space()
    before = guest.get(L1, 60)
    counted = guest.vcpu.xen_counters()[0]
    for number in (UPDATE_VA_MAPPING, MMU_UPDATE, MULTICALL, 23, 63, SCHED_OP):
        trap = guest.enter_user(f"mov eax, {number}\n mov rdi, {gva(60)}\n mov rsi, 0\n"
                                "mov rdx, 2\n syscall\n ud2")
        assert trap.vector == SYSCALL
    assert guest.get(L1, 60) == before
    made = [now - then for now, then in zip(guest.vcpu.xen_counters()[0], counted, strict=True)]
    assert made[UPDATE_VA_MAPPING] == made[MMU_UPDATE] == made[MULTICALL] == made[SCHED_OP] == 0
    assert made[23] == made[STACK_SWITCH] == 6      # the rig's own
    assert guest.call(SET_CALLBACKS, *guest.callbacks[:2], 0) == 0
    assert guest.enter_user("mov eax, 14\n syscall").vector == UD


def test_user_mode_cannot_reach_the_kernel(guest):
    guest.user_space()
    for code, vector in ((f"mov rax, {gva(1)}\n mov rbx, [rax]", PF),
                         (f"mov rax, {gva(40)}\n mov [rax], rbx", PF),
                         ("mov rax, cr0", GP), ("mov cr3, rax", GP), ("hlt", GP), ("lmsw ax", GP),
                         ("wrmsr", GP), ("int 0x80", GP), ("int 14", GP), (".byte 0x0f, 0x34", GP),
                         (".byte 0x48, 0x0f, 0x07", GP), ("push 0x8\n push 0\n lretq", GP)):
        source = code if "lretq" not in code else "push 8\n push 0\n .byte 0x48, 0xcb"
        assert guest.enter_user(source).vector == vector, code


def test_ports_of_a_garbage_bitmap(guest):
    """The I/O bitmap's address wraps: no access, and no trouble in the VMM."""
    guest.user_space()
    for address in (TOP, (1 << 64) - 1, 1 << 63, 0x1000, M2P):
        at = guest.put_many(33, address, 65536)
        assert guest.call(PHYSDEV_OP, 7, at) == 0
        assert guest.enter_user("mov edx, 0x501\n mov al, 5\n out dx, al\n ud2").vector == UD
    assert guest.call(PHYSDEV_OP, 7, guest.put_many(33, gva(33), 65537)) == EINVAL


def test_an_upcall_needs_no_good_will(guest):
    """Pending events with garbage in the selector words come once, to the callback."""
    info = guest.shared_info << 12
    guest.ram.write(info, b"\xff\x01" + bytes(6) + b"\xff" * 8)
    assert guest.call(XEN_VERSION, 0, 0) == 0x40011
    guest.ram.write(info, b"\xff\x00")
    guest.calls((XEN_VERSION, 0, 0))
    assert guest.came_back and guest.trap().vector == EVENT
    assert guest.ram.view[info + 1] == 1


def test_stopping_from_another_thread():
    guest = Hostile(deterministic=False)
    guest.prepare(multicall_of_nothing(guest))
    threading.Timer(0.2, guest.machine.stop, ("test",)).start()
    assert guest.machine.run(timeout=60).kind == "stopped"


def test_the_checks_of_these_tests_notice(guest):
    good = guest.get(L1, 60)
    for bad, what in ((entry(L2), "both"), (entry(guest.domain.m2p_gpa >> 12), "VMM"),
                      (0, "counts as")):
        guest.put(L1, 60, bad)
        assert any(what in line for line in violations(guest))
    guest.put(L1, 60, good)


def test_all_tables_at_once(guest):
    """A tree of every free frame is taken and given back, twice."""
    for _ in range(2):
        guest.clear(100)
        for index, frame in enumerate(range(110, 400)):
            guest.clear(frame)
            guest.put(frame, 0, entry(60))
            guest.put(100, index, entry(frame, TABLE))
        guest.read_only(100, *range(110, 400))
        assert guest.mmuext(1, 100) == 0
        assert guest.kind(60) == (6, 291)
        assert violations(guest) == []
        assert guest.mmuext(4, 100) == 0
        assert guest.kind(60) == (6, 1)


def test_every_level_where_it_does_not_belong(guest):
    for table, level in ((L4, 4), (L3, 3), (L2, 2)):
        for other in (L4, L3, L2, L1):
            for slot in (9, 300):
                at = (table << 12) + slot * 8
                good = {4: L3, 3: L2, 2: L1}[level] == other
                assert guest.mmu_update(at, entry(other, TABLE)) == (0 if good else EINVAL)
                assert guest.mmu_update(at, 0) == 0
