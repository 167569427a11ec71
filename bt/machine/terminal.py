# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's side of the console: the terminal bt was started on, or whatever stands for it.

Three things make this more than two loops of read and write:

1. The vCPU runs in the main thread, and runs for long stretches in compiled code. Python delivers
   signals to the main thread between bytecodes, which may be never. So the handlers do nothing,
   and the *wakeup fd* (written by Python's C-level handler, at once) tells the reader thread.
2. Raw mode outlives the process. Whatever ends the run, the terminal's settings are put back: at
   the end of the ``with`` block, at exit, and before a forced end when the guest does not stop.
3. Standard input may be a pipe, /dev/null, closed, or a terminal that belongs to another job.
"""

from __future__ import annotations

import atexit
import errno
import os
import select
import signal
import stat
import sys
import termios
import threading
import tty
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any

ESCAPE = 0x01  # Ctrl-A
HELP = """\r
Ctrl-A x       leave: stop the machine\r
Ctrl-A h       this help\r
Ctrl-A Ctrl-A  send Ctrl-A to the guest\r
"""

STATUS_LEFT = 0
STATUS_INTERNAL = 1
STATUS_BROKEN_PIPE = 128 + signal.SIGPIPE

_CHUNK = 4096
_RETRY_S = 0.02  # how soon to ask again whether the guest has read its input
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class EscapeParser:
    """Takes Ctrl-A commands out of what is typed. Keeps the state between reads."""

    def __init__(self) -> None:
        self._escaped = False

    def parse(self, data: bytes) -> tuple[bytes, str]:
        """What is meant for the guest, and the commands in it: a string of ``h`` and ``x``.

        Input after ``x`` is dropped, and so is a Ctrl-A with an unknown key.
        """
        if not self._escaped and ESCAPE not in data:
            return data, ""
        guest = bytearray()
        commands = ""
        for byte in data:
            if self._escaped:
                self._escaped = False
                if byte == ESCAPE:
                    guest.append(ESCAPE)
                elif byte in b"hH?":
                    commands += "h"
                elif byte in b"xX":
                    return bytes(guest), commands + "x"
            elif byte == ESCAPE:
                self._escaped = True
            else:
                guest.append(byte)
        return bytes(guest), commands


def has_input(fd: int = 0) -> bool:
    """Whether anything can come from ``fd``: not closed, not /dev/null, not another job's tty."""
    try:
        info = os.fstat(fd)
        if stat.S_ISCHR(info.st_mode) and info.st_rdev == os.makedev(1, 3):
            return False
        if not os.isatty(fd):
            return True
    except OSError:
        return False
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:  # not our controlling terminal: it has no jobs that could stop us
        return True


def write_all(fd: int, data: bytes) -> None:
    """Write all of ``data``, whatever mode ``fd`` is in. Raises OSError when it cannot."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:  # somebody made it non-blocking, for us too
            select.select([], [fd], [])


class Terminal:
    """A context manager: inside it, bytes from ``stdin`` go to ``on_input``.

    ``on_input(data)`` and ``on_leave(status, reason)`` are called from the reader thread and must
    be thread-safe. ``on_leave`` says that the run should end, and with which exit status: Ctrl-A x
    (0), a signal (128 + its number), output that nobody reads any more (141). Asked a second time,
    the process ends at once, so that a guest that hangs cannot keep the terminal.

    ``on_end()`` is called once when input is at its end. Piped input is read only while
    ``accepts()``, so that a guest slower than its input does not fill the host's memory. With
    ``raw``, a terminal on ``stdin`` is put into raw mode and Ctrl-A commands are looked for; other
    input is passed on untouched. ``hold`` leaves the input where it is until :meth:`release`.
    """

    def __init__(
        self,
        on_input: Callable[[bytes], None],
        on_leave: Callable[[int, str], None],
        *,
        on_end: Callable[[], None] | None = None,
        accepts: Callable[[], bool] | None = None,
        raw: bool = True,
        hold: bool = False,
        stdin: int = 0,
        stdout: int = 1,
    ) -> None:
        self._on_input, self._on_leave, self._on_end = on_input, on_leave, on_end
        self._accepts = accepts
        self._stdin, self._stdout = stdin, stdout
        self._reading = not hold and has_input(stdin)
        self._held = hold and has_input(stdin)
        self._raw = raw and has_input(stdin) and os.isatty(stdin)
        self._escapes = EscapeParser()
        self._saved: list[Any] | None = None
        self._handlers: dict[int, object] = {}
        self._leaving = False
        self._output_gone = False

    def __enter__(self) -> Terminal:
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._closing = False
        try:
            self._catch_signals()
            if self._raw:
                self._saved = termios.tcgetattr(self._stdin)
                atexit.register(self.restore)
                self._enter_raw()
            # A daemon: input that blocks must not keep the process alive.
            self._thread = threading.Thread(target=self._run, name="terminal", daemon=True)
            self._thread.start()
        except BaseException:
            self.restore()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing = True
        self._wake(0)
        self._thread.join(1.0)  # it may be inside a read of input that select promised
        self._release_signals()
        self.restore()
        atexit.unregister(self.restore)
        if not self._thread.is_alive():
            os.close(self._wake_read)
            os.close(self._wake_write)

    def restore(self) -> None:
        """Put the terminal back as it was. Any thread, any number of times."""
        saved, self._saved = self._saved, None
        if saved is not None:
            with suppress(termios.error):  # hung up: nobody is left to see it
                # Now, not when output has drained: a stopped terminal would never drain.
                termios.tcsetattr(self._stdin, termios.TCSANOW, saved)

    def release(self) -> None:
        """Start to read input that was held back. Thread-safe."""
        if self._held:
            self._held = False
            self._reading = True
            self._wake(0)

    def write(self, data: bytes) -> None:
        """Write to ``stdout``, all of it. Output that nobody reads ends the run, quietly."""
        if self._output_gone:
            return
        try:
            write_all(self._stdout, data)
        except OSError as failure:
            self._output_gone = True
            if self._leaving:
                return
            self._leaving = True
            if failure.errno in (errno.EPIPE, errno.EIO, errno.EBADF):
                self._on_leave(STATUS_BROKEN_PIPE, "nobody reads the output")
            else:
                self._on_leave(STATUS_INTERNAL, f"standard output: {failure.strerror}")

    def _enter_raw(self) -> None:
        tty.setraw(self._stdin, termios.TCSANOW)
        mode = termios.tcgetattr(self._stdin)
        # Output keeps its processing, so that messages of ours that end in \n look right too.
        mode[1] |= termios.OPOST
        termios.tcsetattr(self._stdin, termios.TCSANOW, mode)

    def _catch_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self._old_wakeup = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in (*_STOP_SIGNALS, signal.SIGCONT):
            old = signal.getsignal(number)
            if old is not signal.SIG_IGN:  # under nohup SIGHUP is ignored, and stays so
                self._handlers[number] = old
                signal.signal(number, lambda *_: None)

    def _release_signals(self) -> None:
        if self._handlers:
            for number, old in self._handlers.items():
                signal.signal(number, old)  # type: ignore[arg-type]
            self._handlers.clear()
            signal.set_wakeup_fd(self._old_wakeup)

    def _wake(self, number: int) -> None:
        """What a signal does: tell the reader thread. 0 is no signal, only a reason to look up."""
        with suppress(BlockingIOError, OSError):
            os.write(self._wake_write, bytes((number,)))

    def _run(self) -> None:
        try:
            self._loop()
        except BaseException:  # a bug; but a raw terminal with nobody reading it has no way out
            self._leaving = True
            self._on_leave(STATUS_INTERNAL, "the terminal's thread failed")
            raise

    def _loop(self) -> None:
        while not self._closing:
            full = self._reading and not self._welcome()
            wanted = [self._wake_read]
            if self._reading and not full:
                wanted.append(self._stdin)
            try:
                ready, _, _ = select.select(wanted, [], [], _RETRY_S if full else None)
            except OSError:
                self._reading = False  # stdin was closed under us
                continue
            if self._wake_read in ready:
                self._signals(os.read(self._wake_read, _CHUNK))
            if self._stdin in ready and not self._closing:
                self._read()

    def _welcome(self) -> bool:
        # What a person types is never too much, and holds the command to leave.
        return self._raw or self._accepts is None or self._accepts()

    def _signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGCONT:
                if self._saved is not None:  # the shell has had the terminal in between
                    with suppress(termios.error):  # or it hung up: SIGHUP brings a SIGCONT along
                        self._enter_raw()
            elif number in _STOP_SIGNALS:
                self._leave(128 + number, signal.Signals(number).name)

    def _read(self) -> None:
        try:
            data = os.read(self._stdin, _CHUNK)
        except BlockingIOError:
            return
        except OSError:  # EIO: the terminal hung up
            data = b""
        if not data:
            self._reading = False
            if self._on_end is not None:
                self._on_end()
            if self._raw and not self._leaving:
                self._leave(128 + signal.SIGHUP, "the terminal hung up")
            return
        if not self._raw:
            self._on_input(data)
            return
        guest, commands = self._escapes.parse(data)
        if guest:
            self._on_input(guest)
        for command in commands:
            if command == "h":
                self.write(HELP.encode())
            else:
                self._leave(STATUS_LEFT, "Ctrl-A x")

    def _leave(self, status: int, reason: str) -> None:
        if self._leaving:  # asked already, and still here
            self.restore()
            with suppress(OSError, ValueError):
                sys.stderr.flush()
            os._exit(status or 1)
        self._leaving = True
        self._on_leave(status, reason)
