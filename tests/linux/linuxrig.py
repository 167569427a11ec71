# SPDX-License-Identifier: GPL-2.0-or-later
"""``bt`` as a process of its own, for the tests that boot Debian's kernel."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pexpect
import pytest

ROOT = Path(__file__).parents[2]
#: Seconds for a run that hangs. A boot takes one or two; a loaded machine may take far longer.
PATIENCE = 240
#: The engines under which Linux finds a PC. Under pv it is a Xen domain: tests/xen has the like.
PC_ENGINES = pytest.mark.parametrize("engine", ["bt", "hvm"])
#: The prompt of the shell that ``bt run linux`` gives.
PROMPT = "/root # "


def bt_command(*arguments: str) -> list[str]:
    """The argv of a ``bt`` process; argv[0] is an absolute path."""
    return [sys.executable, "-m", "bt", *arguments]


@dataclass(frozen=True)
class Result:
    """How a ``bt`` process ended; ``out`` and ``err`` are its output and errors, as text."""

    status: int
    out: str
    err: str


class Terminal(pexpect.spawn):
    """A person at ``bt run linux``."""

    def __init__(self, *arguments: str) -> None:
        argv = bt_command("run", "linux", *arguments)
        # A size that no default would have.
        super().__init__(argv[0], argv[1:], timeout=60, cwd=str(ROOT), encoding="utf-8",
                         codec_errors="replace", dimensions=(31, 97))
        self.delaybeforesend = None

    def shell(self, line: str) -> str:
        """What the shell prints for ``line``, up to the next prompt."""
        self.sendline(line)
        self.expect_exact(line)  # its echo
        self.expect(r"\r+\n")
        self.expect_exact(PROMPT)
        return re.sub(r"\r+\n", "\n", self.before)

    def start(self, command: str) -> None:
        """Run ``command`` and wait until it runs: before that a Ctrl-C would be the shell's."""
        self.sendline(f"sh -c 'echo run\"\"ning; exec {command}'")
        self.expect_exact("running")

    def ended(self) -> int:
        """The exit status, when it has ended."""
        self.expect(pexpect.EOF)
        self.wait()
        return self.exitstatus
