# SPDX-License-Identifier: GPL-2.0-or-later
"""A shared folder beside a secret that must stay one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from client import Client

from bt.ninep.folder import Folder
from bt.ninep.server import Server


@pytest.fixture
def share(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_bytes(b"secret")
    share = tmp_path / "share"
    (share / "dir" / "deep").mkdir(parents=True)
    (share / "file").write_bytes(b"hello, guest\n")
    (share / "dir" / "inner").write_bytes(b"inner")
    (share / "out").symlink_to("../secret")
    (share / "up").symlink_to("..")
    (share / "dir" / "here").symlink_to("inner")
    os.mkfifo(share / "fifo")
    return share


@pytest.fixture
def client(share: Path) -> Client:
    """A client that may only read."""
    return Client(Server(Folder(share, writable=False)))


@pytest.fixture
def writer(share: Path) -> Client:
    """A client that may write."""
    return Client(Server(Folder(share, writable=True)))
