# SPDX-License-Identifier: GPL-2.0-or-later
"""What `bt compare` can run: a guest, what it is told, and how to read what it prints."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bt import usercache
from bt.engines import ENGINES
from bt.errors import BtError, InputError

#: The nanobenchmarks of Adams and Agesen, ASPLOS 2006, in the paper's order.
NANO = ("syscall", "in", "cr8wr", "callret", "pgfault", "divzero", "ptemod")
#: One more that guests/nano has, run by name only.
NANO_EXTRA = ("pteflush",)
#: System calls of getppid unless --count says otherwise.
CALLS = 1_000_000
#: Forks of forkwait unless --count says otherwise. The paper's 40000 would take minutes here.
FORKS = 1000

#: Stands in arguments for a folder that each run has for itself.
FOLDER = "{folder}"
#: What `net` fetches, in MiB.
NET_MIB = 128
#: Size of the disk that `disk` reads, in MiB; `disk-ata` reads a quarter of it.
DISK_MIB = 256

_PATCHED = "; pv runs the native build after `bt patch`"
_PREPARE_GZIP = "cat /bin/busybox /bin/busybox /bin/busybox | head -c 4194304 >/tmp/4m"


class WorkloadFailed(BtError):
    """A run gave no result; the text says why in a few words."""


@dataclass(frozen=True)
class Reading:
    """What a guest's output says: seconds by its own clock, ticks an operation by name."""

    guest_s: float | None = None
    ticks: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Workload:
    """One thing to run under every engine.

    ``arguments(engine)``: what follows ``bt run``, with the guest's command after ``--``; FOLDER in
    it is replaced. ``companion(engine)``: the same for a second machine beside it, which is ready
    when a file called ``ready`` is in the folder. ``idle(engine)``: everything but the work, to
    know which exits are the work's; ``megabytes`` is how much of it there is (10^6 bytes).
    ``read(output)``: the Reading; raises WorkloadFailed. ``nano``: what guests/nano gets as command
    line, None for the others. ``warm_up``: one turn first that does not count, since it fills
    caches on disk.
    """

    name: str
    what: str
    arguments: Callable[[str], list[str]]
    read: Callable[[str], Reading]
    nano: str | None = None
    warm_up: bool = False
    companion: Callable[[str], list[str]] | None = None
    ready: str = ""
    idle: Callable[[str], list[str]] | None = None
    megabytes: float = 0.0


def names() -> list[str]:
    """Every name that :func:`get` knows."""
    return ["nano", *NANO, *NANO_EXTRA, "forkwait", "getppid", "boot", "gzip", "tasks", "net",
            "disk", "disk-ata"]


def get(name: str, count: int | None = None, *, patched: bool = False) -> Workload:
    """The workload called ``name``. Raises InputError.

    count: forks of forkwait, calls of getppid, operations in a pass of nano; other workloads have
    none. patched:
    a paravirtual engine gets the native build after `bt patch`, not the one built for it (nano and
    tasks only).
    """
    if name not in names():
        raise InputError(f"no workload {name!r}: one of {', '.join(names())}")
    if name == "nano" or name in NANO or name in NANO_EXTRA:
        return _nano(name, count, patched)
    if patched and name != "tasks":
        raise InputError(f"--patched goes with nano and tasks, not with {name}")
    if name == "forkwait":
        return _forkwait(FORKS if count is None else count)
    if name == "getppid":
        return _getppid(CALLS if count is None else count)
    if count is not None:
        raise InputError(
            f"--count goes with forkwait, getppid and nano: {name} has nothing to count")
    if name == "boot":
        return Workload(name, "Linux, to the end of `true` in it", _linux("true"),
                        lambda output: Reading(), warm_up=True)
    if name == "gzip":
        script = f"{_PREPARE_GZIP}; {_timed('gzip -c /tmp/4m >/dev/null')}"
        return Workload(name, "gzip of 4 MB in Linux", _linux("sh", "-c", script), read_clock,
                        warm_up=True)
    if name == "net":
        return _net()
    if name in ("disk", "disk-ata"):
        return _disk(name)
    return Workload(name, "guests/tasks: four user tasks, preempted" + _PATCHED * patched,
                    _sample("tasks", patched), _read_tasks)


def _nano(name: str, count: int | None, patched: bool) -> Workload:
    words = [] if name == "nano" else [name]
    if count is not None:
        if not 8 <= count <= 10_000_000:
            raise InputError(f"{count} operations in a pass of nano: 8 to 10000000 are possible")
        words.append(str(count))
    wanted = NANO if name == "nano" else (name,)
    cmdline = " ".join(words)
    what = "the nanobenchmarks of Adams and Agesen" if name == "nano" else f"nano: {name}"
    return Workload(name, what + _PATCHED * patched,
                    _sample("nano", patched, "--append", cmdline),
                    lambda output: Reading(ticks=read_nano(output, wanted)), nano=cmdline)


def _forkwait(count: int) -> Workload:
    loop = f"i=0; while [ $i -lt {count} ]; do (:); i=$((i+1)); done"
    return Workload("forkwait", f"{count} times fork and wait, in Linux",
                    _linux("sh", "-c", _timed(loop)), read_clock, warm_up=True)


def _getppid(count: int) -> Workload:
    if not 1 <= count <= 1 << 30:
        raise InputError(f"{count} calls of getppid: 1 to {1 << 30} are possible")
    program = "".join(f"\\{byte:03o}" for byte in getppid_program(count))
    script = f"printf '{program}' >/tmp/p; chmod +x /tmp/p; {_timed('/tmp/p')}"
    return Workload("getppid", f"{count} system calls that do next to nothing, in Linux",
                    _linux("sh", "-c", script), read_clock, warm_up=True)


