# SPDX-License-Identifier: GPL-2.0-or-later
"""A KVM without the processor's help, and what has to be completed for it.

kvm_pvm runs a guest's user code at the host's CPL 3, and reads a guest kernel's code instruction by
instruction with KVM's emulator. In between, some are left half done (seen with Linux 6.18):

- SYSCALL in user code sets RIP, RCX, R11 and RFLAGS, but neither CS nor SS: the kernel's entry
  point is then fetched with the rights of user code, and that is a page fault.
- INT n in user code is #UD, and INT n in kernel code is an emulation failure.

The guest's handlers of these two exceptions get a breakpoint each, of the kind that debuggers set
from outside (KVM_SET_GUEST_DEBUG). Where one is reached for such a reason, the delivery is taken
back and the instruction is done as SDM vol. 2 has it. Every other exception goes on to the guest,
one debug step later.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from fcntl import ioctl
from pathlib import Path
from typing import NamedTuple

from bt.kvm import abi, state
from bt.kvm.debug import GuestDebug
from bt.kvm.device import Vm

#: Where the kernel lists its modules, those built in among them.
MODULES = Path("/sys/module")
#: Modules that run guests on the processor's own virtualization.
_HARDWARE = ("kvm_intel", "kvm_amd")
#: The module whose gaps are known.
PVM = "kvm_pvm"

#: How many debug registers the completion takes.
BREAKPOINTS = 2
_UD, _GP, _PF = 6, 13, 14
_SYSCALL, _INT = b"\x0f\x05", 0xCD
_IF, _RF = 1 << 9, 1 << 16
_CLEARED_FLAGS = 1 << 8 | 1 << 14 | _RF     # TF, NT, RF
_TSS_RSP0, _TSS_IST1 = 0x04, 0x24
_GATE = struct.Struct("<HHBBHI4x")
_INTERRUPT_GATE, _TRAP_GATE = 0xE, 0xF
_FRAME = struct.Struct("<5Q")


def software() -> str | None:
    """The module that runs guests here without the processor's help; None for real hardware."""
    if any((MODULES / name).exists() for name in _HARDWARE):
        return None
    found = sorted(path.name for path in MODULES.glob("kvm_*"))
    return found[0] if found else None


class _Origin(NamedTuple):
    """What an interrupt or exception pushes, the error code apart."""

    rip: int
    cs: int
    flags: int
    rsp: int
    ss: int


class _Gate(NamedTuple):
    """A gate of a 64-bit IDT (SDM 3A, 6.14.1)."""

    offset: int
    selector: int
    ist: int
    kind: int
    dpl: int
    present: bool


