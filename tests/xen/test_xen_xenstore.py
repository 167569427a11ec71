# SPDX-License-Identifier: GPL-2.0-or-later
"""xenstore over its ring, by <xen/io/xs_wire.h> and docs/misc/xenstore.txt."""

import struct

import pytest
from xenrig import XENSTORE

PORT = 1
REQ, RSP, REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD, FEATURES, CONNECTION, ERROR = (
    0, 1024, 2048, 2052, 2056, 2060, 2064, 2068, 2072)
(CONTROL, DIRECTORY, READ, GET_PERMS, WATCH, UNWATCH, START, END, INTRODUCE, RELEASE,
 DOMAIN_PATH, WRITE, MKDIR, RM, SET_PERMS, EVENT, FAILED, INTRODUCED, RESUME, SET_TARGET,
 _RESTRICT, RESET_WATCHES, DIRECTORY_PART) = range(23)
HOME = "/local/domain/1"


class Client:
    """The guest's side of the ring, careful with indices and wrap."""

    def __init__(self, rig):
        self.rig = rig
        self.inbox = bytearray()
        self.events = []
        self.request_id = 100

    def index(self, offset, value=None):
        if value is None:
            return self.rig.word(XENSTORE + offset, "<I")
        self.rig.set_word(XENSTORE + offset, value & 0xFFFF_FFFF, "<I")

    def put(self, data):
        """Write as much as fits; gives how much that was."""
        produced, consumed = self.index(REQ_PROD), self.index(REQ_CONS)
        data = data[:1024 - (produced - consumed & 0xFFFF_FFFF)]
        for at, byte in enumerate(data, produced):
            self.rig.ram.view[XENSTORE + REQ + at % 1024] = byte
        self.index(REQ_PROD, produced + len(data))
        return len(data)

    def take(self):
        produced, consumed = self.index(RSP_PROD), self.index(RSP_CONS)
        for at in range(consumed, consumed + (produced - consumed & 0xFFFF_FFFF)):
            self.inbox.append(self.rig.ram.view[XENSTORE + RSP + at % 1024])
        self.index(RSP_CONS, produced)

    def message(self):
        """The next complete message, or None."""
        if len(self.inbox) < 16:
            return None
        kind, request, transaction, length = struct.unpack_from("<IIII", self.inbox)
        assert length <= 4096
        if len(self.inbox) < 16 + length:
            return None
        body = bytes(self.inbox[16:16 + length])
        del self.inbox[:16 + length]
        return kind, request, transaction, body

    def ask(self, kind, body=b"", transaction=0):
        """Send a request and give its reply's (type, body); events go to ``events``."""
        self.request_id += 1
        data = struct.pack("<IIII", kind, self.request_id, transaction, len(body)) + body
        reply = None
        for _ in range(2000):
            data = data[self.put(data):]
            assert self.rig.send(PORT) == 0
            self.take()
            while (message := self.message()) is not None:
                if message[0] == EVENT:
                    assert message[1:3] == (0, 0)
                    self.events.append(tuple(message[3].split(b"\0")[:2]))
                else:
                    assert reply is None
                    assert message[1:3] == (self.request_id, transaction)
                    reply = message[0], message[3]
            if reply and not self.inbox and self.index(RSP_PROD) == self.index(RSP_CONS):
                return reply
        raise AssertionError("no reply")

    def ok(self, kind, *words, transaction=0):
        """The body of a reply that must not be an error; words are NUL-terminated."""
        got, body = self.ask(kind, b"".join(word.encode() + b"\0" for word in words), transaction)
        assert got == kind, body
        return body

    def fails(self, kind, *words, transaction=0):
        got, body = self.ask(kind, b"".join(word.encode() + b"\0" for word in words), transaction)
        assert got == FAILED
        return body.rstrip(b"\0").decode()

    def write(self, path, value, transaction=0):
        return self.ask(WRITE, path.encode() + b"\0" + value, transaction)


@pytest.fixture
def xs(rig):
    return Client(rig)