def getppid_program(count: int) -> bytes:
    """A Linux program that makes ``count`` (below 2**32) calls of getppid and ends.

    Written here, byte by byte, because there is no compiler where it runs: an ELF header and one
    loadable segment (System V ABI, "ELF header" and "Program header"), and the loop.
    """
    code = (b"\xbb" + struct.pack("<I", count)        # mov ebx, count
            + b"\xb8\x6e\0\0\0" b"\x0f\x05"          # 1: mov eax, 110 (getppid); syscall
            b"\xff\xcb" b"\x75\xf5"                   # dec ebx; jnz 1b
            b"\x31\xff" b"\xb8\x3c\0\0\0" b"\x0f\x05")  # xor edi, edi; mov eax, 60 (exit); syscall
    base, start = 0x400000, 64 + 56
    size = start + len(code)
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, base + start, 64, 0,
                         0, 64, 56, 1, 64, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000)
    return header + segment + code


def _net() -> Workload:
    """Two guests on a cable; one fetches from the other, which is no bottleneck: it has sendfile.

    The other's files are made of nothing (a sparse file in memory).
    """
    options = ("--net", f"unix:{FOLDER}/cable")
    find = "until wget -q -O - http://10.0.1.1/one 2>/dev/null; do sleep 0.1; done"
    fetch = f"{find}; {_timed('wget -q -O /dev/null http://10.0.1.1/all')}"
    serve = f"cd /tmp; truncate -s {NET_MIB}M all; echo >one; httpd -f"
    return Workload(
        "net", f"{NET_MIB} MiB over HTTP from one Linux to another",
        _linux("sh", "-c", fetch, options=options), read_clock, warm_up=True,
        companion=_linux("sh", "-c", serve, options=options), ready="cable",
        idle=_linux("sh", "-c", find, options=options), megabytes=NET_MIB * 1.048576)


def _disk(name: str) -> Workload:
    """A sequential read with O_DIRECT, so that the guest's own cache is out of it."""
    # ATA by programmed I/O takes so much longer that a part of the disk has to do.
    kind, interface, device, mib = {
        "disk": ("virtio", "virtio", "/dev/vda", DISK_MIB),
        "disk-ata": ("ATA (programmed I/O)", "ata", "/dev/sda", DISK_MIB // 4)}[name]
    script = _timed(f"dd if={device} of=/dev/null bs=1M count={mib} iflag=direct 2>/dev/null")

    def with_disk(*command: str) -> Callable[[str], list[str]]:
        return lambda engine: ["linux", "--disk", f"{_disk_image()},ro,if={interface}", "--",
                               *command]

    return Workload(name, f"sequential read of {mib} MiB from a {kind} disk",
                    with_disk("sh", "-c", script), read_clock, warm_up=True,
                    idle=with_disk("true"), megabytes=mib * 1.048576)


def _disk_image() -> Path:
    """A file of DISK_MIB, kept in the cache; written through, so that reads do not meet holes."""
    path = usercache.need(f"compare-{DISK_MIB}M.img")
    if not path.exists() or path.stat().st_size != DISK_MIB << 20:
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                for number in range(DISK_MIB):
                    file.write(number.to_bytes(4, "little") * (1 << 18))
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise InputError(f"cannot write {path}: {error.strerror}") from None
    return path


def _sample(name: str, patched: bool, *options: str) -> Callable[[str], list[str]]:
    """A guest of guests/ with a paravirtual build beside the native one."""
    paravirtual = str(_patch(name)) if patched else f"{name}-pv"
    return lambda engine: [paravirtual if ENGINES[engine].paravirtual else name, *options]


def _patch(name: str) -> Path:
    """The native build of a guest, patched anew: the patcher is part of what is compared."""
    import guests
    from translator.patcher import patch

    image = guests.image(name)
    target = image.with_name(f"{image.stem}-patched.elf")
    try:
        target.write_bytes(patch(image.read_bytes())[0])
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror}") from None
    return target


def _linux(*command: str, options: Sequence[str] = ()) -> Callable[[str], list[str]]:
    return lambda engine: ["linux", *options, "--", *command]


def _timed(script: str) -> str:
    """``script`` between two looks at the shell's own clock (no process, one system call each)."""
    return f"t=$EPOCHREALTIME; {script}; echo clock $t $EPOCHREALTIME"


def read_clock(output: str) -> Reading:
    """The seconds between the two times in ``clock START END``."""
    for line in output.splitlines():
        word, *times = line.split() or [""]
        if word == "clock" and len(times) == 2:
            try:
                return Reading(guest_s=float(times[1]) - float(times[0]))
            except ValueError:
                break
    raise WorkloadFailed("the guest printed no times")


def _read_tasks(output: str) -> Reading:
    if "tasks killed: 2" not in output:
        raise WorkloadFailed("the tasks did not end as they should")
    return Reading()


def read_nano(output: str, wanted: Sequence[str]) -> dict[str, float]:
    """{name: ticks an operation, in the fastest pass} from lines ``NAME OPERATIONS TICKS``."""
    best: dict[str, float] = {}
    for line in output.splitlines():
        words = line.split()
        if len(words) != 3 or words[0] not in wanted:
            continue
        try:
            ticks = int(words[2]) / int(words[1])
        except (ValueError, ZeroDivisionError):
            raise WorkloadFailed(f"the guest printed {line!r}") from None
        best[words[0]] = min(ticks, best.get(words[0], ticks))
    missing = [name for name in wanted if name not in best]
    if missing:
        raise WorkloadFailed(f"the guest printed nothing for {', '.join(missing)}")
    return {name: best[name] for name in wanted}
