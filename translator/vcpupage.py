# SPDX-License-Identifier: GPL-2.0-or-later
"""The vCPU page: virtual CPU state that inline stubs read and write.

One page a vCPU, at a virtual address that every stub holds as an absolute operand. In 64-bit code
that is a sign-extended 32-bit displacement, and the page must lie in the highest 2 GB of the
address space (`reachable`; the lowest 2 GB could be encoded too, but keystone makes such an operand
relative to RIP). In 32-bit code it is any address below 4 GB.

Every field is a little-endian u64; 32-bit stubs use the low half. The guest kernel can reach the
page like the stubs do, so a VMM may take no decision about its own safety from what it reads here:
a guest that scribbles on it harms itself only.

Rules between the VMM and the stubs:

- IF and IOPL are apart because CLI and STI must change one without the other and without touching
  the arithmetic flags. At kernel privilege the real RFLAGS has IF = 0 and IOPL = 0; the guest's
  flags are ``real | VIF | VIOPL``.
- The VMM sets PENDING while an interrupt waits for the guest to allow it; stubs that are about to
  allow it then trap instead.
- SAVE0 and SAVE1 belong to the stub that runs and hold the guest's RCX and RDX.
- The CR fields hold what the guest must read; KGSBASE is the only home of KERNEL_GS_BASE.
"""

VIF = 0x00         # 0 or IF
PENDING = 0x08     # 0 or IF
SAVE0 = 0x10       # RCX while a stub uses it
SAVE1 = 0x18       # RDX while a stub uses it
SAVE2 = 0x20       # spare
SAVE3 = 0x28       # spare
KGSBASE = 0x30     # KERNEL_GS_BASE
CS = 0x38          # selector as the guest must see it
SS = 0x40          # likewise
CR0 = 0x48
CR2 = 0x50
CR3 = 0x58
CR4 = 0x60
COUNTER = 0x68     # spare: no stub touches it
VIOPL = 0x70       # IOPL in place: bits 12-13
SIZE = 0x78        # bytes in use

IF = 0x200         # the value of VIF and PENDING when set (SDM 1 section 3.4.3)


def reachable(address: int, bits: int = 64) -> bool:
    """Whether stubs can address a vCPU page at this virtual address."""
    if bits == 64:
        return (1 << 64) - (1 << 31) <= address <= (1 << 64) - SIZE
    return 0 <= address <= (1 << 32) - SIZE
