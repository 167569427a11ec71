# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's kernel and busybox, fetched by package name with the host's own apt.

Files are kept in the user's cache folder, under ``ring1/debian/<package>/``, and one that is there
is used as it is, with no apt run at all: delete the folder to fetch anew. Every boot comes through
here, so what only a download needs is in ``apt`` and imported for one.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from bt import usercache
from bt.errors import InputError

KERNEL_PACKAGE = "linux-image-cloud-amd64"
BUSYBOX_PACKAGE = "busybox-static"

_PACKAGE_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")  # Debian Policy 5.6.7
_KERNEL_FILE = re.compile(r"\./boot/vmlinuz-.+")
# What a guest here can have a device for; the whole tree is 300 MB for some kernels.
_MODULE_FILE = re.compile(
    r"\./(usr/)?lib/modules/[^/]+/kernel/("
    r"(lib|block|crypto|arch/x86/crypto|fs/(9p|netfs|fscache|ext4|jbd2|nls|fuse|overlayfs)|net/9p"
    r"|drivers/(virtio|ata|cdrom|char/hw_random))/.+"
    r"|fs/mbcache|net/core/failover"
    r"|drivers/(block/(virtio_blk|xen-blkfront|loop)|scsi/(scsi_mod|scsi_common|sd_mod)"
    r"|net/(virtio_net|net_failover|xen-netfront)|char/virtio_console)"
    r")\.ko(\.xz|\.zst|\.gz)?"
)
_BUSYBOX_FILE = re.compile(r"\./(usr/)?bin/busybox")


def kernel(package: str = KERNEL_PACKAGE) -> Path:
    """The bzImage of a Debian kernel package, fetched unless it is cached.

    A meta package (``linux-image-amd64``) stands for the kernel it depends on now. Raises
    :class:`InputError` where there is no apt, no such package, or no way to download it.
    """
    return _file(package, _KERNEL_FILE)


def busybox() -> Path:
    """Debian's static busybox, fetched unless it is cached. Raises like :func:`kernel`."""
    return _file(BUSYBOX_PACKAGE, _BUSYBOX_FILE)


def cached_kernel(package: str = KERNEL_PACKAGE) -> Path | None:
    """The kernel :func:`kernel` would give without fetching anything; None when it would fetch."""
    return _cached(package, _KERNEL_FILE)


def modules(kernel: Path) -> tuple[Path, str]:
    """Folder of the modules of ``kernel``, which :func:`kernel` gave, and the kernel's release.

    Fetched unless they are cached. Raises like :func:`kernel`.
    """
    release = kernel.name.removeprefix("vmlinuz-")
    folder = kernel.with_name(f"modules-{release}")
    if not folder.is_dir():
        from guests.linux import apt

        apt.fetch_tree(f"linux-image-{release}", _MODULE_FILE, folder)
    return folder, release


def _file(package: str, wanted: re.Pattern[str]) -> Path:
    if not _PACKAGE_NAME.fullmatch(package):
        raise InputError(f"not a package name: {package!r}")
    cached = _cached(package, wanted)
    if cached is not None:
        return cached
    from guests.linux import apt

    return apt.fetch(package, wanted, usercache.need("debian") / package)


def _cached(package: str, wanted: re.Pattern[str]) -> Path | None:
    folder = usercache.need("debian") / package
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return None
    for name in names:
        if wanted.fullmatch(f"./boot/{name}") or wanted.fullmatch(f"./bin/{name}"):
            return folder / name
    return None
