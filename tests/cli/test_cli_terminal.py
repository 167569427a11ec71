# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pexpect
import pytest

from bt.machine.terminal import EscapeParser, has_input

DRIVER = str(Path(__file__).with_name("driver.py"))


@pytest.fixture
def flat(tmp_path):
    path = tmp_path / "guest.bin"
    path.write_bytes(b"\xf4" * 16)
    return str(path)


@pytest.fixture
def on_pty(flat):
    """Start ``bt run`` on a new terminal, with a guest of driver.py."""
    children = []

    def start(guest, wait="ready"):
        child = pexpect.spawn(sys.executable, [DRIVER, guest, "run", flat], timeout=20, echo=True)
        children.append(child)
        child.before_modes = modes(child)
        if wait:
            child.expect_exact(wait)
        return child

    yield start
    for child in children:
        child.close(force=True)


def modes(child):
    return termios.tcgetattr(child.child_fd)[:4]


def ended(child):
    child.expect(pexpect.EOF)
    child.wait()
    return child.exitstatus


class TestEscapes:
    def test_ordinary_input_passes(self):
        assert EscapeParser().parse(b"ls\r\x03\xff") == (b"ls\r\x03\xff", "")

    def test_commands(self):
        assert EscapeParser().parse(b"a\x01hb\x01xc") == (b"ab", "hx")
        assert EscapeParser().parse(b"\x01\x01") == (b"\x01", "")
        assert EscapeParser().parse(b"\x01zk") == (b"k", "")

    def test_the_keys_may_come_in_two_reads(self):
        parser = EscapeParser()
        assert parser.parse(b"a\x01") == (b"a", "")
        assert parser.parse(b"x") == (b"", "x")


class TestOnATerminal:
    def test_control_characters_reach_the_guest(self, on_pty):
        child = on_pty("echo")
        for key, seen in ((b"\x03", "<03>"), (b"\x1a", "<1a>"), (b"\x1c", "<1c>"), (b"\r", "<0d>")):
            child.send(key)
            child.expect_exact(seen)
        child.send(b"\x04\x13\x11\x16")
        child.expect_exact("04")
        child.send(b"q")
        assert ended(child) == 5

    def test_ctrl_a_twice_is_sent_once(self, on_pty):
        child = on_pty("echo")
        child.send(b"\x01\x01")
        child.expect_exact("<01>")

    def test_help_then_leave(self, on_pty):
        child = on_pty("echo")
        child.send(b"\x01h")
        child.expect_exact("Ctrl-A x")
        child.send(b"\x01x")
        assert ended(child) == 0

    def test_raw_inside_restored_after(self, on_pty):
        child = on_pty("echo")
        assert not modes(child)[3] & (termios.ICANON | termios.ISIG | termios.ECHO)
        child.send(b"q")
        child.expect_exact(">")
        child.wait()
        assert modes(child) == child.before_modes

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
    def test_restored_after_a_signal(self, on_pty, number):
        child = on_pty("echo")
        child.kill(number)
        child.wait()
        assert child.exitstatus == 128 + number
        assert modes(child) == child.before_modes

    def test_restored_after_a_bug_of_ours(self, on_pty):
        child = on_pty("buggy")
        child.expect_exact("RuntimeError")
        child.wait()
        assert modes(child) == child.before_modes

    def test_asked_twice_a_guest_that_does_not_stop_is_left(self, on_pty):
        child = on_pty("stubborn")
        child.send(b"\x01x")
        child.send(b"\x01x")
        child.wait()
        assert child.exitstatus is not None
        assert modes(child) == child.before_modes

    def test_raw_again_after_the_shell_had_the_terminal(self, on_pty):
        child = on_pty("echo")
        child.kill(signal.SIGSTOP)
        termios.tcsetattr(child.child_fd, termios.TCSANOW, cooked(child))
        child.kill(signal.SIGCONT)
        child.send(b"a")  # reaches the guest without a newline only in raw mode
        child.expect_exact("<61>")

    def test_a_failing_reader_ends_the_run(self, on_pty):
        child = on_pty("deaf")
        child.send(b"a")
        child.expect_exact("ZeroDivisionError")
        assert ended(child) == 1
        assert modes(child) == child.before_modes

    def test_hang_up_ends_the_run(self, flat):
        pid, terminal = pty.fork()
        if pid == 0:
            os.execv(sys.executable, [sys.executable, DRIVER, "echo", "run", flat])
        seen = b""
        while b"ready" not in seen:
            seen += os.read(terminal, 100)
        os.close(terminal)
        _, status = os.waitpid(pid, 0)
        # 129 when the signal came first, 141 when a write found the terminal gone.
        assert os.waitstatus_to_exitcode(status) in (129, 141)


