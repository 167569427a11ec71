# SPDX-License-Identifier: GPL-2.0-or-later
"""The tree behind xenstore: nodes with values and permissions, transactions, watches.

Source: docs/misc/xenstore.txt of Xen. The tree is small (a guest may own :data:`MAX_NODES` nodes),
so it is a dictionary of whole paths, and a transaction is a copy of it that replaces the original
if nothing else has changed meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from bt.xen import abi
from bt.xen.version import GUEST_HANDLE

#: The guest's domain id, and that of whoever serves its console and store.
DOMAIN_ID = 1
BACKEND_ID = 0
HOME = f"/local/domain/{DOMAIN_ID}"

# Quotas of one unprivileged domain (xenstored's defaults).
MAX_NODES = 1000
MAX_VALUE = 2048
MAX_WATCHES = 128
MAX_TRANSACTIONS = 10
MAX_PERMISSIONS = 5
#: Changes in one transaction.
MAX_CHANGES = 1024
#: Watch events of one request; a guest that asks for more at once does not get the rest.
MAX_EVENTS = 4096

_PATH = re.compile(r"/|(/[A-Za-z0-9_@-]+)+")
_SPECIAL = ("@introduceDomain", "@releaseDomain")


class StoreError(Exception):
    """A request fails; ``name`` is what goes over the wire ("ENOENT")."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Node(NamedTuple):
    """A value and who may do what: entries "<letter><domid>" (n, r, w, b), the owner's first."""

    value: bytes
    permissions: tuple[str, ...]

    def allows(self, letters: str) -> bool:
        """Whether the guest has one of ``letters`` here: "rb" to read, "wb" to write."""
        owner = self.permissions[0]
        if int(owner[1:]) == DOMAIN_ID:
            return True
        for entry in self.permissions[1:]:
            if int(entry[1:]) == DOMAIN_ID:
                return entry[0] in letters
        return owner[0] in letters


class Watch(NamedTuple):
    """``path`` as the guest gave it, ``absolute`` as it is meant."""

    path: str
    absolute: str
    token: bytes


