# SPDX-License-Identifier: GPL-2.0-or-later
"""Many files scanned: in this process, by processes of its own, or by a Dask cluster.

Files are given out in batches (a module takes milliseconds, a message to a worker about one). A
batch's result is all that comes back, and scanning it again gives the same, so a worker that dies
costs only time: its batches are done again elsewhere. A batch that ended several workers is taken
apart, so that the one file that does so is named and the others are not lost.

Without `distributed` (the extra ``ring1[cluster]``) a collection is scanned by a process pool. It
is slower to notice a death and it knows one machine only; results are the same.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bt.errors import InputError
from bt.scan.work import SCHEMA, Options, Result, scan_file

if TYPE_CHECKING:
    from distributed import Client

#: A batch is closed when its files have so many bytes or are so many.
_BATCH_BYTES = 4 << 20
_BATCH_FILES = 16
#: How often a batch, then one of its files alone, is tried again after it ended its process.
_RETRIES = 1
_CONNECT_SECONDS = 10

Batch = tuple[Path, ...]
Scan = Callable[[Path, Options], Result]


def has_cluster() -> bool:
    """Whether `distributed` is installed."""
    from importlib.util import find_spec
    return find_spec("distributed") is not None and find_spec("dask") is not None


def scan_all(paths: Iterable[Path], options: Options, *, jobs: int = 0,
             cluster: str | None = None, scan: Scan = scan_file) -> Iterator[Result]:
    """Scan every file; results in the order in which they come.

    ``jobs``: processes; 0 = one a core. ``cluster``: address of a Dask scheduler, whose workers
    must see the files under the same names. Raises InputError for a cluster that cannot be used.
    """
    files = list(paths)
    jobs = min(jobs or os.cpu_count() or 1, max(len(files), 1))
    if cluster is not None:
        with _client(cluster) as client:
            yield from _by_dask(client, files, options, scan)
    elif jobs == 1 or len(files) == 1:
        for path in files:
            yield scan(path, options)
    elif has_cluster():
        with _local_cluster(jobs) as client:
            yield from _by_dask(client, files, options, scan)
    else:
        yield from _by_processes(files, options, jobs, scan)


def batches(files: Iterable[Path]) -> Iterator[Batch]:
    """The files in portions of even work, large ones first so that none is left for the end."""
    sized = sorted(((_size(path), path) for path in files), key=lambda row: (-row[0], row[1]))
    batch: list[Path] = []
    total = 0
    for size, path in sized:
        if batch and (total + size > _BATCH_BYTES or len(batch) == _BATCH_FILES):
            yield tuple(batch)
            batch, total = [], 0
        batch.append(path)
        total += size
    if batch:
        yield tuple(batch)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def scan_batch(batch: Batch, options: Options, scan: Scan = scan_file) -> list[Result]:
    """What a worker does."""
    return [scan(path, options) for path in batch]


def _given_up(path: Path) -> Result:
    return Result(str(path), error=f"{path}: each process that scanned it ended")


# -- Dask ----------------------------------------------------------------------------------------


def _distributed() -> Any:
    try:
        import distributed
    except ImportError:
        raise InputError("--cluster needs the package distributed: pip install 'ring1[cluster]'") \
            from None
    return distributed


@contextmanager
def _client(address: str) -> Iterator[Client]:
    """A client of a scheduler that answers and whose workers can do the work."""
    distributed = _distributed()
    try:
        client = distributed.Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except Exception as error:      # each kind of address has its own errors
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"no Dask scheduler at {address}: {reason}") from None
    with client:
        workers = client.nthreads()
        if not workers:
            raise InputError(f"the Dask scheduler at {address} has no workers")
        lacking = [at for at, schema in client.run(_schema, on_error="return").items()
                   if schema != SCHEMA]
        if lacking:
            raise InputError(f"{len(lacking)} of {len(workers)} workers at {address} do not have "
                             f"this ring1 installed ({lacking[0]} for one)")
        yield client


def _schema() -> str:
    """What a worker's own copy says."""
    return SCHEMA


@contextmanager
def _local_cluster(jobs: int) -> Iterator[Client]:
    """A cluster of processes on this machine, and its client."""
    import logging

    import dask
    distributed = _distributed()
    # A worker holds one file at a time, whose size is bounded: no share of the memory is its own.
    settings: dict[str, Any] = {f"distributed.worker.memory.{limit}": False
                                for limit in ("target", "spill", "pause", "terminate")}
    settings["distributed.scheduler.allowed-failures"] = _RETRIES
    with dask.config.set(settings), distributed.LocalCluster(
            n_workers=jobs, threads_per_worker=1, processes=True, dashboard_address=None,
            silence_logs=logging.CRITICAL) as cluster, \
            distributed.Client(cluster, set_as_default=False) as client:
        yield client


def _by_dask(client: Client, files: list[Path], options: Options, scan: Scan) -> Iterator[Result]:
    from distributed import KilledWorker, as_completed

    def submit(batch: Batch) -> Any:
        # pure=False: a file may have changed since the scheduler last saw its name.
        future = client.submit(scan_batch, batch, options, scan, pure=False)
        given[future.key] = batch
        return future

    given: dict[str, Batch] = {}
    suspects: list[Path] = []
    for future in as_completed([submit(batch) for batch in batches(files)], loop=client.loop,
                               raise_errors=False):
        batch = given.pop(future.key)
        if isinstance(future.exception(), KilledWorker):
            suspects += batch
        else:
            yield from future.result()
    # Batches that waited beside the guilty one were blamed too. Now nothing else runs.
    for path in suspects:
        future = submit((path,))
        if isinstance(future.exception(), KilledWorker):
            yield _given_up(path)
        else:
            yield from future.result()


# -- without Dask --------------------------------------------------------------------------------


def _pool(jobs: int) -> ProcessPoolExecutor:
    """forkserver: a process that has threads (a progress bar, Dask) cannot be forked safely."""
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("forkserver"))


def _by_processes(files: list[Path], options: Options, jobs: int,
                  scan: Scan) -> Iterator[Result]:
    """A process pool breaks as a whole when a process dies: what was in hand is done again, alone.
    """
    left = deque(batches(files))
    while left:
        given: dict[Future[list[Result]], Batch] = {}
        with _pool(min(jobs, len(left))) as pool, suppress(BrokenProcessPool):
            while left or given:
                while left and len(given) < jobs:
                    given[pool.submit(scan_batch, left[0], options, scan)] = left[0]
                    left.popleft()
                for future in wait(given, return_when=FIRST_COMPLETED).done:
                    results = future.result()
                    del given[future]
                    yield from results
        for batch in given.values():
            yield from _alone(batch, options, scan)


def _alone(batch: Batch, options: Options, scan: Scan) -> Iterator[Result]:
    for _ in range(1 + _RETRIES if len(batch) == 1 else 1):
        with _pool(1) as pool, suppress(BrokenProcessPool):
            yield from pool.submit(scan_batch, batch, options, scan).result()
            return
    if len(batch) == 1:
        yield _given_up(batch[0])
        return
    for path in batch:
        yield from _alone((path,), options, scan)
