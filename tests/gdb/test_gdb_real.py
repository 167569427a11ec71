# SPDX-License-Identifier: GPL-2.0-or-later
"""The real gdb at the door of a real run: `bt run --gdb`."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

GDB = shutil.which("gdb")
pytestmark = pytest.mark.skipif(GDB is None, reason="gdb is not installed")


@contextmanager
def waiting(*arguments: str) -> Iterator[tuple[subprocess.Popen, list[str]]]:
    """`bt run ARGUMENTS --gdb`, and the gdb commands it asks for."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bt", "run", "--timeout", "150", "--gdb", "0", *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    commands = []
    try:
        for line in process.stderr:
            if line.startswith("    "):
                commands.append(line.strip())
            if "target remote" in line:
                break
        assert commands, process.stderr.read()
        yield process, commands
    finally:
        process.kill()
        process.communicate()


def gdb(commands: list[str], *more: str) -> str:
    arguments = [argument for command in (*commands, *more) for argument in ("-ex", command)]
    done = subprocess.run([GDB, "-nx", "-q", "-batch", "-ex", "set confirm off", *arguments],
                          capture_output=True, text=True, timeout=140)
    return done.stdout + done.stderr


def test_a_small_guest_to_its_end() -> None:
    with waiting("hello") as (process, commands):
        text = gdb(commands, "stepi", "info registers", "monitor info", "continue")
        assert "exited normally" in text
        assert re.search(r"engine bt, 256 MB", text)
        out, _ = process.communicate(timeout=20)
        assert out.startswith("Hello from ring 0") and process.returncode == 0


def test_a_32_bit_guest() -> None:
    with waiting("hello32") as (process, commands):
        text = gdb(commands, "info registers eip esp", "x/2i $eip", "continue")
        assert re.search(r"^eip +0x", text, re.M) and "exited normally" in text


def test_kill_ends_the_run() -> None:
    with waiting("hello") as (process, commands):
        gdb(commands, "kill")
        assert process.wait(timeout=20) == 0


def test_the_time_limit_counts_while_nobody_comes() -> None:
    done = subprocess.run([sys.executable, "-m", "bt", "run", "hello", "--gdb", "--timeout", "1"],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.returncode == 124 and done.stderr.endswith("bt: time limit\n")


@pytest.mark.parametrize("text", ["x", "-1", "70000"])
def test_a_port_that_is_none(text: str) -> None:
    done = subprocess.run([sys.executable, "-m", "bt", "run", "hello", f"--gdb={text}"],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "is no port" in done.stderr


@pytest.mark.slow
def test_debians_kernel_stops_at_start_kernel_with_the_right_backtrace() -> None:
    with waiting("linux", "--", "cat", "/proc/version") as (process, commands):
        text = gdb(commands, "break start_kernel", "continue", "bt", "x/gx $rsp", "x/i $pc",
                   "delete", "hbreak do_sys_openat2", "continue", "bt", "x/s $rsi", "info line",
                   "delete", "detach")
        assert re.search(r"^Breakpoint 1, 0x\w+ in start_kernel \(\)", text, re.M), text
        frames = re.findall(r"^#\d+ +0x(\w+) in (\w+) \(\)", text, re.M)
        # start_kernel is jumped to, by way of functions that never return: what is on the stack is
        # the boot code's address. gdb's second frame must be exactly that word.
        assert frames[0][1] == "start_kernel"
        assert frames[1][1].startswith("secondary_startup_64")
        assert int(re.search(r"^0x\w+:\s+0x(\w+)$", text, re.M)[1], 16) == int(frames[1][0], 16)
        # And a deep one: a system call, each caller found by the kernel's own unwind table.
        names = [name for _, name in frames[2:]]
        assert names[0] == "do_sys_openat2"
        assert names[-2:] == ["do_syscall_64", "entry_SYSCALL_64_after_hwframe"]
        assert "<start_kernel>" in text and "int3" not in text
        out, _ = process.communicate(timeout=120)
        assert out.startswith("Linux version") and process.returncode == 0


@pytest.mark.slow
def test_an_interrupt_stops_a_running_kernel() -> None:
    with waiting("linux") as (process, commands):
        arguments = [a for c in (*commands, "continue", "bt 1", "info registers rip", "detach")
                     for a in ("-ex", c)]
        debugger = subprocess.Popen([GDB, "-nx", "-q", "-batch", *arguments], text=True,
                                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        console = ""
        while "Linux version" not in console:
            console += process.stdout.readline()
        time.sleep(1)
        debugger.send_signal(signal.SIGINT)
        text, _ = debugger.communicate(timeout=60)
        assert "received signal SIGINT" in text, text
        assert re.search(r"^rip +0x\w+", text, re.M)
