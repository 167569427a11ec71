# SPDX-License-Identifier: GPL-2.0-or-later
"""Collections: the same results on one process, on several, on a cluster, and when workers die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from binaries import KERNEL, gcc

from bt.errors import InputError
from bt.scan import pool
from bt.scan.work import Options, Result, scan_file

FILES = 40


def deadly(path: Path, options: Options) -> Result:
    """Scans; but the process that meets the file "bad" ends."""
    if path.name == "bad":
        os.kill(os.getpid(), signal.SIGKILL)
    return scan_file(path, options)


def slow(path: Path, options: Options) -> Result:
    """Scans, and says which process it is, slowly enough to be killed."""
    (path.parent / f"pid-{os.getpid()}").touch()
    time.sleep(0.05)
    return scan_file(path, options)


@pytest.fixture(scope="module")
def collection(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("collection")
    data = gcc(folder, KERNEL.replace("[gdt]", "[rip + gdt]"), "-c").read_bytes()
    for name in ("a.s", "a.out"):
        (folder / name).unlink()
    paths = [folder / f"file{n:02}" for n in range(FILES)] + [folder / "bad", folder / "text"]
    for path in paths[:-1]:
        path.write_bytes(data)
    paths[-1].write_text("no code")
    return paths


@pytest.fixture(scope="module")
def want(collection) -> dict[str, Result]:
    found = {result.path: result for result in pool.scan_all(collection, Options(), jobs=1)}
    assert len(found) == FILES + 2 and found[str(collection[0])].total == 12
    return found


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(pool, "_BATCH_FILES", 4)


@pytest.fixture(params=["dask", "processes"])
def several(request, monkeypatch, small_batches):
    """Either way to use several processes."""
    if request.param == "dask":
        pytest.importorskip("distributed")
    monkeypatch.setattr(pool, "has_cluster", lambda: request.param == "dask")
    return request.param


def run(paths, **options) -> dict[str, Result]:
    results = list(pool.scan_all(paths, Options(), jobs=2, **options))
    assert len(results) == len({r.path for r in results}), "a file came twice"
    return {result.path: result for result in results}


def test_batches_hold_every_file_once(collection) -> None:
    made = list(pool.batches(collection))
    assert sorted(path for batch in made for path in batch) == sorted(collection)
    assert all(len(batch) <= 16 for batch in made) and len(made) > 2


def test_several_processes(collection, want, several) -> None:
    assert run(collection) == want


def test_a_file_that_ends_its_process_costs_no_other(collection, want, several) -> None:
    found = run(collection, scan=deadly)
    bad = str(collection[-2])
    assert "ended" in found.pop(bad).error
    assert found == {path: result for path, result in want.items() if path != bad}


def test_a_worker_killed_mid_run_loses_no_result(collection, want, several) -> None:
    """From outside, when it has done some files and has some in hand."""
    folder = collection[0].parent
    results, killed = {}, False
    try:
        for result in pool.scan_all(collection, Options(), jobs=2, scan=slow):
            results[result.path] = result
            if not killed:
                os.kill(int(next(folder.glob("pid-*")).name[4:]), signal.SIGKILL)
                killed = True
    finally:
        for mark in folder.glob("pid-*"):
            mark.unlink()
    assert killed and results == want


def refusal(paths, address: str) -> str:
    """What is said against the cluster: its last words, or nothing."""
    try:
        list(pool.scan_all(paths, Options(), cluster=address))
    except InputError as error:
        return " ".join(str(error).split()[-3:])
    return ""


def eventually(true) -> None:
    """Within a minute."""
    for _ in range(120):
        if true():
            return
        time.sleep(0.5)
    pytest.fail("it never came true")


def test_a_cluster_of_others(collection, want, small_batches) -> None:
    """A scheduler and a worker that were started on their own, by their own commands."""
    pytest.importorskip("distributed")
    port = 20000 + os.getpid() % 20000
    address = f"tcp://127.0.0.1:{port}"
    scheduler = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port",
         str(port), "--no-dashboard"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    processes = [scheduler]
    try:
        eventually(lambda: refusal(collection, address) == "has no workers")
        processes.append(subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "2",
             "--no-dashboard"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        eventually(lambda: refusal(collection[:1], address) == "")
        found = {r.path: r for r in pool.scan_all(collection, Options(), cluster=address)}
        assert found == want
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            process.wait(30)


def test_no_scheduler(monkeypatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(pool, "_CONNECT_SECONDS", 0.5)
    with pytest.raises(InputError, match="no Dask scheduler at tcp://127.0.0.1:9"):
        list(pool.scan_all([Path("/bin/true")], Options(), cluster="tcp://127.0.0.1:9"))


def test_without_distributed_a_cluster_is_refused(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r"ring1\[cluster\]"):
        list(pool.scan_all([Path("/bin/true")], Options(), cluster="tcp://127.0.0.1:9"))