class Completion:
    """Completes what kvm_pvm leaves undone, for one vCPU. Needs ``BREAKPOINTS`` of ``debug``.

    ``read(gva, length)`` and ``write(gva, data)`` are the guest's memory by linear address.
    """

    def __init__(self, vm: Vm, debug: GuestDebug, read: Callable[[int, int], bytes | None],
                 write: Callable[[int, bytes], bool]) -> None:
        self._cpu = vm.cpu
        self._debug = debug
        self._read = read
        self._write = write
        self._handlers: dict[int, int] = {}     # linear address -> vector
        self._lstar = 0
        self._tell_of_lstar(vm)

    def _tell_of_lstar(self, vm: Vm) -> None:
        """Have writes of LSTAR come to us: when a kernel makes one, its IDT is ready."""
        vm.enable(abi.KVM_CAP_X86_USER_SPACE_MSR,
                  abi.KVM_MSR_EXIT_REASON_UNKNOWN | abi.KVM_MSR_EXIT_REASON_FILTER)
        bitmap = ctypes.create_string_buffer(1)     # one bit, 0: denied
        data = bytearray(abi.MSR_FILTER_SIZE)
        abi.MSR_FILTER_RANGE.pack_into(
            data, abi.MSR_FILTER_RANGES, abi.KVM_MSR_FILTER_WRITE, 1, state.MSR_LSTAR,
            ctypes.addressof(bitmap))
        ioctl(vm.fd, abi.KVM_X86_SET_MSR_FILTER, data)

    def wrote_lstar(self, value: int) -> bool:
        """WRMSR to LSTAR; whether the value is one."""
        done = state.write_msr(self._cpu, state.MSR_LSTAR, value)
        if done:
            self._lstar = value
        self._find_handlers()
        return done

    def _find_handlers(self) -> None:
        special = state.SpecialRegisters(self._cpu)
        found = {}
        for vector in (_UD, _PF):
            gate = self._gate(special, vector)
            if gate is not None:
                found[gate.offset] = vector
        if found != self._handlers:
            self._handlers = found
            self._debug.set_own(found)

    def at(self, rip: int) -> str | None:
        """A breakpoint of ours was reached. The name of what was completed; None: nothing was."""
        special = state.SpecialRegisters(self._cpu)
        if self._handlers.get(rip) == _PF:
            return self._syscall(special)
        return self._after_invalid_opcode(special)

    def _origin(self, at: int) -> _Origin | None:
        """Where an exception whose frame is at ``at`` comes from, if that is user code."""
        data = self._read(at, _FRAME.size)
        origin = None if data is None else _Origin(*_FRAME.unpack(data))
        return origin if origin is not None and origin.cs & 3 == 3 else None

    def _syscall(self, special: state.SpecialRegisters) -> str | None:
        """Enter the kernel by SYSCALL (SDM vol. 2) if that is what the page fault comes from."""
        lstar = self._lstar
        if special.control["cr2"] != lstar:
            return None
        registers = state.general(self._cpu)
        origin = self._origin(registers["rsp"] + 8)     # behind the error code
        if origin is None or origin.rip != lstar or \
                self._read(registers["rcx"] - 2, 2) != _SYSCALL:
            return None
        selector = state.read_msr(self._cpu, state.MSR_STAR) >> 32 & 0xFFFC
        mask = state.read_msr(self._cpu, state.MSR_FMASK)
        special.set_segment("cs", state.flat_code(selector))
        special.set_segment("ss", state.flat_data(selector + 8))
        special.write()
        state.set_general(self._cpu, registers | {
            "rip": lstar, "rsp": origin.rsp, "rflags": registers["r11"] & ~mask & ~_RF | 2})
        return "SYSCALL"

    def _after_invalid_opcode(self, special: state.SpecialRegisters) -> str | None:
        """The guest's #UD handler was entered: do INT n if that is where it comes from."""
        registers = state.general(self._cpu)
        origin = self._origin(registers["rsp"])
        return None if origin is None else self._interrupt(special, registers, origin)

    def gave_up(self) -> str | None:
        """The guest died, or the emulator could not go on: do INT n if that is where it is.

        (#UD of user code kills a guest that has no handler for it.) None: it is not.
        """
        special = state.SpecialRegisters(self._cpu)
        registers = state.general(self._cpu)
        return self._interrupt(special, registers, _Origin(
            registers["rip"], special.segment("cs").selector, registers["rflags"],
            registers["rsp"], special.segment("ss").selector))

    def _interrupt(self, special: state.SpecialRegisters, registers: dict[str, int],
                   origin: _Origin) -> str | None:
        """Do the INT n at ``origin`` (SDM vol. 2 and 3A, 6.14). None: it is not one."""
        code = self._read(origin.rip, 2)
        if code is None or code[0] != _INT or not special.control["efer"] & state.EFER_LMA:
            return None
        gate, pushed = self._gate(special, code[1]), b""
        if gate is None or gate.dpl < origin.cs & 3:
            gate = self._gate(special, _GP)
            pushed = struct.pack("<Q", code[1] << 3 | 2)
        else:
            origin = origin._replace(rip=origin.rip + 2)
        if gate is None:
            return None
        stack = self._stack(special, gate, origin)
        frame = pushed + _FRAME.pack(*origin)
        if stack is None or not self._write(stack - len(frame), frame):
            return None
        special.set_segment("cs", state.flat_code(gate.selector))
        if origin.cs & 3:
            special.set_segment("ss", state.flat_data(0))
        special.write()
        flags = origin.flags & ~_CLEARED_FLAGS
        state.set_general(self._cpu, registers | {
            "rip": gate.offset, "rsp": stack - len(frame),
            "rflags": flags & ~_IF if gate.kind == _INTERRUPT_GATE else flags})
        self._find_handlers()
        return "software interrupt"

    def _stack(self, special: state.SpecialRegisters, gate: _Gate, origin: _Origin) -> int | None:
        """The stack that a handler gets (SDM 3A, 6.14.2 and figure 7-11), aligned."""
        if not gate.ist and not origin.cs & 3:
            return origin.rsp & ~15
        at = _TSS_IST1 + 8 * (gate.ist - 1) if gate.ist else _TSS_RSP0
        data = self._read(special.segment("tr").base + at, 8)
        return None if data is None else int.from_bytes(data, "little") & ~15

    def _gate(self, special: state.SpecialRegisters, vector: int) -> _Gate | None:
        """Gate ``vector`` of the guest's IDT; None if it leads nowhere, or not into 64-bit code."""
        base, limit = special.table(abi.SREGS_IDT)
        if 16 * vector + 15 > limit or not special.control["efer"] & state.EFER_LMA:
            return None
        data = self._read(base + 16 * vector, 16)
        if data is None:
            return None
        low, selector, ist, access, middle, high = _GATE.unpack(data)
        gate = _Gate(high << 32 | middle << 16 | low, selector, ist & 7, access & 0x1F,
                     access >> 5 & 3, bool(access & 0x80))
        return gate if gate.present and gate.kind in (_INTERRUPT_GATE, _TRAP_GATE) else None
