# SPDX-License-Identifier: GPL-2.0-or-later
"""xenstore over the shared ring: <xen/io/xs_wire.h> and docs/misc/xenstore.txt of Xen.

The guest puts requests into one ring and we put replies and watch events into the other. As long as
replies do not fit, no further request is read: a guest that never takes its answers stops only
itself. Ring indices that make no sense, or a message longer than the protocol allows, end the
connection, and the ring says why.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from bt.machine.ram import Ram
from bt.xen import abi, ring
from bt.xen.store import DOMAIN_ID, Store, StoreError

_OK = b"OK\0"
# Of a node's name in replies: generation count and offset of DIRECTORY_PART.
_PART_ROOM = abi.XENSTORE_PAYLOAD_MAX - 32


class StoreRing:
    """One guest's connection. The owner sets ``raise_event``, which sends to the guest."""

    def __init__(self, ram: Ram, page: int, store: Store) -> None:
        self._view = ram.view
        self._page = page
        self._store = store
        self._in = bytearray()
        self._out = bytearray()
        self._broken = False
        self.raise_event: Callable[[], None] = lambda: None
        self._requests: dict[int, Callable[[int, bytes], bytes]] = {
            abi.XS_CONTROL: self._privileged,
            abi.XS_DIRECTORY: self._directory,
            abi.XS_READ: lambda tx, body: store.read(_path(body), tx),
            abi.XS_GET_PERMS: self._get_perms,
            abi.XS_WATCH: self._watch,
            abi.XS_UNWATCH: self._unwatch,
            abi.XS_TRANSACTION_START: self._start,
            abi.XS_TRANSACTION_END: self._end,
            abi.XS_INTRODUCE: self._privileged,
            abi.XS_RELEASE: self._privileged,
            abi.XS_GET_DOMAIN_PATH: lambda tx, body: f"/local/domain/{_domid(body)}\0".encode(),
            abi.XS_WRITE: self._write,
            abi.XS_MKDIR: self._mkdir,
            abi.XS_RM: self._rm,
            abi.XS_SET_PERMS: self._set_perms,
            abi.XS_IS_DOMAIN_INTRODUCED: lambda tx, body: (
                b"T\0" if _domid(body) in (0, DOMAIN_ID) else b"F\0"),
            abi.XS_RESUME: self._privileged,
            abi.XS_SET_TARGET: self._privileged,
            abi.XS_RESET_WATCHES: self._reset_watches,
            abi.XS_DIRECTORY_PART: self._directory_part,
        }
        struct.pack_into("<I", self._view, page + abi.XENSTORE_SERVER_FEATURES,
                         abi.XENSTORE_SERVER_FEATURE_ERROR)

    def put(self, path: str, value: bytes | str) -> None:
        """Write to the store from outside of the guest, and tell the guest's watches."""
        self._store.put(path, value)
        self._send_events()
        if self._flush():
            self.raise_event()

    def notified(self) -> None:
        """The guest has written a request or taken a reply: go on as far as possible."""
        moved = False
        while not self._broken:
            moved |= self._flush()
            if self._out or self._broken:
                break
            if not self._next_request():
                if not self._receive():
                    break
                moved = True
        if moved or self._broken:
            self.raise_event()

    # The rings ----------------------------------------------------------------------------------

    def _index(self, offset: int) -> int:
        return struct.unpack_from("<I", self._view, self._page + offset)[0]

    def _set(self, offset: int, value: int) -> None:
        struct.pack_into("<I", self._view, self._page + offset, value & 0xFFFF_FFFF)

    def _used(self, produced: int, consumed: int) -> int | None:
        used = produced - consumed & 0xFFFF_FFFF
        if used <= abi.XENSTORE_RING_SIZE:
            return used
        self._break(abi.XENSTORE_ERROR_RINGIDX)
        return None

    def _break(self, why: int) -> None:
        self._broken = True
        self._store.reset()
        self._set(abi.XENSTORE_ERROR, why)

    def _receive(self) -> bool:
        """Take what is in the request ring. False if that is nothing."""
        consumed = self._index(abi.XENSTORE_REQ_CONS)
        produced = self._index(abi.XENSTORE_REQ_PROD)
        used = self._used(produced, consumed)
        if not used:
            return False
        self._in += ring.read(self._view, self._page + abi.XENSTORE_REQ, abi.XENSTORE_RING_SIZE,
                              consumed, used)
        self._set(abi.XENSTORE_REQ_CONS, produced)
        return True

    def _flush(self) -> bool:
        """Put waiting output into the reply ring. True if anything moved."""
        if not self._out:
            return False
        consumed = self._index(abi.XENSTORE_RSP_CONS)
        produced = self._index(abi.XENSTORE_RSP_PROD)
        used = self._used(produced, consumed)
        if used is None or used == abi.XENSTORE_RING_SIZE:
            return False
        data = self._out[:abi.XENSTORE_RING_SIZE - used]
        del self._out[:len(data)]
        ring.write(self._view, self._page + abi.XENSTORE_RSP, abi.XENSTORE_RING_SIZE, produced,
                   data)
        self._set(abi.XENSTORE_RSP_PROD, produced + len(data))
        return True

    # Requests -----------------------------------------------------------------------------------

    def _next_request(self) -> bool:
        """Answer one complete request. False if there is none yet."""
        header = abi.XSD_SOCKMSG
        if len(self._in) < header.size:
            return False
        kind, request, transaction, length = header.unpack_from(self._in)
        if length > abi.XENSTORE_PAYLOAD_MAX:
            self._break(abi.XENSTORE_ERROR_PROTO)
            return False
        end = header.size + length
        if len(self._in) < end:
            return False
        body = bytes(self._in[header.size:end])
        del self._in[:end]
        handler = self._requests.get(kind)
        try:
            if handler is None:
                raise StoreError("ENOSYS")
            answer = handler(transaction, body)
            if len(answer) > abi.XENSTORE_PAYLOAD_MAX:
                raise StoreError("E2BIG")
        except StoreError as error:
            kind, answer = abi.XS_ERROR, error.name.encode() + b"\0"
        self._send(kind, request, transaction, answer)
        self._send_events()
        return True

    def _send(self, kind: int, request: int, transaction: int, body: bytes) -> None:
        self._out += abi.XSD_SOCKMSG.pack(kind, request, transaction, len(body)) + body

    def _send_events(self) -> None:
        events = self._store.events
        for path, token in events:
            body = path.encode() + b"\0" + token + b"\0"
            if len(body) <= abi.XENSTORE_PAYLOAD_MAX:
                self._send(abi.XS_WATCH_EVENT, 0, 0, body)
        events.clear()

    def _privileged(self, transaction: int, body: bytes) -> bytes:
        raise StoreError("EACCES")

    def _directory(self, transaction: int, body: bytes) -> bytes:
        names = self._store.directory(_path(body), transaction)
        return b"".join(name.encode() + b"\0" for name in names)

    def _directory_part(self, transaction: int, body: bytes) -> bytes:
        """<path>|<offset> -> <generation>|<names>, the last name empty at the end of the list."""
        path, offset = _words(body, 2)
        if not offset.isdigit() or len(offset) > 9:
            raise StoreError("EINVAL")
        names = self._store.directory(_text(path), transaction)
        rest = b"".join(name.encode() + b"\0" for name in names)[int(offset):]
        answer = str(self._store.generation).encode() + b"\0"
        if len(rest) < _PART_ROOM:
            return answer + rest + b"\0"
        return answer + rest[:rest.rindex(b"\0", 0, _PART_ROOM) + 1]

    def _get_perms(self, transaction: int, body: bytes) -> bytes:
        entries = self._store.permissions(_path(body), transaction)
        return b"".join(entry.encode() + b"\0" for entry in entries)

    def _set_perms(self, transaction: int, body: bytes) -> bytes:
        path, *entries = _words(body, None)
        self._store.set_permissions(_text(path), [_text(entry) for entry in entries], transaction)
        return _OK

    def _write(self, transaction: int, body: bytes) -> bytes:
        path, separator, value = body.partition(b"\0")
        if not separator:
            raise StoreError("EINVAL")
        self._store.write(_text(path), value, transaction)
        return _OK

    def _mkdir(self, transaction: int, body: bytes) -> bytes:
        self._store.make(_path(body), transaction)
        return _OK

    def _rm(self, transaction: int, body: bytes) -> bytes:
        self._store.remove(_path(body), transaction)
        return _OK

    def _start(self, transaction: int, body: bytes) -> bytes:
        if transaction:
            raise StoreError("EBUSY")
        return f"{self._store.start()}\0".encode()

    def _end(self, transaction: int, body: bytes) -> bytes:
        if body not in (b"T\0", b"F\0"):
            raise StoreError("EINVAL")
        self._store.end(transaction, commit=body == b"T\0")
        return _OK

    def _watch(self, transaction: int, body: bytes) -> bytes:
        path, token = _words(body, 2)
        self._store.watch(_text(path), token)
        return _OK

    def _unwatch(self, transaction: int, body: bytes) -> bytes:
        path, token = _words(body, 2)
        self._store.unwatch(_text(path), token)
        return _OK

    def _reset_watches(self, transaction: int, body: bytes) -> bytes:
        self._store.reset()
        return _OK


def _words(body: bytes, count: int | None) -> list[bytes]:
    """The NUL-terminated strings of a request: ``count`` of them, or any number from 1."""
    if not body.endswith(b"\0"):
        raise StoreError("EINVAL")
    words = body[:-1].split(b"\0")
    # Some requests may carry more than is needed; it is ignored.
    if count is not None and len(words) < count:
        raise StoreError("EINVAL")
    return words if count is None else words[:count]


def _text(word: bytes) -> str:
    try:
        return word.decode("ascii")
    except UnicodeDecodeError:
        raise StoreError("EINVAL") from None


def _path(body: bytes) -> str:
    return _text(_words(body, 1)[0])


def _domid(body: bytes) -> int:
    word = _words(body, 1)[0]
    if not word.isdigit() or len(word) > 5 or int(word) >= abi.DOMID_FIRST_RESERVED:
        raise StoreError("EINVAL")
    return int(word)
