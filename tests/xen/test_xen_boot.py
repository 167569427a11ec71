# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's kernel as a Xen domain: what it finds there, and how it ends."""

import hashlib
import random
import subprocess
import sys
import time

import pytest

from bt import usercache

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not list(usercache.need("debian").glob("**/vmlinuz*")),
                       reason="`bt run linux` has not fetched its kernel yet")]


def run(*arguments, stdin=b""):
    return subprocess.run(
        [sys.executable, "-m", "bt", "run", "linux", "--engine", "pv", "--timeout", "120",
         *arguments], input=stdin, capture_output=True, timeout=180)


def test_the_guest_sees_xen():
    done = run("--", "sh", "-c", "cat /sys/hypervisor/type /sys/hypervisor/properties/features; "
               "cat /sys/devices/system/xen_memory/xen_memory0/target_kb; ls /sys/bus/xen/devices; "
               "cat /sys/devices/system/clocksource/clocksource0/current_clocksource; "
               "grep -c xen-percpu /proc/interrupts; date +%s")
    assert done.returncode == 0, done.stderr
    kind, features, target, clock, percpu, now = done.stdout.split()
    assert (kind, clock) == (b"xen", b"xen")
    assert int(features, 16) == 0x220E0
    assert int(target) == 256 << 10
    assert int(percpu) >= 2
    assert abs(int(now) - time.time()) < 60


def test_sleeping_takes_the_time_it_should():
    done = run("--", "sh", "-c", "a=$(cut -d. -f1 /proc/uptime); sleep 2; "
               "b=$(cut -d. -f1 /proc/uptime); echo $((b - a))")
    assert done.returncode == 0 and int(done.stdout) in (2, 3)


def test_the_shell_reads_its_console():
    text = b"".join(b"%05d 0123456789abcdef\n" % number for number in range(200))
    done = run(stdin=b"cat > /tmp/x <<'EOF'\n" + text + b"EOF\nmd5sum < /tmp/x\npoweroff -f\n")
    assert done.returncode == 0
    assert hashlib.md5(text).hexdigest().encode() in done.stdout


def test_a_command_gets_and_gives_any_bytes():
    """Through hvc0, whose driver has ^O for itself."""
    data = random.Random(1).randbytes(50_000) + bytes(range(256))
    done = run("--", "cat", stdin=data)
    assert done.returncode == 0 and done.stdout == data


@pytest.mark.parametrize(("command", "status"), [
    ("poweroff -f", 0), ("reboot -f", 0), ("exit 7", 7), ("echo c > /proc/sysrq-trigger", 3)])
def test_ends(command, status):
    assert run("--", "sh", "-c", command).returncode == status
