# SPDX-License-Identifier: GPL-2.0-or-later
"""What CPUID says under KVM: the machine's policy, less what this KVM or its processor lacks.

The other engines' CPU is known, this one is the host's. So features are the policy's that the host
has too, the TSC's frequency is the real one, and the brand does not name Unicorn.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from bt.kvm import abi

Leaf = tuple[int, int, int, int]
Policy = Callable[[int, int], Leaf]

#: Words of features: (leaf, subleaf) -> which of EAX, EBX, ECX, EDX are masks of bits.
_FEATURES = {(1, 0): (2, 3), (7, 0): (1, 2, 3), (0x8000_0001, 0): (2, 3), (0x8000_0007, 0): (3,)}
_HYPERVISOR = 1 << 31       # leaf 1 ECX: KVM does not list it, though it passes it on
_TSC_LEAF, _MHZ_LEAF = 0x15, 0x16
_BRAND_LEAVES = (0x8000_0002, 0x8000_0003, 0x8000_0004)
_BRAND = b"Ring1 virtual CPU on KVM".ljust(48, b"\0")
_CRYSTAL_KHZ = 25_000
_TSC_UNIT_KHZ = 50
#: A policy with more leaves in a range than this is not one.
_MAX_LEAVES = 64


def table(policy: Policy, supported: Mapping[tuple[int, int], Leaf],
          tsc_khz: int) -> dict[tuple[int, int], Leaf]:
    """{(leaf, subleaf): registers} for every leaf that ``policy`` has."""
    found: dict[tuple[int, int], Leaf] = {}
    for first in (0, 0x4000_0000, 0x8000_0000):
        last = min(policy(first, 0)[0], first + _MAX_LEAVES)
        for leaf in range(first, last + 1):
            found[leaf, 0] = _limited(leaf, policy(leaf, 0), supported)
    if (_TSC_LEAF, 0) in found:
        # Frequency = crystal * EBX / EAX. The crystal stays, for it is the APIC timer's clock too.
        # Linux multiplies kHz and EBX in 32 bits: units of 50 kHz leave room up to 8.5 GHz.
        found[_TSC_LEAF, 0] = (_CRYSTAL_KHZ // _TSC_UNIT_KHZ, round(tsc_khz / _TSC_UNIT_KHZ),
                               _CRYSTAL_KHZ * 1000, 0)
    if (_MHZ_LEAF, 0) in found:
        mhz = min(tsc_khz // 1000, 0xFFFF)
        found[_MHZ_LEAF, 0] = (mhz, mhz, _CRYSTAL_KHZ // 1000, 0)
    for i, leaf in enumerate(_BRAND_LEAVES):
        if (leaf, 0) in found:
            found[leaf, 0] = struct.unpack_from("<4I", _BRAND, 16 * i)
    return found


def _limited(leaf: int, words: Leaf, supported: Mapping[tuple[int, int], Leaf]) -> Leaf:
    masks = _FEATURES.get((leaf, 0))
    if masks is None:
        return words
    host = supported.get((leaf, 0), (0, 0, 0, 0))
    have = [host[i] | (_HYPERVISOR if (leaf, i) == (1, 2) else 0) for i in range(4)]
    return tuple(  # type: ignore[return-value]
        word & have[i] if i in masks else word for i, word in enumerate(words))


def packed(leaves: Mapping[tuple[int, int], Leaf]) -> bytearray:
    """struct kvm_cpuid2. Leaf 7 has subleaves, of which the policy has one."""
    data = bytearray(abi.CPUID_HEAD.pack(len(leaves), 0))
    for (leaf, subleaf), words in leaves.items():
        flags = abi.KVM_CPUID_FLAG_SIGNIFCANT_INDEX if leaf == 7 else 0
        data += abi.CPUID_ENTRY.pack(leaf, subleaf, flags, *words)
    return data
