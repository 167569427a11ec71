# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's registers and memory, for Python: by name, by virtual and by physical address.

Everything is as the guest sees it: CS shows ring 0, code shows no rewritten byte. Use it while the
machine does not run, or from a hook.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Protocol, overload

from bt.errors import InputError

if TYPE_CHECKING:
    from bt.machine.ram import Ram

_PIECE = 1 << 20  # the core copies at most so much at a time


class Cpu(Protocol):
    """What is needed of a vCPU here."""

    @property
    def bits(self) -> int: ...

    def registers(self) -> dict[str, int]: ...
    def read_register(self, name: str) -> int: ...
    def write_register(self, name: str, value: int) -> None: ...
    def read_virtual(self, gva: int, length: int) -> bytes | None: ...
    def write_virtual(self, gva: int, data: bytes) -> bool: ...
    def translate_address(self, gva: int) -> int | None: ...


def _halves() -> dict[str, str]:
    names = {"e" + name: "r" + name for name in ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp")}
    return names | {"eip": "rip", "eflags": "rflags"} | {f"r{n}d": f"r{n}" for n in range(8, 16)}


_LOW_HALF = _halves()


class Registers(Mapping[str, int]):
    """The registers by name: ``registers["rax"]``, ``registers["eax"]``, ``registers["cr3"]``.

    Assigning changes one: a 32-bit name clears the upper half, as the CPU does. RFLAGS keeps its
    IOPL. Raises KeyError for a name that is none or cannot be written, ValueError for a value that
    the register cannot have.
    """

    def __init__(self, cpu: Cpu) -> None:
        self._cpu = cpu

    def __getitem__(self, name: str) -> int:
        full = _LOW_HALF.get(name)
        if full is not None:
            return self._cpu.read_register(full) & 0xFFFF_FFFF
        return self._cpu.read_register(name)

    def __setitem__(self, name: str, value: int) -> None:
        full = _LOW_HALF.get(name)
        if full is not None:
            self._cpu.write_register(full, value & 0xFFFF_FFFF)
        else:
            self._cpu.write_register(name, value & (1 << 64) - 1)

    def __iter__(self) -> Iterator[str]:
        return iter(self._cpu.registers())

    def __len__(self) -> int:
        return len(self._cpu.registers())

    def __repr__(self) -> str:
        return "\n".join(f"{name:>14} {value:#x}" for name, value in self.items())


class Memory:
    """Guest memory by virtual (linear) address, through the guest's page tables as they are now.

    Access is with the kernel's rights, and leaves accessed bits as the kernel's own would.
    """

    def __init__(self, cpu: Cpu) -> None:
        self._cpu = cpu

    def read(self, virtual: int, length: int) -> bytes:
        """``length`` bytes at ``virtual``. Raises InputError where nothing is mapped."""
        found = bytearray()
        while len(found) < length:
            piece = self._cpu.read_virtual(virtual + len(found),
                                           min(length - len(found), _PIECE))
            if piece is None:
                raise InputError(f"nothing is mapped at {virtual:#x}+{length:#x}")
            found += piece
        return bytes(found)

    def write(self, virtual: int, data: bytes | bytearray | memoryview) -> None:
        """Put ``data`` at ``virtual``. Raises InputError where the kernel could not write it."""
        whole = bytes(data)
        for at in range(0, len(whole), _PIECE):
            if not self._cpu.write_virtual(virtual + at, whole[at:at + _PIECE]):
                raise InputError(f"{virtual:#x}+{len(whole):#x} cannot be written")

    def read_int(self, virtual: int, size: int = 8) -> int:
        """A little-endian number of ``size`` bytes."""
        return int.from_bytes(self.read(virtual, size), "little")

    def write_int(self, virtual: int, value: int, size: int = 8) -> None:
        """A little-endian number of ``size`` bytes."""
        self.write(virtual, (value & (1 << 8 * size) - 1).to_bytes(size, "little"))

    def read_text(self, virtual: int, limit: int = 4096) -> str:
        """The C string at ``virtual``, at most ``limit`` bytes of it."""
        found = bytearray()
        while len(found) < limit:
            # Not over a page's end: the next page may not be there.
            piece = self.read(virtual, min(limit - len(found), 4096 - virtual % 4096))
            end = piece.find(0)
            if end >= 0:
                return (found + piece[:end]).decode("utf-8", "replace")
            found += piece
            virtual += len(piece)
        return found.decode("utf-8", "replace")


class Physical:
    """Guest RAM by physical address: ``physical[0x1000]`` is a byte, ``physical[0:4096]`` bytes.

    Slices take no step. Raises InputError outside RAM.
    """

    def __init__(self, ram: Ram, cpu: PhysicalCpu) -> None:
        self._ram = ram
        self._cpu = cpu

    def __len__(self) -> int:
        return self._ram.size

    @overload
    def __getitem__(self, where: int) -> int: ...
    @overload
    def __getitem__(self, where: slice) -> bytes: ...

    def __getitem__(self, where: int | slice) -> int | bytes:
        if isinstance(where, slice):
            start, length = self._span(where)
            return self._ram.read(start, length)
        return self._ram.read(where, 1)[0]

    def __setitem__(self, where: int | slice, data: int | bytes) -> None:
        if isinstance(where, slice):
            assert not isinstance(data, int), "a slice takes bytes"
            start, length = self._span(where, len(data))
            if length != len(data):
                raise InputError(f"{len(data)} bytes do not fit into {length}")
        else:
            start, data = where, bytes([data]) if isinstance(data, int) else data
        self._ram.read(start, 0 if not data else len(data))  # the range, before anything changes
        if data:
            self._cpu.dma_write_begin(start, len(data))
        self._ram.write(start, data)

    def _span(self, where: slice, default: int = 1) -> tuple[int, int]:
        if where.step not in (None, 1):
            raise InputError("physical memory has no slices with a step")
        start = where.start or 0
        stop = where.stop if where.stop is not None else start + default
        return start, max(stop - start, 0)


class PhysicalCpu(Protocol):
    """What a vCPU has to know when RAM changes behind its back."""

    def dma_write_begin(self, gpa: int, length: int) -> None: ...
