# SPDX-License-Identifier: GPL-2.0-or-later
"""What each exit of KVM is about, and what is done for the guest then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from bt.kvm import abi, state
from bt.kvm.debug import GuestDebug
from bt.kvm.software import Completion
from bt.machine.bus import ASK, Bus
from bt.machine.cpu import CpuPolicy, Stop

if TYPE_CHECKING:
    from bt.kvm.hooks import KvmHooks

_READ, _WRITE = 0, 1        # as bt.machine.exit_parameters has them


class ExitHandlers:
    """The exits of a vCPU. A handler gives a Stop if the guest cannot go on, or sleeps."""

    _cpu: int
    _page: memoryview
    _reason: memoryview
    _bus: Bus
    _policy: CpuPolicy
    _completion: Completion | None
    _guest_debug: GuestDebug

    def __init__(self) -> None:
        self._halted = False
        #: The last exit's instruction is finished by the next KVM_RUN only (api.rst, 4.10).
        self._unfinished = False
        self._message = ""
        self._single_step = False       # somebody wants to hear of one instruction
        self._hooks: KvmHooks | None = None
        self._in_hook = False
        self._control: Counter[str] = Counter()
        self._memory: Counter[str] = Counter()
        self._handlers: dict[int, Callable[[], Stop | None]] = {
            abi.KVM_EXIT_IO: self._port,
            abi.KVM_EXIT_MMIO: self._device_memory,
            abi.KVM_EXIT_HLT: self._halt,
            abi.KVM_EXIT_IRQ_WINDOW_OPEN: lambda: None,     # `_deliver` is next
            abi.KVM_EXIT_SET_TPR: self._task_priority,
            abi.KVM_EXIT_INTR: lambda: None,
            abi.KVM_EXIT_X86_RDMSR: self._rdmsr,
            abi.KVM_EXIT_X86_WRMSR: self._wrmsr,
            abi.KVM_EXIT_DEBUG: self._debug,
            abi.KVM_EXIT_SHUTDOWN: self._shutdown,
            abi.KVM_EXIT_FAIL_ENTRY: self._fail_entry,
            abi.KVM_EXIT_INTERNAL_ERROR: self._internal_error,
        }

    def _finish(self) -> None:
        """Let KVM finish the last exit's instruction, without running the next one."""
        raise NotImplementedError

    def _port(self) -> None:
        page, bus = self._page, self._bus
        direction, size, port, count, at = abi.RUN_IO.unpack_from(page, abi.RUN_DETAIL)
        out = direction == abi.KVM_EXIT_IO_OUT
        self._control["OUT" if out else "IN"] += count
        if (bus.write_kind if out else bus.read_kind)[port] == ASK:
            self._control["port access to a device"] += count
        # Set before the device is asked: it may look at the guest, or end the run.
        self._unfinished = True
        read, write = bus.read, bus.write
        if self._hooks is not None:
            read, write = self._hooked_read, self._hooked_write
        for i in range(at, at + count * size, size):
            if out:
                write(port, size, int.from_bytes(page[i:i + size], "little"))
            else:
                page[i:i + size] = read(port, size).to_bytes(size, "little")

    def _hooked_read(self, port: int, size: int) -> int:
        assert self._hooks is not None
        value = self._hooks.read("port read", (port, size), partial(self._bus.read, port, size))
        return value & (1 << 8 * size) - 1

    def _hooked_write(self, port: int, size: int, value: int) -> None:
        assert self._hooks is not None
        self._hooks.write("port write", (port, size, value),
                          partial(self._bus.write, port, size, value))

    def _device_memory(self) -> None:
        gpa, size, is_write = abi.RUN_MMIO.unpack_from(self._page, abi.RUN_DETAIL)
        self._unfinished = True
        data = self._page[abi.RUN_MMIO_DATA:abi.RUN_MMIO_DATA + size]
        # An access across pages comes in parts of any size, where devices know four.
        part = size if size in (1, 2, 4, 8) else 1
        for at in range(0, size, part):
            self._memory_access(gpa + at, part, bool(is_write), data[at:at + part])

    def _memory_access(self, gpa: int, size: int, is_write: bool, data: memoryview) -> None:
        bus = self._bus
        name = "mmio" if bus.has_mmio(gpa) else "absent memory"
        self._memory[name] += 1
        if is_write:
            value = int.from_bytes(data, "little")
            do = partial(bus.write_mmio, gpa, size, value)
            if self._hooks is None:
                do()
            else:
                self._hooks.write(name, (gpa, size, _WRITE, value), do)
        else:
            get = partial(bus.read_mmio, gpa, size)
            value = get() if self._hooks is None else \
                self._hooks.read(name, (gpa, size, _READ), get) & (1 << 8 * size) - 1
            data[:] = value.to_bytes(size, "little")

    def _halt(self) -> Stop | None:
        self._control["HLT"] += 1
        if self._hooks is not None:
            if self._hooks.before("hlt", self._rax_rcx_rdx()) is not None:
                return None
            self._hooks.after("hlt", self._rax_rcx_rdx())
        self._halted = True
        return Stop.HALTED

    def _task_priority(self) -> None:
        self._control["MOV_TO_CR"] += 1         # CR8

    def _rdmsr(self) -> None:
        page = self._page
        self._control["RDMSR"] += 1
        self._unfinished = True
        registers = self._rax_rcx_rdx() if self._hooks is not None else ()
        if self._hooks is not None and self._hooks.before("rdmsr", registers) is not None:
            # A result that a hook gives is in the registers.
            rax, _, rdx = self._rax_rcx_rdx()
            value: int | None = (rdx & 0xFFFF_FFFF) << 32 | rax & 0xFFFF_FFFF
        else:
            value = self._policy.read_msr(self._msr())
        page[abi.RUN_MSR_ERROR] = value is None
        page[abi.RUN_MSR_DATA:abi.RUN_MSR_DATA + 8] = (value or 0).to_bytes(8, "little")
        self._after_msr("rdmsr", registers)

    def _wrmsr(self) -> None:
        page = self._page
        self._control["WRMSR"] += 1
        self._unfinished = True
        value = int.from_bytes(page[abi.RUN_MSR_DATA:abi.RUN_MSR_DATA + 8], "little")
        registers = self._rax_rcx_rdx() if self._hooks is not None else ()
        if self._hooks is not None and self._hooks.before("wrmsr", registers) is not None:
            done = True
        elif self._completion is not None and self._msr() == state.MSR_LSTAR:
            done = self._completion.wrote_lstar(value)
        else:
            done = self._policy.write_msr(self._msr(), value)
        page[abi.RUN_MSR_ERROR] = not done
        self._after_msr("wrmsr", registers)

    def _after_msr(self, name: str, registers: tuple[int, ...]) -> None:
        """Hooks after an MSR instruction see what it left in the registers; if it did not fault."""
        if self._hooks is not None and self._hooks.wants_after(name) and \
                not self._page[abi.RUN_MSR_ERROR]:
            self._finish()
            self._hooks.after(name, registers)

    def _rax_rcx_rdx(self) -> tuple[int, int, int]:
        found = state.general(self._cpu)
        return found["rax"], found["rcx"], found["rdx"]

    def _msr(self) -> int:
        return int.from_bytes(self._page[abi.RUN_MSR_INDEX:abi.RUN_MSR_INDEX + 4], "little")

    def _debug(self) -> Stop | None:
        _, _, rip, _, _ = abi.RUN_DEBUG.unpack_from(self._page, abi.RUN_DETAIL)
        debug = self._guest_debug
        if debug.stepping:
            debug.arm()
            if self._single_step:
                return Stop.DEBUGGED
        if rip in debug.own and self._completion is not None:
            done = self._completion.at(rip)
            if done is not None:
                self._control[done] += 1
                return None
        if rip in debug.wanted:
            return Stop.DEBUGGED
        if rip in debug.own:
            debug.step()
        return None

    def _complete(self) -> bool:
        """Whether the guest can go on after all."""
        done = None if self._completion is None else self._completion.gave_up()
        if done is not None:
            self._control[done] += 1
        return done is not None

    def _shutdown(self) -> Stop | None:
        if self._complete():
            return None
        if self._completion is not None and \
                not state.SpecialRegisters(self._cpu).control["efer"] & state.EFER_LMA:
            self._message = "triple fault, or paging in 32-bit mode, which kvm_pvm does not have"
        return Stop.SHUTDOWN

    def _fail_entry(self) -> Stop:
        code, = abi.RUN_FAIL_ENTRY.unpack_from(self._page, abi.RUN_DETAIL)
        self._message = f"the processor refuses to enter the guest (reason {code:#x})"
        return Stop.CPU_ERROR

    def _internal_error(self) -> Stop | None:
        kind, _, flags, length, code = abi.RUN_INTERNAL.unpack_from(self._page, abi.RUN_DETAIL)
        if kind == abi.KVM_INTERNAL_ERROR_EMULATION:
            if self._complete():
                return None
            self._message = "KVM cannot emulate an instruction"
            if flags & abi.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES:
                self._message += f": {code[:min(length, len(code))].hex(' ')}"
        elif kind == abi.KVM_INTERNAL_ERROR_DELIVERY_EV:
            self._message = "KVM cannot deliver an event to the guest"
        else:
            self._message = f"KVM has an internal error of kind {kind}"
        return Stop.CPU_ERROR

    # Hooks (bt.machine.exit_hooks)

    exit_hook: Callable[..., tuple[int, int, int]] | None = None

    def set_hook(self, number: int, before: bool, after: bool) -> None:
        """Whether exit ``number`` calls ``exit_hook``. InputError: KVM has no such exit."""
        if self._hooks is None:
            from bt.kvm.hooks import KvmHooks  # costs what only who hooks needs
            self._hooks = KvmHooks(self._fire)
        self._hooks.set(number, before, after)

    def _fire(self, number: int, phase: int, arguments: tuple[int, ...],
              limits: int) -> tuple[int, int, int]:
        """Call the hooks, as the core does; hooks do not nest."""
        if self._in_hook or self.exit_hook is None:
            return 0, 0, 0
        special = state.SpecialRegisters(self._cpu)
        self._in_hook = True
        try:
            return self.exit_hook(
                number, phase, state.general(self._cpu)["rip"], state.privilege(special),
                state.code_bits(special), self._reason[0], b"", arguments, limits)
        finally:
            self._in_hook = False
