# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks in Linux: the kernel's own drivers find them, and what is written is in the image."""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
from pathlib import Path

import pytest

MB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(3).randbytes(8 * MB))
    return path


SCRIPT = """
sha256sum /dev/{name}
dd if=/dev/{name} of=/tmp/head bs=64k count=16 2>/dev/null
dd if=/tmp/head of=/dev/{name} bs=64k seek=96 oflag=direct 2>/dev/null && sync && echo written
cat /sys/block/{name}/ro
"""


@pytest.mark.parametrize(("options", "interface", "name"), [
    ((), "virtio", "vda"), ((), "ata", "sda"), (("--machine", "legacy"), "ata", "sda"),
    (("--virtio", "mmio"), "virtio", "vda"),
    (("--virtio", "mmio", "--append", "noapic"), "virtio", "vda"),
    (("--engine", "hvm", "--virtio", "mmio"), "virtio", "vda"),
    (("--engine", "hvm"), "virtio", "vda"), (("--engine", "hvm"), "ata", "sda"),
    (("--engine", "pv"), "xen", "xvda")])
def test_read_and_write(bt, image: Path, options: tuple[str, ...], interface: str,
                        name: str) -> None:
    before = image.read_bytes()
    result = bt("run", "linux", *options, "--disk", f"{image},if={interface}", "--", "sh", "-c",
                SCRIPT.format(name=name))
    digest, written, read_only = result.out.splitlines()
    assert digest.split()[0] == hashlib.sha256(before).hexdigest()
    assert (written, read_only) == ("written", "0")
    assert image.read_bytes() == before[:6 * MB] + before[:MB] + before[7 * MB:]


def test_overlay_and_read_only(bt, image: Path) -> None:
    before = image.read_bytes()
    script = "echo new | dd of=/dev/vda conv=fsync; head -c 4 /dev/vda; cat /sys/block/vdb/ro; " \
        "dd if=/dev/zero of=/dev/vdb count=1 || echo refused"
    result = bt("run", "linux", "--disk", f"{image},overlay",
                "--disk", f"{image},ro", "--", "sh", "-c", script)
    assert result.out.split() == ["new", "1", "refused"]
    assert image.read_bytes() == before


@pytest.mark.skipif(shutil.which("mke2fs") is None, reason="needs e2fsprogs")
@pytest.mark.parametrize(("engine", "device"), [
    ("bt", "/dev/vda"), ("hvm", "/dev/vda"), ("pv", "/dev/xvda")])
def test_the_root_file_system_on_a_disk(bt, debian, tmp_path: Path, engine: str,
                                        device: str) -> None:
    """Our initramfs mounts it and its own init takes over: here a script, on busybox."""
    tree = tmp_path / "tree"
    for folder in ("bin", "sbin", "dev", "proc", "sys"):
        (tree / folder).mkdir(parents=True)
    shutil.copy(debian[1], tree / "bin/busybox")
    (tree / "bin/busybox").chmod(0o755)
    (tree / "sbin/init").write_text(
        "#!/bin/busybox sh\nset -x\n/bin/busybox mount -o remount,rw /\n"
        "echo here >/proof\n/bin/busybox sync\necho on disk, pid $$\n"
        "/bin/busybox grep ' / ' /proc/mounts\n/bin/busybox reboot -f\n")
    (tree / "sbin/init").chmod(0o755)
    image = tmp_path / "root.img"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", tree, image, "16M"], check=True)
    result = bt("run", "linux", "--engine", engine, "--disk", str(image))
    assert "on disk, pid 1" in result.out and f"{device} / ext4 rw" in result.out
    check = subprocess.run(["e2fsck", "-fp", image], capture_output=True)
    assert check.returncode in (0, 1), check.stdout
    proof = subprocess.run(["debugfs", "-R", "cat /proof", image], capture_output=True)
    assert proof.stdout == b"here\n"


def test_a_disk_without_a_root_file_system_gives_a_shell(bt, image: Path) -> None:
    result = bt("run", "linux", "--disk", str(image),
                input=b"cat /proc/partitions\npoweroff -f\n")
    assert "no root file system" in result.out and "8192 vda" in result.out


@pytest.mark.parametrize("engine", ["bt", "pv"])
def test_from_python(debian, image: Path, engine: str) -> None:
    from bt.api import Machine

    with Machine.linux(["sh", "-c", "sha256sum /dev/vda /dev/xvda 2>/dev/null"], engine=engine,
                       disks=[f"{image},ro"]) as vm:
        vm.run(timeout=120)
        assert hashlib.sha256(image.read_bytes()).hexdigest().encode() in vm.output
