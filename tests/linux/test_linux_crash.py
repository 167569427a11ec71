# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine is killed at any moment: the file system can be repaired, and what fsync said is on
the disk is on the disk.

The guest writes one file after the other and says so after each fsync; SIGKILL comes at a random
moment after a random number of files, into a write as often as between two.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from linuxrig import PATIENCE, ROOT, bt_command

pytestmark = pytest.mark.skipif(shutil.which("mke2fs") is None, reason="needs e2fsprogs")

SCRIPT = """
mkdir /mnt; mount -t ext4 {device} /mnt || exit 1
(while :; do dd if=/dev/zero of=/mnt/noise bs=64k count=40; rm /mnt/noise; done) 2>/dev/null &
i=0
while :; do
    i=$((i + 1))
    seq $i $((i + 700)) >/tmp/record
    dd if=/tmp/record of=/mnt/r$i conv=fsync 2>/dev/null && echo $i
done
"""


def record(number: int) -> bytes:
    """What file ``number`` holds: some 3 KB that say which it is."""
    return b"".join(b"%d\n" % i for i in range(number, number + 701))


def run_and_kill(image: Path, engine: str, interface: str, rng: random.Random) -> list[int]:
    """The files that the guest said were on the disk before it was killed."""
    device = {"virtio": "/dev/vda", "ata": "/dev/sda", "xen": "/dev/xvda"}[interface]
    process = subprocess.Popen(
        bt_command("run", "linux", "--engine", engine, "--timeout", str(PATIENCE), "--disk",
                   f"{image},if={interface}", "--", "sh", "-c", SCRIPT.format(device=device)),
        stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, cwd=ROOT)
    assert process.stdout is not None
    said = b""
    wanted = rng.randrange(1, 40)
    try:
        while said.count(b"\n") < wanted:
            data = process.stdout.read1(4096)  # type: ignore[attr-defined]
            assert data, "the guest ended by itself"
            said += data
        time.sleep(rng.random() * 0.05)
    finally:
        process.kill()
    said += process.stdout.read()
    process.stdout.close()
    process.wait()
    return [int(line) for line in said.split(b"\n")[:-1]]


@pytest.mark.parametrize(("engine", "interface", "seed"), [
    ("bt", "virtio", 1), ("bt", "virtio", 2), ("bt", "ata", 3), ("pv", "xen", 4),
    ("hvm", "virtio", 5)])
def test_killed_in_the_middle(debian, tmp_path: Path, engine: str, interface: str,
                              seed: int) -> None:
    rng = random.Random(seed)
    image = tmp_path / "disk.img"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", image, "24M"], check=True)
    kept: dict[int, bytes] = {}
    for _ in range(2):  # the second run mounts what the first one left behind, unrepaired
        for number in run_and_kill(image, engine, interface, rng):
            kept[number] = record(number)
    repaired = subprocess.run(["e2fsck", "-fy", image], capture_output=True, text=True)
    assert repaired.returncode in (0, 1), repaired.stdout
    assert kept
    for number, data in kept.items():
        found = subprocess.run(["debugfs", "-R", f"cat /r{number}", image], capture_output=True)
        assert found.stdout == data, f"r{number} was on the disk, said fsync"
