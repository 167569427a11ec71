# SPDX-License-Identifier: GPL-2.0-or-later
"""Engine pv, our own interface: what a kernel's ELF notes declare is set up here.

docs/pv-abi.md is the contract. The kernel lies in RAM already; its file is read once more for the
notes, the stubs and the table of traps, all of it as hostile as any other input.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bt.boot import elf
from bt.boot.image import FileImage, Image
from bt.errors import InputError
from bt.machine.cpu import EngineHost
from translator import pvabi
from translator.scanner import scan_block

_PT_LOAD = 1
_PT_NOTE = 4
_PAGE = 0x1000
#: Bounds on what a hostile file can make us read and keep.
_MAX_NOTES = 64 << 20
_MAX_TRAPS = 1 << 20


class _Header(NamedTuple):
    """One program header: type, file range and addresses, in bytes."""

    kind: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int


class Declaration(NamedTuple):
    """What a kernel declares: GPA of its hypercall page (0: none), its stubs and its traps."""

    hypercall_page: int
    stubs: bytes
    traps: tuple[pvabi.Trap, ...]


def attach(host: EngineHost, path: Path) -> Declaration:
    """Give the loaded kernel of ``path`` what it declares. Raises InputError if that is nothing."""
    with FileImage(Path(path)) as image:
        headers = tuple(_headers(image))
        declared = _declaration(image, headers)
        if declared is None:
            raise InputError(f"{image.name}: is not paravirtual: `bt patch` makes it so (Linux "
                             "needs no patch: it speaks Xen's interface)")
        if declared.hypercall_page:
            if declared.hypercall_page % _PAGE or \
                    not host.ram.contains(declared.hypercall_page, _PAGE):
                raise InputError(f"{image.name}: its note wants a hypercall page at "
                                 f"{declared.hypercall_page:#x}, which is no page of RAM")
            host.ram.write(declared.hypercall_page, pvabi.hypercall_page())
        host.vcpu.set_ring1(declared.stubs, [
            (*_where(image, headers, trap), trap.address, trap.resume, _row(image, trap),
             trap.bits, trap.code) for trap in declared.traps], host.console_output,
            partial(shutdown, host))
        return declared


def shutdown(host: EngineHost, reason: int, status: int) -> None:
    """Hypercall shutdown: 0 power off with ``status``, 1 reboot, 2 the kernel gave up."""
    if reason == 0:
        host.end("powered-off", status)
    elif reason == 1:
        host.end("reset")
    else:
        host.died("it said so, by hypercall")


def declares(path: Path) -> bool:
    """Whether ``path`` is an ELF file with our note. Raises InputError if it cannot be read."""
    with FileImage(Path(path)) as image:
        if not image.head(4).startswith(elf.MAGIC):
            return False
        return _declaration(image, tuple(_headers(image))) is not None


def _headers(image: Image) -> Iterator[_Header]:
    """The program headers, as far as they are there."""
    head = image.head(64)
    if len(head) < 64 or not head.startswith(elf.MAGIC) or head[4] not in (1, 2):
        return
    wide = head[4] == 2
    phoff, = struct.unpack_from("<Q" if wide else "<I", head, 32 if wide else 28)
    size, count = struct.unpack_from("<HH", head, 54 if wide else 42)
    if size < (56 if wide else 32) or count > 256:
        return
    image.check(phoff, size * count)
    table = image.read(phoff, size * count)
    for at in range(0, len(table), size):
        if wide:
            kind, _, offset, vaddr, paddr, filesz = struct.unpack_from("<IIQQQQ", table, at)
        else:
            kind, offset, vaddr, paddr, filesz = struct.unpack_from("<5I", table, at)
        yield _Header(kind, offset, vaddr, paddr, filesz)


def _declaration(image: Image, headers: tuple[_Header, ...]) -> Declaration | None:
    interface: bytes | None = None
    traps: tuple[pvabi.Trap, ...] = ()
    stubs = b""
    for header in headers:
        if header.kind == _PT_NOTE and header.filesz <= _MAX_NOTES:
            for kind, desc in pvabi.notes(image.read(header.offset, header.filesz)):
                if kind == pvabi.NOTE_INTERFACE:
                    interface = desc
                elif kind == pvabi.NOTE_TRAPS:
                    traps = _traps(image, desc)
        elif header.kind == pvabi.PT_STUBS:
            if header.filesz > pvabi.STUBS_ROOM:
                raise InputError(f"{image.name}: has {header.filesz} bytes of stubs; "
                                 f"{pvabi.STUBS_ROOM} is the limit")
            stubs = image.read(header.offset, header.filesz)
    if interface is None:
        return None
    if len(interface) < pvabi.INTERFACE.size:
        raise InputError(f"{image.name}: its Ring1 note is cut short")
    version, flags, page, vcpu_page = pvabi.INTERFACE.unpack_from(interface)
    if version != pvabi.VERSION or flags:
        raise InputError(f"{image.name}: speaks version {version} (flags {flags:#x}) of Ring1's "
                         f"interface; this is version {pvabi.VERSION}")
    if vcpu_page not in (0, pvabi.WINDOW, pvabi.WINDOW32):
        raise InputError(f"{image.name}: its note wants the vCPU page at {vcpu_page:#x}; it can "
                         f"only be at {pvabi.WINDOW:#x}")
    return Declaration(page, stubs, traps)


def _traps(image: Image, desc: bytes) -> tuple[pvabi.Trap, ...]:
    if len(desc) > _MAX_TRAPS * pvabi.TRAP.size:
        raise InputError(f"{image.name}: its table has more than {_MAX_TRAPS} traps")
    try:
        return tuple(pvabi.unpack_traps(desc))
    except ValueError as error:
        raise InputError(f"{image.name}: {error}") from None


def _where(image: Image, headers: tuple[_Header, ...],
           trap: pvabi.Trap) -> tuple[int | None, int]:
    """(GPA, 0) of a trap in the kernel, or (None, offset) of one in the window."""
    for window in (pvabi.WINDOW, pvabi.WINDOW32):
        if window <= trap.trap < window + pvabi.STUBS_OFFSET + pvabi.STUBS_ROOM:
            return None, trap.trap - window
    for header in headers:
        if header.kind == _PT_LOAD and header.vaddr <= trap.trap < header.vaddr + header.filesz:
            return header.paddr + trap.trap - header.vaddr, 0
    raise InputError(f"{image.name}: has a trap at {trap.trap:#x}, outside of its memory")


def _row(image: Image, trap: pvabi.Trap) -> int:
    found = scan_block(trap.code, trap.address, trap.bits).findings
    if len(found) != 1 or found[0].code != trap.code:
        raise InputError(f"{image.name}: the trap at {trap.trap:#x} stands for no sensitive "
                         "instruction")
    return found[0].row.id
