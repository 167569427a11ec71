# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes kallsyms tables as scripts/kallsyms.c of Linux lays them out, in each of its layouts."""

from __future__ import annotations

import struct
from dataclasses import dataclass

BASE = 0xFFFF_FFFF_8100_0000
BASE_32 = 0xC100_0000


@dataclass(frozen=True)
class Form:
    """A layout. addresses: "offsets" (added to the base), "percpu" (signed) or "whole"."""

    pointer: int = 8
    addresses: str = "offsets"
    addresses_last: bool = False        # since 6.4
    sequence: bool = False              # seqs_of_names between markers and tokens (6.2, 6.3)
    marker: int = 4                     # 8 before 4.20

    @property
    def base(self) -> int:
        return BASE if self.pointer == 8 else BASE_32


FORMS = {
    "4.19": Form(addresses="percpu", marker=8),
    "4.19, 32-bit": Form(pointer=4, marker=4),
    "6.1": Form(addresses="percpu"),
    "6.2": Form(addresses="percpu", sequence=True),
    "6.12": Form(addresses="percpu", addresses_last=True),
    "6.15": Form(addresses_last=True),
    "6.12, 32-bit": Form(pointer=4, addresses_last=True),
    "4.4": Form(addresses="whole", marker=8),
    "whole, last": Form(addresses="whole", addresses_last=True),
}


def tokens_for(symbols: list[tuple[int, str, str]]) -> list[bytes]:
    """256 tokens: characters that occur stand for themselves, pairs that occur fill the rest."""
    texts = [kind + name for _, kind, name in symbols]
    used = {ord(c) for text in texts for c in text} | set(range(ord("0"), ord("9") + 1))
    pairs = {text[i:i + 2] for text in texts for i in range(len(text) - 1)}
    spare = iter(sorted(pairs))
    return [bytes([n]) if n in used else next(spare, "zz").encode("latin-1") for n in range(256)]


def spelled(text: str, tokens: list[bytes]) -> bytes:
    """``text`` in token numbers, pairs first."""
    numbers = {token: n for n, token in reversed(list(enumerate(tokens)))}
    data, at, out = text.encode("latin-1"), 0, bytearray()
    while at < len(data):
        size = 2 if data[at:at + 2] in numbers and len(data) - at > 1 else 1
        out.append(numbers[data[at:at + size]])
        at += size
    return bytes(out)


def padded(data: bytes, align: int) -> bytes:
    return data + bytes(-len(data) % align)


def table(symbols: list[tuple[int, str, str]], form: Form, slide: int = 0) -> bytes:
    """``symbols``: (address, kind, name), sorted. ``slide``: KASLR's, added to the base alone."""
    pointer = form.pointer
    word = "<Q" if pointer == 8 else "<I"
    tokens = tokens_for(symbols)
    names, markers = bytearray(), []
    for n, (_, kind, name) in enumerate(symbols):
        if n % 256 == 0:
            markers.append(len(names))
        entry = spelled(kind + name, tokens)
        size = len(entry)
        names += bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
        names += entry
    if form.addresses == "whole":
        numbers = padded(b"".join(struct.pack(word, address + slide)
                                  for address, _, _ in symbols), pointer)
    else:
        offsets = []
        for address, _, _ in symbols:
            if form.addresses == "offsets":
                offsets.append(struct.pack("<I", address - form.base))
            else:
                offsets.append(struct.pack("<i", address if address < form.base
                                           else form.base - 1 - address))
        numbers = padded(b"".join(offsets), pointer) + struct.pack(word, form.base + slide)
    index, at = [], 0
    for token in tokens:
        index.append(at)
        at += len(token) + 1
    count = padded(struct.pack("<I", len(symbols)), pointer)
    middle = padded(bytes(names), pointer)
    middle += padded(b"".join(n.to_bytes(form.marker, "little") for n in markers), pointer)
    if form.sequence:
        middle += padded(b"".join((n * 7919 % (1 << 24)).to_bytes(3, "big")
                                  for n in range(len(symbols))), pointer)
    ends = padded(b"".join(token + b"\0" for token in tokens), pointer)
    ends += struct.pack("<256H", *index)
    if form.addresses_last:
        return count + middle + ends + numbers
    return numbers + count + middle + ends
