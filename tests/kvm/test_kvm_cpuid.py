# SPDX-License-Identifier: GPL-2.0-or-later
"""CPUID under KVM: the policy, cut to what the host has. No KVM is needed."""

from __future__ import annotations

import pytest

from bt.kvm import abi, cpuid
from bt.machine.cpuid import cpuid as policy

ALL = 0xFFFF_FFFF
EVERYTHING = {(leaf, 0): (ALL,) * 4 for leaf in (1, 7, 0x8000_0001, 0x8000_0007)}


def test_a_host_with_everything_changes_no_feature() -> None:
    found = cpuid.table(policy, EVERYTHING, 1_000_000)
    for leaf in (0, 1, 7, 0x8000_0001, 0x8000_0007, 0x8000_0008, 0x4000_0000):
        assert found[leaf, 0] == policy(leaf, 0), hex(leaf)


def test_a_host_with_nothing_leaves_no_feature() -> None:
    found = cpuid.table(policy, {}, 1_000_000)
    assert found[1, 0] == (*policy(1, 0)[:2], 1 << 31, 0)       # only that it is virtual
    assert found[7, 0][1:] == (0, 0, 0)
    assert found[0x8000_0001, 0][2:] == (0, 0)


def test_one_feature_less() -> None:
    cx16 = 1 << 13
    host = EVERYTHING | {(1, 0): (ALL, ALL, ALL & ~cx16, ALL)}
    found = cpuid.table(policy, host, 1_000_000)
    assert policy(1, 0)[2] & cx16
    assert found[1, 0][2] == policy(1, 0)[2] & ~cx16


@pytest.mark.parametrize("khz", [1_000_000, 2_400_000, 2_599_987, 5_100_000, 800_000])
def test_the_frequency_is_the_real_one(khz: int) -> None:
    found = cpuid.table(policy, EVERYTHING, khz)
    eax, ebx, ecx, _ = found[0x15, 0]
    assert abs(ecx * ebx // eax - khz * 1000) <= 25_000
    # arch/x86/kernel/tsc.c, native_calibrate_tsc, has unsigned int: crystal kHz * EBX must fit.
    assert ecx // 1000 * ebx < 1 << 32
    assert found[0x16, 0][0] == khz // 1000


def test_the_brand_is_not_unicorns() -> None:
    found = cpuid.table(policy, EVERYTHING, 1_000_000)
    text = b"".join(word.to_bytes(4, "little") for leaf in range(0x8000_0002, 0x8000_0005)
                    for word in found[leaf, 0])
    assert text.rstrip(b"\0") == b"Ring1 virtual CPU on KVM"


def test_a_policy_cannot_make_us_list_leaves_for_ever() -> None:
    found = cpuid.table(lambda leaf, subleaf: (ALL, 0, 0, 0), {}, 1_000_000)
    assert len(found) < 300


def test_packed() -> None:
    data = cpuid.packed({(1, 0): (1, 2, 3, 4), (7, 0): (5, 6, 7, 8)})
    assert abi.CPUID_HEAD.unpack_from(data) == (2, 0)
    entries = [abi.CPUID_ENTRY.unpack_from(data, abi.CPUID_HEAD.size + i * abi.CPUID_ENTRY.size)
               for i in range(2)]
    assert entries == [(1, 0, 0, 1, 2, 3, 4),
                       (7, 0, abi.KVM_CPUID_FLAG_SIGNIFCANT_INDEX, 5, 6, 7, 8)]
