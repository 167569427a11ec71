# SPDX-License-Identifier: GPL-2.0-or-later
"""The header in front of each frame (virtio 1.2, 5.1.6): what its sender has left to be done.

A card that may, leaves the checksum of a TCP or UDP packet open (NEEDS_CSUM), and hands over up to
64 KB of TCP at once for somebody to cut into packets (``gso_type``). Between two guests nobody has
to do either, and that is where the speed comes from.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

#: flags u8, gso_type u8, hdr_len u16, gso_size u16, csum_start u16, csum_offset u16, num_buffers
HEADER = Struct("<BBHHHHH")
SIZE = HEADER.size
NUM_BUFFERS_AT = 10

NEEDS_CSUM = 1
DATA_VALID = 2
GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_ECN = 0, 1, 4, 0x80

#: Header, Ethernet, VLAN tag, IPv6, and as much as its length field can say.
MAX_FRAME = SIZE + 14 + 4 + 40 + 65535
#: The shortest that has a destination, a source and a type.
MIN_FRAME = SIZE + 14


class Header(NamedTuple):
    """The fields as they are on the wire. Offsets count from the frame, not from this header."""

    flags: int
    gso_type: int
    hdr_len: int
    gso_size: int
    csum_start: int
    csum_offset: int
    num_buffers: int

    def is_sound(self, length: int) -> bool:
        """Whether this can be true of a frame of ``length`` bytes (header not counted)."""
        if self.flags & NEEDS_CSUM and self.csum_start + self.csum_offset + 2 > length:
            return False
        if self.gso_type == GSO_NONE:
            return True
        # A packet that is cut is checksummed anew, so its checksum must have been left open.
        return (self.gso_type & ~GSO_ECN in (GSO_TCPV4, GSO_TCPV6) and self.gso_size > 0
                and bool(self.flags & NEEDS_CSUM) and self.hdr_len <= length)


def parse(data: bytes | bytearray | memoryview) -> Header:
    """The header of a frame of at least SIZE bytes."""
    return Header(*HEADER.unpack_from(data))


PLAIN = HEADER.pack(0, 0, 0, 0, 0, 0, 1)
#: For a receiver that trusts who checked the checksum.
VALID = HEADER.pack(DATA_VALID, 0, 0, 0, 0, 0, 1)
