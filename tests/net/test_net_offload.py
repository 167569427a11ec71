# SPDX-License-Identifier: GPL-2.0-or-later
"""Checksums and TCP segments: against the definition, word by word."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netrig import tcp4, tcp6

from bt.net import offload
from bt.net.header import GSO_ECN, GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM, Header


def slow_sum(data: bytes) -> int:
    """RFC 1071, 4.1: add 16-bit words, fold the carries."""
    total = 0
    for i in range(0, len(data), 2):
        total += int.from_bytes(data[i:i + 2].ljust(2, b"\0"), "big")
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def tcp_sum(packet: bytes, ip: int) -> int:
    """The checksum over a TCP packet with its pseudo header: 0xffff when it is right."""
    if packet[ip] >> 4 == 4:
        tcp, addresses = ip + (packet[ip] & 15) * 4, packet[ip + 12:ip + 20]
    else:
        tcp, addresses = ip + 40, packet[ip + 8:ip + 40]
    length = len(packet) - tcp
    return slow_sum(bytes(addresses) + length.to_bytes(4, "big") + b"\0\0\0\6"
                    + bytes(packet[tcp:]))


@given(st.binary(min_size=1, max_size=200).filter(any))
def test_the_checksum_is_rfc_1071s(data: bytes):
    assert offload.checksum(data) == 0xFFFF - slow_sum(data)


@given(st.binary(max_size=300))
def test_an_open_checksum_is_closed(data: bytes):
    frame = tcp4(data)
    (packet,) = offload.plain_frames(frame, Header(NEEDS_CSUM, 0, 0, 0, 34, 16, 1))
    assert tcp_sum(packet, 14) == 0xFFFF


@pytest.mark.parametrize(("make", "gso", "ip", "tcp"), [
    (tcp4, GSO_TCPV4, 14, 34), (tcp6, GSO_TCPV6, 14, 54),
    (lambda data: tcp4(data, vlan=True, options=bytes(12)), GSO_TCPV4, 18, 38),
])
@pytest.mark.parametrize("length", [1, 999, 1000, 1001, 5500, 65000])
def test_segments_are_the_same_stream(make, gso: int, ip: int, tcp: int, length: int):
    data = bytes(i * 7 & 0xFF for i in range(length))
    frame = make(data)
    frame[tcp + 13] = 0x99  # CWR, ACK, PSH, FIN
    packets = offload.plain_frames(frame, Header(NEEDS_CSUM, gso, tcp + 20, 1000, tcp, 16, 1))
    assert len(packets) == -(-length // 1000)
    out, identifications = b"", []
    for number, packet in enumerate(packets):
        header = (packet[tcp + 12] >> 4) * 4
        assert int.from_bytes(packet[tcp + 4:tcp + 8], "big") == 0x1000 + len(out)
        out += packet[tcp + header:]
        assert tcp_sum(packet, ip) == 0xFFFF
        if gso == GSO_TCPV4:
            assert slow_sum(packet[ip:tcp]) == 0xFFFF
            assert int.from_bytes(packet[ip + 2:ip + 4], "big") == len(packet) - ip
            identifications.append(int.from_bytes(packet[ip + 4:ip + 6], "big"))
        else:
            assert int.from_bytes(packet[ip + 4:ip + 6], "big") == len(packet) - ip - 40
        flags = packet[tcp + 13]
        assert flags & 0x10 and bool(flags & 0x80) == (number == 0)
        assert bool(flags & 9) == (number == len(packets) - 1)
    assert out == data
    assert identifications == [0xABCD + n for n in range(len(identifications))]


@pytest.mark.parametrize(("change", "what"), [
    (lambda frame: frame.__setitem__(12, 9), "another protocol"),
    (lambda frame: frame.__setitem__(23, 17), "UDP"),
    (lambda frame: frame.__setitem__(14, 0x41), "a short IP header"),
    (lambda frame: frame.__setitem__(46, 0x10), "a short TCP header"),
    (lambda frame: frame.__delitem__(slice(40, None)), "no whole TCP header"),
])
def test_what_is_no_tcp_is_not_cut(change, what: str):
    frame = tcp4(bytes(3000))
    change(frame)
    assert offload.plain_frames(frame, Header(NEEDS_CSUM, GSO_TCPV4, 54, 1000, 34, 16, 1)) == []


def test_one_frame_is_no_flood():
    frame = tcp4(bytes(60_000))
    assert offload.plain_frames(frame, Header(NEEDS_CSUM, GSO_TCPV4, 54, 1, 34, 16, 1)) == []


@given(st.binary(max_size=200), st.sampled_from([0, 1, 4, 0x81, 0x84, 2, 3, 5, 0xFF]),
       st.integers(0, 300), st.integers(0, 0xFFFF), st.integers(0, 300), st.integers(0, 300))
def test_a_header_that_lies_does_no_harm(frame, gso, hdr_len, gso_size, start, offset):
    told = Header(NEEDS_CSUM, gso, hdr_len, gso_size, start, offset, 1)
    if told.is_sound(len(frame)):
        for packet in offload.plain_frames(bytearray(frame), told):
            assert len(packet) <= len(frame) + 2


def test_a_header_must_fit_its_frame():
    assert Header(0, 0, 0, 0, 99, 99, 0).is_sound(20), "offsets count with NEEDS_CSUM only"
    assert Header(NEEDS_CSUM, 0, 0, 0, 10, 8, 0).is_sound(20)
    assert not Header(NEEDS_CSUM, 0, 0, 0, 10, 9, 0).is_sound(20)
    assert not Header(NEEDS_CSUM, 0, 0, 0, 0xFFFF, 0xFFFF, 0).is_sound(20)
    assert Header(NEEDS_CSUM, GSO_TCPV4 | GSO_ECN, 20, 100, 1, 2, 0).is_sound(20)
    assert not Header(NEEDS_CSUM, GSO_TCPV4, 20, 0, 1, 2, 0).is_sound(20), "no size"
    assert not Header(0, GSO_TCPV4, 20, 100, 1, 2, 0).is_sound(20), "no open checksum"
    assert not Header(NEEDS_CSUM, 3, 20, 100, 1, 2, 0).is_sound(20), "UDP is not offered"
