# SPDX-License-Identifier: GPL-2.0-or-later
"""One vCPU of the host's KVM: a bt.machine.cpu.VirtualCpu.

The guest runs on the processor until KVM has something for us: a port, device memory, a HLT, an MSR
it does not know, an interrupt that can now be delivered, its death, or a kick. The interrupt
controller is ours: it drives one line, and KVM is given vectors (KVM_INTERRUPT) when the guest can
take one.
"""

from __future__ import annotations

import time
from collections import Counter
from fcntl import ioctl
from functools import partial

from bt.boot.entry import EntryState
from bt.errors import InputError
from bt.kvm import abi, cpuid, state
from bt.kvm.debug import GuestDebug
from bt.kvm.device import Device, Unusable, Vm
from bt.kvm.exits import ExitHandlers
from bt.kvm.kicker import Kicker
from bt.kvm.software import BREAKPOINTS, PVM, Completion, software
from bt.kvm.view import GuestView
from bt.machine.cpu import CpuParts, Stop, TranslatorCounts
from translator.sensitive import BY_NAME

#: The other engines' TSC; KVM is asked for the same one, but not every processor can scale it.
_TSC_KHZ = 1_000_000
_HLT = b"\xf4"
_APIC = 1 << 9      # CPUID leaf 1, EDX
#: Exits that ``--trace`` shows, by the row of the sensitive table.
_TRACED = {abi.KVM_EXIT_IO: "IN", abi.KVM_EXIT_HLT: "HLT", abi.KVM_EXIT_X86_RDMSR: "RDMSR",
           abi.KVM_EXIT_X86_WRMSR: "WRMSR", abi.KVM_EXIT_SET_TPR: "MOV_TO_CR"}


def _set_signal_mask(cpu: int, signals: set[int]) -> None:
    """What is blocked while the guest runs."""
    bits = sum(1 << number - 1 for number in signals)
    ioctl(cpu, abi.KVM_SET_SIGNAL_MASK, abi.SIGNAL_MASK.pack(8, bits))