class Store:
    """The tree as one guest sees it. All methods but ``put`` raise StoreError.

    Paths are absolute, or relative to the guest's home. ``events`` collects what its watches saw,
    as (path, token), until the connection takes it.
    """

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {"/": Node(b"", (f"r{BACKEND_ID}",))}
        self._generation = 0
        self._transactions: dict[int, tuple[int, dict[str, Node], list[tuple[str, bool]]]] = {}
        self._last_id = 0
        self._watches: list[Watch] = []
        self.events: list[tuple[str, bytes]] = []
        self._observers: list[tuple[str, Callable[[], None]]] = []

    # For the VMM --------------------------------------------------------------------------------

    def put(self, path: str, value: bytes | str = b"", *, guest_owned: bool = False) -> None:
        """Write as the privileged domain, with all parents; the guest's watches see it."""
        data = value.encode() if isinstance(value, str) else value
        rights = (f"n{DOMAIN_ID}",) if guest_owned else (f"n{BACKEND_ID}", f"r{DOMAIN_ID}")
        parts = path.strip("/").split("/")
        for depth in range(1, len(parts)):
            parent = "/" + "/".join(parts[:depth])
            self._nodes.setdefault(parent, Node(b"", (f"n{BACKEND_ID}", f"r{DOMAIN_ID}")))
        self._nodes[path] = Node(data, rights)
        self._changed(path, False)

    def observe(self, path: str, changed: Callable[[], None]) -> None:
        """Call ``changed()`` when ``path`` is written or goes, by whomever."""
        self._observers.append((path, changed))

    def get(self, path: str) -> bytes | None:
        """The value at an absolute path, None if there is no such node."""
        node = self._nodes.get(path)
        return None if node is None else node.value

    # Reading ------------------------------------------------------------------------------------

    def read(self, path: str, transaction: int = 0) -> bytes:
        return self._node(path, transaction, "rb").value

    def directory(self, path: str, transaction: int = 0) -> list[str]:
        """Names of the children."""
        self._node(path, transaction, "rb")
        prefix = absolute(path).rstrip("/") + "/"
        return [name[len(prefix):] for name in self._view(transaction)
                if name.startswith(prefix) and "/" not in name[len(prefix):] and name != "/"]

    def permissions(self, path: str, transaction: int = 0) -> tuple[str, ...]:
        return self._node(path, transaction, "rb").permissions

    @property
    def generation(self) -> int:
        """Changes with every change to the tree."""
        return self._generation

    # Writing ------------------------------------------------------------------------------------

    def write(self, path: str, value: bytes, transaction: int = 0) -> None:
        """Set a value; the node and its parents are made if need be."""
        if len(value) > MAX_VALUE:
            raise StoreError("ENOSPC")
        self._create(path, value, transaction)

    def make(self, path: str, transaction: int = 0) -> None:
        """Make an empty node; one that exists stays as it is."""
        self._create(path, None, transaction)

    def _create(self, path: str, value: bytes | None, transaction: int) -> None:
        full = absolute(path)
        nodes = self._changing(transaction)
        node = nodes.get(full)
        if node is not None:
            if not node.allows("wb"):
                raise StoreError("EACCES")
            if value is None:
                return
            nodes[full] = node._replace(value=value)
        else:
            missing = [full]
            parent = _parent(full)
            while parent not in nodes:
                missing.append(parent)
                parent = _parent(parent)
            above = nodes[parent]
            if not above.allows("wb"):
                raise StoreError("EACCES")
            owned = sum(1 for old in nodes.values() if _owned(old))
            if owned + len(missing) > MAX_NODES:
                raise StoreError("ENOSPC")
            rights = (above.permissions[0][0] + str(DOMAIN_ID), *above.permissions[1:])
            for name in missing:
                nodes[name] = Node(b"", rights)
            nodes[full] = Node(value or b"", rights)
        self._changed(full, False, transaction)

    def remove(self, path: str, transaction: int = 0) -> None:
        """Remove a node with all below it. One that is absent is no error if its parent is there.
        """
        full = absolute(path)
        if full == "/":
            raise StoreError("EINVAL")
        nodes = self._changing(transaction)
        node = nodes.get(full)
        if node is None:
            parent = nodes.get(_parent(full))
            if parent is None:
                raise StoreError("ENOENT")
            if not parent.allows("wb"):
                raise StoreError("EACCES")
            return
        if not node.allows("wb"):
            raise StoreError("EACCES")
        for name in [name for name in nodes if name == full or name.startswith(full + "/")]:
            del nodes[name]
        self._changed(full, True, transaction)

    def set_permissions(self, path: str, entries: list[str], transaction: int = 0) -> None:
        """Only the owner may, and it cannot give the node away."""
        node = self._node(path, transaction, "wb")
        if not entries or len(entries) > MAX_PERMISSIONS or not all(
                re.fullmatch(r"[nrwb](0|[1-9][0-9]{0,4})", entry, re.ASCII) for entry in entries):
            raise StoreError("EINVAL")
        if not _owned(node):
            raise StoreError("EACCES")
        if int(entries[0][1:]) != DOMAIN_ID:
            raise StoreError("EPERM")
        full = absolute(path)
        self._changing(transaction)[full] = node._replace(permissions=tuple(entries))
        self._changed(full, False, transaction)

    # Transactions -------------------------------------------------------------------------------

    def start(self) -> int:
        """A new transaction's id, which is not 0."""
        if len(self._transactions) >= MAX_TRANSACTIONS:
            raise StoreError("ENOSPC")
        while True:
            self._last_id = self._last_id % 0x7FFF_FFFF + 1
            if self._last_id not in self._transactions:
                break
        self._transactions[self._last_id] = (self._generation, dict(self._nodes), [])
        return self._last_id

    def end(self, transaction: int, commit: bool) -> None:
        """Finish one. Raises EAGAIN if the tree has changed under it: the guest tries again."""
        found = self._transactions.pop(transaction, None)
        if found is None:
            raise StoreError("ENOENT")
        generation, nodes, changes = found
        if not commit or not changes:
            return
        if generation != self._generation:
            raise StoreError("EAGAIN")
        self._nodes = nodes
        for path, removed in changes:
            self._changed(path, removed)

    # Watches ------------------------------------------------------------------------------------

    def watch(self, path: str, token: bytes) -> None:
        """Report changes at and below ``path``; the first report comes at once."""
        full = path if path in _SPECIAL else absolute(path)
        if any(watch.path == path and watch.token == token for watch in self._watches):
            raise StoreError("EEXIST")
        if len(self._watches) >= MAX_WATCHES:
            raise StoreError("E2BIG")
        added = Watch(path, full, token)
        self._watches.append(added)
        self._report(path, added)

    def unwatch(self, path: str, token: bytes) -> None:
        if path not in _SPECIAL:
            absolute(path)
        for watch in self._watches:
            if watch.path == path and watch.token == token:
                self._watches.remove(watch)
                return
        raise StoreError("ENOENT")

    def reset(self) -> None:
        """Forget all watches and transactions of the guest."""
        self._watches.clear()
        self._transactions.clear()

    # Inside -------------------------------------------------------------------------------------

    def _view(self, transaction: int) -> dict[str, Node]:
        if transaction == 0:
            return self._nodes
        found = self._transactions.get(transaction)
        if found is None:
            raise StoreError("ENOENT")
        return found[1]

    def _changing(self, transaction: int) -> dict[str, Node]:
        if transaction in self._transactions and \
                len(self._transactions[transaction][2]) >= MAX_CHANGES:
            raise StoreError("ENOSPC")
        return self._view(transaction)

    def _node(self, path: str, transaction: int, letters: str) -> Node:
        node = self._view(transaction).get(absolute(path))
        if node is None:
            raise StoreError("ENOENT")
        if not node.allows(letters):
            raise StoreError("EACCES")
        return node

    def _changed(self, path: str, removed: bool, transaction: int = 0) -> None:
        if transaction:
            self._transactions[transaction][2].append((path, removed))
            return
        self._generation += 1
        for watch in self._watches:
            if _below(path, watch.absolute):
                seen = path
                if not watch.path.startswith("/"):
                    seen = path.removeprefix(HOME + "/")
                self._report(seen, watch)
            elif removed and _below(watch.absolute, path):
                self._report(watch.path, watch)
        for observed, changed in self._observers:
            if path == observed or removed and _below(observed, path):
                changed()

    def _report(self, path: str, watch: Watch) -> None:
        if len(self.events) < MAX_EVENTS:
            self.events.append((path, watch.token))


