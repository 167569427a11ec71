# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bt.cli.stdin import END, encode


def line_discipline(data: bytes) -> bytes:
    """What a reader gets through N_TTY in canonical mode with VEOF=^D, VLNEXT=^V and no others.

    Fails where the real one would lose data, or would tell the reader that the input is at its end.
    """
    out, line, quoted = bytearray(), bytearray(), False
    for byte in data:
        if not quoted and byte == 0x16:
            quoted = True
        elif not quoted and byte == 0x04:
            assert line, "end of input in the middle"
            out += line
            line.clear()
        else:
            quoted = False
            line.append(byte)
            assert len(line) < 4096, "line too long"
            if byte == 0x0A:
                out += line
                line.clear()
    assert not line and not quoted, "input that the reader does not see yet"
    return bytes(out)


@given(st.binary(max_size=5000) | st.text("\n\x04\x16a", max_size=3000).map(str.encode))
def test_any_bytes_arrive_as_they_are(data):
    assert line_discipline(encode(data)) == data


def test_long_lines_are_pushed_and_short_ones_left_alone():
    assert encode(b"one\ntwo\n") == b"one\ntwo\n"
    assert encode(b"one") == b"one" + END
    assert encode(b"x" * 9000).count(END) == 9
    assert encode(b"") == b""
