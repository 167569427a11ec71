# SPDX-License-Identifier: GPL-2.0-or-later
"""Framing of the remote serial protocol: whatever is sent comes out, however it is cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bt.gdb.packet import MAX_PACKET, Decoder, Signal, encode

CUTS = st.lists(st.integers(1, 9), max_size=40)


def fed(data: bytes, cuts: list[int]) -> list[bytes | Signal]:
    decoder, out, at = Decoder(), [], 0
    for cut in [*cuts, len(data)]:
        out += decoder.feed(data[at:at + cut])
        at += cut
    return out


def test_the_manuals_examples() -> None:
    assert encode(b"OK") == b"$OK#9a"
    assert encode(b"") == b"$#00"
    assert encode(b"}") == b"$}]#da"
    assert fed(b"+$g#67", []) == [Signal.ACK, b"g"]


@given(st.lists(st.binary(max_size=60), max_size=8), CUTS)
def test_packets_come_out_as_they_went_in(packets: list[bytes], cuts: list[int]) -> None:
    stream = b"+".join(encode(packet) for packet in packets)
    assert [item for item in fed(stream, cuts) if isinstance(item, bytes)] == packets


@given(st.binary(min_size=1, max_size=60), st.integers(0, 10 ** 6), st.integers(1, 255))
def test_a_damaged_packet_is_never_taken_for_another(data: bytes, at: int, flip: int) -> None:
    packet = bytearray(encode(data))
    body = 1 + at % (len(packet) - 4) if len(packet) > 4 else 1
    packet[body] ^= flip
    assert data not in fed(bytes(packet), []) or bytes(packet) == encode(data)


@given(st.binary(max_size=400), CUTS)
def test_any_bytes_do_no_harm(data: bytes, cuts: list[int]) -> None:
    decoder = Decoder()
    list(decoder.feed(data))
    # Two ends of a packet close whatever was open.
    list(decoder.feed(b"##00##00"))
    assert list(decoder.feed(encode(b"g")))[-1] == b"g"


def test_interrupts_and_acknowledgements_between_packets() -> None:
    assert fed(b"+\x03$m#6d-", [1]) == [Signal.ACK, Signal.INTERRUPT, b"m", Signal.NACK]
    assert fed(b"$\x03#03", []) == [b"\x03"]
    assert fed(b"$g#00", []) == [Signal.BROKEN]
    assert fed(b"$g#zz", []) == [Signal.BROKEN]


def test_a_packet_too_long_is_refused() -> None:
    assert fed(b"$" + b"a" * (MAX_PACKET + 1) + b"#00$g#67", []) == [Signal.BROKEN, b"g"]
