# SPDX-License-Identifier: GPL-2.0-or-later
"""The work a sender left open, for a receiver that wants whole packets: checksums, TCP segments.

Sources: RFC 1071 (the checksum), RFC 9293 (TCP), RFC 791 and 8200 (IP). This is the way of the odd
pair: two guests with Linux agree on everything and never come here.
"""

from __future__ import annotations

from bt.net.header import GSO_ECN, GSO_TCPV4, NEEDS_CSUM, Header

_ETHERTYPE = {GSO_TCPV4: b"\x08\x00", 4: b"\x86\xdd"}
_VLAN = b"\x81\x00"
_TCP = 6
_FIN_PSH, _CWR = 0x09, 0x80
#: Packets one frame may be cut into: a tiny gso_size must not become a flood.
MAX_SEGMENTS = 1024


def checksum(data: bytes | bytearray | memoryview) -> int:
    """RFC 1071 over ``data``. Ones' complement addition is addition modulo 0xffff."""
    if len(data) % 2:
        data = bytes(data) + b"\0"
    return -int.from_bytes(data, "big") % 0xFFFF


def finish_checksum(frame: bytearray, header: Header) -> None:
    """Close the checksum of ``frame``. The sender has put the pseudo header's sum in its place."""
    start = header.csum_start
    at = start + header.csum_offset
    # 0 means "no checksum" to UDP; ones' complement has another zero.
    value = checksum(memoryview(frame)[start:]) or 0xFFFF
    frame[at:at + 2] = value.to_bytes(2, "big")


def plain_frames(frame: bytearray, header: Header) -> list[bytearray]:
    """``frame`` as packets with nothing left to do; none when it is not what its header says."""
    if header.gso_type:
        return _segments(frame, header)
    if header.flags & NEEDS_CSUM:
        finish_checksum(frame, header)
    return [frame]


def _segments(frame: bytearray, header: Header) -> list[bytearray]:
    kind = header.gso_type & ~GSO_ECN
    ip = 18 if frame[12:14] == _VLAN else 14
    if frame[ip - 2:ip] != _ETHERTYPE[kind]:
        return []
    if kind == GSO_TCPV4:
        tcp = ip + (frame[ip] & 0xF) * 4 if len(frame) > ip else 0
        if tcp < ip + 20 or len(frame) < tcp + 20 or frame[ip + 9] != _TCP:
            return []
        addresses = bytes(frame[ip + 12:ip + 20])
    else:
        # Extension headers would have to be followed; who cuts TCP does not send any.
        tcp = ip + 40
        if len(frame) < tcp + 20 or frame[ip + 6] != _TCP:
            return []
        addresses = bytes(frame[ip + 8:ip + 40])
    data = tcp + (frame[tcp + 12] >> 4) * 4
    size = header.gso_size
    if data < tcp + 20 or data > len(frame) or len(frame) - data > MAX_SEGMENTS * size:
        return []
    return [
        _segment(frame, ip, tcp, data, at, size, addresses)
        for at in range(data, max(len(frame), data + 1), size)
    ]


def _segment(frame: bytearray, ip: int, tcp: int, data: int, at: int, size: int,
             addresses: bytes) -> bytearray:
    """The packet with ``size`` bytes of the data from ``at`` on."""
    first, last = at == data, at + size >= len(frame)
    packet = frame[:data] + frame[at:at + size]
    length = len(packet)
    if frame[ip] >> 4 == 4:
        packet[ip + 2:ip + 4] = (length - ip).to_bytes(2, "big")
        number = int.from_bytes(frame[ip + 4:ip + 6], "big") + (at - data) // size
        packet[ip + 4:ip + 6] = (number & 0xFFFF).to_bytes(2, "big")
        packet[ip + 10:ip + 12] = bytes(2)
        packet[ip + 10:ip + 12] = checksum(packet[ip:tcp]).to_bytes(2, "big")
    else:
        packet[ip + 4:ip + 6] = (length - tcp).to_bytes(2, "big")
    sequence = int.from_bytes(frame[tcp + 4:tcp + 8], "big") + at - data
    packet[tcp + 4:tcp + 8] = (sequence & 0xFFFFFFFF).to_bytes(4, "big")
    if not last:
        packet[tcp + 13] &= ~_FIN_PSH
    if not first:
        packet[tcp + 13] &= ~_CWR
    packet[tcp + 16:tcp + 18] = bytes(2)
    pseudo = addresses + (length - tcp).to_bytes(4, "big") + _TCP.to_bytes(4, "big")
    packet[tcp + 16:tcp + 18] = checksum(pseudo + packet[tcp:]).to_bytes(2, "big")
    return packet
