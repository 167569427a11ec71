# SPDX-License-Identifier: GPL-2.0-or-later
"""``bt run linux`` in a terminal, used as a person uses it."""

from __future__ import annotations

import re
import termios

import pytest
from linuxrig import PC_ENGINES, PROMPT, Terminal


@pytest.fixture
def terminal(debian):
    made = []

    def start(*arguments):
        made.append(Terminal(*arguments))
        return made[-1]

    yield start
    for process in made:
        process.close(force=True)


@PC_ENGINES
def test_a_session(terminal, engine):
    """Boot messages, a command, a failing one, the window's size, Ctrl-C, job control, the end."""
    person = terminal("--engine", engine)
    person.expect("Linux version 6")
    person.expect_exact(PROMPT)
    assert re.fullmatch(r"Linux .* x86_64 GNU/Linux\n", person.shell("uname -a"))
    assert person.shell("false; echo status $?") == "status 1\n"
    assert person.shell("stty size") == "31 97\n"
    assert person.shell("tty") == "/dev/ttyS0\n"

    person.start("sleep 1000")
    person.sendcontrol("c")
    person.expect_exact(PROMPT)
    assert person.shell("echo alive after $?") == "alive after 130\n"

    person.start("cat > note")
    person.send("two\nlines\n")
    person.sendcontrol("d")
    person.expect_exact(PROMPT)
    assert person.shell("cat note; rm note") == "two\nlines\n"

    person.start("sleep 1000")
    person.sendcontrol("z")
    person.expect_exact("Stopped")
    person.expect_exact(PROMPT)
    person.shell("kill %1")

    person.sendline("poweroff -f")
    assert person.ended() == 0


@pytest.mark.parametrize(("engine", "command"), [
    ("bt", "poweroff"), ("bt", "reboot"), ("bt", "halt"), ("bt", "exit"), ("bt", "sh -c reboot"),
    ("pv", "poweroff"), ("pv", "reboot"),
])
def test_the_plain_commands_end_the_machine(terminal, engine, command):
    """Without -f: they ask PID 1 to do it. The report of a death would be status 3."""
    person = terminal("--engine", engine, "--append", "quiet")
    person.expect_exact(PROMPT)
    person.shell("sleep 1000 &")        # does not keep it
    person.sendline(command)
    assert person.ended() == 0


def test_editing_a_file_with_vi(terminal):
    person = terminal()
    person.expect_exact(PROMPT)
    person.sendline("vi letter")
    person.expect_exact("\x1b[")  # it draws a screen
    person.send("iDear kernel,\rboot.\x1b")
    person.expect_exact("- letter [Modified]")  # Esc and : at once would be one escape sequence
    person.send(":wq\r")
    person.expect_exact(PROMPT)
    assert person.shell("cat letter") == "Dear kernel,\nboot.\n"
    person.sendline("reboot -f")
    assert person.ended() == 0


def test_ctrl_a_x_leaves_and_the_terminal_is_as_before(terminal):
    person = terminal("--append", "quiet")
    before = termios.tcgetattr(person.child_fd)
    person.expect_exact(PROMPT)
    assert termios.tcgetattr(person.child_fd) != before  # raw
    person.send("\x01h")
    person.expect_exact("Ctrl-A")
    assert person.shell("echo still here") == "still here\n"
    person.send("\x01x")
    assert person.ended() == 0
    assert termios.tcgetattr(person.child_fd) == before


def test_a_panic_typed_by_hand(terminal):
    person = terminal("--append", "quiet")
    person.expect_exact(PROMPT)
    person.sendline("echo c > /proc/sysrq-trigger")
    person.expect_exact("Kernel panic - not syncing: sysrq triggered crash")
    person.expect_exact("bt: the guest died")
    assert person.ended() == 3
