# SPDX-License-Identifier: GPL-2.0-or-later
"""One exit of the guest, as a hook sees it: what it was, and what is to come of it.

An exit has a *reason*, one of :func:`bt.machine.exit_reasons.reasons`: a row of the sensitive table
in lower case ("cpuid", "mov to cr"), an exception ("#GP", "exception 13"), or an event ("syscall",
"port read", "translation"). ``when="before"`` comes before the exit is dealt with, ``"after"``
behind it; after an instruction only if it did not raise an exception.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from bt.core import vcpu as core
from bt.machine.access import Memory, Registers
from bt.machine.exit_parameters import MEMORY_ACCESS, describe, operand
from bt.machine.exit_reasons import Reason

if TYPE_CHECKING:
    from bt.machine.machine import Machine

When = Literal["before", "after"]
Result = int | tuple[int, int, int, int]

_ENOSYS = -38  # what an unknown hypercall returns, Xen's and ours
_MASK = (1 << 64) - 1


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

    __slots__ = ("_limits", "_result", "access", "args", "bits", "code", "cpl", "decision", "error",
                 "gpa", "gva", "hardware_code", "leaf", "machine", "msr", "number", "port",
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
                 hardware_code: int, code: bytes, arguments: tuple[int, ...],
                 limits: int) -> None:
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
        #: For the core: (action, value, error).
        self.decision = (core.GO, 0, 0)
        self._result: Result | None = describe(self, reason.number, arguments)

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
        self.decision = (core.SKIP, self._coded_result(), 0)

    def inject(self, vector: int, error: int = 0) -> None:
        """Refuse it: the guest gets exception ``vector`` (0-31) at the instruction instead."""
        self._refuse(core.NO_INJECT, "refused with an exception")
        if not 0 <= vector < 32:
            raise ValueError(f"{vector} is no exception")
        self.decision = (core.INJECT, vector, error & 0xFFFF_FFFF)

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
            self.decision = (core.SKIP, self._coded_result(), 0)

    @property
    def _has_result(self) -> bool:
        if self.reason in MEMORY_ACCESS:
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
        return regs[operand(self.code)]

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
            regs[operand(self.code)] = value & _MASK


#: Results that are in registers, not with the core.
_IN_REGISTERS = frozenset({"cpuid", "rdmsr", "rdtsc", "rdtscp", "in", "mov from cr", "mov from dr"})
_PARAMETERS = ("leaf", "subleaf", "msr", "register", "port", "size", "value", "vector", "error",
               "gva", "gpa", "access", "number", "args")
