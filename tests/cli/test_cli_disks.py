# SPDX-License-Identifier: GPL-2.0-or-later
"""``--disk``: how it is read, and how it fails."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from bt.cli import disks
from bt.cli.disks import DiskOption
from bt.errors import InputError
from bt.machine.machine import Machine


@pytest.mark.parametrize(("text", "option"), [
    ("a.img", DiskOption(Path("a.img"))),
    ("a.img,ro", DiskOption(Path("a.img"), "ro")),
    ("a.img,if=ata,overlay", DiskOption(Path("a.img"), "overlay", "ata")),
    ("a.img,overlay,if=virtio", DiskOption(Path("a.img"), "overlay", "virtio")),
])
def test_options(text: str, option: DiskOption) -> None:
    assert disks.parse(text) == option


def test_a_file_name_with_commas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a,b").touch()
    assert disks.parse("a,b,ro") == DiskOption(Path("a,b"), "ro")


@pytest.mark.parametrize("text", ["", ",ro", "a.img,if=scsi", "a.img,fast", "a.img,ro,overlay"])
def test_what_is_wrong(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        disks.parse(text)
    with pytest.raises(InputError):
        disks.option(text)


def test_modules_and_root() -> None:
    ata, virtio = DiskOption(Path("a"), interface="ata"), DiskOption(Path("b"))
    assert disks.modules([virtio, virtio], "bt") == ["virtio_pci", "virtio_blk"]
    assert disks.modules([], "bt") == []
    assert disks.modules([virtio], "pv") == ["xen_blkfront"]
    assert disks.root_device([virtio], "pv") == "/dev/xvda"
    assert disks.root_device([ata, virtio], "bt") == "/dev/sda"


def test_attach(tmp_path: Path) -> None:
    images = [tmp_path / name for name in "abc"]
    for image in images:
        image.write_bytes(bytes(4096))
    machine = Machine(machine="pc", ram_bytes=16 << 20)
    disks.attach(machine, [DiskOption(images[0]), DiskOption(images[1], "ro", "ata")])
    ids = [function.config[2:4].hex() for function in machine.pc.pci.functions.values()]
    assert "4210" in ids and "1070" in ids, "virtio-blk and an IDE interface"
    with pytest.raises(InputError, match="in use"):
        disks.attach(machine, [DiskOption(images[0])])
    with pytest.raises(InputError, match="at most 2"):
        disks.attach(machine, [DiskOption(image, "ro", "ata") for image in images])


def test_where_there_is_no_pci(tmp_path: Path) -> None:
    image = tmp_path / "a"
    image.write_bytes(bytes(4096))
    with pytest.raises(InputError, match="--machine pc"):
        disks.attach(Machine(machine="legacy", ram_bytes=16 << 20), [DiskOption(image)])
    for engine, interface in (("pv", "virtio"), ("pv", "ata"), ("bt", "xen")):
        with pytest.raises(InputError, match="if=xen"):
            disks.attach(Machine(engine=engine, ram_bytes=16 << 20),
                         [DiskOption(image, interface=interface)])
