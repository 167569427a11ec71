# SPDX-License-Identifier: GPL-2.0-or-later
"""One gdb's requests, answered from a machine that stands still.

A request is a packet's data, the answer too; an empty answer means "not known here", which gdb
takes well. Numbers are hexadecimal. What cannot be done is ``Enn`` (errno's number). After a
request to run, `Session.resume` says how, and the answer is the next stop's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from bt.errors import InputError
from bt.gdb.packet import MAX_PACKET
from bt.gdb.target import I386, X86_64, Register, description

if TYPE_CHECKING:
    from bt.machine.debug import Breakpoint
    from bt.machine.machine import Machine, Outcome

SIGINT, SIGTRAP, SIGSEGV = 2, 5, 11
_FEATURES = (b"PacketSize=%x;qXfer:features:read+;swbreak+;hwbreak+;vContSupported+;"
             b"QStartNoAckMode+" % (MAX_PACKET // 2))
_EINVAL, _EFAULT = b"E16", b"E0e"
_MAX_READ = 0x4000  # bytes a request may ask for


class Resume(NamedTuple):
    """What gdb wants the guest to do. ``detach``: without gdb from now on."""

    step: bool = False
    detach: bool = False
    kill: bool = False


class Segment(NamedTuple):
    """A part of the kernel's file: where it was linked to run and where it was loaded, bytes."""

    linear: int
    physical: int
    length: int


