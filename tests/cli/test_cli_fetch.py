# SPDX-License-Identifier: GPL-2.0-or-later
"""Fetching, against an apt of our own: shell scripts first on the PATH that keep a log."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from bt.errors import InputError
from guests.linux import fetch

pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")

META = "Package: linux-image-cloud-amd64\nDepends: linux-image-6.1.0-9-cloud-amd64 (= 6.1.9-1)\n"
BUSYBOX = "Package: busybox-static\nDescription: a shell\n"

APT_CACHE = """\
echo "apt-cache $*" >> {log}
test -e {lists} || exit 100
for package; do :; done
cat "{records}/$package" 2>/dev/null
"""
APT_GET = """\
echo "apt-get $*" >> {log}
case "$*" in
*" update "*)
    test -e {offline} && {{ echo "E: Temporary failure resolving the mirror" >&2; exit 100; }}
    touch {lists} ;;
*)
    test -e {offline} && {{ echo "E: Failed to fetch the package" >&2; exit 100; }}
    for package; do :; done
    cp "{debs}/$package.deb" . ;;
esac
"""


class Apt:
    """The state of the fake apt: which records it knows, whether it has lists, is offline."""

    def __init__(self, folder):
        self.folder = folder
        self.log = folder / "log"
        names = {name: folder / name for name in ("log", "lists", "records", "debs", "offline")}
        self.records, self.debs = names["records"], names["debs"]
        self.lists, self.offline = names["lists"], names["offline"]
        for sub in ("bin", "records", "debs"):
            (folder / sub).mkdir()
        for tool, script in (("apt-cache", APT_CACHE), ("apt-get", APT_GET)):
            path = folder / "bin" / tool
            path.write_text("#!/bin/sh\n" + script.format(**names))
            path.chmod(0o755)
        self.lists.touch()

    def package(self, name, files, record):
        """A real .deb of ``files`` (path -> bytes), built with dpkg-deb."""
        tree = self.folder / "tree" / name
        for path, data in files.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(data)
        (tree / "DEBIAN").mkdir(parents=True, exist_ok=True)
        (tree / "DEBIAN" / "control").write_text(
            f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: x\nDescription: x\n"
        )
        subprocess.run(
            ["dpkg-deb", "-b", "--root-owner-group", tree, self.debs / f"{name}.deb"],
            check=True,
            capture_output=True,
        )
        self.records.joinpath(name).write_text(record)

    def calls(self):
        """The apt-get operations so far."""
        if not self.log.exists():
            return []
        lines = self.log.read_text().splitlines()
        return [
            "update" if " update " in line else "download"
            for line in lines
            if line.startswith("apt-get")
        ]


@pytest.fixture
def apt(tmp_path, monkeypatch, cache):
    folder = tmp_path / "apt"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    fake = Apt(folder)
    fake.records.joinpath("linux-image-cloud-amd64").write_text(META)
    fake.package(
        "linux-image-6.1.0-9-cloud-amd64",
        {"boot/config-6.1.0-9": b"c", "boot/vmlinuz-6.1.0-9": b"the kernel" * 1000, "lib/x": b"x"},
        "Package: linux-image-6.1.0-9-cloud-amd64\n",
    )
    fake.package("busybox-static", {"usr/bin/busybox": b"the busybox"}, BUSYBOX)
    return fake


def left_behind(cache):
    """What a failed or finished fetch should have cleaned up."""
    return [path for path in cache.rglob("*") if ".fetch-" in str(path)]


def test_kernel_and_busybox(apt, cache, capfd):
    kernel = fetch.kernel()
    assert kernel == cache / "linux-image-cloud-amd64" / "vmlinuz-6.1.0-9"
    assert kernel.read_bytes() == b"the kernel" * 1000
    assert fetch.busybox().read_bytes() == b"the busybox"
    assert apt.calls() == ["download", "download"]
    assert left_behind(cache) == []
    out, err = capfd.readouterr()
    assert out == ""
    assert "fetching linux-image-6.1.0-9-cloud-amd64" in err


def test_cached_files_need_no_apt(apt, cache, monkeypatch):
    fetch.kernel(), fetch.busybox()
    before = apt.log.read_text()
    monkeypatch.setenv("PATH", "")
    assert fetch.cached_kernel() == fetch.kernel()
    assert fetch.busybox().name == "busybox"
    assert apt.log.read_text() == before


def test_a_kernel_package_by_its_own_name(apt):
    name = "linux-image-6.1.0-9-cloud-amd64"
    assert fetch.kernel(name).parent.name == name


def test_missing_lists_are_refreshed(apt):
    apt.lists.unlink()
    assert fetch.kernel().exists()
    assert apt.calls() == ["update", "download"]


def test_lists_older_than_the_mirror_are_refreshed(apt):
    name = apt.debs / "linux-image-6.1.0-9-cloud-amd64.deb"
    moved = name.rename(name.with_suffix(".new"))
    script = apt.folder / "bin" / "apt-get"
    script.write_text(script.read_text().replace("touch ", f"cp {moved} {name}; touch "))
    assert fetch.kernel().exists()
    assert apt.calls() == ["download", "update", "download"]


@pytest.mark.parametrize(("uid", "private"), [(0, False), (1000, True)])
def test_without_root_the_lists_are_our_own(apt, cache, monkeypatch, uid, private):
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    apt.lists.unlink()
    fetch.kernel()
    update = next(line for line in apt.log.read_text().splitlines() if " update " in line)
    assert (f"Dir::State={cache / 'apt' / 'state'}" in update) == private


def test_no_apt_names_the_options(cache, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="no apt-get .*--kernel FILE and --initrd FILE"):
        fetch.kernel()
    assert fetch.cached_kernel() is None


def test_no_network(apt, cache):
    apt.offline.touch()
    with pytest.raises(InputError) as failure:
        fetch.kernel()
    text = str(failure.value)
    assert "Temporary failure resolving" in text and "--kernel" in text and "\n" not in text
    assert left_behind(cache) == []


def test_no_such_package(apt):
    with pytest.raises(InputError, match="linux-image-nonsense: no such package"):
        fetch.kernel("linux-image-nonsense")


def test_a_package_without_a_kernel(apt, cache):
    apt.package("linux-doc", {"usr/doc": b"text"}, "Package: linux-doc\n")
    with pytest.raises(InputError, match="has no file"):
        fetch.kernel("linux-doc")
    assert left_behind(cache) == []


def test_a_broken_archive(apt, cache):
    deb = apt.debs / "linux-image-6.1.0-9-cloud-amd64.deb"
    deb.write_bytes(deb.read_bytes()[:200])
    with pytest.raises(InputError, match="has no file"):
        fetch.kernel()
    assert fetch.cached_kernel() is None


@pytest.mark.parametrize("name", ["", "../etc", "-o", "a b", "Linux", "x/y"])
def test_names_that_are_no_package(apt, name):
    with pytest.raises(InputError, match="not a package name"):
        fetch.kernel(name)
    assert apt.calls() == []


def test_a_cache_that_cannot_be_made(apt, monkeypatch, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match="cannot fetch"):
        fetch.kernel()
