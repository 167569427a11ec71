# SPDX-License-Identifier: GPL-2.0-or-later
"""Hooks on exits: Python functions that see what the guest did, and may change what comes of it.

An exit has a *reason*, one of :func:`reasons`: a row of the sensitive table in lower case ("cpuid",
"mov to cr"), an exception ("#GP", "exception 13"), or an event ("syscall", "port read",
"translation"). A hook gets one :class:`Exit`. ``when="before"`` comes before the exit is dealt
with, ``"after"`` behind it; after an instruction only if it did not raise an exception.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from bt.core import vcpu as core
from bt.core.counters import EXCEPTIONS, MEMORY_UNIT
from bt.core.vcpu import PSEUDO_EXITS
from bt.errors import InputError
from bt.machine.access import Memory, Registers
from translator.sensitive import TABLE

if TYPE_CHECKING:
    from bt.machine.machine import Machine

When = Literal["before", "after"]
Hook = Callable[["Exit"], object]
Result = int | tuple[int, int, int, int]

_GO = (core.GO, 0, 0)
_ENOSYS = -38  # what an unknown hypercall returns, Xen's and ours
_ACCESS = ("read", "write", "execute")
_MASK = (1 << 64) - 1
#: Order of ModRM's register numbers (SDM vol. 2, table 2-2).
_GPRS = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
         "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")


class Reason(NamedTuple):
    """One kind of exit. ``number``: the core's; ``unit``: who intercepts it."""

    name: str
    number: int
    unit: Literal["control", "memory"]


def _exception_name(vector: int) -> str:
    return f"exception {EXCEPTIONS.get(vector, vector)}"


def _all_reasons() -> dict[str, Reason]:
    found = [(row.name.lower().replace("_", " "), row.id) for row in TABLE]
    # Rows that reach the VMM as events only; the event has the name.
    taken = {"syscall", "sysenter"}
    found = [(name, number) for name, number in found if name not in taken]
    found += [(_exception_name(v), core.HOOK_PSEUDO + v) for v in range(32) if v != 14]
    found.append(("page fault", core.HOOK_PSEUDO + 14))
    merged = {"page fault injected", "port access to a device"}
    found += [(name if name[0] != "S" else name.lower(), core.HOOK_PSEUDO + number)
              for number, name in PSEUDO_EXITS.items() if name not in merged]
    found += [("hypercall", core.HYPERCALL), ("port read", core.PORT_READ),
              ("port write", core.PORT_WRITE)]
    memory = MEMORY_UNIT | {"page fault"}
    return {name: Reason(name, number, "memory" if name in memory else "control")
            for name, number in found}


REASONS = _all_reasons()
_BY_NUMBER = {reason.number: reason for reason in REASONS.values()}
_GROUPS = {
    "port": ("port read", "port write"),
    "exception": tuple(name for name in REASONS if name.startswith("exception ")) + ("page fault",),
    "instruction": tuple(reason.name for reason in REASONS.values()
                         if reason.number < core.HOOK_PSEUDO),
}
_ALIASES = {
    "page fault injected": "page fault", "exception #pf": "page fault", "int": "software interrupt",
    "interrupt": "interrupt injected", "irq": "interrupt injected", "tlb flush": "TLB flush",
    "tlb fill": "translation", "exception 14": "page fault", "#pf": "page fault",
    **{name.removeprefix("exception ").lower(): name for name in REASONS
       if name.startswith("exception #")},
    **{f"exception {vector}": _exception_name(vector) for vector in EXCEPTIONS if vector != 14},
    **{name.lower(): name for name in REASONS},
}


def reasons() -> tuple[str, ...]:
    """Every reason a hook can be put on; the groups "port", "exception", "instruction" too."""
    return (*REASONS, *_GROUPS)