class Session:
    """What is kept for one connection.

    ``segments``: of the kernel's file. Before the guest has made its page tables, memory that is
    not mapped yet is shown by them: gdb reads a function's code before it takes a breakpoint there.
    """

    def __init__(self, machine: Machine, segments: Iterable[Segment] = ()) -> None:
        self._machine = machine
        self._segments = tuple(segments)
        self._breakpoints: dict[tuple[bytes, int], Breakpoint] = {}
        self._registers = X86_64 if machine.vcpu.bits == 64 else I386
        self.acknowledges = True
        self.resume: Resume | None = None
        self.last_stop = b"S05"
        self._died = False

    # Stops ------------------------------------------------------------------------------------

    def stopped(self, signal: int) -> bytes:
        """The reply for a stop with a POSIX signal's number."""
        self.last_stop = b"T%02xthread:1;" % signal
        return self.last_stop

    def hit(self) -> bytes:
        """The reply for a stop at a breakpoint of gdb's."""
        kinds = [kind for kind, at in self._breakpoints if at == self._machine.vcpu.linear_rip]
        if not kinds:
            return self.stopped(SIGTRAP)
        what = b"hwbreak" if kinds == [b"1"] else b"swbreak"
        self.last_stop = b"T05%s:;thread:1;" % what
        return self.last_stop

    def ended(self, outcome: Outcome) -> bytes:
        """The reply for a guest that has ended; a dead one may be looked at first."""
        if outcome.kind == "died" and not self._died:
            self._died = True
            return self.stopped(SIGSEGV)
        self.last_stop = b"W%02x" % (outcome.status & 0xFF)
        return self.last_stop

    def close(self) -> None:
        """gdb is gone: its breakpoints go too."""
        for one in self._breakpoints.values():
            one.remove()
        self._breakpoints.clear()

    # Requests ---------------------------------------------------------------------------------

    def answer(self, request: bytes) -> bytes | None:
        """The reply; None if there is none now (the guest is to run, or gdb has gone)."""
        self.resume = None
        try:
            for prefix, handler in _HANDLERS:
                if request.startswith(prefix):
                    return handler(self, request[len(prefix):])
        except InputError:
            return _EFAULT
        except (ValueError, IndexError, KeyError, OverflowError):
            return _EINVAL
        return b""

    def _supported(self, rest: bytes) -> bytes:
        return _FEATURES

    def _ok(self, rest: bytes) -> bytes:
        return b"OK"

    def _no_ack(self, rest: bytes) -> bytes:
        self.acknowledges = False
        return b"OK"

    def _why(self, rest: bytes) -> bytes:
        return self.last_stop

    def _features(self, rest: bytes) -> bytes:
        """qXfer:features:read:ANNEX:OFFSET,LENGTH"""
        annex, _, where = rest.partition(b":")
        if annex != b"target.xml":
            return b"E00"
        offset, length = (int(part, 16) for part in where.split(b","))
        text = description(self._registers).encode()
        piece = text[offset:offset + min(length, _MAX_READ)]
        return (b"m" if offset + len(piece) < len(text) else b"l") + piece

    # Registers

    def _read(self, register: Register, values: dict[str, int]) -> bytes:
        size = register.bits // 8
        if register.ours is None:
            return b"x" * 2 * size
        value = values[register.ours] & (1 << register.bits) - 1
        return value.to_bytes(size, "little").hex().encode()

    def _write(self, register: Register, value: int) -> None:
        if register.ours is None:
            return
        old = self._machine.registers[register.ours] & (1 << register.bits) - 1
        if value != old:
            self._machine.registers[register.ours] = value

    def _get_all(self, rest: bytes) -> bytes:
        values = self._machine.vcpu.registers()
        return b"".join(self._read(register, values) for register in self._registers)

    def _set_all(self, rest: bytes) -> bytes:
        at = 0
        for register in self._registers:
            text = rest[at:at + register.bits // 4]
            at += register.bits // 4
            if text and b"x" not in text:
                self._write(register, int.from_bytes(bytes.fromhex(text.decode()), "little"))
        return b"OK"

    def _get_one(self, rest: bytes) -> bytes:
        register = self._registers[_number(rest)]
        return self._read(register, self._machine.vcpu.registers())

    def _set_one(self, rest: bytes) -> bytes:
        number, _, text = rest.partition(b"=")
        self._write(self._registers[_number(number)],
                    int.from_bytes(bytes.fromhex(text.decode()), "little"))
        return b"OK"

    # Memory

    def _get_memory(self, rest: bytes) -> bytes:
        address, length = (_number(part) for part in rest.split(b","))
        length = min(length, _MAX_READ)
        if not length:
            return b""
        found = self._look(address, length)
        if found is None:
            # As much as there is: gdb asks for more than it needs.
            found = self._look(address, min(length, 4096 - address % 4096))
        return _EFAULT if found is None else found.hex().encode()

    def _look(self, address: int, length: int) -> bytes | None:
        if address + length > 1 << 64:
            return None
        try:
            return self._machine.memory.read(address, length)
        except InputError:
            for segment in self._segments:
                offset = address - segment.linear
                if 0 <= offset and offset + length <= segment.length:
                    return self._machine.ram.read(segment.physical + offset, length)
        return None

    def _set_memory(self, rest: bytes) -> bytes:
        where, _, text = rest.partition(b":")
        return self._store(where, bytes.fromhex(text.decode()))

    def _set_binary(self, rest: bytes) -> bytes:
        where, _, data = rest.partition(b":")
        return self._store(where, data)

    def _store(self, where: bytes, data: bytes) -> bytes:
        address, length = (_number(part) for part in where.split(b","))
        if length != len(data) or address + length > 1 << 64:
            return _EINVAL
        self._machine.memory.write(address, data)
        return b"OK"

    # Breakpoints

    def _insert(self, rest: bytes) -> bytes:
        kind, at = _breakpoint(rest)
        if kind not in (b"0", b"1"):
            return b""      # watchpoints: not known here
        if (kind, at) not in self._breakpoints:
            self._breakpoints[kind, at] = self._machine.breakpoint(at)
        return b"OK"

    def _remove(self, rest: bytes) -> bytes:
        kind, at = _breakpoint(rest)
        if kind not in (b"0", b"1"):
            return b""
        found = self._breakpoints.pop((kind, at), None)
        if found is not None:
            found.remove()
        return b"OK"

    # Running

    def _go(self, rest: bytes, step: bool) -> bytes | None:
        if rest:            # an address to go on at
            self._machine.registers["rip"] = _number(rest)
        self.resume = Resume(step=step)
        return None

    def _continue(self, rest: bytes) -> bytes | None:
        return self._go(rest, False)

    def _step(self, rest: bytes) -> bytes | None:
        return self._go(rest, True)

    def _with_signal(self, rest: bytes, step: bool) -> bytes | None:
        # Signals mean nothing to a machine.
        return self._go(rest.partition(b";")[2], step)

    def _vcont(self, rest: bytes) -> bytes | None:
        """vCont;ACTION[:THREAD]...: there is one thread, so the first action is its own."""
        if rest == b"?":
            return b"vCont;c;C;s;S"
        action = rest.split(b";")[1][:1]
        if action not in (b"c", b"C", b"s", b"S"):
            return _EINVAL
        self.resume = Resume(step=action in b"sS")
        return None

    def _detach(self, rest: bytes) -> bytes:
        self.resume = Resume(detach=True)
        return b"OK"

    def _kill(self, rest: bytes) -> bytes | None:
        self.resume = Resume(kill=True)
        return None

    def _vkill(self, rest: bytes) -> bytes:
        self.resume = Resume(kill=True)
        return b"OK"

    # monitor

    def _monitor(self, rest: bytes) -> bytes:
        words = bytes.fromhex(rest.decode()).decode("utf-8", "replace").split()
        command = _MONITOR.get(words[0] if words else "help")
        text = _HELP if command is None else command(self._machine)
        return text.encode().hex().encode()


def _number(text: bytes) -> int:
    value = int(text, 16)
    if not 0 <= value < 1 << 64:
        raise ValueError(text)
    return value


def _breakpoint(rest: bytes) -> tuple[bytes, int]:
    """TYPE,ADDRESS,KIND[;...]"""
    kind, address, _ = rest.partition(b";")[0].split(b",")
    return kind, _number(address)


def _show_registers(machine: Machine) -> str:
    return "".join(f"{name:>14} {value:#x}\n" for name, value in machine.registers.items())


def _show_exits(machine: Machine) -> str:
    lines = []
    for unit, exits in machine.stats.exits.items():
        lines += [f"{unit:8} {count:>12} {name}\n"
                  for name, count in sorted(exits.items(), key=lambda item: -item[1])]
    return "".join(lines)


def _show_info(machine: Machine) -> str:
    return (f"engine {machine.engine.name}, {machine.ram.size >> 20} MB of RAM, "
            f"{machine.vcpu.bits}-bit code, virtual time {machine.vcpu.now_ns() / 1e9:.6f} s\n")


_MONITOR: dict[str, Callable[[Machine], str]] = {
    "regs": _show_registers, "exits": _show_exits, "info": _show_info}
_HELP = "monitor regs: every register; monitor exits: why the guest came out; monitor info\n"

#: By prefix; the first that fits, so longer ones come before shorter ones.
_HANDLERS: tuple[tuple[bytes, Callable[[Session, bytes], bytes | None]], ...] = (
    (b"qSupported", Session._supported),
    (b"qXfer:features:read:", Session._features),
    (b"qRcmd,", Session._monitor),
    (b"qAttached", lambda session, rest: b"1"),
    (b"qfThreadInfo", lambda session, rest: b"m1"),
    (b"qsThreadInfo", lambda session, rest: b"l"),
    (b"qThreadExtraInfo", lambda session, rest: b"vCPU".hex().encode()),
    (b"qSymbol", Session._ok),
    (b"qC", lambda session, rest: b"QC1"),
    (b"QStartNoAckMode", Session._no_ack),
    (b"vCont", Session._vcont),
    (b"vKill", Session._vkill),
    (b"?", Session._why),
    (b"H", Session._ok),
    (b"T", Session._ok),
    (b"g", Session._get_all),
    (b"G", Session._set_all),
    (b"p", Session._get_one),
    (b"P", Session._set_one),
    (b"m", Session._get_memory),
    (b"M", Session._set_memory),
    (b"X", Session._set_binary),
    (b"Z", Session._insert),
    (b"z", Session._remove),
    (b"c", Session._continue),
    (b"C", lambda session, rest: session._with_signal(rest, False)),
    (b"s", Session._step),
    (b"S", lambda session, rest: session._with_signal(rest, True)),
    (b"D", Session._detach),
    (b"k", Session._kill),
)
