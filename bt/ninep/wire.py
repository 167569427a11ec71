# SPDX-License-Identifier: GPL-2.0-or-later
"""9P2000.L on the wire: numbers and layouts of the messages, and packing by them.

Sources: intro(5) of Plan 9's manual for 9P2000, and the description of 9P2000.L that diod keeps
(protocol.md), which is what Linux speaks. Little-endian throughout. A message is size u32 (itself
included), type u8, tag u16, then its fields.

A layout is a string of letters: B, H, I, Q are integers of 1, 2, 4, 8 bytes; ``s`` is a string
(length u16, bytes); ``d`` is data (length u32, bytes); ``q`` is a qid, 13 bytes; ``w`` is the list
of names of Twalk and ``v`` the list of qids of its answer (count u16, then the items).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Any

HEADER = Struct("<IBH")
VERSION = b"9P2000.L"
NO_TAG = 0xFFFF
NO_FID = 0xFFFFFFFF
#: Names in one Twalk (MAXWELEM).
MAX_NAMES = 16
#: Bytes of a reply with data besides the data: the header and a length.
DATA_OVERHEAD = HEADER.size + 4

RLERROR = 7
QID_DIRECTORY, QID_SYMLINK, QID_FILE = 0x80, 0x02, 0x00
QID = Struct("<BIQ")  # type, version, path


@dataclass(frozen=True)
class Message:
    """A request: its name without the T, the layout of its fields, that of its answer's."""

    name: str
    request: str
    reply: str


#: By the request's type; the answer's type is one more.
MESSAGES: dict[int, Message] = {
    8: Message("statfs", "I", "IIQQQQQQI"),
    12: Message("lopen", "II", "qI"),
    14: Message("lcreate", "IsIII", "qI"),
    16: Message("symlink", "IssI", "q"),
    18: Message("mknod", "IsIIII", "q"),
    20: Message("rename", "IIs", ""),
    22: Message("readlink", "I", "s"),
    24: Message("getattr", "IQ", "QqIIIQQQQQQQQQQQQQQQ"),
    26: Message("setattr", "IIIIIQQQQQ", ""),
    30: Message("xattrwalk", "IIs", "Q"),
    32: Message("xattrcreate", "IsQI", ""),
    40: Message("readdir", "IQI", "d"),
    50: Message("fsync", "II", ""),
    52: Message("lock", "IBIQQIs", "B"),
    54: Message("getlock", "IBQQIs", "BQQIs"),
    70: Message("link", "IIs", ""),
    72: Message("mkdir", "IsII", "q"),
    74: Message("renameat", "IsIs", ""),
    76: Message("unlinkat", "IsI", ""),
    100: Message("version", "Is", "Is"),
    102: Message("auth", "IssI", "q"),
    104: Message("attach", "IIssI", "q"),
    108: Message("flush", "H", ""),
    110: Message("walk", "IIw", "v"),
    116: Message("read", "IQI", "d"),
    118: Message("write", "IQd", "I"),
    120: Message("clunk", "I", ""),
    122: Message("remove", "I", ""),
}
NUMBERS = {message.name: number for number, message in MESSAGES.items()}

_INTEGERS = {letter: Struct(f"<{letter}") for letter in "BHIQ"}
_U16, _U32 = _INTEGERS["H"], _INTEGERS["I"]


class Malformed(Exception):
    """A message that is not one: too short for its fields, too long, or with a list beyond reason.
    """


def unpack(layout: str, data: bytes) -> list[Any]:
    """The fields of ``data``, which must be all of it. Raises Malformed."""
    fields: list[Any] = []
    at = 0

    def integer(packing: Struct) -> int:
        nonlocal at
        if at + packing.size > len(data):
            raise Malformed("it ends in the middle of a number")
        value: int = packing.unpack_from(data, at)[0]
        at += packing.size
        return value

    def counted(length: int) -> bytes:
        nonlocal at
        if at + length > len(data):
            raise Malformed("a length beyond its end")
        at += length
        return data[at - length:at]

    for letter in layout:
        if letter in _INTEGERS:
            fields.append(integer(_INTEGERS[letter]))
        elif letter == "s":
            fields.append(counted(integer(_U16)))
        elif letter == "d":
            fields.append(counted(integer(_U32)))
        elif letter == "q":
            fields.append(counted(QID.size))
        else:  # w, v
            count = integer(_U16)
            if count > MAX_NAMES:
                raise Malformed(f"{count} items in a list")
            if letter == "w":
                fields.append([counted(integer(_U16)) for _ in range(count)])
            else:
                fields.append([counted(QID.size) for _ in range(count)])
    if at != len(data):
        raise Malformed(f"{len(data) - at} bytes too many")
    return fields


def pack(layout: str, fields: Sequence[Any]) -> bytes:
    """The bytes of ``fields``, which fit: they are ours."""
    parts: list[bytes] = []
    for letter, value in zip(layout, fields, strict=True):
        if letter in _INTEGERS:
            parts.append(_INTEGERS[letter].pack(value))
        elif letter == "s":
            parts += (_U16.pack(len(value)), value)
        elif letter == "d":
            parts += (_U32.pack(len(value)), value)
        elif letter == "q":
            parts.append(value)
        else:
            parts.append(_U16.pack(len(value)))
            for item in value:
                parts += (_U16.pack(len(item)), item) if letter == "w" else (item,)
    return b"".join(parts)


def message(number: int, tag: int, body: bytes) -> bytes:
    """A whole message."""
    return HEADER.pack(HEADER.size + len(body), number, tag) + body


def request(name: str, tag: int, *fields: Any) -> bytes:
    """A whole request, as a client sends it: for tests and fuzzers."""
    number = NUMBERS[name]
    return message(number, tag, pack(MESSAGES[number].request, fields))