def find_reasons(name: str) -> tuple[Reason, ...]:
    """The reasons that ``name`` stands for. Raises InputError, with what was perhaps meant."""
    plain = name.strip().lower().replace("_", " ").replace("-", " ")
    if plain in _GROUPS:
        return tuple(REASONS[one] for one in _GROUPS[plain])
    found = REASONS.get(_ALIASES.get(plain, plain))
    if found is None:
        near = difflib.get_close_matches(plain, [*_ALIASES, *_GROUPS], 3, 0.6)
        hint = f"perhaps {' or '.join(repr(n) for n in near)}" if near else \
            "bt.machine.exits.reasons() lists them"
        raise InputError(f"no exit {name!r}: {hint}")
    return (found,)


class Exit:
    """One exit of the guest, good while the hook runs.

    Always there: ``unit`` ("control" or "memory"), ``reason``, ``when``, ``rip`` (of the
    instruction; for a memory access the CPU is in the middle of, of its block or later), ``cpl`` as
    the guest believes it, ``bits`` (16, 32, 64), ``code`` (the instruction's bytes, empty where
    there is none), ``hardware_code`` (the hardware's number for it, under engines that have
    hardware; else None), ``machine``.

    The others are there where they mean something, and raise AttributeError elsewhere;
    ``parameters`` has those that are:

    ==========================  ====================================================================
    cpuid                       leaf, subleaf
    rdmsr, wrmsr                msr; wrmsr: value
    mov to/from cr, dr          register (its number); to: value
    in, out, ins, outs          port, size (bytes); out: value
    port read, port write       port, size, value (of a read: after)
    exceptions, page fault      vector, error; page fault: gva, access
    interrupts                  vector
    syscall, sysenter           number (RAX)
    hypercall                   number, args
    translation                 gva, access; after: gpa
    absent memory, mmio         gpa, size, access; value (of a read: after)
    code page written, ...      gpa
    block scanned               gva, size
    page invalidation           gva
    ==========================  ====================================================================
    """

    __slots__ = ("_decision", "_limits", "_result", "access", "args", "bits", "code", "cpl",
                 "error", "gpa", "gva", "hardware_code", "leaf", "machine", "msr", "number", "port",
                 "reason", "register", "rip", "size", "subleaf", "unit", "value", "vector", "when")

    unit: Literal["control", "memory"]
    reason: str
    when: When
    machine: Machine
    rip: int
    cpl: int
    bits: int
    code: bytes
    hardware_code: int | None
    leaf: int
    subleaf: int
    msr: int
    register: int
    port: int
    size: int
    value: int
    vector: int
    error: int
    gva: int
    gpa: int
    access: str
    number: int
    args: tuple[int, ...]

    def __init__(self, machine: Machine, reason: Reason, when: When, rip: int, cpl: int, bits: int,
                 hardware_code: int, code: bytes, limits: int) -> None:
        self.machine = machine
        self.unit = reason.unit
        self.reason = reason.name
        self.when = when
        self.rip = rip
        self.cpl = cpl
        self.bits = bits
        self.code = code
        self.hardware_code = None if hardware_code < 0 else hardware_code
        self._limits = limits
        self._decision = _GO
        self._result: Result | None = None

    # What it is -------------------------------------------------------------------------------

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of this exit, by name."""
        return {name: getattr(self, name) for name in _PARAMETERS if hasattr(self, name)}

    @property
    def registers(self) -> Registers:
        """The guest's registers, as it sees them."""
        return self.machine.registers

    @property
    def memory(self) -> Memory:
        """The guest's memory, by virtual (linear) address."""
        return self.machine.memory

    @property
    def text(self) -> str:
        """The instruction in assembly, or the reason where there is none."""
        if not self.code:
            return self.reason
        from translator.scanner import disassembler
        for _, _, mnemonic, operands in disassembler(self.bits).disasm_lite(self.code, self.rip):
            return f"{mnemonic} {operands}".rstrip()
        return self.code.hex(" ")

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value:#x}" if isinstance(value, int) else f"{name}={value!r}"
                          for name, value in self.parameters.items())
        return f"<Exit {self.reason} {self.when} rip={self.rip:#x} cpl={self.cpl} {given}>"

    # What to do with it -----------------------------------------------------------------------

    def skip(self) -> None:
        """Do not do it: the guest goes on behind the instruction (an exception: at it)."""
        self._refuse(core.NO_SKIP, "skipped")
        self._decision = (core.SKIP, self._coded_result(), 0)

    def inject(self, vector: int, error: int = 0) -> None:
        """Refuse it: the guest gets exception ``vector`` (0-31) at the instruction instead."""
        self._refuse(core.NO_INJECT, "refused with an exception")
        if not 0 <= vector < 32:
            raise ValueError(f"{vector} is no exception")
        self._decision = (core.INJECT, vector, error & 0xFFFF_FFFF)

    @property
    def result(self) -> Any:
        """What the guest gets: CPUID's four values, the value of RDMSR, RDTSC, MOV from CR or DR,
        IN, a port, a device or absent memory, the return value of a hypercall.

        There to read after the exit. Setting it before stands in for the exit, which is skipped.
        """
        if self._result is None:
            self._result = self._read_result()
        return self._result

    @result.setter
    def result(self, value: Result) -> None:
        if not self._has_result:
            raise ValueError(f"an exit {self.reason!r} has no result")
        words = 4 if self.reason == "cpuid" else 1
        if (len(value) if isinstance(value, tuple) else 1) != words:
            raise ValueError("the result of cpuid is (eax, ebx, ecx, edx)" if words == 4 else
                             f"the result of {self.reason!r} is one number")
        self._result = value
        if self.reason in _IN_REGISTERS:
            self._write_result(value)
        if self.when == "before":
            self.skip()
        elif self.reason not in _IN_REGISTERS:
            self._decision = (core.SKIP, self._coded_result(), 0)

    @property
    def _has_result(self) -> bool:
        if self.reason in _MEMORY_ACCESS:
            return self.access == "read"
        return self.reason in _IN_REGISTERS or self.reason in ("port read", "hypercall")

    def _refuse(self, limit: int, what: str) -> None:
        if self._limits & limit or self.when == "after":
            raise ValueError(f"an exit {self.reason!r} ({self.when}) cannot be {what}")

    def _coded_result(self) -> int:
        if isinstance(self._result, int):
            return self._result & _MASK
        return _ENOSYS & _MASK if self.reason == "hypercall" else _MASK

    def _read_result(self) -> Result:
        if self.when == "before" or not self._has_result:
            raise ValueError(f"an exit {self.reason!r} ({self.when}) has no result")
        regs = self.registers
        low = 0xFFFF_FFFF
        if self.reason == "cpuid":
            return regs["rax"] & low, regs["rbx"] & low, regs["rcx"] & low, regs["rdx"] & low
        if self.reason in ("rdmsr", "rdtsc", "rdtscp"):
            return regs["rdx"] << 32 & _MASK | regs["rax"] & low
        if self.reason == "in":
            return regs["rax"] & (1 << 8 * self.size) - 1
        return regs[self._operand]

    def _write_result(self, value: Result) -> None:
        regs = self.registers
        if isinstance(value, tuple):
            for name, word in zip(("rax", "rbx", "rcx", "rdx"), value, strict=True):
                regs[name] = word & 0xFFFF_FFFF
        elif self.reason in ("rdmsr", "rdtsc", "rdtscp"):
            regs["rax"] = value & 0xFFFF_FFFF
            regs["rdx"] = value >> 32 & 0xFFFF_FFFF
        elif self.reason == "in":
            mask = (1 << 8 * self.size) - 1
            # A 4-byte IN clears the upper half of RAX, as every 32-bit result does.
            kept = 0 if self.size == 4 else regs["rax"] & ~mask
            regs["rax"] = kept | value & mask
        else:
            regs[self._operand] = value & _MASK

    @property
    def _operand(self) -> str:
        """The general register of a MOV to or from a control or debug register."""
        _, rm = _modrm(self.code)
        return _GPRS[rm]