def test_the_guest_finds_itself(xs):
    assert xs.ok(READ, "domid") == b"1"
    assert xs.ok(READ, f"{HOME}/name") == b"ring1"
    assert xs.ok(READ, "memory/target") == b"2048"
    assert xs.ok(READ, "console/ring-ref") == b"3"
    assert xs.ok(READ, "console/port") == b"2"
    vm = xs.ok(READ, "vm").decode()
    assert xs.ok(READ, f"{vm}/name") == b"ring1"
    assert sorted(xs.ok(DIRECTORY, "device").split(b"\0")[:-1]) == [b"suspend", b"vbd", b"vif"]
    assert xs.ok(DIRECTORY, "device/vif") == b""
    assert xs.ok(DIRECTORY, "/") in (b"local\0vm\0", b"vm\0local\0")
    assert xs.ok(DOMAIN_PATH, "1") == b"/local/domain/1\0"
    assert xs.ok(INTRODUCED, "1") == b"T\0" and xs.ok(INTRODUCED, "9") == b"F\0"


def test_the_ring_raises_events_and_says_what_it_can(rig, xs):
    xs.put(struct.pack("<IIII", READ, 1, 0, 6) + b"domid\0")
    rig.send(PORT)
    assert rig.pending() == {PORT}
    assert xs.index(FEATURES) == 2 and xs.index(CONNECTION) == 0 and xs.index(ERROR) == 0
    rig.clear()
    rig.send(PORT)
    assert rig.pending() == set()


def test_write_read_remove(xs):
    assert xs.write("data/one", b"a\0b\xff") == (WRITE, b"OK\0")
    assert xs.ok(READ, "data/one") == b"a\0b\xff"
    assert xs.write("data/deep/er", b"") == (WRITE, b"OK\0")
    assert xs.ok(READ, f"{HOME}/data/deep") == b""
    assert sorted(xs.ok(DIRECTORY, "data").split(b"\0")[:-1]) == [b"deep", b"one"]
    assert xs.ok(MKDIR, "data/one") == b"OK\0"
    assert xs.ok(READ, "data/one") == b"a\0b\xff"
    assert xs.ok(RM, "data/deep") == b"OK\0"
    assert xs.fails(READ, "data/deep/er") == "ENOENT"
    assert xs.ok(RM, "data/deep") == b"OK\0"
    assert xs.fails(RM, "data/no/such") == "ENOENT"


def test_permissions(xs):
    assert xs.ok(GET_PERMS, "name") == b"n0\0r1\0"
    assert xs.write("name", b"other") == (FAILED, b"EACCES\0")
    assert xs.fails(RM, "memory/target") == "EACCES"
    assert xs.fails(MKDIR, "/tool") == "EACCES"
    assert xs.fails(SET_PERMS, "name", "n1") == "EACCES"
    xs.write("data/x", b"1")
    assert xs.ok(GET_PERMS, "data/x") == b"n1\0"
    assert xs.ok(SET_PERMS, "data/x", "n1", "r0") == b"OK\0"
    assert xs.ok(GET_PERMS, "data/x") == b"n1\0r0\0"
    assert xs.fails(SET_PERMS, "data/x", "n0") == "EPERM"
    for bad in ("x1", "n", "n-1", "n123456", "n1 ", ""):
        assert xs.fails(SET_PERMS, "data/x", bad) == "EINVAL"
    assert xs.fails(SET_PERMS, "data/x") == "EINVAL"


def test_what_linux_writes_at_boot(xs):
    for name in ("feature-poweroff", "feature-reboot", "feature-suspend", "platform-feature-xs"):
        assert xs.write(f"control/{name}", b"1") == (WRITE, b"OK\0")
    assert xs.write("control/shutdown", b"") == (WRITE, b"OK\0")


@pytest.mark.parametrize("path", [
    "", "//", "/local//domain", "data/", "data//x", "data/a b", "data/\xe9", "data/\x01",
    "a" * 2049, "/" + "a" * 3072, "data/../x", "*"])
def test_paths_that_are_none(xs, path):
    for kind in (READ, DIRECTORY, MKDIR, RM):
        assert xs.fails(kind, path) == "EINVAL"


@pytest.mark.parametrize(("kind", "body"), [
    (READ, b""), (READ, b"domid"), (WRITE, b"data/x"), (WATCH, b"x\0"), (UNWATCH, b"x\0"),
    (END, b""), (END, b"X\0"), (DOMAIN_PATH, b"x\0"), (DOMAIN_PATH, b"99999999999\0"),
    (DIRECTORY_PART, b"device\0"), (DIRECTORY_PART, b"device\0-1\0"), (RM, b"/\0")])
