# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that means harm to its page tables' checks gets Xen's error, and nothing is lost."""

import pytest
from hostile import (
    BASE,
    COPY_PAGE,
    DOMID_SELF,
    EFAULT,
    EINVAL,
    ENOSYS,
    ESRCH,
    GP,
    L1,
    L2,
    L3,
    L4,
    MMU_UPDATE,
    MMUEXT_OP,
    NEW_BASEPTR,
    NEW_USER_BASEPTR,
    NR_PAGES,
    PF,
    PIN_L1,
    PIN_L2,
    PIN_L3,
    PIN_L4,
    PS,
    SET_GDT,
    UNPIN,
    UPDATE_DESCRIPTOR,
    A,
    D,
    Hostile,
    P,
    U,
    W,
    entry,
    gva,
    violations,
)

TABLE = P | W | U | A | D


@pytest.fixture
def guest():
    guest = Hostile()
    yield guest
    # Whatever was tried: it still runs, and every count is what the tables say.
    assert guest.call(17, 0, 0) == 0x40011
    assert violations(guest) == []


def l1_of(frame):
    """Machine address of the entry that maps ``frame``."""
    return (L1 << 12) + frame * 8


# A page table must not be writable --------------------------------------------------------------

@pytest.mark.parametrize("table", [L4, L3, L2, L1])
def test_page_tables_cannot_be_mapped_writable(guest, table):
    before = guest.get(L1, table)
    assert guest.map(table, entry(table)) == EINVAL
    assert guest.mmu_update(l1_of(table), entry(table)) == EINVAL
    assert guest.mmu_update(l1_of(60), entry(table)) == EINVAL
    assert guest.get(L1, table) == before and guest.get(L1, 60) == entry(60)
    seen = guest.run(f"mov rax, {gva(table)}\n mov rbx, [rax]\n mov [rax], rbx")
    assert seen is None                 # its own value back, through the emulated store


def test_stores_to_page_tables_are_checked(guest):
    at = gva(L1, 70 * 8)
    before = guest.get(L1, 70)
    for bad in (entry(L2), entry(NR_PAGES), entry(1 << 28), entry(guest.domain.m2p_gpa >> 12)):
        trap = guest.run(f"mov rax, {at}\n mov rbx, {bad}\n mov [rax], rbx")
        assert (trap.vector, trap.error, trap.cr2) == (PF, 3, at)
        assert guest.get(L1, 70) == before
    # xchg, or and bts go the same way; in another width, at an odd place and by strings too.
    for code in ("xchg [rax], rbx", "push rbx\n pop qword ptr [rax]", "mov [rax+5], rbx",
                 "mov rdi, rax\n mov ecx, 1\n mov rax, rbx\n rep stosq", "not qword ptr [rax]"):
        trap = guest.run(f"mov rax, {at}\n mov rbx, {entry(L3)}\n {code}")
        assert trap.vector == PF and guest.get(L1, 70) == before, code
    assert guest.run(f"mov rax, {at}\n mov rbx, {entry(71, P | A)}\n mov [rax], rbx") is None
    assert guest.get(L1, 70) == entry(71, P | A)
    at = gva(L1, L1 * 8)
    for code in ("or qword ptr [rax], 2", "bts qword ptr [rax], 1", "lock bts qword ptr [rax], 1",
                 "or byte ptr [rax], 2"):
        assert guest.run(f"mov rax, {at}\n {code}").vector == PF, code
        assert not guest.get(L1, L1) & W


