# SPDX-License-Identifier: GPL-2.0-or-later
"""One file out of a Debian package, with the host's own apt and dpkg-deb.

apt knows the mirrors, checks the signatures and speaks to whatever proxy the machine needs; this
names packages and nothing else. Root or not makes one difference: only root may refresh the
machine's package lists. Without root, lists that are missing or too old are fetched into a private
apt state in the cache.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from bt.errors import InputError

_OWN_FILES = "use --kernel FILE and --initrd FILE to run files of your own"
_UPDATE_HOOKS = ("Pre-Invoke", "Post-Invoke", "Post-Invoke-Success")


def fetch(package: str, wanted: re.Pattern[str], folder: Path) -> Path:
    """The one file of ``package`` whose name in it matches ``wanted``, put into ``folder``.

    A kernel meta package stands for the kernel it depends on now. Shows progress on stderr. Raises
    :class:`InputError` for everything that can go wrong.
    """
    return _fetch(package, folder, lambda archive: _unpack_one(archive, wanted, folder))


def fetch_tree(package: str, wanted: re.Pattern[str], folder: Path) -> Path:
    """All files of ``package`` whose names match ``wanted``, at their places below ``folder``.

    ``folder`` appears when everything is in it. Raises like :func:`fetch`.
    """
    return _fetch(package, folder.parent, lambda archive: _unpack_tree(archive, wanted, folder))


def _fetch(package: str, folder: Path, unpack: Callable[[Path], Path]) -> Path:
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise InputError(f"no {tool} here to fetch {package} with; {_OWN_FILES}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Beside its destination, so that the last step is a rename and a broken download leaves
        # nothing that could be taken for a kernel.
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as work:
            archive = _download(package, Path(work))
            return unpack(archive)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"cannot fetch {package} into {folder}: {reason}") from None


class _AptError(Exception):
    """apt could not do something; the text is its own last complaint."""


class _Apt:
    """apt with the machine's package lists, or with private ones in the cache."""

    def __init__(self, private: Path | None) -> None:
        # The sandbox user of apt could not write into a user's cache folder.
        self._options = ["-o", "APT::Sandbox::User=root", "-o", "Acquire::Languages=none"]
        if private is not None:
            for name in ("state/lists/partial", "cache/archives/partial"):
                (private / name).mkdir(parents=True, exist_ok=True)
            self._options += [
                "-o", f"Dir::State={private / 'state'}",
                "-o", f"Dir::Cache={private / 'cache'}",
                "-o", "Dir::State::status=/var/lib/dpkg/status",
            ]  # fmt: skip
            # Hooks that other packages hang on a refresh want root and the real lists.
            configuration = private / "apt.conf"
            configuration.write_text(
                "".join(f"#clear APT::Update::{hook};\n" for hook in _UPDATE_HOOKS)
            )
            self._options += ["-c", str(configuration)]

    def show(self, package: str) -> str | None:
        """The control record of the version apt would install; None when it knows none."""
        command = ["apt-cache", *self._options, "show", "--no-all-versions", package]
        result = subprocess.run(command, capture_output=True, text=True, env=_environment())
        return result.stdout if result.returncode == 0 and result.stdout.strip() else None

    def get(self, arguments: Sequence[str], title: str, folder: Path | None = None) -> None:
        """Run apt-get, showing its progress. Raises :class:`_AptError` when it fails."""
        status_read, status_write = os.pipe()
        command = ["apt-get", *self._options, "-o", f"APT::Status-Fd={status_write}"]
        with tempfile.TemporaryFile("w+") as complaints:
            process = subprocess.Popen(
                [*command, "-q", *arguments],
                cwd=folder,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complaints,
                pass_fds=[status_write],
            )
            os.close(status_write)
            try:
                with os.fdopen(status_read) as status:
                    _show_progress(title, status)
            except BaseException:  # Ctrl-C, mostly: do not leave a download behind
                process.terminate()
                process.wait()
                raise
            failed = process.wait() != 0
            if failed:
                complaints.seek(0)
                raise _AptError(_last_complaint(complaints.read()))


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}


def _last_complaint(text: str) -> str:
    errors = [line[2:].strip() for line in text.splitlines() if line.startswith("E:")]
    return errors[0] if errors else "apt-get failed"


def _download(package: str, work: Path) -> Path:
    """The package's archive, downloaded into ``work``; lists are refreshed when that may help."""
    apt = _Apt(private=None)
    try:
        return _download_with(apt, package, work)
    except _AptError:
        pass  # no lists, or older than the mirror: fetch them and try once more
    if os.geteuid() != 0:
        apt = _Apt(private=work.parent / "apt")
    complaint = ""
    try:
        apt.get(["update", "-o", "APT::Update::Error-Mode=any"], "package lists")
    except _AptError as error:
        complaint = str(error)  # of one mirror of several, maybe: go on, and say it if it mattered
    try:
        return _download_with(apt, package, work)
    except _AptError as error:
        raise InputError(
            f"apt cannot fetch {package}: {complaint or error}; {_OWN_FILES}"
        ) from None


def _download_with(apt: _Apt, package: str, work: Path) -> Path:
    record = apt.show(package)
    if record is None:
        raise _AptError("no such package in its lists")
    real = _real_package(package, record)
    apt.get(["download", real], real, folder=work)
    archives = sorted(work.glob("*.deb"))
    if not archives:
        raise _AptError(f"it downloaded no file for {real}")
    return archives[-1]


def _real_package(package: str, record: str) -> str:
    """A kernel meta package's kernel, from the Depends field of its control record."""
    depends = re.search(r"^Depends:(.*)$", record, re.MULTILINE)
    found = re.search(r"\blinux-image-\d[a-z0-9+.-]*", depends[1]) if depends else None
    return found[0] if found else package


def _show_progress(title: str, status: IO[str]) -> None:
    """Follow apt's status lines ("dlstatus:item:percent:text") to their end, on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        print(f"bt: fetching {title}", file=sys.stderr)
    columns = (
        TextColumn("fetching {task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(title, total=100)
        for line in status:
            fields = line.split(":")
            if fields[0] == "dlstatus" and len(fields) > 2:
                bar.update(task, completed=float(fields[2]))


def _members(archive: Path, wanted: re.Pattern[str]) -> Iterator[tuple[str, IO[bytes]]]:
    """Names and contents of the files of a .deb that match. Stops reading when nobody asks."""
    process = subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(archive)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            for member in tar:
                source = tar.extractfile(member) if wanted.fullmatch(member.name) else None
                if source is not None:
                    yield member.name, source
    except tarfile.TarError:
        pass  # not an archive, or a truncated one: the same message as an archive without it
    finally:
        process.stdout.close()
        process.wait()


def _unpack_one(archive: Path, wanted: re.Pattern[str], folder: Path) -> Path:
    """Take one file out of a .deb. Stops reading as soon as it has it."""
    for name, source in _members(archive, wanted):
        partial = archive.with_name("unpacked")
        with partial.open("wb") as target:
            shutil.copyfileobj(source, target)
        return partial.replace(folder / Path(name).name)
    raise InputError(f"{archive.name} has no file {wanted.pattern}; {_OWN_FILES}")


def _unpack_tree(archive: Path, wanted: re.Pattern[str], folder: Path) -> Path:
    """Take all matching files out of a .deb."""
    partial = archive.with_name("tree")
    for name, source in _members(archive, wanted):
        target = partial / name
        if ".." in target.parts:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            shutil.copyfileobj(source, file)
    if not partial.exists():
        raise InputError(f"{archive.name} has no file {wanted.pattern}; {_OWN_FILES}")
    return partial.replace(folder)
