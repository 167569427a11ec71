# SPDX-License-Identifier: GPL-2.0-or-later
"""``driver.py GUEST ARGS...``: the ``bt`` command on a machine that runs GUEST, a function here."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import ModuleType

sys.path.insert(0, str(Path(__file__).parents[2]))

from fake_machine import FakeMachine, Outcome  # noqa: E402

from bt.cli.main import main  # noqa: E402


def echo(machine):
    """Sends back what it gets on the console; q powers off with status 5."""
    machine.console(b"ready\r\n")
    seen = 0
    while True:
        machine.wait_for(lambda seen=seen: len(machine.fed[1]) > seen)
        if machine.stopped is not None:
            return Outcome("stopped")
        data, seen = bytes(machine.fed[1][seen:]), len(machine.fed[1])
        machine.console(b"<" + data.hex().encode() + b">")
        if b"q" in data:
            return Outcome(status=5)


def stubborn(machine):
    """Does not stop."""
    machine.console(b"ready\r\n")
    while True:
        time.sleep(0.01)


def buggy(machine):
    machine.console(b"ready\r\n")
    raise RuntimeError("a bug of ours")


def deaf(machine):
    """Takes no input: feed() has a bug."""
    machine.feed = lambda data, port: 1 / 0
    machine.console(b"ready\r\n")
    machine.wait_for(lambda: False)
    return Outcome("stopped")


def flood(machine):
    """Writes until it is told to stop."""
    while machine.stopped is None:
        machine.console(b"y\n" * 100)
    return Outcome("stopped")


def command(machine):
    """A command that reads its input to the end and writes it back, and one line of errors."""
    machine.console(b"kernel message\r\n")
    machine.channels[2](b"\x06")
    machine.wait_for(lambda: machine.fed[2].endswith(b"\n\x04"))
    machine.channels[3](b"done\n")
    machine.channels[2](bytes(machine.fed[2][:-1]))
    return Outcome(status=7)


FakeMachine.guest = staticmethod(globals()[sys.argv[1]])
module = ModuleType("bt.machine.machine")
module.Machine = FakeMachine
sys.modules["bt.machine.machine"] = module
sys.exit(main(sys.argv[2:]))
