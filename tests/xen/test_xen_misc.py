# SPDX-License-Identifier: GPL-2.0-or-later
"""xen_version, grant_table_op, physdev_op, and the dispatch itself."""

import struct

import pytest
from xenrig import (
    BASE,
    CONSOLE,
    GRANT_TABLE_OP,
    NOWHERE,
    NR_PAGES,
    PHYSDEV_OP,
    SCRATCH,
    XEN_VERSION,
    XENSTORE,
)

from bt.boot.xen import hypercall_page
from bt.errors import InputError
from bt.xen.frames import XenFrames

EINVAL, EPERM, EFAULT, ENOSYS = -22, -1, -14, -38
SELF = 0x7FF0

# xen_version, <xen/version.h> ---------------------------------------------------------------------


def version(rig, operation, size):
    """The structure of ``size`` bytes that the operation writes; checks that it writes no more."""
    rig.put(b"\xee" * (size + 8))
    assert rig.call(XEN_VERSION, operation, BASE + SCRATCH) == 0
    data = rig.get(size + 8)
    assert data[size:] == b"\xee" * 8 and data[:size] != b"\xee" * size
    return data[:size]


def test_version(rig):
    assert rig.call(XEN_VERSION, 0, 0) == 4 << 16 | 17
    assert version(rig, 1, 16).startswith(b".0")
    assert version(rig, 2, 64 + 16 + 32 + 32)
    assert version(rig, 3, 1024).rstrip(b"\0") == b"xen-3.0-x86_64 "
    assert version(rig, 4, 64).endswith(b"\0")
    assert version(rig, 5, 8) == struct.pack("<Q", 0xFFFF_8000_0000_0000)
    assert rig.call(XEN_VERSION, 7, 0) == 4096
    assert rig.call(XEN_VERSION, 7, BASE) == EINVAL
    assert any(version(rig, 8, 16))
    assert rig.call(XEN_VERSION, 9, BASE + SCRATCH) == EPERM
    assert rig.call(XEN_VERSION, 10, BASE + SCRATCH) == EPERM
    assert rig.call(XEN_VERSION, 11, BASE + SCRATCH) == ENOSYS


def test_features(rig):
    """Bits of <xen/features.h> by number: what common/kernel.c of Xen gives a PV domain."""
    rig.put(struct.pack("<II", 0, 0xEEEE_EEEE))
    assert rig.call(XEN_VERSION, 6, BASE + SCRATCH) == 0
    bits = {bit for bit in range(32) if rig.word(SCRATCH + 4, "<I") >> bit & 1}
    assert bits == {5, 6, 7, 13, 17}
    assert rig.op(XEN_VERSION, 6, struct.pack("<II", 1, 0)) == EINVAL


@pytest.mark.parametrize("operation", [1, 2, 3, 4, 5, 6, 8])
def test_version_bad_pointers(rig, operation):
    for pointer in (0, NOWHERE, (1 << 64) - 1, 0xFFFF_8000_0000_0000, 1 << 47):
        assert rig.call(XEN_VERSION, operation, pointer) == EFAULT


# grant_table_op, <xen/grant_table.h> --------------------------------------------------------------

SETUP, QUERY, SET_VERSION, GET_VERSION = 2, 6, 8, 10


def grant(rig, operation, data, count=1):
    return rig.call(GRANT_TABLE_OP, operation, rig.put(data), count)


def setup(rig, frames, dom=SELF, where=BASE + SCRATCH + 0x1000):
    result = grant(rig, SETUP, struct.pack("<H2xIh6xQ", dom, frames, 99, where))
    return result, rig.word(SCRATCH + 8, "<h")


def test_grant_table_size(rig):
    assert grant(rig, QUERY, struct.pack("<H2xIIh2x", SELF, 9, 9, 9)) == 0
    assert struct.unpack("<H2xIIh2x", rig.get(16)) == (SELF, 0, 32, 0)
    assert grant(rig, QUERY, struct.pack("<H2xIIh2x", 5, 9, 9, 9)) == 0
    assert rig.word(SCRATCH + 12, "<h") == -2


def test_grant_table_frames(rig):
    assert setup(rig, 2) == (0, 0)
    first = struct.unpack("<QQ", rig.get(16, SCRATCH + 0x1000))
    assert len(set(first)) == 2 and all(frame >= NR_PAGES for frame in first)
    assert rig.core.shared == dict.fromkeys(first, True)
    assert setup(rig, 4) == (0, 0)
    assert struct.unpack("<QQ", rig.get(16, SCRATCH + 0x1000)) == first
    assert rig.frames.writable >= set(first)
    assert setup(rig, 32) == (0, 0)
    assert setup(rig, 33) == (0, -1)
    assert setup(rig, 0xFFFF_FFFF) == (0, -1)
    assert setup(rig, 1, dom=4) == (0, -2)
    assert setup(rig, 1, where=NOWHERE)[0] == EFAULT