def test_requests_without_sense(xs, kind, body):
    assert xs.ask(kind, body) == (FAILED, b"EINVAL\0")


@pytest.mark.parametrize("kind", [CONTROL, INTRODUCE, RELEASE, RESUME, SET_TARGET])
def test_requests_of_privileged_domains(xs, kind):
    assert xs.fails(kind, "1") == "EACCES"


@pytest.mark.parametrize("kind", [20, 23, 0xFFFF, 0xFFFF_FFFF, EVENT, FAILED])
def test_requests_that_do_not_exist(xs, kind):
    assert xs.fails(kind, "x") == "ENOSYS"


def test_watches(rig, xs):
    assert xs.ok(WATCH, "data", "my token") == b"OK\0"
    assert xs.events == [(b"data", b"my token")]
    xs.events.clear()
    assert xs.fails(WATCH, "data", "my token") == "EEXIST"
    xs.write("data/a", b"1")
    xs.write("control/shutdown", b"")
    assert xs.events == [(b"data/a", b"my token")]
    xs.events.clear()
    xs.ok(WATCH, f"{HOME}/data/a", "deep")
    xs.events.clear()
    xs.ok(RM, "data")
    assert set(xs.events) == {(b"data", b"my token"), (f"{HOME}/data/a".encode(), b"deep")}
    xs.events.clear()
    assert xs.ok(UNWATCH, "data", "my token") == b"OK\0"
    assert xs.fails(UNWATCH, "data", "my token") == "ENOENT"
    assert xs.ok(WATCH, "@releaseDomain", "t") == b"OK\0"
    assert xs.ok(RESET_WATCHES, "") == b"OK\0"
    xs.events.clear()
    xs.write("feature/b", b"")
    assert xs.events == []


def test_a_change_from_outside_wakes_the_guest(rig, xs):
    xs.ok(WATCH, "control/shutdown", "s")
    xs.events.clear()
    rig.clear()
    rig.xen.xenstore.put(f"{HOME}/control/shutdown", "poweroff")
    assert rig.pending() == {PORT}
    assert xs.ok(READ, "control/shutdown") == b"poweroff"
    assert xs.events == [(b"control/shutdown", b"s")]


def test_transactions(xs):
    one = int(xs.ok(START, "").rstrip(b"\0"))
    assert one != 0
    xs.write("data/t", b"inside", transaction=one)
    assert xs.fails(READ, "data/t") == "ENOENT"
    assert xs.ok(READ, "data/t", transaction=one) == b"inside"
    assert xs.ok(END, "T", transaction=one) == b"OK\0"
    assert xs.ok(READ, "data/t") == b"inside"
    assert xs.fails(END, "T", transaction=one) == "ENOENT"
    assert xs.fails(READ, "data/t", transaction=one) == "ENOENT"


def test_a_transaction_given_up(xs):
    one = int(xs.ok(START, "").rstrip(b"\0"))
    xs.ok(RM, "data", transaction=one)
    assert xs.ok(END, "F", transaction=one) == b"OK\0"
    assert xs.ok(READ, "data") == b""


def test_transactions_that_collide(xs):
    one = int(xs.ok(START, "").rstrip(b"\0"))
    xs.write("data/t", b"1", transaction=one)
    xs.write("data/u", b"2")
    assert xs.fails(END, "T", transaction=one) == "EAGAIN"
    assert xs.fails(READ, "data/t") == "ENOENT"
    readonly = int(xs.ok(START, "").rstrip(b"\0"))
    xs.ok(READ, "data/u", transaction=readonly)
    xs.write("data/u", b"3")
    assert xs.ok(END, "T", transaction=readonly) == b"OK\0"
    assert xs.fails(START, "", transaction=7) == "EBUSY"


def test_watches_fire_when_a_transaction_ends(xs):
    xs.ok(WATCH, "data", "t")
    xs.events.clear()
    one = int(xs.ok(START, "").rstrip(b"\0"))
    xs.write("data/a", b"", transaction=one)
    assert xs.events == []
    xs.ok(END, "T", transaction=one)
    assert xs.events == [(b"data/a", b"t")]


