# SPDX-License-Identifier: GPL-2.0-or-later
"""The socket, and the loop in which gdb and the guest take turns.

Two threads, never at once: the vCPU's thread talks to gdb while the guest stands still; while the
guest runs, a listener waits for a byte from gdb (Ctrl-C, or the end of the connection) and only
asks the machine to pause. It reads nothing, so no byte is lost between the two.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from bt.errors import InputError
from bt.gdb.packet import Decoder, Signal, encode
from bt.gdb.session import SIGINT, SIGTRAP, Resume, Segment, Session

if TYPE_CHECKING:
    from bt.machine.machine import Machine, Outcome

LOOPBACK = "127.0.0.1"
_INTERRUPTED = "gdb"    # kind of the outcome of a run that the listener paused


class GdbServer:
    """A port for one gdb at a time. ``port`` 0: one that is free. Raises InputError.

    Only this machine can reach it, unless ``host`` says otherwise: who reaches it controls the
    guest altogether.
    """

    def __init__(self, port: int = 0, host: str = LOOPBACK) -> None:
        try:
            self._listening = socket.create_server((host, port))
        except OSError as error:
            raise InputError(f"cannot listen on port {port} for gdb: {error.strerror}") from None
        self.address: tuple[str, int] = self._listening.getsockname()[:2]
        self._wake_read, self._wake_write = os.pipe()
        self._left = False

    def leave(self) -> None:
        """From any thread: stop waiting for gdb; the machine is to end."""
        self._left = True
        os.write(self._wake_write, b"x")

    def close(self) -> None:
        """Close the port."""
        self._listening.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def run(self, machine: Machine, timeout: float | None = None,
            segments: Iterable[Segment] = ()) -> Outcome:
        """Run ``machine`` under gdb: wait for it before the first instruction.

        A gdb that detaches leaves the guest running; another one may attach then.
        """
        def time_out() -> None:
            machine.stop("timeout")
            self.leave()

        alarm = None if timeout is None else threading.Timer(timeout, time_out)
        if alarm is not None:
            alarm.daemon = True
            alarm.start()
        try:
            connection = self._accept()
            while connection is not None:
                with connection:
                    outcome = _Talk(self, connection, machine, segments).serve()
                if outcome is not None:
                    return outcome
                connection, outcome = self._alone(machine)
                if outcome is not None:
                    return outcome
            return self.ended(machine)
        finally:
            if alarm is not None:
                alarm.cancel()

    def ended(self, machine: Machine) -> Outcome:
        """The outcome of a machine that is to end, because it was told to stop, or for gdb."""
        machine.stop("gdb")
        return machine.run()

    def wait(self, *sockets: socket.socket) -> list[socket.socket | int]:
        """Those of ``sockets`` that have something; none when the machine is to end."""
        watched: list[socket.socket | int] = [*sockets, self._wake_read]
        ready, _, _ = select.select(watched, [], [])
        return [] if self._left else [one for one in ready if one != self._wake_read]

    def _accept(self) -> socket.socket | None:
        if not self.wait(self._listening):
            return None
        connection, _ = self._listening.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _alone(self, machine: Machine) -> tuple[socket.socket | None, Outcome | None]:
        """Run without a gdb until the guest ends, or another one comes."""
        with _Listener(self._listening, lambda: machine.pause(_INTERRUPTED)):
            outcome = machine.run()
        if outcome.kind != _INTERRUPTED:
            return None, outcome
        return self._accept(), None


class _Listener:
    """While the guest runs: calls ``wake`` once when a socket has something to read."""

    def __init__(self, watched: socket.socket, wake: Callable[[], None]) -> None:
        self._watched = watched
        self._wake = wake
        self._end_read, self._end_write = os.pipe()
        self._thread = threading.Thread(target=self._listen, name="gdb", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        os.write(self._end_write, b"x")
        self._thread.join()
        os.close(self._end_read)
        os.close(self._end_write)

    def _listen(self) -> None:
        watched: list[socket.socket | int] = [self._watched, self._end_read]
        ready, _, _ = select.select(watched, [], [])
        if self._watched in ready:
            self._wake()


class _Gone(Exception):
    """The connection has ended."""


class _Talk:
    """One connection."""

    def __init__(self, server: GdbServer, connection: socket.socket, machine: Machine,
                 segments: Iterable[Segment]) -> None:
        self._server = server
        self._connection = connection
        self._machine = machine
        self._session = Session(machine, segments)
        self._decoder = Decoder()
        self._waiting: list[bytes | Signal] = []
        self._last = b""        # the last packet sent, in case it has to be sent again

    def serve(self) -> Outcome | None:
        """Until the guest ends (its Outcome) or gdb leaves it to itself (None)."""
        try:
            while True:
                resume = self._requests()
                if resume is None or resume.kill:
                    return self._server.ended(self._machine)
                if resume.detach:
                    return None
                outcome = self._run(resume)
                if outcome is not None:
                    return outcome
        except (_Gone, OSError):
            return None
        finally:
            self._session.close()

    def _run(self, resume: Resume) -> Outcome | None:
        """Let the guest go and tell gdb how it stopped; the Outcome if it cannot go on."""
        machine, session = self._machine, self._session
        with _Listener(self._connection, lambda: machine.pause(_INTERRUPTED)):
            outcome = machine.step(interrupts=False) if resume.step else machine.run()
        if outcome is None:
            reply = session.stopped(SIGTRAP)
        elif outcome.kind == "breakpoint":
            reply = session.hit()
        elif outcome.kind == _INTERRUPTED:
            self._take_interrupt()
            reply = session.stopped(SIGINT)
        else:
            reply = session.ended(outcome)
        self._send(reply)
        if outcome is None or not reply.startswith(b"W"):
            return None
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)
        return outcome

    def _take_interrupt(self) -> None:
        """The byte that paused the guest: 0x03, or requests that came too early, which stay."""
        if select.select([self._connection], [], [], 0)[0]:
            self._receive()
        if Signal.INTERRUPT in self._waiting:
            self._waiting.remove(Signal.INTERRUPT)

    def _requests(self) -> Resume | None:
        """Answer requests until one lets the guest run. None: the machine is to end."""
        while True:
            while not self._waiting:
                if not self._server.wait(self._connection):
                    return None
                self._receive()
            item = self._waiting.pop(0)
            if item is Signal.NACK:
                self._connection.sendall(self._last)
            elif item is Signal.BROKEN:
                if self._session.acknowledges:
                    self._connection.sendall(b"-")
            elif isinstance(item, bytes):
                if self._session.acknowledges:
                    self._connection.sendall(b"+")
                reply = self._session.answer(item)
                if reply is not None:
                    self._send(reply)
                if self._session.resume is not None:
                    return self._session.resume

    def _receive(self) -> None:
        data = self._connection.recv(4096)
        if not data:
            raise _Gone
        self._waiting += self._decoder.feed(data)

    def _send(self, reply: bytes) -> None:
        self._last = encode(reply)
        self._connection.sendall(self._last)