def test_grant_version_is_one(rig):
    assert grant(rig, GET_VERSION, struct.pack("<H2xI", SELF, 9)) == 0
    assert rig.word(SCRATCH + 4, "<I") == 1
    assert grant(rig, SET_VERSION, struct.pack("<I", 1)) == 0
    assert grant(rig, SET_VERSION, struct.pack("<I", 2)) == ENOSYS
    assert rig.word(SCRATCH, "<I") == 1
    assert grant(rig, SET_VERSION, struct.pack("<I", 3)) == EINVAL


def test_grant_operations_that_are_none(rig):
    for operation in (0, 1, 3, 4, 5, 7, 9, 11, 12, 1 << 31):
        assert grant(rig, operation, bytes(64)) == ENOSYS
    assert grant(rig, QUERY, bytes(16), count=0) == 0
    assert grant(rig, QUERY, bytes(16), count=0xFFFF_FFFF) == EINVAL
    for operation in (SETUP, QUERY, SET_VERSION, GET_VERSION):
        assert rig.call(GRANT_TABLE_OP, operation, NOWHERE, 1) == EFAULT


# physdev_op, <xen/physdev.h> ----------------------------------------------------------------------


def test_io_privileges(rig):
    assert rig.op(PHYSDEV_OP, 6, struct.pack("<I", 1)) == 0
    assert rig.xen.physdev.iopl == 1
    assert rig.op(PHYSDEV_OP, 6, struct.pack("<I", 4)) == EINVAL
    assert rig.op(PHYSDEV_OP, 7, struct.pack("<QI4x", NOWHERE, 65536)) == 0
    assert rig.op(PHYSDEV_OP, 7, struct.pack("<QI4x", NOWHERE, 65537)) == EINVAL
    for operation in (6, 7):
        assert rig.call(PHYSDEV_OP, operation, NOWHERE) == EFAULT
    for operation in (5, 12, 13, 23, 28):
        assert rig.op(PHYSDEV_OP, operation, bytes(64)) == ENOSYS


# Dispatch -----------------------------------------------------------------------------------------


def test_unknown_hypercalls_are_counted_by_name(rig):
    assert rig.call(40, 0, 0) == ENOSYS
    assert rig.call(34, 1, 0) == ENOSYS
    assert rig.call(99, 1 << 63, 0) == ENOSYS
    assert rig.call(12, 25, 0) == ENOSYS
    assert rig.xen.refused == {"xenpmu_op 0": 1, "hvm_op 1": 1, "unknown": 1, "memory_op 25": 1}


def test_counters_cannot_be_filled(rig):
    for number in range(5000):
        rig.call(1000 + number, number)
        rig.call(12, 1000 + number)
    assert len(rig.xen.refused) < 70


def test_the_shared_pages_are_held(rig):
    assert rig.core.held == {CONSOLE >> 12, XENSTORE >> 12}
    assert rig.core.vcpu_info == rig.shared_info
    rig.core.readonly.add(CONSOLE >> 12)
    with pytest.raises(InputError, match="cannot be shared"):
        rig.xen.attach()


def test_frames_run_out(rig):
    with pytest.raises(InputError, match="needs .* pages"):
        XenFrames(rig.ram, NR_PAGES + 100)
    with pytest.raises(InputError, match="used up"):
        while True:
            rig.frames.share()


def test_hypercall_page():
    """Slot 12 as <xen/arch-x86/xen-x86_64.h> describes hypercalls, and iret, which differs."""
    page = hypercall_page()
    assert len(page) == 4096
    capstone = pytest.importorskip("capstone")
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)

    def slot(number):
        code = page[number * 32:number * 32 + 32].rstrip(b"\xcc")
        return [f"{insn.mnemonic} {insn.op_str}".strip() for insn in decoder.disasm(code, 0)]

    assert slot(12) == ["push rcx", "push r11", "mov eax, 0xc", "syscall", "pop r11", "pop rcx",
                        "ret"]
    assert slot(23) == ["push rcx", "push r11", "push rax", "mov eax, 0x17", "syscall"]
    assert slot(127)[2] == "mov eax, 0x7f"
