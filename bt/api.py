# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine for Python programs: guests by name, the console as text, runs that wait for it.

What it adds to bt.machine.machine.Machine is convenience; hooks, breakpoints, registers and memory
are that class's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from bt.engines import ENGINES
from bt.errors import InputError
from bt.machine import machine

if TYPE_CHECKING:
    from bt.cli.devices import Devices

Until = str | re.Pattern[str] | Callable[["Machine"], object]


class Machine(machine.Machine):
    """A machine with its guest's console in :attr:`console_text`.

    The keywords are those of bt.machine.machine.Machine: ``engine``, ``ram_bytes``, ``machine``,
    ``deterministic`` and others. ``console`` is called with each piece of output too (bytes).
    """

    def __init__(self, *, console: Callable[[bytes], None] | None = None, **keywords: Any) -> None:
        self._show = console
        self._console = bytearray()
        self._matched = 0  # how much of the console a run has waited for already
        self._until: Until | None = None
        self._output = bytearray()
        self._devices: Devices | None = None
        keywords.setdefault("channels", {2: self._output.extend, 3: self._output.extend})
        super().__init__(console=self._take_console, **keywords)

    # Guests -----------------------------------------------------------------------------------

    @classmethod
    def linux(cls, command: Sequence[str] | None = None, *, engine: str = "bt",
              kernel: str | Path | None = None, package: str | None = None,
              initrd: str | Path | None = None, append: str = "", net: Sequence[str] = (),
              share: Sequence[str] = (), disks: Sequence[str] = (), **keywords: Any) -> Self:
        """Debian's kernel (or ``kernel``) with a busybox; fetched when it is not there yet.

        With ``command`` the guest runs that and ends; :attr:`output` has what it wrote, and the
        outcome its status. Without one it boots the root file system on the first of ``disks``, or
        gives a shell on the console. ``net``, ``share`` and ``disks`` are network cards, shared
        folders and disks, as the options of ``bt run`` say it (docs/networking.md; "disk.img,ro").
        Raises InputError.
        """
        from bt.cli import disks as shapes
        from bt.cli import virtio
        from bt.cli.devices import Devices
        from guests.linux import fetch, initramfs

        devices = Devices.asked_for(net, share, deterministic=keywords.get("deterministic", False))
        images = [shapes.option(text) for text in disks]
        if ENGINES[engine].paravirtual and command is None:
            # A domain's one console is what a command's output would come by.
            keywords.setdefault("channels", {})
        vm = cls(engine=engine, **keywords)
        vm._devices = devices
        shapes.attach(vm, images)
        devices.attach(vm)
        path = Path(kernel) if kernel is not None else \
            fetch.kernel(package or devices.kernel_package or fetch.KERNEL_PACKAGE)
        extra = devices.archives()
        modules = virtio.modules([*shapes.modules(images, engine), *devices.modules], vm.virtio)
        if modules and kernel is None:
            from guests.linux.modules import Modules
            extra.append(Modules(*fetch.modules(path)).archive(modules))
        if command is not None:
            extra.append(initramfs.command_cpio(command))
        elif images:
            extra.append(initramfs.root_cpio(shapes.root_device(images, engine)))
            append = f"{shapes.BOOT_CMDLINE} {append}"
        image = initramfs.initramfs(fetch.busybox(), extra) if initrd is None else Path(initrd)
        console = "hvc0" if ENGINES[engine].paravirtual else "ttyS0"
        vm.load(path, cmdline=f"console={console} panic=-1 {append}".rstrip(), initrd=image)
        return vm

    @classmethod
    def from_elf(cls, path: str | Path, *, engine: str = "bt", cmdline: str = "",
                 initrd: str | Path | bytes | None = None, **keywords: Any) -> Self:
        """Any kernel file that ``bt run`` takes: ELF (Linux, multiboot), bzImage."""
        vm = cls(engine=engine, **keywords)
        vm.load(Path(path), cmdline=cmdline,
                initrd=initrd if initrd is None or isinstance(initrd, bytes) else Path(initrd))
        return vm

    @classmethod
    def guest(cls, name: str, *, engine: str = "bt", **keywords: Any) -> Self:
        """A sample guest, one of ``bt guests``. Raises InputError for another name."""
        import guests

        names = [guest.name for guest in guests.all_guests()]
        if name not in names:
            raise InputError(f"no guest {name!r}: one of {', '.join(names)}")
        return cls.from_elf(guests.image(name), engine=engine, **keywords)

    def close(self) -> None:
        """Unplug network cards and give back what they hold of the host. ``with`` does it too."""
        if self._devices is not None:
            self._devices.close()
        if "host" in self.__dict__:
            self.host.watcher.close()
            del self.__dict__["host"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The console ------------------------------------------------------------------------------

    @property
    def console_text(self) -> str:
        """Everything the guest has printed on its console."""
        return self._console.decode("utf-8", "replace")

    @property
    def output(self) -> bytes:
        """What the command of :meth:`linux` wrote, errors among it (engine pv: on the console)."""
        return bytes(self._output)

    def send(self, text: str | bytes) -> None:
        """Type on the console. Enter is "\\n". Safe from any thread."""
        self.feed(text.encode() if isinstance(text, str) else text)

    def _take_console(self, data: bytes) -> None:
        self._console += data
        if self._show is not None:
            self._show(data)
        if self._until is not None and self._has_come(self._until):
            self.pause("until")

    def _has_come(self, until: Until) -> bool:
        """Whether what a run waits for is there; text counts once, and in order."""
        if isinstance(until, str):
            wanted = until.encode()
            # A text that has begun but not ended stays to be looked at.
            at = self._console.find(wanted, self._matched)
            if at < 0:
                self._matched = max(self._matched, len(self._console) - len(wanted) + 1)
                return False
            self._matched = at + len(wanted)
            return True
        if isinstance(until, re.Pattern):
            text = self._console[self._matched:].decode("utf-8", "replace")
            found = until.search(text)
            if found is None:
                return False
            self._matched += len(text[:found.end()].encode())
            return True
        return bool(until(self))

    # Running ----------------------------------------------------------------------------------

    def run(self, timeout: float | None = None, *, until: Until | None = None) -> machine.Outcome:
        """Run the guest. Outcome "until" when what it was to wait for has come.

        ``until``: a text (or compiled pattern) on the console, looked for behind the one that the
        last run found; or a function of the machine, asked on each output and each tick of 5 ms.
        """
        if until is not None and self._has_come(until):
            return machine.Outcome("until", 0)
        self._until = until
        try:
            return super().run(timeout)
        finally:
            self._until = None

    def _flush(self) -> None:
        super()._flush()
        if callable(self._until) and self._until(self):
            self.pause("until")
