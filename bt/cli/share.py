# SPDX-License-Identifier: GPL-2.0-or-later
"""``bt run --share``: a folder of the host for the guest to mount."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bt.errors import InputError

if TYPE_CHECKING:
    from bt.machine.machine import Machine

HELP = "a folder, /mnt/share in the guest; again for more. OPTIONS: ,rw ,tag=NAME"
MODULES = ("virtio_pci", "9pnet_virtio", "9p")
#: Debian's cloud kernel, the default, was built without 9P.
KERNEL_PACKAGE = "linux-image-amd64"
MOST_SHARES = 8

_OPTION = re.compile(r",(?:(rw)|(ro)|tag=([^,]*))$")
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,30}")  # it becomes a folder's name in the guest


@dataclass(frozen=True)
class ShareOption:
    """One ``--share``; ``tag`` is "" unless it was given."""

    path: Path
    writable: bool = False
    tag: str = ""


def parse(text: str) -> ShareOption:
    """``DIR[,rw|,ro][,tag=NAME]``. Raises ArgumentTypeError (for argparse)."""
    writable, tag, rest = False, "", text
    while match := _OPTION.search(rest):
        rest = rest[:match.start()]
        writable = writable or bool(match[1])
        if match[3] is not None:
            tag = match[3]
            if not _TAG.fullmatch(tag):
                raise argparse.ArgumentTypeError(f"no tag: {tag!r} (letters, digits, _ . -)")
    if not rest:
        raise argparse.ArgumentTypeError("--share needs a folder")
    return ShareOption(Path(rest), writable, tag)


def name_all(shares: list[ShareOption]) -> list[ShareOption]:
    """With a tag for each: share, share2, ... Raises InputError when two have the same."""
    if len(shares) > MOST_SHARES:
        raise InputError(f"at most {MOST_SHARES} shared folders")
    named = []
    for number, share in enumerate(shares, 1):
        tag = share.tag or ("share" if number == 1 else f"share{number}")
        named.append(replace(share, tag=tag))
    tags = [share.tag for share in named]
    for tag in tags:
        if tags.count(tag) > 1:
            raise InputError(f"two shared folders with the tag {tag}")
    return named


def attach(machine: Machine, shares: list[ShareOption]) -> None:
    """Give ``machine`` the folders. Raises InputError."""
    for share in shares:
        from bt.ninep.folder import Folder
        from bt.ninep.server import Server
        from bt.virtio.ninep import VirtioNinep

        folder = Folder(share.path, share.writable)
        machine.add_virtio(VirtioNinep(Server(folder), share.tag.encode()))
