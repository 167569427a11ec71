# SPDX-License-Identifier: GPL-2.0-or-later
"""A running guest's streams: the console and a command's input and output, on bt's own.

Without a command the guest's first serial port is the terminal. With ``-- CMD`` (linux only) the
command has two ports of its own: COM2 is its input and output, COM3 its errors. The console's
messages are then kept back and shown only when the guest dies, or at once with ``-v``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from bt.cli import devices, gdb
from bt.cli.plan import Plan
from bt.cli.stdin import END, READY, encode, for_hvc
from bt.errors import EXIT_GUEST_DIED, EXIT_TIME_LIMIT
from bt.machine.terminal import STATUS_INTERNAL, Terminal, write_all

if TYPE_CHECKING:
    from bt.machine.machine import Machine, Outcome

_INPUT_AHEAD = 64 * 1024  # bytes of piped input to read before the guest has
_KEPT_CONSOLE = 64 * 1024  # bytes of console kept back for a report


class Session:
    """The streams between one machine and this process, while it runs and after.

    What feeds the guest, and when: a person's typing at once, to a guest that still boots too.
    Piped input to our own /init waits for its READY on COM2, and so does a command's input, since
    a port that is being opened loses what it holds. Others' guests get theirs at once.
    """

    def __init__(self, options: argparse.Namespace, plan: Plan, extras: devices.Devices) -> None:
        from bt.engines import ENGINES

        # A Xen domain has no serial ports: everything goes over its console.
        self._one_console = ENGINES[options.engine].paravirtual or extras.one_console
        self._has_command = options.command is not None
        self._verbose = options.verbose
        self._kept = bytearray()  # console not shown
        self._at_line_start = True
        self._left: tuple[int, str] | None = None
        self._machine: Machine | None = None
        self._door: gdb.Door | None = None
        self.channels: dict[int, Callable[[bytes], None]] = {}
        if self._has_command:
            self._awaits_ready = plan.passes_stdin
            self.channels = {2: self._command_output, 3: self._command_errors}
        else:
            self._awaits_ready = plan.announces_input
            if self._awaits_ready:
                ready = self._domain_console if self._one_console else self._console_ready
                self.channels = {2: ready}
        self._terminal = Terminal(
            self._feed,
            self._leave,
            on_end=self._end_of_input,
            accepts=self._accepts,
            raw=not self._has_command,
            hold=self._has_command or (self._awaits_ready and not os.isatty(0)),
        )

    def run(self, machine: Machine, timeout: float | None, door: gdb.Door | None) -> Outcome:
        """Run ``machine`` (with this object's sinks) while the terminal is connected to it."""
        self._machine = machine
        self._door = door
        with self._terminal:
            return machine.run(timeout=timeout) if door is None else door.run(machine, timeout)

    def finish(self, outcome: Outcome) -> int:
        """Say how it ended where that needs words; the exit status."""
        if outcome.kind == "died":
            self._show_kept_console()
            self._say(outcome.report or "the guest died")
            return EXIT_GUEST_DIED
        if outcome.kind == "timeout":
            self._say("bt: time limit")
            return EXIT_TIME_LIMIT
        if outcome.kind == "stopped" and self._left is not None:
            status, reason = self._left
            if status == STATUS_INTERNAL:
                self._say(f"bt: {reason}")
            return status
        return outcome.status

    def console(self, data: bytes) -> None:
        """Sink of COM1."""
        if not self._has_command:
            self._terminal.write(data)
        elif self._verbose:
            self._command_errors(data)
        else:
            self._kept += data
            if len(self._kept) > 2 * _KEPT_CONSOLE:
                del self._kept[:-_KEPT_CONSOLE]
            return
        self._at_line_start = data.endswith(b"\n")

    def _command_output(self, data: bytes) -> None:
        if self._awaits_ready:
            self._awaits_ready = False
            self._terminal.release()
            data = data.removeprefix(READY)
        self._terminal.write(data)

    def _command_errors(self, data: bytes) -> None:
        with suppress(OSError):  # a closed stderr is no reason to stop
            write_all(2, data)

    def _console_ready(self, _: bytes) -> None:
        self._terminal.release()

    def _domain_console(self, data: bytes) -> None:
        """A Xen domain has one console: READY comes in the middle of what it shows."""
        if self._awaits_ready and READY in data:
            self._awaits_ready = False
            self._terminal.release()
            data = data.replace(READY, b"", 1)
        self.console(data)

    def _feed(self, data: bytes) -> None:
        assert self._machine is not None
        if self._has_command:
            coded = encode(data)
            self._machine.feed(for_hvc(coded) if self._one_console else coded, port=2)
        else:
            self._machine.feed(data, port=1)

    def _accepts(self) -> bool:
        assert self._machine is not None
        return self._machine.pending_input(2 if self._has_command else 1) < _INPUT_AHEAD

    def _end_of_input(self) -> None:
        # A console has no end of input: the guest goes on until it powers off.
        if self._has_command:
            assert self._machine is not None
            self._machine.feed(END, port=2)

    def _leave(self, status: int, reason: str) -> None:
        assert self._machine is not None
        self._left = (status, reason)
        self._machine.stop(reason)
        if self._door is not None:
            self._door.leave()

    def _show_kept_console(self) -> None:
        self._command_errors(bytes(self._kept[-_KEPT_CONSOLE:]).replace(b"\r\n", b"\n"))
        if self._kept:
            self._at_line_start = self._kept.endswith(b"\n")

    def _say(self, text: str) -> None:
        if not self._at_line_start:
            text = "\n" + text
        print(text, file=sys.stderr)
