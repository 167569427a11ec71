# SPDX-License-Identifier: GPL-2.0-or-later
"""--net, --share, --console, --rng: what they may say, and what comes of it."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from bt.cli import main as cli
from bt.cli import net, share
from bt.cli.devices import Devices
from bt.errors import InputError
from bt.net import sides
from guests.linux import initramfs


def devices(*arguments: str) -> Devices:
    options = cli.build_parser("run").parse_args(["run", "linux", *arguments])
    options.command = None
    return Devices(options)


@pytest.mark.parametrize(("text", "expected"), [
    ("user", net.NetOption("user")),
    ("none", None),
    ("unix:/tmp/cable", net.NetOption("unix", "/tmp/cable")),
    ("unix:a,b,c", net.NetOption("unix", "a,b,c")),
    ("unix:a,mac=52:54:00:01:02:FF,ip=10.1.2.3/8",
     net.NetOption("unix", "a", b"\x52\x54\0\1\2\xff", "10.1.2.3/8")),
    ("tap:t0,ip=dhcp", net.NetOption("tap", "t0", ip="dhcp")),
    ("user,host,forward=8080:80,forward=22:22",
     net.NetOption("user", host=True, forwards=[(8080, 80), (22, 22)])),
    ("user,ip=none", net.NetOption("user", ip="none")),
])
def test_networks(text: str, expected: net.NetOption | None):
    assert net.parse(text) == expected


@pytest.mark.parametrize("text", [
    "", "users", "user:", "unix", "unix:", "tap:", "user,hosts", "unix:a,host",
    "tap:t,forward=1:2", "user,forward=1", "user,forward=0:1", "user,forward=1:65536",
    "user,mac=1:2", "user,mac=01:00:00:00:00:00", "user,mac=00:00:00:00:00:00",
    "user,ip=10.0.0.300", "user,ip=;reboot", "user,ip=10.0.0.1/99",
])
def test_no_networks(text: str):
    with pytest.raises(argparse.ArgumentTypeError):
        net.parse(text)


@pytest.mark.parametrize(("text", "expected"), [
    ("dir", share.ShareOption(Path("dir"))),
    ("a,b", share.ShareOption(Path("a,b"))),
    ("dir,rw", share.ShareOption(Path("dir"), True)),
    ("dir,ro", share.ShareOption(Path("dir"))),
    ("dir,tag=x,rw", share.ShareOption(Path("dir"), True, "x")),
])
def test_shares(text: str, expected: share.ShareOption):
    assert share.parse(text) == expected


@pytest.mark.parametrize("text", ["", ",rw", "d,tag=", "d,tag=a/b", "d,tag=..", "d,tag=a b",
                                  "d,tag=" + "x" * 32])
def test_no_shares(text: str):
    with pytest.raises(argparse.ArgumentTypeError):
        share.parse(text)


@pytest.mark.parametrize(("arguments", "why"), [
    (["--net", "none", "--net", "user"], "exclude each other"),
    (["--net", "user", "--deterministic"], "does not repeat"),
    (["--net", "user"] * 9, "at most 8 network"),
    (["--share", "/", "--share", "/,tag=share"], "the tag share"),
    (["--share", "/"] * 9, "at most 8 shared"),
    (["--console", "vga"], "no console 'vga'"),
    (["--net", "unix:/nonexistent/x"], "cannot use /nonexistent/x"),
])
def test_what_cannot_be_had(arguments: list[str], why: str):
    with pytest.raises(InputError, match=why):
        devices(*arguments)


def test_nothing_asked_for_costs_nothing():
    nothing = devices()
    assert (nothing.modules, nothing.archives(), nothing.kernel_package) == ([], [], None)
    nothing.attach(None)
    nothing.close()


def test_linux_is_told_what_it_has(tmp_path: Path):
    cable = tmp_path / "cable"
    both = devices("--net", f"unix:{cable}", "--net", f"unix:{cable},ip=dhcp", "--share", "/",
                   "--rng", "--console", "virtio")
    network, shares = both.archives()
    assert b"nets='10.0.1.1/24 dhcp'\n" in network and b"ring1/dhcp\0" in network
    assert b"ring1/share\0" in shares
    assert {"virtio_pci", "virtio_net", "9p", "virtio_console", "virtio_rng"} <= set(both.modules)
    assert both.kernel_package == "linux-image-amd64" and both.one_console
    both.close()


def test_machines_on_a_cable_have_numbers(tmp_path: Path):
    path = str(tmp_path / "cable")
    first, holder = sides.take_number(path)
    assert (first, sides.take_number(path)[0]) == (1, 2)
    held = [sides.take_number(path) for _ in range(3)]
    assert [number for number, _ in held] == [2, 3, 4]
    assert sides.take_number(str(tmp_path / "another"))[0] == 1
    holder.close()
    assert sides.take_number(path)[0] == 1


def test_a_cable_that_is_put_away_frees_its_number(tmp_path: Path):
    one = devices("--net", f"unix:{tmp_path}/cable")
    assert one._cards[0].setup == "10.0.1.1/24"
    one.close()
    assert devices("--net", f"unix:{tmp_path}/cable")._cards[0].device.config_read(
        0, 6) == b"\x52\x54\0\x72\x31\1"


def test_the_setup_is_quoted():
    assert b"nets='dhcp 10.0.1.1/24'\n" in initramfs.net_cpio(["dhcp", "10.0.1.1/24"])
