# SPDX-License-Identifier: GPL-2.0-or-later
"""The compressed kernel inside a bzImage, unpacked on the host.

A bzImage unpacks itself in the guest. Under emulation that takes most of the time to the first
kernel message, so the ELF file inside is unpacked here and loaded directly. Where it lies is part
of the boot protocol since 2.08 (Documentation/arch/x86/boot.rst: payload_offset, payload_length).

The build appends the unpacked size (u32) to what the compressor made, except for gzip, which ends
with just that. It is the exact size to expect, so it also bounds what a hostile file can unpack
to: the caller says how much is allowed, and not a byte more is produced.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from bt.boot import elf
from bt.boot.image import BytesImage, FileImage, Image
from bt.boot.unpack_cache import UnpackCache
from bt.errors import InputError

#: No kernel is larger than this unpacked, whatever it says.
MAX_UNPACKED = 1 << 30
#: Smaller kernels unpack faster than the cache can be looked up.
MIN_CACHED = 4 << 20

_STEP = 4 << 20
# Window or dictionary that a decompressor may allocate. Kernels are packed with up to 128 MiB.
_MAX_WINDOW = 128 << 20
_LZMA_MEMORY = _MAX_WINDOW + (32 << 20)
# The legacy frame: blocks of up to 8 MiB unpacked, each after its packed size (u32).
_LZ4_MAGIC = 0x184C2102
_LZ4_BLOCK = 8 << 20


class Payload(NamedTuple):
    """Where the packed kernel lies in the bzImage (bytes), how it is packed, its size unpacked."""

    method: str
    offset: int
    length: int
    size: int


_MAGICS = ((b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x5d\0\0", "lzma"),
           (b"\x02\x21\x4c\x18", "lz4"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"\x89LZO", "lzo"))


def method_of(head: bytes) -> str | None:
    """The compression that data beginning with ``head`` has, or None."""
    return next((name for magic, name in _MAGICS if head.startswith(magic)), None)


def find(image: Image, offset: int, length: int, limit: int) -> Payload:
    """Describe the payload in ``length`` bytes at ``offset`` of the bzImage.

    ``limit`` is what it may unpack to, in bytes. Raises InputError.
    """
    name = image.name
    if length < 16:
        raise InputError(f"{name}: its compressed kernel has only {length} bytes")
    if offset + length > image.size:
        raise InputError(f"{name}: cut short: its compressed kernel ends at {offset + length:#x}, "
                         f"the file at {image.size:#x}")
    head = image.read(offset, 6)
    method = method_of(head)
    if method is None or method not in _UNPACKERS:
        what = f"{method} compression" if method else f"compression (bytes {head.hex(' ')})"
        raise InputError(f"{name}: its kernel has an unsupported {what}")
    size = struct.unpack("<I", image.read(offset + length - 4, 4))[0]
    limit = min(limit, MAX_UNPACKED)
    if not 0 < size <= limit:
        raise InputError(f"{name}: its kernel claims to unpack to {size} bytes; "
                         f"{limit} is the limit")
    return Payload(method, offset, length if method == "gzip" else length - 4, size)


def unpacked(image: FileImage, payload: Payload) -> Image:
    """The kernel inside: from the cache, or unpacked now. Raises InputError if it is damaged."""
    if payload.size < MIN_CACHED:
        return BytesImage(image.name, unpack(image, payload))
    cache = UnpackCache(image, payload.size)
    found = cache.find()
    if found is None:
        data = unpack(image, payload)
        cache.store(data)
        return BytesImage(image.name, data)
    return found


def unpack(image: Image, payload: Payload) -> bytearray:
    """Unpack to exactly ``payload.size`` bytes. Raises InputError if that gives no ELF file."""
    data = image.read(payload.offset, payload.length)
    out = bytearray()
    try:
        for part in _UNPACKERS[payload.method](data):
            out += part
            if len(out) > payload.size:
                break
    except InputError:
        raise
    except Exception as err:    # each library has its own errors, MemoryError among them
        reason = " ".join(str(err).split()) or type(err).__name__
        raise InputError(f"{image.name}: its {payload.method} kernel is damaged: "
                         f"{reason}") from None
    if len(out) != payload.size:
        how = "more" if len(out) > payload.size else f"{len(out)}"
        raise InputError(f"{image.name}: its {payload.method} kernel is damaged: "
                         f"{how} bytes came out instead of {payload.size}")
    if not out.startswith(elf.MAGIC):
        raise InputError(f"{image.name}: its {payload.method} payload is not an ELF kernel")
    return out


def unpack_stream(name: str, method: str, data: bytes, limit: int) -> bytearray:
    """A file packed as a whole, of which nothing says how large it is: up to ``limit`` bytes.

    Raises InputError if it is damaged or larger.
    """
    if method not in _UNPACKERS:
        raise InputError(f"{name}: has an unsupported {method} compression")
    out = bytearray()
    try:
        for part in _UNPACKERS[method](data):
            out += part
            if len(out) > limit:
                raise InputError(f"{name}: unpacks to more than {limit >> 20} MB")
    except InputError:
        raise
    except Exception as err:    # each library has its own errors, MemoryError among them
        reason = " ".join(str(err).split()) or type(err).__name__
        raise InputError(f"{name}: its {method} data is damaged: {reason}") from None
    return out


def _gzip(data: bytes) -> Iterator[bytes]:
    import zlib
    stream = zlib.decompressobj(wbits=31)
    while not stream.eof:
        part = stream.decompress(data, _STEP)
        data = stream.unconsumed_tail
        yield part
        if not part and not data:
            return


def _bounded(stream, data: bytes) -> Iterator[bytes]:
    """Drive a bz2 or lzma decompressor, which keeps the input it has not used yet."""
    while not stream.eof:
        part = stream.decompress(data, _STEP)
        data = b""
        yield part
        if not part and stream.needs_input:
            return


def _bzip2(data: bytes) -> Iterator[bytes]:
    import bz2
    return _bounded(bz2.BZ2Decompressor(), data)


def _xz(data: bytes) -> Iterator[bytes]:
    import lzma
    return _bounded(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_LZMA_MEMORY), data)


def _lzma(data: bytes) -> Iterator[bytes]:
    import lzma
    return _bounded(lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_LZMA_MEMORY), data)


def _lz4(data: bytes) -> Iterator[bytes]:
    import lz4.block
    view = memoryview(data)
    at = 0
    while at + 4 <= len(view):
        length = int.from_bytes(view[at:at + 4], "little")
        at += 4
        if length == _LZ4_MAGIC:        # frames may be concatenated
            continue
        if length > len(view) - at:
            raise ValueError("a block ends after the end of the data")
        yield lz4.block.decompress(view[at:at + length], uncompressed_size=_LZ4_BLOCK)
        at += length


def _zstd(data: bytes) -> Iterator[bytes]:
    import zstandard
    stream = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).stream_reader(data)
    while part := stream.read(_STEP):
        yield part


_UNPACKERS: dict[str, Callable[[bytes], Iterator[bytes]]] = {
    "gzip": _gzip, "bzip2": _bzip2, "xz": _xz, "lzma": _lzma, "lz4": _lz4, "zstd": _zstd}