#: Results that are in registers, not with the core.
_IN_REGISTERS = frozenset({"cpuid", "rdmsr", "rdtsc", "rdtscp", "in", "mov from cr", "mov from dr"})
_MEMORY_ACCESS = ("absent memory", "mmio", "protected memory written")
_PARAMETERS = ("leaf", "subleaf", "msr", "register", "port", "size", "value", "vector", "error",
               "gva", "gpa", "access", "number", "args")


def _modrm(code: bytes) -> tuple[int, int]:
    """(reg, rm) of a MOV CR or DR, which ends in its ModRM byte; REX extends both."""
    modrm = code[-1]
    rex = code[-4] if len(code) >= 4 and code[-4] & 0xF0 == 0x40 else 0
    return modrm >> 3 & 7 | (rex & 4) << 1, modrm & 7 | (rex & 1) << 3


def _port_of(code: bytes, bits: int, dx: int) -> tuple[int, int]:
    """(port, size) of an IN, OUT, INS or OUTS."""
    opcode = code[-2] if len(code) > 1 and code[-2] in (0xE4, 0xE5, 0xE6, 0xE7) else code[-1]
    port = code[-1] if opcode & 0xFC == 0xE4 and opcode != code[-1] else dx & 0xFFFF
    if not opcode & 1:
        return port, 1
    return port, 2 if (0x66 in code[:-1]) == (bits != 16) else 4


