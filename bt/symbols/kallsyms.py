# SPDX-License-Identifier: GPL-2.0-or-later
"""kallsyms: the symbol table that a Linux kernel carries in its own read-only data.

A kernel keeps it for its backtraces, stripped or not, so it can be read from a bzImage's contents
and from the memory of a running guest alike. Nothing points to it. What is looked for is its shape
(scripts/kallsyms.c and kernel/kallsyms.c of Linux), and every part confirms another, so there is no
list of kernel versions here:

``token_table``, ``token_index``
    256 strings, each with a NUL, and 256 offsets (u16) into them. Names are written in these
    tokens. A character that occurs in names is its own token, so "0" to "9" stand in a row. The
    index confirms the table.
``num_syms``, ``names``, ``markers``
    How many (u32); for each symbol a length and so many token numbers, one byte each, which spell
    the kind and the name; and the offset into ``names`` of each 256th symbol (u32; u64 before
    4.20). A length over 127 takes two bytes, the low seven bits first (since 6.1). The markers
    confirm names and number. They lie before the token table. Up to 6.3 ``seqs_of_names`` (3 bytes
    a symbol, an order for lookup by name) may be in between.
``offsets``, ``relative_base``
    One u32 a symbol, and what it is relative to. On SMP x86-64 up to 6.14 a negative one means
    ``base - 1 - offset``, and others are absolute (per-CPU symbols); elsewhere all are added to
    the base. Kernels without a base have whole addresses instead. They lie before ``num_syms`` up
    to 6.3, and behind ``token_index`` since. Symbols are sorted: that confirms the reading.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from typing import NamedTuple

from bt.symbols.table import Symbol, SymbolTable

_DIGITS = b"".join(b"%d\0" % digit for digit in range(10))
_TOKENS = 256
_INDEX = struct.Struct("<256H")
_MARK = 256                 # symbols from one marker to the next
_MAX_SYMBOLS = 1 << 20      # Debian's kernels have 90,000 to 160,000
_MAX_TOKEN = 64             # bytes; names have 512 at most
_MAX_ENTRY = 514            # two bytes of length, 512 tokens
_MARKERS_WITHIN = 8 << 20   # how far before the token table they are looked for, bytes
_MAX_NAME = 512
_NEAR = 1024                # bytes: seqs_of_names of 256 symbols, and alignment
_MAX_STEPS = 8_000_000      # bounds the search in what a hostile guest made to be searched
_KERNEL = 0xFFFF_8000_0000_0000     # the upper half of the 64-bit address space
_KERNEL_32 = 0x1000_0000            # a 32-bit kernel lies above, whatever the split


class _Enough(Exception):
    """The search has taken too long: no kernel looks like this."""


class _Effort:
    """What a search may still cost, in steps of its innermost loops."""

    def __init__(self) -> None:
        self._left = _MAX_STEPS

    def spend(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            raise _Enough


class Layout(NamedTuple):
    """Where the parts of a kallsyms table were found: offsets in the searched bytes."""

    token_table: int
    token_index: int
    names: int
    markers: int
    count: int
    addresses: int
    base: int | None        # None: whole addresses
    pointer: int            # bytes, 4 or 8
    percpu_absolute: bool


def decode(data: bytes) -> SymbolTable | None:
    """The kernel's symbols, from an image or memory that holds it; None if there are none.

    ``data`` is read where tables lie as in memory: an ELF file, or physical or virtual memory from
    a page's start. Addresses are those the kernel was linked for, or, from memory, those it has.
    """
    for layout, addresses in layouts(data):
        symbols = list(_symbols(data, layout, addresses))
        if not all(s.kind.isascii() and s.kind.isalpha() and s.name for s in symbols):
            continue
        low = next((a for a in addresses if a >= (_KERNEL if layout.pointer == 8 else _KERNEL_32)),
                   0)
        end = max((s.address for s in symbols if s.name in ("_end", "__bss_stop")), default=None)
        return SymbolTable(symbols, source="kallsyms", lowest=low,
                           highest=end if end is not None and end > low else None)
    return None


def layouts(data: bytes) -> Iterator[tuple[Layout, list[int]]]:
    """Every complete kallsyms table in ``data``, with the addresses of its symbols."""
    effort = _Effort()
    at = -1
    try:
        while (at := data.find(_DIGITS, at + 1)) >= 0:
            effort.spend(_TOKENS)
            tokens = _token_table(data, at)
            if tokens is None:
                continue
            table, index = tokens
            for names, markers, count in _names(data, table, effort):
                effort.spend(4 * count)
                for found in _addresses(data, names, index + _INDEX.size, count):
                    start, base, pointer, percpu, addresses = found
                    yield (Layout(table, index, names, markers, count, start, base, pointer,
                                  percpu), addresses)
                    break
    except _Enough:
        return


def _token_table(data: bytes, zero: int) -> tuple[int, int] | None:
    """Offsets of the table whose token "0" is at ``zero``, and of its index."""
    end = zero
    for _ in range(_TOKENS - ord("0")):
        end = data.find(b"\0", end, end + _MAX_TOKEN + 1) + 1
        if not end:
            return None
    for at in range(end + 3 & -4, min(end + 64, len(data) - _INDEX.size + 1), 4):
        index = _INDEX.unpack_from(data, at)
        start = zero - index[ord("0")]
        if index[0] or start < 0 or data[start + index[255]:end].find(b"\0") != \
                end - start - index[255] - 1:
            continue
        if all(a < b and data.find(b"\0", start + a, start + b) == start + b - 1
               for a, b in zip(index, index[1:], strict=False)):
            return start, at
    return None


def _names(data: bytes, table: int, effort: _Effort) -> Iterator[tuple[int, int, int]]:
    """(names, markers, number of symbols), confirmed by one another, before the token table."""
    for width in (4, 8):
        first = max(0, table - _MARKERS_WITHIN) + width - 1 & -width
        words = array("I" if width == 4 else "Q")
        words.frombytes(data[first:table - (table - first) % width])
        effort.spend(len(words) // 8)
        for i in range(len(words) - 1, -1, -1):
            if words[i]:
                continue
            run = _run(words, i)
            markers = first + i * width
            # What follows the last marker may look like one more.
            for length in range(run, max(run - 2, 0), -1):
                # A single marker (256 symbols at most) is any zero: believed near the table only.
                if length > 1 or markers + _NEAR > table:
                    effort.spend(1000)
                    for names, count in _before(data, markers, words[i:i + length], effort):
                        yield names, markers, count


def _run(words: array[int], i: int) -> int:
    """How many words from ``i`` on can be markers: each 256 entries of names further than the last.
    """
    n = i + 1
    while n < len(words) and 2 * _MARK <= words[n] - words[n - 1] <= _MARK * _MAX_ENTRY:
        n += 1
    return n - i


def _before(data: bytes, markers: int, marks: array[int],
            effort: _Effort) -> Iterator[tuple[int, int]]:
    """(names, number of symbols) that lead to these markers."""
    last = len(marks) - 1
    latest = markers - marks[-1] - 2
    for names in range(latest & -4, max(latest - _MARK * _MAX_ENTRY, 0), -4):
        effort.spend(1)
        for room in (8, 4):         # num_syms is a u32, aligned like a pointer
            count = int.from_bytes(data[names - room:names - room + 4], "little")
            if names >= room and last * _MARK < count <= min((last + 1) * _MARK, _MAX_SYMBOLS) and \
                    _walks(data, names, count, markers, marks, effort):
                yield names, count
                break


def _walks(data: bytes, names: int, count: int, markers: int, marks: array[int],
           effort: _Effort) -> bool:
    """Whether ``count`` entries from ``names`` on pass each marker and end where markers begin."""
    at = names
    for n in range(count):
        if not n % _MARK:
            effort.spend(_MARK)
            if at != names + marks[n // _MARK]:
                return False
        if at >= markers:
            return False
        length = data[at]
        if length & 0x80:
            length = length & 0x7F | data[at + 1] << 7
            at += 1
        if not length:
            return False
        at += 1 + length
    return at <= markers < at + 8 and not any(data[at:markers])


def _addresses(data: bytes, names: int, behind: int,
               count: int) -> Iterator[tuple[int, int | None, int, bool, list[int]]]:
    """(offset, base, pointer size, per-CPU absolute, addresses) of each reading that is sorted."""
    for pointer in (8, 4):
        size = count * 4 + pointer - 1 & -pointer
        number = names - pointer                    # where num_syms is
        after = behind + pointer - 1 & -pointer
        for start, base_at in ((number - pointer - size, number - pointer), (after, after + size)):
            if start < 0 or base_at + pointer > len(data):
                continue
            base = int.from_bytes(data[base_at:base_at + pointer], "little")
            if base < (_KERNEL if pointer == 8 else _KERNEL_32):
                continue
            offsets = array("i")
            offsets.frombytes(data[start:start + 4 * count])
            mask = (1 << 8 * pointer) - 1
            plain = [base + (offset & 0xFFFFFFFF) for offset in offsets]
            if _sorted(plain) and plain[-1] <= mask:
                yield start, base, pointer, False, plain
            split = [offset if offset >= 0 else base - 1 - offset & mask for offset in offsets]
            if _sorted(split) and split[-1] >= base:
                yield start, base, pointer, True, split
        for start in (number - pointer * count, after):
            if start < 0 or start + pointer * count > len(data):
                continue
            whole = array("Q" if pointer == 8 else "I")
            whole.frombytes(data[start:start + pointer * count])
            if _sorted(whole) and whole[-1] >= (_KERNEL if pointer == 8 else _KERNEL_32):
                yield start, None, pointer, False, list(whole)


def _sorted(values: list[int] | array[int]) -> bool:
    return all(a <= b for a, b in zip(values, values[1:], strict=False))


def _symbols(data: bytes, layout: Layout, addresses: list[int]) -> Iterator[Symbol]:
    index = _INDEX.unpack_from(data, layout.token_index)
    tokens = []
    for start in index:
        start += layout.token_table
        tokens.append(data[start:data.find(b"\0", start)].decode("latin-1"))
    token = tokens.__getitem__
    at = layout.names
    for address in addresses:
        length = data[at]
        if length & 0x80:
            length = length & 0x7F | data[at + 1] << 7
            at += 1
        at += 1
        text = "".join(map(token, data[at:at + length]))[:_MAX_NAME + 1]
        at += length
        name = text[1:]
        if not name.isprintable():          # it comes from a guest and goes to a terminal
            name = "".join(c if c.isprintable() else "?" for c in name)
        yield Symbol(address, name, 0, text[:1])
