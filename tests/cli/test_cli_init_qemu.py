# SPDX-License-Identifier: GPL-2.0-or-later
"""Our /init and the command's channels, on QEMU: an independent machine with the same ports.

Fetches the kernel and busybox into the user's cache on first use, as ``bt run linux`` does.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import time

import pytest

from bt.cli.stdin import END, READY, encode
from bt.errors import InputError
from guests.linux import fetch, initramfs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.qemu,
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs QEMU"),
]


@pytest.fixture(scope="module")
def files():
    try:
        return fetch.kernel(), fetch.busybox()
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture
def boot(files, tmp_path):
    """Run a command in the guest: (its exit status, its output, its errors)."""
    kernel, busybox = files

    def run(*argv, stdin=None):
        initrd = tmp_path / "initrd"
        command = initramfs.command_cpio(argv, stdin=stdin is not None)
        initrd.write_bytes(initramfs.initramfs(busybox, [command]))
        process = subprocess.Popen(
            qemu(kernel, initrd, f"file:{tmp_path / 'console'}", "stdio", f"file:{tmp_path / 'e'}"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            if stdin is not None:
                assert process.stdout.read(1) == READY
                process.stdin.write(encode(stdin) + END)
                process.stdin.flush()
            out = process.stdout.read()
            status = process.wait(60)
        finally:
            process.kill()
        # isa-debug-exit: QEMU's status is the byte written * 2 + 1.
        assert status & 1
        return status >> 1, out, (tmp_path / "e").read_bytes()

    return run


def qemu(kernel, initrd, *serials):
    command = ["qemu-system-x86_64", "-accel", "tcg", "-m", "256", "-display", "none"]
    command += ["-no-reboot", "-device", "isa-debug-exit,iobase=0x501,iosize=1"]
    command += ["-kernel", kernel, "-initrd", initrd, "-append", "console=ttyS0 panic=-1 quiet"]
    for serial in serials:
        command += ["-serial", serial]
    return command


def test_output_errors_and_status(boot):
    status, out, err = boot("sh", "-c", "uname -s; echo 'a  b' >&2; exit 7")
    assert (status, out, err) == (7, b"Linux\n", b"a  b\n")


def test_output_is_binary_safe(boot, files):
    status, out, err = boot("cat", "/bin/busybox")
    assert (status, err) == (0, b"")
    assert hashlib.sha256(out).digest() == hashlib.sha256(files[1].read_bytes()).digest()


def test_arguments_arrive_as_they_are(boot):
    words = ["it's", "", "a b", "$HOME", "*", "back\\slash", "new\nline", "-n"]
    _, out, _ = boot("printf", "[%s]", *words)
    assert out == "".join(f"[{word}]" for word in words).encode()


def test_a_command_that_is_not_there(boot):
    status, out, err = boot("nonsense")
    assert (status, out) == (127, b"")
    assert b"nonsense: not found" in err


def test_a_command_without_input_sees_its_end(boot):
    assert boot("cat") == (0, b"", b"")


def test_input_is_binary_safe_and_ends(boot):
    data = bytes(range(256)) * 12 + b"\n\x04\x16\nlast line without an end"
    status, out, _ = boot("sha256sum", stdin=data)
    assert (status, out[:64]) == (0, hashlib.sha256(data).hexdigest().encode())


def test_a_command_that_ignores_its_input_ends_anyway(boot):
    assert boot("true", stdin=b"unread\n")[0] == 0


def test_a_shell_on_the_console(files, tmp_path):
    kernel, busybox = files
    initrd = tmp_path / "initrd"
    terminal = initramfs.terminal_cpio(33, 77, "vt'100")
    initrd.write_bytes(initramfs.initramfs(busybox, [terminal]))
    (tmp_path / "com2").touch()
    process = subprocess.Popen(
        qemu(kernel, initrd, "stdio", f"file:{tmp_path / 'com2'}", "null"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        limit = time.monotonic() + 60
        while (tmp_path / "com2").read_bytes() != READY:
            assert time.monotonic() < limit, "no word from /init"
            time.sleep(0.05)
        process.stdin.write(b"echo $((6*7)) $(tty) $(stty size) $TERM\npoweroff -f\n")
        process.stdin.flush()
        out = process.stdout.read()  # to its end: the machine went off
        assert b"42 /dev/ttyS0 33 77 vt'100" in out
        assert b"job control turned off" not in out
        assert process.wait(60) == 0
    finally:
        process.kill()