class KvmVcpu(ExitHandlers, GuestView):
    """Opens /dev/kvm and makes a machine of ``parts``. Raises Unusable, one line.

    Not thread-safe, apart from ``kick``; ``run`` may be called on any one thread at a time.
    """

    def __init__(self, parts: CpuParts) -> None:
        super().__init__()
        self._ram = parts.ram
        self._bus = parts.bus
        self._policy = parts.policy
        device = Device()
        try:
            self._vm = Vm(device, parts.ram)
            self._cpu = self._vm.cpu
            self._set_up(device)
        finally:
            device.close()
        self._page = memoryview(self._vm.run)
        self._reason = self._page[abi.RUN_EXIT_REASON:abi.RUN_EXIT_REASON + 4].cast("I")
        # Nothing of the kicker may refer to this object: its thread would keep it alive.
        self._kicker = Kicker(self._page, partial(_set_signal_mask, self._cpu))
        self._intr = False
        self._cr8_watch = 0
        self._left = False
        self._tracing = False
        self._started = time.monotonic_ns()
        self._reasons: Counter[int] = Counter()

    def __del__(self) -> None:
        # Each is there only if the constructor came so far.
        for part in ("_kicker", "_vm"):
            if hasattr(self, part):
                getattr(self, part).close()

    def _set_up(self, device: Device) -> None:
        self._tsc_khz = self._set_tsc(device)
        leaves = cpuid.table(self._policy.cpuid, device.supported_cpuid(), self._tsc_khz)
        try:
            ioctl(self._cpu, abi.KVM_SET_CPUID2, cpuid.packed(leaves))
        except OSError as error:
            raise Unusable(f"KVM does not take our CPUID: {error.strerror}") from None
        if device.has(abi.KVM_CAP_X86_USER_SPACE_MSR):
            self._vm.enable(abi.KVM_CAP_X86_USER_SPACE_MSR, abi.KVM_MSR_EXIT_REASON_UNKNOWN)
        incomplete = software() == PVM
        self._guest_debug = GuestDebug(self._cpu, BREAKPOINTS if incomplete else 0)
        self._completion = Completion(
            self._vm, self._guest_debug, self.read_virtual, self.write_virtual) \
            if incomplete else None

    def _set_tsc(self, device: Device) -> int:
        if device.has(abi.KVM_CAP_TSC_CONTROL):
            try:
                ioctl(self._cpu, abi.KVM_SET_TSC_KHZ, _TSC_KHZ)
                return _TSC_KHZ
            except OSError:
                pass    # it scales, but not to that
        try:
            return ioctl(self._cpu, abi.KVM_GET_TSC_KHZ, 0)
        except OSError as error:
            raise Unusable(f"it does not know how fast its TSC is: {error.strerror}") from None

    # Running ----------------------------------------------------------------------------------

    def enter(self, entry: EntryState) -> None:
        """Set the vCPU to a loader's EntryState."""
        try:
            state.enter(self._cpu, entry, apic=bool(self._policy.cpuid(1, 0)[3] & _APIC))
        except OSError as error:
            raise Unusable(f"KVM does not take a guest's first state: {error.strerror}") from None
        self._halted = False

    def run(self, deadline_ns: int | None = None) -> Stop:
        """Run the guest until virtual time ``deadline_ns``, a kick, a HLT or its death."""
        self._left = False
        self.set_deadline(deadline_ns)
        if self._guest_debug.wanted and self.linear_rip in self._guest_debug.wanted:
            self._guest_debug.step()    # it has stopped here before
        self._kicker.enter()
        try:
            why = self._loop()
            if self._unfinished:
                self._finish()
            return why
        finally:
            self._kicker.leave()

    def step(self, interrupts: bool = True) -> Stop:
        """Run one instruction: DEBUGGED, or another reason of `run`.

        Only a halted vCPU takes an interrupt, and is HALTED still if there is none. Raises
        InputError for user code on a KVM that cannot step it.
        """
        if self._completion is not None and self._cpl == 3:
            raise InputError("engine kvm: the KVM of this host cannot step user code")
        if self._halted and self._intr:
            self._deliver()
        if self._halted:
            return Stop.HALTED
        if self._cpl == 0 and self.read_virtual(self.linear_rip, 1) == _HLT:
            # KVM may report the step and forget the HLT.
            state.write_register(self._cpu, "rip", self.registers()["rip"] + 1)
            self._control["HLT"] += 1
            self._halted = True
            return Stop.DEBUGGED
        self._single_step = True
        self._left = False
        self.set_deadline(None)
        self._guest_debug.step()
        self._kicker.enter()
        try:
            why = self._step_loop()
            if self._unfinished:
                self._finish()
            return why
        finally:
            self._kicker.leave()
            self._single_step = False
            self._guest_debug.arm()

    @property
    def _cpl(self) -> int:
        return state.privilege(state.SpecialRegisters(self._cpu))

    def _step_loop(self) -> Stop:
        while True:
            try:
                ioctl(self._cpu, abi.KVM_RUN, 0)
            except InterruptedError:
                self._kicker.drain()
                self._kicker.taken()
                continue
            except OSError as error:
                self._message = f"KVM_RUN: {error.strerror}"
                return Stop.CPU_ERROR
            self._unfinished = False
            why = self._handle()
            if why is not None or self._left:
                # HLT is an instruction too; so is what ends the machine.
                return Stop.DEBUGGED if why in (None, Stop.HALTED) else why

    def set_breakpoint(self, gva: int) -> None:
        """Have `run` return DEBUGGED before the instruction at ``gva``. ValueError: no room."""
        self._guest_debug.add(gva)

    def clear_breakpoint(self, gva: int) -> None:
        """Undo `set_breakpoint`; nothing happens if there is none."""
        self._guest_debug.remove(gva)

    def lose_time(self, ns: int) -> None:
        """So much host time did not pass for the guest (its TSC runs on)."""
        self._started += ns

    def _loop(self) -> Stop:
        kicker, page, cpu = self._kicker, self._page, self._cpu
        while True:
            if kicker.kicked or self._left:
                kicker.taken()
                self._control["quantum used up"] += 1
                if self._hooks is not None:
                    self._hooks.before("quantum used up", (0, 0), news=True)
                return Stop.KICKED
            if self._cr8_watch:
                self._policy.cr8_crossed()
            if self._intr and not self._guest_debug.stepping:
                # Not into a step over a breakpoint: it would come back to it.
                self._deliver()
            if self._halted:
                # Woken for something that is not an interrupt to the guest: it sleeps on.
                return Stop.HALTED
            try:
                ioctl(cpu, abi.KVM_RUN, 0)
            except InterruptedError:
                kicker.drain()
                self._unfinished = False
                if self._guest_debug.stepping:
                    self._guest_debug.arm()
                continue
            except OSError as error:
                self._message = f"KVM_RUN: {error.strerror}"
                return Stop.CPU_ERROR
            page[abi.RUN_REQUEST_INTERRUPT_WINDOW] = 0
            self._unfinished = False
            why = self._handle()
            if why is not None:
                return why

    def _handle(self) -> Stop | None:
        """Do what the exit is about. A Stop if the guest cannot go on, or halted."""
        reason = self._reason[0]
        self._reasons[reason] += 1
        if self._guest_debug.stepping and reason != abi.KVM_EXIT_DEBUG and not self._single_step:
            self._guest_debug.arm()     # no breakpoint may stay off
        if self._tracing:
            self._trace(reason)
        handler = self._handlers.get(reason)
        if handler is None:
            self._message = f"KVM gave up with reason {reason} ({abi.EXIT_NAMES.get(reason, '?')})"
            return Stop.CPU_ERROR
        return handler()

    def _trace(self, reason: int) -> None:
        name = _TRACED.get(reason)
        if name == "IN" and self._page[abi.RUN_DETAIL] == abi.KVM_EXIT_IO_OUT:
            name = "OUT"
        if name is not None:
            special = state.SpecialRegisters(self._cpu)
            self._policy.trace(BY_NAME[name].id, 0, state.general(self._cpu)["rip"],
                               state.privilege(special), abi.EXIT_NAMES[reason])

    def _finish(self) -> None:
        """Let KVM finish the last exit's instruction, without running the next one.

        A repeated string instruction comes out again for its next part.
        """
        self._page[abi.RUN_IMMEDIATE_EXIT] = 1
        try:
            while self._unfinished:
                ioctl(self._cpu, abi.KVM_RUN, 0)
                self._unfinished = False
                self._handle()
        except InterruptedError:
            self._unfinished = False
        finally:
            self._page[abi.RUN_IMMEDIATE_EXIT] = self._kicker.kicked

    def set_deadline(self, deadline_ns: int | None) -> None:
        """Change the deadline of the `run` in progress (from a callback: a device set a timer)."""
        self._kicker.arm(None if deadline_ns is None else self._started + deadline_ns)

    def wait(self, deadline_ns: int | None = None) -> None:
        """Sleep until virtual time ``deadline_ns`` or a kick."""
        self._kicker.wait(None if deadline_ns is None else self._started + deadline_ns)

    def kick(self) -> None:
        """From any thread: make `run` return KICKED, or `wait` return, soon."""
        self._kicker.kick()

    def leave(self) -> None:
        """From a callback: make `run` return KICKED after the current instruction."""
        self._left = True

    def now_ns(self) -> int:
        """Virtual nanoseconds since power-on: the host's monotonic clock."""
        return time.monotonic_ns() - self._started

    @property
    def tsc_hz(self) -> int:
        """Ticks of the guest's TSC in a second."""
        return self._tsc_khz * 1000

    # Interrupts

    def set_intr(self, level: bool) -> None:
        """The interrupt controller's INTR line."""
        self._intr = level

    @property
    def interrupts_enabled(self) -> bool:
        """Whether the guest's IF was 1 when it last came out."""
        return bool(self._page[abi.RUN_IF_FLAG])

    @property
    def cr8(self) -> int:
        """The task priority class, 0-15."""
        return self._page[abi.RUN_CR8] & 15

    @cr8.setter
    def cr8(self, value: int) -> None:
        self._page[abi.RUN_CR8] = value & 15

    def watch_cr8(self, priority: int) -> None:
        """Call the policy's ``cr8_crossed`` when CR8 may have passed ``priority``; 0: never.

        It may have at each exit: KVM has an exit for writes that lower it only, and software ones
        not even that.
        """
        self._cr8_watch = priority

    def _deliver(self) -> None:
        """Give KVM the interrupt that waits, or ask for an exit when the guest can take it."""
        page = self._page
        if page[abi.RUN_READY_FOR_INTERRUPT]:
            vector = self._policy.acknowledge()
            self._control["interrupt injected"] += 1
            if self._hooks is None or self._hooks.before("interrupt injected", (vector, 0)) is None:
                ioctl(self._cpu, abi.KVM_INTERRUPT, abi.INTERRUPT.pack(vector))
                page[abi.RUN_READY_FOR_INTERRUPT] = 0   # one at a time: until the next exit says so
                self._halted = False
                if self._hooks is not None:
                    self._hooks.after("interrupt injected", (vector, 0))
        page[abi.RUN_REQUEST_INTERRUPT_WINDOW] = self._intr
    # The rest of a VirtualCpu -----------------------------------------------------------------

    def dma_write_begin(self, gpa: int, length: int) -> None:
        """A device is about to write RAM: the processor keeps its caches coherent by itself."""

    @property
    def message(self) -> str:
        """What went wrong, after CPU_ERROR."""
        return self._message

    @property
    def fault_address(self) -> int:
        """Nothing stops with VOID or STUCK here."""
        return 0

    def recent_blocks(self) -> list[int]:
        """Nobody looks at the guest's code here."""
        return []

    def set_tracing(self, on: bool) -> None:
        """Whether each exit is told to the policy's ``trace``."""
        self._tracing = on

    def exit_counts(self) -> tuple[dict[str, int], dict[str, int]]:
        """Exits by reason: (the control unit's, the memory unit's)."""
        return dict(self._control), dict(self._memory)

    def hypercall_counts(self) -> dict[str, int]:
        """None: the guest has nobody to call."""
        return {}

    def hardware_counts(self) -> dict[str, tuple[int, int]]:
        """{name of a reason of KVM: (its number, how often)}."""
        return {abi.EXIT_NAMES.get(number, f"reason {number}"): (number, count)
                for number, count in sorted(self._reasons.items())}

    def translator_counts(self) -> TranslatorCounts:
        """Nothing is translated."""
        return TranslatorCounts()

    def audit_counters(self) -> tuple[int, int]:
        """Nothing is audited."""
        return 0, 0