def absolute(path: str) -> str:
    """The whole path. Raises StoreError EINVAL for one that is not allowed."""
    if path.startswith("/"):
        full, limit = path, abi.XENSTORE_ABS_PATH_MAX
    else:
        full, limit = f"{HOME}/{path}", abi.XENSTORE_REL_PATH_MAX
    if len(path) > limit or not path or not _PATH.fullmatch(full):
        raise StoreError("EINVAL")
    return full


def _parent(path: str) -> str:
    return path.rpartition("/")[0] or "/"


def _below(path: str, root: str) -> bool:
    return root == "/" or path == root or path.startswith(root + "/")


def _owned(node: Node) -> bool:
    return int(node.permissions[0][1:]) == DOMAIN_ID


def domain_store(name: str, nr_pages: int, console_mfn: int, console_port: int) -> Store:
    """The store as a toolstack leaves it for a new domain without devices."""
    store = Store()
    uuid = GUEST_HANDLE.hex()
    uuid = "-".join((uuid[:8], uuid[8:12], uuid[12:16], uuid[16:20], uuid[20:]))
    kib = str(nr_pages * abi.PAGE_SIZE // 1024)
    store.put(f"/vm/{uuid}/uuid", uuid)
    store.put(f"/vm/{uuid}/name", name)
    store.put(HOME)
    for path, value in (
            ("vm", f"/vm/{uuid}"), ("name", name), ("domid", str(DOMAIN_ID)),
            ("cpu/0/availability", "online"), ("memory/static-max", kib), ("memory/target", kib),
            ("device/vif", ""), ("device/vbd", ""),
            ("console/backend-id", str(BACKEND_ID)), ("console/type", "xenconsoled"),
            ("console/output", "pty"), ("console/limit", "1048576"),
            ("console/ring-ref", str(console_mfn)), ("console/port", str(console_port))):
        store.put(f"{HOME}/{path}", value)
    for path in ("control", "control/shutdown", "device/suspend/event-channel", "data", "drivers",
                 "feature", "attr", "error"):
        store.put(f"{HOME}/{path}", guest_owned=True)
    return store
