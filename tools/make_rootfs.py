#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A Debian root file system as a disk image, for ``bt run linux --disk``.

    tools/make_rootfs.py root.img                   # a minimal Debian of this machine's release
    bt run linux --disk root.img                    # boots to a login prompt; root, no password

debootstrap fills a folder, mke2fs makes an ext4 image of it; nothing is mounted and no loop device
is used. It needs root, since debootstrap runs the packages' scripts in a chroot. The kernel is not
in the image: ``bt run linux`` brings its own, with the modules that the disk needs.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

#: What a minimal Debian lacks to boot to a login prompt and to be looked around in.
PACKAGES = ("systemd-sysv", "udev", "e2fsprogs", "iproute2", "procps")


def suite() -> str:
    """This machine's Debian release by name."""
    text = Path("/etc/os-release").read_text(encoding="utf-8")
    found = re.search(r"^VERSION_CODENAME=(\w+)", text, re.MULTILINE)
    return found[1] if found else "stable"


def configure(tree: Path) -> None:
    """What makes it usable on a serial line: a name, and root without a password.

    systemd's getty generator puts a login prompt on the kernel's console by itself, be it ttyS0 or
    hvc0.
    """
    (tree / "etc/hostname").write_text("ring1\n")
    (tree / "etc/hosts").write_text("127.0.0.1 localhost\n127.0.1.1 ring1\n")
    (tree / "etc/fstab").write_text("# the initramfs has mounted / already\n")
    # An empty password; pam_unix lets it in, since Debian's configuration says nullok.
    shadow = tree / "etc/shadow"
    shadow.write_text(re.sub(r"^root:[^:]*:", "root::", shadow.read_text(), flags=re.MULTILINE))
    # One machine, one identity: made anew at the first boot.
    (tree / "etc/machine-id").write_text("")
    shutil.rmtree(tree / "var/cache/apt/archives", ignore_errors=True)
    (tree / "var/cache/apt/archives/partial").mkdir(parents=True)


def main() -> int:
    """Run from the command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("--size", default="1G", help="of the image, as mke2fs takes it")
    parser.add_argument("--suite", default=None, help="Debian release (default: this machine's)")
    parser.add_argument("--mirror", help="where debootstrap fetches from (default: its own)")
    parser.add_argument("--include", default="", metavar="A,B", help="more packages")
    options = parser.parse_args()
    missing = [tool for tool in ("debootstrap", "mke2fs") if shutil.which(tool) is None]
    if missing:
        print(f"make_rootfs: install {' and '.join(missing)} first", file=sys.stderr)
        return 2
    if os.geteuid() != 0:
        print("make_rootfs: debootstrap needs root", file=sys.stderr)
        return 2
    wanted = [*PACKAGES, *filter(None, options.include.split(","))]
    with tempfile.TemporaryDirectory(prefix="ring1-rootfs-") as folder:
        tree = Path(folder, "tree")
        command = ["debootstrap", "--variant=minbase", f"--include={','.join(wanted)}",
                   options.suite or suite(), str(tree), *filter(None, [options.mirror])]
        if subprocess.run(command, check=False).returncode != 0:
            return 1
        configure(tree)
        partial = options.image.with_name(options.image.name + ".part")
        partial.unlink(missing_ok=True)
        made = subprocess.run(["mke2fs", "-q", "-t", "ext4", "-L", "ring1", "-d", str(tree),
                               str(partial), options.size], check=False)
        if made.returncode != 0:
            partial.unlink(missing_ok=True)
            return 1
        partial.replace(options.image)
    print(f"{options.image}: boot it with bt run linux --disk {options.image}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