def test_quotas(xs):
    for _ in range(10):
        xs.ok(START, "")
    assert xs.fails(START, "") == "ENOSPC"
    assert xs.write("data/x", bytes(2049)) == (FAILED, b"ENOSPC\0")
    assert xs.write("data/x", bytes(2048)) == (WRITE, b"OK\0")
    for number in range(128):
        xs.ok(WATCH, "data", f"{number}")
    assert xs.fails(WATCH, "data", "one more") == "E2BIG"


def test_nodes_run_out(xs):
    made = 0
    while (reply := xs.write(f"data/{made}", b""))[0] == WRITE:
        made += 1
    assert reply == (FAILED, b"ENOSPC\0") and 900 < made < 1000
    xs.ok(RM, "data/0")
    assert xs.write("data/again", b"")[0] == WRITE


def test_a_directory_too_large_for_one_reply(xs):
    names = {f"{'n' * 20}-{number}" for number in range(300)}
    for name in names:
        xs.write(f"data/{name}", b"")
    assert xs.fails(DIRECTORY, "data") == "E2BIG"
    found, offset, generation = b"", 0, None
    while True:
        body = xs.ok(DIRECTORY_PART, "data", str(offset))
        stamp, part = body.split(b"\0", 1)
        assert generation in (None, stamp)
        generation = stamp
        if part.endswith(b"\0\0") or part == b"\0":
            found += part[:-1]
            break
        found += part
        offset += len(part)
    assert {name.decode() for name in found.split(b"\0")[:-1]} == names


def test_a_transaction_cannot_grow_without_bound(xs):
    one = int(xs.ok(START, "").rstrip(b"\0"))
    replies = {xs.write("data/x", b"", transaction=one) for _ in range(1100)}
    assert (FAILED, b"ENOSPC\0") in replies
    assert xs.ok(END, "F", transaction=one) == b"OK\0"


def test_requests_in_pieces_and_in_a_row(rig, xs):
    data = b"".join(struct.pack("<IIII", READ, number, 0, 6) + b"domid\0" for number in range(5))
    for byte in data:
        xs.put(bytes([byte]))
        rig.send(PORT)
    xs.take()
    for number in range(5):
        assert xs.message() == (READ, number, 0, b"1")


def test_a_guest_that_takes_no_answers_stops_only_itself(rig, xs):
    request = struct.pack("<IIII", READ, 1, 0, 5) + b"name\0"
    sent = 0
    for _ in range(1000):
        if xs.put(request) < len(request):
            break
        sent += 1
        rig.send(PORT)
    assert sent < 200
    # The rest of the request that was cut is never sent: the answers to the whole ones come.
    xs.take()
    rig.send(PORT)
    for _ in range(100):
        xs.take()
        rig.send(PORT)
    answers = 0
    while xs.message():
        answers += 1
    assert answers >= sent


@pytest.mark.parametrize(("offset", "value"), [
    (REQ_PROD, 1025), (REQ_PROD, 0xFFFF_FFFF), (REQ_CONS, 1)])
def test_request_indices_without_sense(rig, xs, offset, value):
    xs.index(offset, value)
    assert rig.send(PORT) == 0
    assert xs.index(ERROR) == 2
    assert rig.pending() == {PORT}


def test_reply_indices_without_sense(rig, xs):
    xs.put(struct.pack("<IIII", READ, 1, 0, 6) + b"domid\0")
    xs.index(RSP_CONS, 5)
    assert rig.send(PORT) == 0
    assert xs.index(ERROR) == 2
    assert rig.send(PORT) == 0


def test_a_message_longer_than_the_protocol_allows(rig, xs):
    xs.put(struct.pack("<IIII", READ, 1, 0, 4097))
    assert rig.send(PORT) == 0
    assert xs.index(ERROR) == 3
    xs.put(struct.pack("<IIII", READ, 1, 0, 6) + b"domid\0")
    rig.send(PORT)
    assert xs.index(RSP_PROD) == 0


def test_an_event_that_does_not_fit_is_left_out(xs):
    token = "t" * 4000
    xs.ok(WATCH, "data", token)
    assert len(xs.events) == 1
    xs.events.clear()
    xs.write("data/" + "n" * 1000, b"")
    assert xs.events == []
