# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's kernel and its own drivers on our network card, shared folder, console, entropy."""

from __future__ import annotations

import ctypes
import hashlib
import http.server
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from linuxrig import PATIENCE, ROOT, bt_command

from bt import InputError, Machine

#: Asks until the other guest has booted.
FETCH = "until wget -q -O - http://10.0.1.1/passwd 2>/dev/null; do sleep 0.2; done"


@contextmanager
def first_on(cable: Path, *arguments: str, engine: str = "bt") -> Iterator[None]:
    """Another guest, the first on its cable, while the caller has the second."""
    process = subprocess.Popen(
        bt_command("run", "linux", "--engine", engine, "--net", f"unix:{cable}", *arguments),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=ROOT)
    try:
        while not cable.exists():
            assert process.poll() is None
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE)


@pytest.mark.parametrize(("engine", "bus"), [("bt", "pci"), ("hvm", "pci"), ("bt", "mmio")])
def test_a_guest_fetches_a_page_from_another_guest(bt, tmp_path: Path, engine: str, bus: str):
    cable = tmp_path / "cable"
    with first_on(cable, "--", "httpd", "-f", "-h", "/etc", engine=engine):
        result = bt("run", "linux", "--engine", engine, "--net", f"unix:{cable}", "--timeout",
                    "120", "--virtio", bus, "--", "sh", "-c",
                    f"{FETCH}; cat /sys/class/net/eth0/address; ip -o -4 addr show eth0")
    assert (result.status, result.err) == (0, "")
    page, mac, address = result.out.splitlines()
    assert page.startswith("root:") and mac == "52:54:00:72:31:02" and "10.0.1.2/24" in address
    assert not cable.exists()


def test_megabytes_arrive_whole_and_the_cable_can_be_pulled(bt, tmp_path: Path):
    cable = tmp_path / "cable"
    whole = "".join(f"{i}\n" for i in range(1, 3_000_001)).encode()
    with first_on(cable, "--", "sh", "-c", "seq 3000000 >/tmp/f; httpd -f -h /tmp"):
        for _ in range(2):  # the second time on a cable that was pulled out and put in again
            result = bt("run", "linux", "--net", f"unix:{cable}", "--timeout", "120", "--",
                        "sh", "-c", "until wget -q -O - http://10.0.1.1/f 2>/dev/null >/tmp/f;"
                        "do sleep 0.2; done; sha256sum </tmp/f")
            assert result.status == 0
            assert result.out == hashlib.sha256(whole).hexdigest() + "  -\n"


def slirp_here() -> bool:
    try:
        ctypes.CDLL("libslirp.so.0")
    except OSError:
        return False
    return True


@pytest.mark.skipif(not slirp_here(), reason="libslirp0 is not installed")
def test_user_networking_gives_an_address_and_reaches_the_host(bt, tmp_path: Path):
    (tmp_path / "page").write_text("from the host\n")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    handler.func.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        result = bt("run", "linux", "--net", "user,host", "--timeout", "120", "--", "sh", "-c",
                    f"wget -q -O - http://10.0.2.2:{port}/page; ip -o -4 addr show eth0;"
                    "cat /etc/resolv.conf")
        server.shutdown()
    assert (result.status, result.err) == (0, "")
    page, address, resolver = result.out.splitlines()
    assert page == "from the host" and "10.0.2.15/24" in address
    assert resolver == "nameserver 10.0.2.3"


def test_a_shared_folder(bt, fetched, tmp_path: Path):
    fetched("linux-image-amd64")
    (tmp_path / "secret").write_text("secret\n")
    for name in ("read", "write"):
        (tmp_path / name).mkdir()
    (tmp_path / "read" / "file").write_text("from the host\n")
    (tmp_path / "read" / "out").symlink_to("../secret")
    (tmp_path / "read" / "big").write_bytes(bytes(range(256)) * 8192)
    script = """
        cat /mnt/share/file; cat /mnt/share/out; readlink /mnt/share/out
        cat /mnt/share/../../secret; ls -1 /mnt/share/..
        echo x >/mnt/share/new; echo from the guest >/mnt/w/new; mkdir -p /mnt/w/a/b
        mv /mnt/w/new /mnt/w/a/b/moved; cp /mnt/share/big /mnt/w; sync
        cmp /mnt/share/big /mnt/w/big
        mknod /mnt/w/null c 1 3; ln -s /etc /mnt/w/link; ls /mnt/w/link/passwd
        find /mnt/w | sort"""
    result = bt("run", "linux", "--timeout", "200", "--share", str(tmp_path / "read"),
                "--share", f"{tmp_path}/write,rw,tag=w", "--", "sh", "-c", script)
    assert result.status == 0
    assert result.out.splitlines() == [
        "from the host", "../secret", "share", "w", "/mnt/w/link/passwd",
        "/mnt/w", "/mnt/w/a", "/mnt/w/a/b", "/mnt/w/a/b/moved", "/mnt/w/big", "/mnt/w/link"]
    assert result.err.count("can't open '/mnt/share/out': No such file") == 1
    assert "Read-only file system" in result.err and "Operation not permitted" in result.err
    write = tmp_path / "write"
    assert (write / "a" / "b" / "moved").read_text() == "from the guest\n"
    assert (write / "big").read_bytes() == (tmp_path / "read" / "big").read_bytes()
    assert sorted(path.name for path in (tmp_path / "read").iterdir()) == ["big", "file", "out"]


@pytest.mark.parametrize("bus", ["pci", "mmio"])
def test_a_virtio_console_carries_a_command(bt, bus: str):
    data = bytes(range(256)) * 300
    result = bt("run", "linux", "--console", "virtio", "--virtio", bus, "--", "sh", "-c",
                "md5sum; seq 20000 | tail -1; exit 6", input=data)
    assert result.status == 6
    assert result.out.split() == [hashlib.md5(data).hexdigest(), "-", "20000"]


@pytest.mark.parametrize("bus", ["pci", "mmio"])
def test_random_bytes_repeat_when_the_run_does(bt, bus: str):
    command = ("run", "linux", "--rng", "--deterministic", "--virtio", bus, "--", "sh", "-c",
               "cat /sys/class/misc/hw_random/rng_current; head -c 20 /dev/hwrng | md5sum")
    first, second = bt(*command), bt(*command)
    assert first.status == 0 and first.out.startswith("virtio_rng.0\n")
    assert first.out == second.out


def test_from_python(debian, fetched, tmp_path: Path):
    fetched("linux-image-amd64")
    (tmp_path / "page").write_text("from the host\n")
    with Machine.linux(["sh", "-c", "cat /mnt/share/page; cat /sys/class/net/*/address"],
                       share=[str(tmp_path)], net=[f"unix:{tmp_path}/cable"]) as vm:
        assert vm.run(timeout=PATIENCE).status == 0
        assert vm.output.splitlines()[0] == b"from the host"
        assert b"52:54:00:72:31:01" in vm.output
        assert (tmp_path / "cable").exists()
    assert not (tmp_path / "cable").exists()
    for wrong in ({"net": ["bogus"]}, {"share": [""]}, {"net": ["user"], "deterministic": True}):
        with pytest.raises(InputError):
            Machine.linux(["true"], **wrong)