def test_a_writable_page_cannot_become_a_table(guest):
    guest.clear(40)
    for command in (PIN_L1, PIN_L2, PIN_L3, PIN_L4):
        assert guest.mmuext(command, 40) == EINVAL
    assert guest.mmu_update((L2 << 12) + 8, entry(40, TABLE)) == EINVAL
    assert guest.mmuext(NEW_BASEPTR, 40) == EINVAL
    assert guest.kind(40) == (6, 1)
    # A translation that was writable is forgotten when the page becomes a table.
    guest.run(f"mov rax, {gva(40)}\n mov qword ptr [rax], 0")
    assert guest.map(40, entry(40, P | A), 0) == 0
    assert guest.mmuext(PIN_L1, 40) == 0
    trap = guest.run(f"mov rax, {gva(40)}\n mov qword ptr [rax+8], 0x1003\n ud2")
    assert trap.vector == 6             # emulated and checked,
    assert guest.kind(1) == (6, 2)      # so it counts
    trap = guest.run(f"mov rax, {gva(40)}\n mov qword ptr [rax+8], {L1 << 12 | 3}")
    assert trap.vector == PF


def test_write_protection_stays_on(guest):
    for code in ("mov rax, cr0\n btr rax, 16\n mov cr0, rax", "mov rax, cr0\n btr rax, 31\n"
                 "mov cr0, rax", "mov eax, 4\n lmsw ax", "xor eax, eax\n mov cr4, rax",
                 "mov rax, cr3\n mov cr3, rax", "mov ecx, 0xc0000080\n xor eax, eax\n"
                 "xor edx, edx\n wrmsr"):
        assert guest.run(code).vector == GP, code
    at = gva(L1, 70 * 8)
    assert guest.run(f"mov rax, {at}\n mov rbx, {entry(L2)}\n mov [rax], rbx").vector == PF


def test_modes_change_by_hypercall_only(guest):
    guest.user_space()
    for code in ("sysretq", "sysexit", "sysenter"):
        raw = {"sysretq": ".byte 0x48, 0x0f, 0x07", "sysexit": ".byte 0x0f, 0x35",
               "sysenter": ".byte 0x0f, 0x34"}[code]
        set_up = "\n".join(f"mov ecx, {msr}\n mov eax, 0x10\n xor edx, edx\n wrmsr"
                           for msr in (0x174, 0x175, 0x176))
        guest.run(set_up)
        assert guest.run(raw).vector == GP, code


def test_the_cpu_never_reads_the_guests_descriptors(guest):
    """The table that the CPU itself loads from cannot be covered by pages of the guest's."""
    window = 0xFFFF_FFFF_FFE5_7000 + 0x1E000
    guest.read_only(40, 41)
    guest.clear(40)
    guest.clear(41)
    guest.put(41, window >> 12 & 511, entry(42))
    guest.put(40, window >> 21 & 511, entry(41, TABLE))
    assert guest.mmu_update((L3 << 12) + 511 * 8, entry(40, TABLE)) == 0
    for at in range(512):
        guest.put(42, at, 0x00AF9B000000FFFF)       # ring 0, everywhere
    found = guest.run(f"mov rbx, {window + 0x28}\n mov rbx, [rbx]\n mov rcx, {gva(50)}\n"
                      "mov [rcx], rbx")
    assert found is None and guest.get(50, 0) == 0x00CFB3000000FFFF
    trap = guest.run(f"mov rbx, {window}\n mov [rbx], rbx")
    assert trap.vector == PF
    trap = guest.run(f"mov rax, 0x08\n push rax\n mov rax, {gva(1)}\n push rax\n"
                     ".byte 0x48, 0xcb")
    assert trap.vector == GP


# Frames that are not its own --------------------------------------------------------------------

def foreign(guest):
    m2p = guest.domain.m2p_gpa >> 12
    return [NR_PAGES + n for n in range(6)] + [
        m2p + 1, guest.ram.size >> 12, (guest.ram.size >> 12) + 1, 1 << 27, (1 << 28) - 1]


