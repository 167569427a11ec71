# SPDX-License-Identifier: GPL-2.0-or-later
"""A Machine for tests of the command line: runs a Python function where a guest would run."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from types import SimpleNamespace


@dataclass(frozen=True)
class Outcome:
    kind: str = "powered-off"
    status: int = 0
    report: str | None = None


class FakeMachine:
    """Records what it was given. ``guest(machine)`` is the run and returns the Outcome."""

    made: list[FakeMachine] = []
    guest = staticmethod(lambda machine: Outcome())

    def __init__(self, *, engine, machine, intercept, virtio, ram_bytes, deterministic, trace,
                 console, channels):
        self.engine, self.machine = engine, machine
        self.ram_bytes, self.deterministic = ram_bytes, deterministic
        self.trace, self.console, self.channels = trace, console, channels
        self.fed = {1: bytearray(), 2: bytearray()}
        self.news = threading.Condition()
        self.stopped: str | None = None
        self.stats = SimpleNamespace(to_json=lambda: {"exits": 42})
        type(self).made.append(self)

    def load(self, path, **how):
        self.path, self.how = path, how
        return SimpleNamespace(description=f"fake {path.name}")

    def feed(self, data, port=1):
        with self.news:
            self.fed[port] += data
            self.news.notify_all()

    def pending_input(self, port):
        return 0

    def stop(self, reason):
        with self.news:
            self.stopped = reason
            self.news.notify_all()

    def wait_for(self, condition, seconds=20):
        """Block as a running guest does, until ``condition()`` or a stop."""
        with self.news:
            assert self.news.wait_for(lambda: self.stopped is not None or condition(), seconds)

    def run(self, timeout=None):
        self.timeout = timeout
        return type(self).guest(self)
