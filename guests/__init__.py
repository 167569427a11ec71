# SPDX-License-Identifier: GPL-2.0-or-later
"""The sample guests: small kernels built from assembly source with no compiler.

Each folder holds one guest; its ``main.s`` says in the header comment what it shows and how it
ends. :func:`image` gives the path of a bootable multiboot ELF, assembling it on first use. The
same file boots under QEMU (``qemu-system-x86_64 -kernel``), which is the tests' oracle.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from bt import usercache

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Guest:
    """A sample guest: name, one line on what it shows, code width, engines it is for."""

    name: str
    shows: str
    bits: int
    engines: tuple[str, ...] = ("bt", "trap", "hvm", "kvm")

    @property
    def source(self) -> Path:
        """The guest's main source file."""
        return _HERE / self.name / "main.s"


_GUESTS = (
    Guest("hello", "enters long mode, says which ring it believes it is in, powers off", 64),
    Guest("hello32", "prints with paging off, builds page tables, prints with paging on", 32),
    Guest("apic", "local and I/O APIC, the 8259s behind them, PCI and ACPI: what came of it", 64),
    Guest("tasks", "timer, user mode, system calls, demand paging, a task killed by a fault", 64),
    Guest("tasks-pv", "the same source, built for Ring1's own paravirtual interface", 64, ("pv",)),
    Guest("nano", "the seven nanobenchmarks of Adams and Agesen, for `bt compare`", 64),
    Guest("nano-pv", "the same source, built for Ring1's own paravirtual interface", 64, ("pv",)),
    Guest("sensitive", "every sensitive instruction, kernel and user mode, and what it saw", 64),
    Guest("sensitive32", "the same in 32-bit code, and in 16-bit protected-mode code", 32),
)


def all_guests() -> tuple[Guest, ...]:
    """Every sample guest, in the order to read them."""
    return _GUESTS


def get(name: str) -> Guest:
    """The guest called ``name``; raises ``KeyError`` when there is none."""
    for guest in _GUESTS:
        if guest.name == name:
            return guest
    raise KeyError(name)


def _fingerprint() -> str:
    """Hash of every source a guest can include, and of the assembler itself."""
    import hashlib  # here: it costs 6 ms that Linux need not pay

    digest = hashlib.sha256()
    folders = {_HERE / "lib", *(g.source.parent for g in _GUESTS)}
    for path in [_HERE / "asm.py", *sorted(p for f in folders for p in f.glob("*.s"))]:
        digest.update(f"{path.relative_to(_HERE)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def image(name: str) -> Path:
    """Path of the guest's bootable ELF image; assembles it unless the cache has it.

    Raises ``KeyError`` for an unknown guest, ``OSError`` when the cache cannot be written and
    ``InputError`` when there is no place for one.
    """
    guest = get(name)
    path = usercache.need("guests") / f"{guest.name}-{_fingerprint()}.elf"
    if not path.exists():
        import tempfile

        from .asm import Assembler, elf32  # keystone takes a while to import: only when building

        data = elf32(Assembler().assemble(guest.source))
        path.parent.mkdir(parents=True, exist_ok=True)
        # Another process may be building the same image: the rename makes the last one win whole.
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(data)
        os.replace(file.name, path)
    return path