def test_frames_of_others_cannot_be_mapped(guest):
    shared = guest.shared_info
    readable = set(guest.frames.readonly)
    for frame in foreign(guest):
        if frame == shared:
            continue
        assert guest.map(60, entry(frame)) == EINVAL, hex(frame)
        expected = 0 if frame in readable else EINVAL
        assert guest.map(60, entry(frame, P | A)) == expected, hex(frame)
        for table, index in ((L2, 5), (L3, 5), (L4, 5)):
            assert guest.mmu_update((table << 12) + index * 8, entry(frame, TABLE)) == EINVAL
        for command in (PIN_L1, PIN_L2, PIN_L3, PIN_L4, NEW_BASEPTR, NEW_USER_BASEPTR):
            assert guest.mmuext(command, frame) == EINVAL
    assert guest.map(60, entry(60)) == 0
    # Frame numbers beyond 40 bits of address, and what is not there at all, may be anything.
    for value in (1 << 40, 1 << 51, ((1 << 40) - 1) << 12):
        assert guest.map(60, value | P | W) == EINVAL
    assert guest.map(60, 0xDEAD_BEEF_0000_0000) == 0
    assert guest.map(60, entry(60)) == 0


def test_frames_that_are_shared(guest):
    m2p = guest.domain.m2p_gpa >> 12
    assert guest.map(60, entry(guest.shared_info)) == 0
    assert guest.map(61, entry(m2p)) == EINVAL
    assert guest.map(61, entry(m2p, P | A)) == 0
    assert guest.run(f"mov rax, {gva(60, 2560)}\n mov byte ptr [rax], 1") is None
    assert guest.run(f"mov rax, {gva(61)}\n mov rbx, [rax+16]") is None
    assert guest.run(f"mov rax, {gva(61)}\n mov [rax], rbx").vector == PF
    # The table at its documented place: for reading, by the kernel.
    assert guest.run("mov rax, 0xffff800000000010\n mov rbx, [rax]\n cmp rbx, 2\n je back") is None
    trap = guest.run("mov rax, 0xffff800000000010\n mov [rax], rbx")
    assert (trap.vector, trap.error) == (PF, 3)
    guest.user_space()
    assert guest.enter_user("mov rax, 0xffff800000000010\n mov rbx, [rax]").vector == PF
    assert [guest.ram.read(guest.domain.m2p_gpa + n * 8, 1)[0] for n in range(4)] == [0, 1, 2, 3]


def test_large_pages_are_refused(guest):
    for table, value in ((L2, P | W | PS), (L3, P | W | PS), (L4, P | W | PS)):
        assert guest.mmu_update((table << 12) + 40, value) == EINVAL
        assert guest.mmu_update((table << 12) + 40, entry(40, TABLE | PS)) == EINVAL
        at = gva(table, 40)
        assert guest.run(f"mov rax, {at}\n mov qword ptr [rax], {P | W | PS}").vector == PF


def test_tables_cannot_hold_themselves(guest):
    for table, others in ((L4, (L4, L2, L1)), (L3, (L4, L3, L1)), (L2, (L4, L3, L2))):
        for other in others:
            assert guest.mmu_update((table << 12) + 48, entry(other, TABLE)) == EINVAL
            assert guest.mmu_update((table << 12) + 48, entry(other, P | U | A)) == EINVAL
    guest.read_only(40)
    guest.clear(40)
    guest.put(40, 3, entry(40, TABLE))
    for command in (PIN_L2, PIN_L3, PIN_L4):
        assert guest.mmuext(command, 40) == EINVAL
    assert guest.kind(40)[1] == 0
    # An L1 that maps itself read-only is what Linux has; writable, it is refused.
    guest.put(40, 3, entry(40))
    assert guest.mmuext(PIN_L1, 40) == EINVAL
    guest.put(40, 3, entry(40, P | A))
    assert guest.mmuext(PIN_L1, 40) == 0


def test_xens_slots_of_an_l4(guest):
    for slot in range(256, 272):
        before = guest.get(L4, slot)
        assert guest.mmu_update((L4 << 12) + slot * 8, entry(L3, TABLE)) == EINVAL
        assert guest.mmu_update((L4 << 12) + slot * 8, 0) == EINVAL
        at = gva(L4, slot * 8)
        assert guest.run(f"mov rax, {at}\n mov qword ptr [rax], 0").vector == PF
        assert guest.get(L4, slot) & ~A == before & ~A
    # What a new L4 has there is replaced, not checked.
    guest.read_only(40)
    guest.clear(40)
    for slot in range(256, 272):
        guest.put(40, slot, entry(slot * 7, TABLE))
    guest.put(40, 511, entry(L3, TABLE))
    assert guest.mmuext(PIN_L4, 40) == 0
    assert guest.get(40, 256) == guest.m2p_entry and guest.get(40, 257) == 0
    assert guest.mmuext(NEW_BASEPTR, 40) == 0
    assert guest.mmuext(NEW_BASEPTR, L4) == 0
    assert guest.mmuext(UNPIN, 40) == 0