class ExitHooks:
    """The hooks of one machine, and the way from the core's numbers to an :class:`Exit`.

    Engines without the compiled core call :meth:`fire` with the same arguments.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._hooks: dict[tuple[int, int], list[Hook]] = {}
        self._phases: dict[int, int] = {}

    def add(self, names: Iterable[str], when: str, hook: Hook) -> None:
        """Call ``hook`` at these exits.

        Raises InputError for a name or time that is none, and for an exit that this engine cannot
        have; then none is hooked. Of a group, those that it can have.
        """
        if when not in ("before", "after"):
            raise InputError(f'when is "before" or "after", not {when!r}')
        phase = core.BEFORE if when == "before" else core.AFTER
        wanted = [find_reasons(name) for name in names]     # all, before any hook is there
        added: list[tuple[int, int]] = []
        try:
            for found in wanted:
                added += self._add_some(found, phase, hook)
        except InputError:
            for key in added:
                self._take_one(key, hook)
            raise

    def _add_some(self, found: Iterable[Reason], phase: int, hook: Hook) -> list[tuple[int, int]]:
        """Add to those that this engine can have: the keys. Raises InputError if it has none."""
        added = []
        refused = None
        for reason in found:
            # News come once: then they count as before.
            key = reason.number, core.BEFORE if reason.name in _NEWS else phase
            # A new list, here and below: a hook may add and remove while the old is gone through.
            self._hooks[key] = [*self._hooks.get(key, ()), hook]
            try:
                self._tell(reason.number)
            except InputError as error:
                self._take_one(key, hook)
                refused = error
            else:
                added.append(key)
        if refused and not added:
            raise refused
        return added

    def _take_one(self, key: tuple[int, int], hook: Hook) -> None:
        """Undo one adding of ``hook``, the last: it may have been there before."""
        hooks = list(reversed(self._hooks[key]))
        hooks.remove(hook)
        self._hooks[key] = hooks[::-1]
        self._tell(key[0])

    def remove(self, hook: Hook) -> None:
        """Take a hook off every exit it is on."""
        for key, hooks in self._hooks.items():
            if hook in hooks:
                self._hooks[key] = [one for one in hooks if one != hook]
                self._tell(key[0])

    def wanted(self, number: int, phase: int) -> bool:
        """Whether anybody hooks exit ``number`` at this phase."""
        return bool(self._phases.get(number, 0) & phase)

    def _tell(self, number: int) -> None:
        before, after = (bool(self._hooks.get((number, phase)))
                         for phase in (core.BEFORE, core.AFTER))
        self._phases[number] = before * core.BEFORE | after * core.AFTER
        self._machine.vcpu.set_hook(number, before, after)

    def fire(self, number: int, phase: int, rip: int, cpl: int, bits: int, hardware_code: int,
             code: bytes, arguments: tuple[int, ...], limits: int) -> tuple[int, int, int]:
        """Call the hooks of one exit; the last to decide decides. See ``Vcpu.set_hook``."""
        hooks = self._hooks.get((number, phase))
        if not hooks:
            return _GO
        reason = _BY_NUMBER[number]
        exit_ = Exit(self._machine, reason, "before" if phase == core.BEFORE else "after", rip,
                     cpl, bits, hardware_code, code, limits)
        _describe(exit_, number, arguments)
        for hook in hooks:
            hook(exit_)
        return exit_._decision


_NEWS = frozenset({
    "quantum used up", "TLB flush", "code page written", "page became code", "block scanned",
    "block translated again", "stale trap", "stub installed", "stub taken back",
    "page invalidation",
})


def _describe(exit_: Exit, number: int, arguments: tuple[int, ...]) -> None:
    """Set the parameters of an exit from the core's arguments."""
    reason = exit_.reason
    if number < core.HOOK_PSEUDO:
        _describe_instruction(exit_, *arguments)
    elif number < core.HOOK_PSEUDO + 32:
        exit_.vector = number - core.HOOK_PSEUDO
        exit_.error = arguments[0]
        if exit_.vector == 14:
            exit_.gva = arguments[1]
            # Bits of the error code: SDM vol. 3, 4.7.
            exit_.access = _ACCESS[2 if exit_.error & 16 else exit_.error >> 1 & 1]
    elif reason in ("port read", "port write"):
        exit_.port, exit_.size = arguments[:2]
        if reason == "port write" or exit_.when == "after":
            exit_.value = arguments[2] & (1 << 8 * exit_.size) - 1
        if reason == "port read" and exit_.when == "after":
            exit_._result = exit_.value
    elif reason == "hypercall":
        if exit_.when == "after":
            result = arguments[-1]
            exit_._result = result - (1 << 64) if result >> 63 else result
            arguments = arguments[:-1]
        exit_.number, exit_.args = arguments[0], arguments[1:]
    elif reason in ("syscall", "sysenter"):
        exit_.number = arguments[0] & 0xFFFF_FFFF
    elif reason in ("software interrupt", "interrupt injected"):
        exit_.vector = arguments[0]
    elif reason == "translation":
        exit_.gva = arguments[0]
        exit_.access = _ACCESS[arguments[1]]
        if exit_.when == "after":
            exit_.gpa = arguments[2]
    elif reason in _MEMORY_ACCESS:
        exit_.gpa, exit_.size = arguments[:2]
        exit_.access = _ACCESS[arguments[2]]
        if exit_.access == "write" or exit_.when == "after":
            exit_.value = arguments[3] & (1 << 8 * exit_.size) - 1
            if exit_.access == "read":
                exit_._result = exit_.value
    elif reason in ("code page written", "page became code", "page not there yet",
                    "page first written"):
        exit_.gpa = arguments[0]
    elif reason in ("page invalidation", "stub installed", "stub taken back", "stale trap"):
        exit_.gva = arguments[0]
    elif reason == "block scanned":
        exit_.gva, exit_.size = arguments


