# SPDX-License-Identifier: GPL-2.0-or-later
"""What Debian's kernel makes of this machine: its own log, the ring it is in, work it can do."""

from __future__ import annotations

import hashlib
import re
import sys

import pytest
from linuxrig import PC_ENGINES, ROOT

from bt.machine.machine import Machine
from guests.linux import initramfs

sys.path.insert(0, str(ROOT / "tools"))
import boot_soak  # noqa: E402

# Several jobs at once, files packed and unpacked, a user, signals, a fault, the loopback network,
# the out-of-memory killer. Each prints one line when it is right.
WORK = r"""
head -c 2000000 /dev/urandom > /tmp/r
gzip -k /tmp/r && gunzip -c /tmp/r.gz | cmp - /tmp/r && echo gzip
head -c 200000 /tmp/r > /tmp/s
bzip2 -k /tmp/s && bunzip2 -c /tmp/s.bz2 | cmp - /tmp/s && echo bzip2
head -c 20000000 /dev/zero | md5sum
mkdir /tmp/d /tmp/x; for i in $(seq 200); do echo file $i > /tmp/d/$i; done
tar cz -C /tmp d | tar xz -C /tmp/x && diff -r /tmp/d /tmp/x/d && echo tar
for j in 1 2 3 4 5 6; do
    (i=0; while [ $i -lt 500 ]; do i=$((i+1)); done; echo $j) &
done > /tmp/jobs
wait; sort /tmp/jobs | tr -d '\n'; echo
for i in $(seq 100); do /bin/busybox true || echo lost; done
(trap 'exit 5' USR1; while :; do usleep 1000; done) &
sleep 0.1; kill -USR1 $!; wait $!; echo usr1 $?
sh -c 'kill -SEGV $$'; echo segv $?
timeout 1 sh -c 'while :; do :; done'; echo preempted $?
echo 'joe:x:1000:1000::/:/bin/sh' >> /etc/passwd
su joe -c 'id -u; echo b > /proc/sysrq-trigger' 2>&1
ifconfig lo 127.0.0.1 up; httpd -p 127.0.0.1:80 -h /tmp; wget -qO /tmp/got http://127.0.0.1/r
cmp /tmp/got /tmp/r && echo network
tail /dev/zero; echo oom $?
"""
WORK_SAYS = f"""\
gzip
bzip2
{hashlib.md5(bytes(20_000_000)).hexdigest()}  -
tar
123456
usr1 5
segv 139
preempted 143
1000
sh: can't create /proc/sysrq-trigger: Permission denied
network
oom 137
"""


@pytest.mark.parametrize("number", range(3))
def test_it_boots_every_time(debian, number):
    """tools/boot_soak.py boots it 20 times; its checks are used here."""
    wrong, printed = boot_soak.boot([])
    assert wrong is None, printed


@pytest.mark.parametrize(("status", "out"), [
    (3, "Linux\nLinux version 6"), (7, ""), (7, "Linux\n"),
    (7, "Linux\nLinux version 6\n[    1.0] WARNING: CPU: 0 PID: 1 at kernel/x.c:3\n"),
    (7, "Linux\nLinux version 6\nclocksource: Marking clocksource 'tsc' as unstable\n"),
])
def test_the_soak_sees_what_is_wrong(status, out):
    assert boot_soak.problem(status, out, "") is not None


@PC_ENGINES
def test_work_of_many_kinds(bt, engine):
    result = bt("run", "linux", "--engine", engine, "--", "sh", "-c", WORK)
    assert result.status == 0, result.err
    assert result.out == WORK_SAYS


def test_the_kernel_needs_no_mitigation_and_was_not_told_so(bt):
    """The CPU is in order (bt/machine/cpuid.py), so the kernel itself decides against them."""
    result = bt("run", "linux", "--", "sh", "-c", "cat /proc/cmdline; cd /sys/devices/system/cpu/"
                "vulnerabilities; for f in *; do echo $f: $(cat $f); done")
    cmdline, *vulnerabilities = result.out.splitlines()
    assert cmdline == "console=ttyS0 panic=-1 quiet"
    decided = dict(line.split(": ", 1) for line in vulnerabilities)
    # That is KVM's page-size trick; it guards against guests of this guest.
    assert decided.pop("itlb_multihit") == "KVM: Mitigation: VMX unsupported"
    assert len(decided) > 8 and set(decided.values()) == {"Not affected"}


@PC_ENGINES
def test_clocks(bt, engine):
    """The kernel trusts the TSC, never calls a clock unstable, and a sleep takes its time."""
    result = bt("run", "linux", "--engine", engine, "--", "sh", "-c",
                "cat /sys/devices/system/clocksource/clocksource0/current_clocksource; "
                "cut -d' ' -f1 /proc/uptime; sleep 2; cut -d' ' -f1 /proc/uptime; dmesg")
    source, before, after, log = result.out.split("\n", 3)
    assert source == "tsc"
    assert 2 <= float(after) - float(before)
    assert "unstable" not in log and "tsc: Detected 1000.000 MHz processor" in log


def test_never_in_ring_0(debian):
    """A whole boot and a command, with the real CPL looked at on every exit and every block."""
    kernel, busybox = debian
    out = bytearray()
    machine = Machine(audit=True, channels={2: out.extend})
    command = initramfs.command_cpio(["sh", "-c", "id -u; exit 3"])
    machine.load(kernel, cmdline="console=ttyS0 panic=-1",
                 initrd=initramfs.initramfs(busybox, [command]))
    outcome = machine.run(timeout=120)
    assert (outcome.kind, outcome.status, bytes(out)) == ("powered-off", 3, b"0\n")
    audit = machine.stats.to_json()["audit"]
    assert audit["blocks"] > 50_000_000
    assert audit["ring0"] == 0


def test_the_big_kernel_boots_too(fetched, bt):
    """Debian's general-purpose kernel, with the drivers of real machines in it."""
    fetched("linux-image-amd64")
    result = bt("run", "linux", "--package", "linux-image-amd64", "--", "sh", "-c",
                "uname -r; dmesg; exit 7")
    assert re.match(r"6\.\d+\.\d+-\d+-amd64\n", result.out)
    assert boot_soak.problem(result.status, "Linux\n" + result.out, result.err) is None