def cooked(child):
    mode = termios.tcgetattr(child.child_fd)
    mode[3] |= termios.ICANON | termios.ECHO | termios.ISIG
    return mode


class TestWithoutATerminal:
    def run(self, guest, flat, **how):
        return subprocess.run(
            [sys.executable, DRIVER, guest, "run", flat], capture_output=True, timeout=60, **how
        )

    def test_a_pipe_is_passed_untouched(self, flat):
        result = self.run("echo", flat, input=b"\x01x\x03\r\nq")
        assert result.returncode == 5
        assert b"<0178030d0a71>" in result.stdout.replace(b"><", b"")

    def test_the_guest_runs_on_after_the_end_of_input(self, flat):
        process = subprocess.Popen(
            [sys.executable, DRIVER, "echo", "run", flat],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        assert process.stdout.readline() == b"ready\r\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        process.terminate()
        assert process.wait(20) == 128 + signal.SIGTERM

    @pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
    def test_closed_descriptors(self, flat, closed):
        """Not inherited at all, so that the next file opened would take the number."""
        shell = " ".join(f"{fd}>&-" for fd in closed)
        command = f'exec "$0" "$@" {shell}'
        process = subprocess.Popen(
            ["sh", "-c", command, sys.executable, DRIVER, "echo", "run", flat],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        if 0 in closed:
            with pytest.raises(subprocess.TimeoutExpired):
                process.communicate(timeout=3)  # nothing says when it is ready for the signal
            process.terminate()
            out, err = process.communicate(timeout=20)
            assert process.returncode == 128 + signal.SIGTERM
        else:
            out, err = process.communicate(b"q", timeout=20)
            assert process.returncode == 5
        assert b"Traceback" not in out + err

    def test_output_that_nobody_reads_ends_the_run(self, flat):
        process = subprocess.Popen(
            [sys.executable, DRIVER, "flood", "run", flat],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout.read(2) == b"y\n"
        process.stdout.close()
        assert process.wait(20) == 128 + signal.SIGPIPE
        assert process.stderr.read() == b""

    def test_output_that_is_non_blocking(self, flat):
        """As when the other side shares the file description with an event loop."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        process = subprocess.Popen(
            [sys.executable, DRIVER, "flood", "run", flat], stdin=subprocess.DEVNULL, stdout=write
        )
        os.close(write)
        wanted = 1 << 20  # more than a pipe holds
        with os.fdopen(read, "rb") as pipe:
            assert pipe.read(wanted) == b"y\n" * (wanted // 2)
        assert process.wait(20) == 128 + signal.SIGPIPE

    def test_nohup_stays_in_force(self, flat):
        process = subprocess.Popen(
            [sys.executable, DRIVER, "echo", "run", flat],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
        )
        assert process.stdout.readline() == b"ready\r\n"
        process.send_signal(signal.SIGHUP)
        assert process.communicate(b"q", timeout=20)[0].endswith(b">")
        assert process.returncode == 5


class TestCommandInput:
    def test_input_waits_for_the_guest_and_has_an_end(self, linux_files):
        result = subprocess.run(
            [sys.executable, DRIVER, "command", "run", "linux", "--", "cat"],
            input=b"line\nlast\n",
            capture_output=True,
            timeout=60,
        )
        assert (result.returncode, result.stdout, result.stderr) == (7, b"line\nlast\n", b"done\n")


def test_what_counts_as_input(tmp_path):
    (tmp_path / "f").write_bytes(b"")
    with open(os.devnull, "rb") as null, open(tmp_path / "f", "rb") as file:
        assert not has_input(null.fileno())
        assert has_input(file.fileno())
    read, write = os.pipe()
    assert has_input(read)
    os.close(read)
    os.close(write)
    assert not has_input(read)
    ours, theirs = os.openpty()  # a terminal, but not our controlling one
    assert has_input(theirs)
    os.close(ours)
    os.close(theirs)
