# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own modules, from the package the kernel is from, for the initramfs.

Debian's kernel has its disk, network and bus drivers as modules. A boot that has no such device
carries none; one that has gets those it needs and what they depend on. The package has no list of
dependencies (depmod makes one when it is installed), so they are read from the modules themselves:
the section ``.modinfo`` is NUL-terminated ``key=value`` strings.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from bt.errors import InputError
from guests.linux.initramfs import Cpio

_FILE = re.compile(r"(.+)\.ko(\.xz|\.zst|\.gz)?")
_LIMIT = 64 << 20  # bytes of a module, unpacked


def _key(name: str) -> str:
    """Module names: a hyphen in a file name is an underscore everywhere else."""
    return name.replace("-", "_")


def _unpack(path: Path) -> bytes:
    """A module's ELF file. Raises InputError."""
    try:
        data = path.read_bytes()
        if path.suffix == ".xz":
            import lzma
            data = lzma.LZMADecompressor().decompress(data, _LIMIT)
        elif path.suffix == ".gz":
            import zlib
            data = zlib.decompressobj(31).decompress(data, _LIMIT)
        elif path.suffix == ".zst":
            import zstandard
            data = zstandard.ZstdDecompressor().decompress(data, _LIMIT)
    except Exception as error:
        # Each library has its own exceptions for damaged data.
        raise InputError(f"cannot read the kernel module {path}: {error}") from None
    return data


def info(module: bytes, key: str) -> list[str]:
    """The values of ``key`` in a module's .modinfo."""
    found = re.findall(rb"\0" + key.encode() + rb"=([^\0]*)", module)
    return [value.decode("utf-8", "replace") for value in found]


def dependencies(module: bytes) -> list[str]:
    """The modules that must be loaded before this one, and those that should be."""
    names = [name for value in info(module, "depends") for name in value.split(",") if name]
    for value in info(module, "softdep"):
        before = re.search(r"pre:\s*([\w\s-]*?)\s*(?:\bpost:|$)", value)
        names += before[1].split() if before else []
    return names


class Modules:
    """The modules of one kernel: a folder of ``.ko`` files, packed or not, at any depth."""

    def __init__(self, folder: Path, release: str) -> None:
        self.release = release
        self._paths: dict[str, Path] = {}
        for base, _, files in os.walk(folder):
            for name in files:
                match = _FILE.fullmatch(name)
                if match:
                    self._paths[_key(match[1])] = Path(base, name)

    def closure(self, names: Iterable[str]) -> dict[str, tuple[bytes, list[str]]]:
        """{module: (its ELF file, modules it needs)} for ``names`` and all they need, in an order
        in which they can be loaded.

        What a kernel has built in is no module: a name that is not there is left out.
        """
        found: dict[str, tuple[bytes, list[str]]] = {}

        def visit(name: str, above: tuple[str, ...]) -> None:
            path = self._paths.get(name)
            if path is None or name in found or name in above:
                return
            data = _unpack(path)
            needs = [_key(other) for other in dependencies(data)]
            for other in needs:
                visit(other, (*above, name))
            found[name] = data, [other for other in needs if other in found]

        for name in names:
            visit(_key(name), ())
        return found

    def archive(self, names: Iterable[str]) -> bytes:
        """An archive to append to the base one: /init loads ``names``, in that order.

        /lib/modules/RELEASE is as depmod would leave it, as far as modprobe reads it.
        """
        wanted = [_key(name) for name in names]
        modules = self.closure(wanted)
        home = f"lib/modules/{self.release}"
        cpio = Cpio()
        for folder in ("ring1", "lib", "lib/modules", home):
            cpio.directory(folder)
        lines = []
        for name, (data, _) in modules.items():
            cpio.file(f"{home}/{name}.ko", data)
            lines.append(f"{name}.ko: {' '.join(self._all_needs(name, modules))}".rstrip())
        cpio.file(f"{home}/modules.dep", "".join(line + "\n" for line in lines).encode())
        first = [name for name in wanted if name in modules]
        cpio.file("ring1/modules", "".join(name + "\n" for name in first).encode())
        return cpio.finish()

    @staticmethod
    def _all_needs(name: str, modules: dict[str, tuple[bytes, list[str]]]) -> list[str]:
        """Files of everything ``name`` needs, what is needed most first last, as depmod has it."""
        order = list(modules)
        needs: set[str] = set()
        queue = list(modules[name][1])
        while queue:
            other = queue.pop()
            if other not in needs and other != name:
                needs.add(other)
                queue += modules[other][1]
        return [f"{other}.ko" for other in sorted(needs, key=order.index, reverse=True)]
