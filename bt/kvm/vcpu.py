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
from collections.abc import Callable
from fcntl import ioctl
from functools import partial

from bt.boot.entry import EntryState
from bt.errors import InputError
from bt.kvm import abi, cpuid, paging, state
from bt.kvm.device import Device, Unusable, Vm
from bt.kvm.kicker import Kicker
from bt.kvm.software import PVM, Completion, software
from bt.machine.bus import ASK
from bt.machine.cpu import CpuParts, Stop, TranslatorCounts

#: The other engines' TSC; KVM is asked for the same one, but not every processor can scale it.
_TSC_KHZ = 1_000_000
_APIC = 1 << 9      # CPUID leaf 1, EDX
_PAGE = 4096
_MAX_LOOK = 1 << 20


def _set_signal_mask(cpu: int, signals: set[int]) -> None:
    """What is blocked while the guest runs."""
    bits = sum(1 << number - 1 for number in signals)
    ioctl(cpu, abi.KVM_SET_SIGNAL_MASK, abi.SIGNAL_MASK.pack(8, bits))


class KvmVcpu:
    """Opens /dev/kvm and makes a machine of ``parts``. Raises Unusable, one line.

    Not thread-safe, apart from ``kick``; ``run`` may be called on any one thread at a time.
    """

    def __init__(self, parts: CpuParts) -> None:
        self._ram = parts.ram
        self._bus = parts.bus
        self._policy = parts.policy
        device = Device()
        try:
            self._vm = Vm(device, parts.ram)
            self._cpu = self._vm.cpu
            self._tsc_khz = self._set_tsc(device)
            self._set_cpuid(device)
            if device.has(abi.KVM_CAP_X86_USER_SPACE_MSR):
                self._vm.enable(abi.KVM_CAP_X86_USER_SPACE_MSR, abi.KVM_MSR_EXIT_REASON_UNKNOWN)
            self._completion = Completion(self._vm, self.read_virtual, self.write_virtual) \
                if software() == PVM else None
        finally:
            device.close()
        self._page = memoryview(self._vm.run)
        self._reason = self._page[abi.RUN_EXIT_REASON:abi.RUN_EXIT_REASON + 4].cast("I")
        # Nothing of the kicker may refer to this object: its thread would keep it alive.
        self._kicker = Kicker(self._page, partial(_set_signal_mask, self._cpu))
        self._intr = False
        self._cr8_watch = 0
        self._halted = False
        self._left = False
        #: The last exit's instruction is finished by the next KVM_RUN only (api.rst, 4.10).
        self._unfinished = False
        self._tracing = False
        self._message = ""
        self._fault_address = 0
        self._started = time.monotonic_ns()
        self._control: Counter[str] = Counter()
        self._memory: Counter[str] = Counter()
        self._reasons: Counter[int] = Counter()
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

    def __del__(self) -> None:
        kicker = getattr(self, "_kicker", None)
        if kicker is not None:      # else the constructor raised
            kicker.close()
            self._vm.close()

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

    def _set_cpuid(self, device: Device) -> None:
        leaves = cpuid.table(self._policy.cpuid, device.supported_cpuid(), self._tsc_khz)
        try:
            ioctl(self._cpu, abi.KVM_SET_CPUID2, cpuid.packed(leaves))
        except OSError as error:
            raise Unusable(f"KVM does not take our CPUID: {error.strerror}") from None

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
        self._kicker.enter()
        try:
            why = self._loop()
            if self._unfinished:
                self._finish()
            return why
        finally:
            self._kicker.leave()

    def _loop(self) -> Stop:
        kicker, page, cpu = self._kicker, self._page, self._cpu
        while True:
            if kicker.kicked or self._left:
                kicker.taken()
                self._control["quantum used up"] += 1
                return Stop.KICKED
            if self._cr8_watch:
                self._policy.cr8_crossed()
            if self._intr:
                self._deliver()
            if self._halted:
                # Woken for something that is not an interrupt to the guest: it sleeps on.
                return Stop.HALTED
            try:
                ioctl(cpu, abi.KVM_RUN, 0)
            except InterruptedError:
                kicker.drain()
                self._unfinished = False
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
        if self._completion is not None and reason != abi.KVM_EXIT_DEBUG:
            self._completion.exited()
        handler = self._handlers.get(reason)
        if handler is None:
            self._message = f"KVM gave up with reason {reason} ({abi.EXIT_NAMES.get(reason, '?')})"
            return Stop.CPU_ERROR
        return handler()

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
            ioctl(self._cpu, abi.KVM_INTERRUPT, abi.INTERRUPT.pack(self._policy.acknowledge()))
            page[abi.RUN_READY_FOR_INTERRUPT] = 0       # one at a time: until the next exit says so
            self._halted = False
            self._control["interrupt injected"] += 1
        page[abi.RUN_REQUEST_INTERRUPT_WINDOW] = self._intr

    # Exits ------------------------------------------------------------------------------------

    def _port(self) -> None:
        page, bus = self._page, self._bus
        direction, size, port, count, at = abi.RUN_IO.unpack_from(page, abi.RUN_DETAIL)
        out = direction == abi.KVM_EXIT_IO_OUT
        self._control["OUT" if out else "IN"] += count
        if (bus.write_kind if out else bus.read_kind)[port] == ASK:
            self._control["port access to a device"] += count
        # Set before the device is asked: it may look at the guest, or end the run.
        self._unfinished = True
        for i in range(at, at + count * size, size):
            if out:
                bus.write(port, size, int.from_bytes(page[i:i + size], "little"))
            else:
                page[i:i + size] = bus.read(port, size).to_bytes(size, "little")

    def _device_memory(self) -> None:
        page, bus = self._page, self._bus
        gpa, size, is_write = abi.RUN_MMIO.unpack_from(page, abi.RUN_DETAIL)
        self._memory["mmio" if bus.has_mmio(gpa) else "absent memory"] += 1
        self._unfinished = True
        data = page[abi.RUN_MMIO_DATA:abi.RUN_MMIO_DATA + size]
        if is_write:
            bus.write_mmio(gpa, size, int.from_bytes(data, "little"))
        else:
            data[:] = bus.read_mmio(gpa, size).to_bytes(size, "little")

    def _halt(self) -> Stop:
        self._control["HLT"] += 1
        self._halted = True
        return Stop.HALTED

    def _task_priority(self) -> None:
        self._control["MOV_TO_CR"] += 1         # CR8

    def _rdmsr(self) -> None:
        page = self._page
        self._control["RDMSR"] += 1
        self._unfinished = True
        value = self._policy.read_msr(self._msr())
        page[abi.RUN_MSR_ERROR] = value is None
        page[abi.RUN_MSR_DATA:abi.RUN_MSR_DATA + 8] = (value or 0).to_bytes(8, "little")

    def _wrmsr(self) -> None:
        page = self._page
        self._control["WRMSR"] += 1
        self._unfinished = True
        value = int.from_bytes(page[abi.RUN_MSR_DATA:abi.RUN_MSR_DATA + 8], "little")
        if self._completion is not None and self._msr() == state.MSR_LSTAR:
            page[abi.RUN_MSR_ERROR] = not self._completion.wrote_lstar(value)
        else:
            page[abi.RUN_MSR_ERROR] = not self._policy.write_msr(self._msr(), value)

    def _msr(self) -> int:
        return int.from_bytes(self._page[abi.RUN_MSR_INDEX:abi.RUN_MSR_INDEX + 4], "little")

    def _debug(self) -> None:
        _, _, rip, _, _ = abi.RUN_DEBUG.unpack_from(self._page, abi.RUN_DETAIL)
        if self._completion is not None:
            done = self._completion.debug_exit(rip)
            if done is not None:
                self._control[done] += 1

    def _complete(self) -> bool:
        """Whether the guest can go on after all."""
        done = None if self._completion is None else self._completion.gave_up()
        if done is not None:
            self._control[done] += 1
        return done is not None

    def _shutdown(self) -> Stop | None:
        return None if self._complete() else Stop.SHUTDOWN

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

    # State ------------------------------------------------------------------------------------

    def dma_write_begin(self, gpa: int, length: int) -> None:
        """A device is about to write RAM: the processor keeps its caches coherent by itself."""

    def registers(self) -> dict[str, int]:
        """The guest's registers, by name."""
        return state.registers(self._cpu)

    @property
    def bits(self) -> int:
        """Code size of the current segment: 16, 32 or 64."""
        return state.code_bits(state.SpecialRegisters(self._cpu))

    @property
    def real_cpl(self) -> int:
        """The guest's own, in the processor's guest mode: nothing is deprivileged here."""
        return self.registers()["cpl"]

    @property
    def linear_rip(self) -> int:
        """Linear address of the next instruction."""
        special = state.SpecialRegisters(self._cpu)
        rip = state.general(self._cpu)["rip"]
        if state.code_bits(special) == 64:
            return rip
        return special.segment("cs").base + rip & 0xFFFF_FFFF

    @property
    def message(self) -> str:
        """What went wrong, after CPU_ERROR."""
        return self._message

    @property
    def fault_address(self) -> int:
        """Nothing stops with VOID or STUCK here."""
        return self._fault_address

    def _page_of(self, gva: int) -> paging.Page | None:
        control = state.SpecialRegisters(self._cpu).control
        return paging.translate(self._ram, control["cr0"], control["cr3"], control["cr4"],
                                control["efer"], gva & (1 << 64) - 1)

    def read_virtual(self, gva: int, length: int) -> bytes | None:
        """Guest memory by linear address with kernel rights; None if it is not all mapped RAM."""
        if not 0 < length <= _MAX_LOOK:
            return None
        found = bytearray()
        while len(found) < length:
            part = min(length - len(found), _PAGE - (gva + len(found)) % _PAGE)
            page = self._page_of(gva + len(found))
            if page is None or not self._ram.contains(page.gpa, part):
                return None
            found += self._ram.view[page.gpa:page.gpa + part]
        return bytes(found)

    def write_virtual(self, gva: int, data: bytes) -> bool:
        """Write guest memory by linear address with kernel rights; False if it is not writable.

        Then nothing is written.
        """
        if len(data) > _MAX_LOOK:
            return False
        parts: list[tuple[int, bytes]] = []
        at = 0
        while at < len(data):
            part = min(len(data) - at, _PAGE - (gva + at) % _PAGE)
            page = self._page_of(gva + at)
            if page is None or not page.writable or not self._ram.contains(page.gpa, part):
                return False
            parts.append((page.gpa, data[at:at + part]))
            at += part
        for gpa, piece in parts:
            self._ram.view[gpa:gpa + len(piece)] = piece
        return True

    def translate_address(self, gva: int) -> int | None:
        """Guest-physical address behind a linear one, with kernel rights; None if there is none."""
        page = self._page_of(gva)
        return None if page is None else page.gpa

    def read_register(self, name: str) -> int:
        """One register by a name of ``registers``. Raises KeyError."""
        return self.registers()[name]

    def write_register(self, name: str, value: int) -> None:
        """Change one (bt.kvm.state.write_register)."""
        state.write_register(self._cpu, name, value)
        if name == "rip":
            self._halted = False

    # Debugging: KVM's own is in use for what kvm_pvm leaves undone (bt.kvm.software).

    def set_breakpoint(self, gva: int) -> None:
        """Not under this engine: raises ValueError."""
        raise ValueError("engine kvm has none")

    def clear_breakpoint(self, gva: int) -> None:
        """There is none to clear."""

    def step(self, interrupts: bool = True) -> int:
        """Not under this engine: raises InputError."""
        raise InputError("engine kvm: the guest cannot be stepped")

    def lose_time(self, ns: int) -> None:
        """So much host time did not pass for the guest (its TSC runs on)."""
        self._started += ns

    #: See bt.machine.exits.
    exit_hook: Callable[..., tuple[int, int, int]] | None = None

    def set_hook(self, number: int, before: bool, after: bool) -> None:
        """Exits of this engine cannot be hooked yet: raises InputError."""
        raise InputError("engine kvm: exits cannot be hooked")

    def recent_blocks(self) -> list[int]:
        """Nobody looks at the guest's code here."""
        return []

    # Counters ---------------------------------------------------------------------------------

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