# Pins ---------------------------------------------------------------------------------------------

def test_pins(guest):
    for frame in range(41, 45):
        guest.clear(frame)
    guest.read_only(41, 42)
    guest.put(41, 0, 0x1234_5000_0000_0001)             # garbage
    assert guest.mmuext(PIN_L1, 41) == EINVAL
    guest.put(41, 0, entry(44))
    assert guest.mmuext(UNPIN, 41) == EINVAL
    assert guest.mmuext(PIN_L1, 41) == 0
    assert guest.mmuext(PIN_L1, 41) == EINVAL
    for command in (PIN_L2, PIN_L3, PIN_L4, NEW_BASEPTR, NEW_USER_BASEPTR):
        assert guest.mmuext(command, 41) == EINVAL
    assert guest.kind(41) == (1, 1) and guest.kind(44) == (6, 2)
    assert guest.mmuext(PIN_L3, L4) == EINVAL and guest.mmuext(PIN_L4, L3) == EINVAL
    assert guest.mmuext(UNPIN, 41) == 0
    assert guest.mmuext(UNPIN, 41) == EINVAL
    assert guest.kind(41)[1] == 0 and guest.kind(44) == (6, 1)
    assert guest.mmuext(UNPIN, NR_PAGES) == EINVAL and guest.mmuext(UNPIN, 1 << 63) == EINVAL
    assert guest.mmuext(PIN_L1, 1 << 52) == EINVAL
    # A released frame is memory like any other.
    assert guest.map(41, entry(41)) == 0
    assert guest.run(f"mov rax, {gva(41)}\n mov qword ptr [rax], 7") is None
    assert guest.get(41, 0) == 7


def test_a_table_that_fails_takes_nothing(guest):
    for frame in (40, 41, 42, 43):
        guest.clear(frame)
    guest.read_only(40, 41, 42)
    guest.put(40, 0, entry(41, TABLE))
    guest.put(40, 1, entry(42, TABLE))
    guest.put(41, 0, entry(43))
    guest.put(42, 511, entry(NR_PAGES + 3))
    assert guest.mmuext(PIN_L2, 40) == EINVAL
    assert [guest.kind(frame)[1] for frame in (40, 41, 42, 43)] == [0, 0, 0, 1]
    guest.put(42, 511, 0)
    assert guest.mmuext(PIN_L2, 40) == 0
    assert guest.kind(41) == (1, 1)
    # One bad request ends a list; those before it count, and are counted.
    at = guest.put_many(32, (41 << 12) + 8, entry(43), (41 << 12) + 16, entry(L1), 0, 0)
    assert guest.call(MMU_UPDATE, at, 3, gva(33), DOMID_SELF) == EINVAL
    assert guest.get(33, 0) & 0xFFFF_FFFF == 1 and guest.get(41, 1) == entry(43)
    assert guest.mmuext(UNPIN, 40) == 0
    assert [guest.kind(frame)[1] for frame in (40, 41, 42, 43)] == [0, 0, 0, 1]


def test_the_root_in_use_survives_its_unpinning(guest):
    assert guest.mmuext(UNPIN, L4) == 0
    assert guest.kind(L4) == (4, 1)
    assert guest.map(L1, entry(L1)) == EINVAL
    assert guest.mmuext(UNPIN, L4) == EINVAL
    assert guest.mmuext(PIN_L4, L4) == 0


