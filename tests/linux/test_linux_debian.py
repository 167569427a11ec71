# SPDX-License-Identifier: GPL-2.0-or-later
"""A whole Debian: tools/make_rootfs.py makes it, and it boots to its login prompt, works and powers
off under each engine, which leaves a clean file system behind.

The image takes minutes to make. It is kept in the user's cache until the script changes; delete
the folder ``rootfs`` there to have it made anew.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest
from linuxrig import PATIENCE, ROOT, Terminal

from bt import usercache

SCRIPT = ROOT / "tools" / "make_rootfs.py"
PROMPT = "root@ring1:~# "


def lacking() -> str | None:
    """Why this machine cannot run debootstrap; None where it can."""
    for tool in ("debootstrap", "mke2fs", "e2fsck", "debugfs"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    if os.geteuid() != 0:
        return "debootstrap needs root"
    if subprocess.run(["chroot", "/", "true"], capture_output=True).returncode != 0:
        return "chroot is forbidden here, which debootstrap needs"
    return None


@pytest.fixture(scope="module")
def made() -> Path:
    """The image as the script makes it. Where it cannot be made the tests skip; CI must make it."""
    folder = usercache.need("rootfs")
    image = folder / f"{hashlib.sha256(SCRIPT.read_bytes()).hexdigest()[:16]}.img"
    if not image.exists():
        why = lacking()
        if why is not None:
            pytest.skip(why)
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.img"):  # of an earlier script
            old.unlink()
        done = subprocess.run([sys.executable, SCRIPT, image], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            tail = "\n".join(done.stdout.splitlines()[-10:])
            assert not os.environ.get("CI"), tail
            pytest.skip(f"make_rootfs.py cannot make it here: {tail}")
    return image


@pytest.fixture(scope="module")
def installed(made: Path, tmp_path_factory: pytest.TempPathFactory):
    """A copy that guests write to, each finding what the one before it left."""
    image = tmp_path_factory.mktemp("debian") / "root.img"
    subprocess.run(["cp", "--sparse=always", made, image], check=True)
    yield image
    image.unlink()


@pytest.mark.parametrize(("engine", "disk", "console"), [
    ("bt", "/dev/vda", "ttyS0"), ("pv", "/dev/xvda", "hvc0"), ("hvm", "/dev/vda", "ttyS0")])
def test_login_and_power_off(debian, installed: Path, engine: str, disk: str,
                             console: str) -> None:
    person = Terminal("--engine", engine, "--mem", "512M", "--disk", str(installed))
    try:
        person.timeout = PATIENCE
        person.expect_exact("ring1 login: ")
        person.sendline("root")
        person.expect_exact(PROMPT)
        # In pieces, so that the echo is not taken for the answer.
        person.sendline(f"tty; echo here >/root/{engine}; findmnt -no SOURCE /; "
                        "systemctl is-system-running --wait; echo e''nd")
        person.expect(r"\send\r+\n")
        said = person.before.split()
        assert said[-3:] == [f"/dev/{console}", disk, "running"]
        person.expect_exact(PROMPT)
        person.sendline("systemctl poweroff")
        person.expect(pexpect.EOF)
        person.wait()
    finally:
        person.close(force=True)
    assert person.exitstatus == 0
    check = subprocess.run(["e2fsck", "-fn", installed], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout
    written = subprocess.run(["debugfs", "-R", f"cat /root/{engine}", installed],
                             capture_output=True, text=True)
    assert written.stdout == "here\n"