def _describe_instruction(exit_: Exit, rax: int, rcx: int, rdx: int) -> None:
    """Parameters of a row of the sensitive table, from the registers it began with."""
    reason = exit_.reason
    if reason == "cpuid":
        exit_.leaf, exit_.subleaf = rax & 0xFFFF_FFFF, rcx & 0xFFFF_FFFF
    elif reason in ("rdmsr", "wrmsr"):
        exit_.msr = rcx & 0xFFFF_FFFF
        if reason == "wrmsr":
            exit_.value = (rdx & 0xFFFF_FFFF) << 32 | rax & 0xFFFF_FFFF
    elif reason in ("in", "out", "ins", "outs"):
        exit_.port, exit_.size = _port_of(exit_.code, exit_.bits, rdx)
        if reason == "out":
            exit_.value = rax & (1 << 8 * exit_.size) - 1
    elif reason.startswith("mov ") and reason[-2:] in ("cr", "dr"):
        exit_.register, rm = _modrm(exit_.code)
        if exit_.code[0] == 0xF0 and reason.endswith("cr") and exit_.register == 0:
            exit_.register = 8  # LOCK MOV CR0 is CR8 outside of 64-bit code (AMD)
        if " to " in reason:
            exit_.value = exit_.registers[_GPRS[rm]]
    elif reason == "int n":
        exit_.vector = exit_.code[-1]
