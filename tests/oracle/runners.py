# SPDX-License-Identifier: GPL-2.0-or-later
"""Run one image natively (QEMU) or under an engine of ours; both give what COM1 printed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

QEMU = "qemu-system-x86_64"
#: Intel's vendor string: SYSENTER in long mode and SYSCALL outside it differ on AMD.
CPU = "qemu64,vendor=GenuineIntel"
ROOT = Path(__file__).parents[2]  #: where `python -m bt` finds this tree's package
TIMEOUT = 120  #: seconds, generous: a guest that hangs must not hang the tests


class RunFailed(AssertionError):
    """The run ended in a way that is none of the guest's own (time limit, no such engine)."""


def qemu_available() -> bool:
    """Whether the oracle can run here."""
    return shutil.which(QEMU) is not None


def run_qemu(image: Path, cpu: str = CPU) -> tuple[str, int]:
    """(what it printed, the status the guest wrote to the exit port)."""
    command = [QEMU, "-accel", "tcg", "-cpu", cpu, "-m", "64", "-kernel", str(image),
               "-display", "none", "-serial", "stdio", "-no-reboot",
               "-device", "isa-debug-exit,iobase=0x501,iosize=1"]
    done = _run(command)
    if not done.returncode & 1:  # isa-debug-exit always makes it odd
        raise RunFailed(f"QEMU ended without the exit port: {done.returncode}\n"
                        f"{done.stderr.decode(errors='replace')}")
    return _text(done.stdout), done.returncode >> 1


def run_bt(image: Path, engine: str, *options: str) -> tuple[str, int]:
    """(what it printed, the process's exit status) of ``bt run IMAGE --engine ENGINE OPTIONS``."""
    done = _run([sys.executable, "-m", "bt", "run", str(image), "--engine", engine, "--mem", "64M",
                 *options])
    if done.returncode in (1, 2):  # a traceback, or our own complaint: nothing the guest did
        raise RunFailed(f"bt ended with {done.returncode}:\n"
                        f"{done.stderr.decode(errors='replace')[-2000:]}")
    return _text(done.stdout), done.returncode


def _run(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True,
                              cwd=ROOT, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired as error:
        raise RunFailed(f"{command[0]} did not end within {TIMEOUT} s; it printed\n"
                        f"{(error.stdout or b'').decode(errors='replace')[-2000:]}") from error


def _text(output: bytes) -> str:
    return output.decode("latin-1").replace("\r", "")


def results(output: str) -> dict[str, str]:
    """``line -> result`` of the sensitive guests' output; fails on a line that comes twice."""
    found: dict[str, str] = {}
    for text in output.splitlines():
        line, colon, result = text.partition(": ")
        if colon:
            assert line not in found, f"{line} is printed twice"
            found[line] = result
    return found