def test_copying_into_tables(guest):
    assert guest.mmuext(COPY_PAGE, L1, 40) == EINVAL
    assert guest.mmuext(16, L1) == EINVAL
    assert guest.mmuext(COPY_PAGE, 40, NR_PAGES) == EINVAL
    assert guest.mmuext(COPY_PAGE, NR_PAGES, 40) == EINVAL
    assert guest.mmuext(COPY_PAGE, 40, L1) == 0 and guest.get(40, 9) == guest.get(L1, 9)
    assert guest.mmuext(16, 40) == 0 and guest.get(40, 9) == 0


def test_commands_that_do_not_exist(guest):
    assert guest.mmuext(99) == ENOSYS and guest.mmuext(0xFFFF_FFFF) == ENOSYS
    for command in range(3, 8):
        assert guest.mmu_update(l1_of(60) | command, entry(60)) == ENOSYS
    at = guest.put_many(32, l1_of(60), entry(60))
    for domain in (0, 2, 0x7FF1, 0x10000 | DOMID_SELF, 1 << 40):
        assert guest.call(MMU_UPDATE, at, 1, 0, domain) == ESRCH
        assert guest.call(MMUEXT_OP, at, 1, 0, domain) == ESRCH
    assert guest.call(62, 1, 2, 3) == ENOSYS and guest.call(0xFFFF_FFFF) == ENOSYS


# Descriptors --------------------------------------------------------------------------------------

BAD = {"TSS": 0x0000890000000067, "LDT": 0x0000820000000FFF, "call gate": 0x0000EC0000330000,
       "interrupt gate": 0x0000EE0000330000}
CODE64 = 0x00AF9B000000FFFF


@pytest.mark.parametrize("what", BAD)
def test_bad_descriptors(guest, what):
    frames = guest.put_many(33, 45)
    guest.clear(45)
    assert guest.call(SET_GDT, frames, 512) == EINVAL        # it is mapped writable
    guest.put(45, 7, BAD[what])
    guest.read_only(45)
    assert guest.call(SET_GDT, frames, 512) == EINVAL
    assert guest.kind(45)[1] == 0
    guest.put(45, 7, CODE64)
    assert guest.call(SET_GDT, frames, 512) == 0
    assert guest.get(45, 7) >> 45 & 3 == 3                  # never more than user's privilege
    assert guest.map(45, entry(45)) == EINVAL
    assert guest.call(UPDATE_DESCRIPTOR, (45 << 12) + 64, BAD[what]) == EINVAL
    assert guest.call(UPDATE_DESCRIPTOR, (45 << 12) + 64, CODE64) == 0
    assert guest.get(45, 8) == CODE64 | 3 << 45
    assert guest.run(f"mov rax, {gva(45)}\n mov [rax], rbx").vector == PF
    assert guest.call(SET_GDT, 0, 0) == 0
    assert guest.kind(45)[1] == 0 and guest.map(45, entry(45)) == 0


def test_descriptors_in_the_wrong_place(guest):
    for address in (L1 << 12, (L4 << 12) + 8, NR_PAGES << 12, guest.domain.m2p_gpa,
                    (46 << 12) + 4, 1 << 63):
        assert guest.call(UPDATE_DESCRIPTOR, address, CODE64) == EINVAL
    for frame in (L1, NR_PAGES, NR_PAGES + 2, 1 << 40, (1 << 64) - 1):
        assert guest.call(SET_GDT, guest.put_many(33, frame), 1) == EINVAL
    guest.clear(45)
    guest.read_only(45)
    assert guest.call(SET_GDT, guest.put_many(33, 45, L1), 1024) == EINVAL
    assert guest.kind(45)[1] == 0
    for entries in (14 * 512 + 1, 8192, 1 << 31, (1 << 64) - 1):
        assert guest.call(SET_GDT, guest.put_many(33, 45), entries) == EINVAL
    assert guest.call(SET_GDT, 0x1000, 512) == EFAULT
    for base, entries in ((1 << 63, 1), (BASE + 1, 1), (BASE, 8193), (BASE, (1 << 64) - 1)):
        assert guest.mmuext(13, base, entries) == EINVAL
    assert guest.mmuext(13, 0, 0) == 0

