# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine: RAM, one vCPU, the devices, virtual time, and the loop that runs them.

``Machine.run`` is the one run loop. The vCPU runs until virtual time reaches the next device
deadline, somebody kicks it, the guest halts or dies; each reason is dealt with in one place.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeVar

from bt import boot
from bt.devices.pc import MACHINES
from bt.devices.reset import PowerControl
from bt.engines import ENGINES, EngineInfo
from bt.engines.base import GuestFile
from bt.errors import InputError
from bt.machine.access import Memory, Physical, Registers
from bt.machine.bus import Bus
from bt.machine.cpu import CpuParts, InputPort, Stop
from bt.machine.dma import Dma
from bt.machine.panic import PanicWatch
from bt.machine.ram import Ram
from bt.machine.report import death_report
from bt.machine.stats import Stats
from bt.machine.timers import TimerQueue
from bt.machine.tracing import Tracer
from bt.symbols.table import SymbolTable
from bt.virtio import TRANSPORTS

if TYPE_CHECKING:
    from bt.devices.ata import AtaChannel
    from bt.devices.disk import Disk
    from bt.machine.debug import Breakpoint, Debugger
    from bt.machine.exit_hooks import ExitHooks
    from bt.machine.exits import Exit
    from bt.machine.second import SecondLevel
    from bt.net.link import Host
    from bt.symbols.guest import GuestSymbols
    from bt.virtio.device import VirtioDevice

_Hook = TypeVar("_Hook", bound="Callable[[Exit], object]")

#: Console output waits at most this long (virtual ns) for more to go out with.
_FLUSH_NS = 5_000_000
#: Trap executions after which a site is offered to the stub maker.
HOT = 64


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    kind: "powered-off", "halted" (HLT with interrupts off), "reset", "died", "timeout", "stopped",
    "breakpoint" or "until" (what the run was to wait for has come); status: the process's exit
    status by design (0, 3, 124) or what the guest gave the exit device; report: for "died", what
    to show a kernel developer.
    """

    kind: str
    status: int
    report: str | None = None


class _CpuClock:
    """Virtual time for devices: the vCPU's."""

    def __init__(self) -> None:
        self.now_ns: Callable[[], int] = lambda: 0


def board(name: str | None, engine: EngineInfo) -> str:
    """The board that ``name`` means under an engine. Raises InputError if there is none.

    A paravirtual guest has its own interfaces for what APICs, PCI and ACPI are there for.
    """
    if name is None:
        return "legacy" if engine.paravirtual else "pc"
    if name not in MACHINES:
        raise InputError(f"no machine {name!r}: one of {', '.join(MACHINES)}")
    if engine.paravirtual and name != "legacy":
        raise InputError(f"engine {engine.name} is not for --machine {name}: its guests have no "
                         "APICs and no PCI")
    return name


class Machine:
    """A PC with one virtual CPU.

    ``engine``: a name of bt.engines.ENGINES. ``machine``: a name of bt.devices.pc.MACHINES, or None
    for the newest that the engine can be on. ``ram_bytes``: guest RAM. ``deterministic``: virtual
    time counts executed work, so that a run repeats exactly. ``trace``: a stream for one line an
    exit. ``console`` takes what COM1 sends; ``channels`` maps 2 and 3 to sinks of COM2 and COM3.
    ``audit`` checks the real privilege level on every executed block (slow). ``intercept``: engine
    hvm; what exits besides what must (bt.core.svm.GROUPS). ``virtio``: what virtio devices are on,
    "pci" or "mmio". Raises InputError.
    """

    def __init__(self, *, engine: str = "bt", machine: str | None = None,
                 ram_bytes: int = 256 << 20, deterministic: bool = False,
                 trace: TextIO | None = None,
                 console: Callable[[bytes], None] = lambda data: None,
                 channels: Mapping[int, Callable[[bytes], None]] | None = None,
                 audit: bool = False, hot: int = HOT, intercept: str = "",
                 virtio: str = "pci") -> None:
        if engine not in ENGINES:
            raise InputError(f"no engine {engine!r}: one of {', '.join(ENGINES)}")
        self.engine = ENGINES[engine]
        if intercept and not self.engine.intercepts:
            raise InputError(f"engine {engine} has no hardware to intercept with: that is hvm's")
        if virtio not in TRANSPORTS:
            raise InputError(f"no virtio over {virtio!r}: one of {', '.join(TRANSPORTS)}")
        self.virtio = virtio
        machine = board(machine, self.engine)
        self._engine = self.engine.open()
        self.guest_bytes = ram_bytes & ~0xFFF
        extra = self._engine.extra_ram(ram_bytes)
        self.ram = Ram(ram_bytes + extra, hole=machine == "pc")
        self.bus = Bus()
        clock = _CpuClock()
        self.timers = TimerQueue(clock)
        self.wallclock_s = 0 if deterministic else int(time.time())
        self.pc = MACHINES[machine](clock, self.timers, self.bus, self.ram.size,
                                    wallclock_s=self.wallclock_s)
        self._tracer = Tracer(trace, self.symbols)
        self._kernel: Path | None = None
        self._symbols: GuestSymbols | None = None
        self.acknowledge = self.pc.interrupts.acknowledge
        self.cr8_crossed = self.pc.cr8_crossed
        self.cpuid = self.pc.cpuid
        self.read_msr = self.pc.read_msr
        self.write_msr = self.pc.write_msr
        self.trace = self._tracer.exit
        self.vcpu = self._engine.make_vcpu(CpuParts(
            self.ram, self.bus, self, deterministic=deterministic, audit=audit, hot=hot,
            intercept=intercept))
        clock.now_ns = self.vcpu.now_ns
        self.dma = Dma(self.ram, self.vcpu.dma_write_begin)
        self.vcpu.set_tracing(trace is not None)
        self.timers.on_earlier = self._earlier
        self.pc.connect(self.vcpu)
        self._panic = PanicWatch()
        self._connect(console, dict(channels or {}))
        self.stats = Stats(self.vcpu, engine)
        self._ended: Outcome | None = None
        self._running = False
        self._input: deque[tuple[int, bytes]] = deque()
        self._posted: deque[Callable[[], None]] = deque()
        self._stopped: Outcome | None = None
        self._left_at: float | None = time.perf_counter()   # when no time passes for the guest, s
        self._flushes = False
        self.registers = Registers(self.vcpu)
        self.memory = Memory(self.vcpu)
        self.physical = Physical(self.ram, self.vcpu)
        self._hooks: ExitHooks | None = None
        self._ata: AtaChannel | None = None
        self.domain_disks: list[Disk] = []
        #: Told each line about a device whose driver broke a rule.
        self.on_report: Callable[[str], None] = lambda text: None
        self._debugger: Debugger | None = None

    # Hooks (bt.machine.exit_hooks) ----------------------------------------------------------------

    @property
    def hooks(self) -> ExitHooks:
        """The hooks on exits of this machine."""
        if self._hooks is None:
            from bt.machine.exit_hooks import ExitHooks  # costs what only who hooks needs
            self._hooks = ExitHooks(self)
            self.vcpu.exit_hook = self._hooks.fire
        return self._hooks

    def on_exit(self, *names: str, when: str = "before") -> Callable[[_Hook], _Hook]:
        """A decorator: call the function at these exits, with a :class:`bt.machine.exits.Exit`.

        What the function raises ends the run: `run` raises it, and the machine can be looked at.
        Raises InputError for a name that is no exit.
        """
        def register(hook: _Hook) -> _Hook:
            self.hooks.add(names, when, hook)
            return hook

        return register

    @property
    def second_level(self) -> SecondLevel:
        """Guest-physical memory as nested paging has it, under hvm. Raises InputError elsewhere."""
        from bt.machine.second import SecondLevel
        return SecondLevel(self.vcpu, self.engine)

    # Breakpoints and steps (bt.machine.debug) -----------------------------------------------------

    @property
    def debugger(self) -> Debugger:
        """The breakpoints of this machine."""
        if self._debugger is None:
            from bt.machine.debug import Debugger  # costs what only who debugs needs
            self._debugger = Debugger(self)
        return self._debugger

    def breakpoint(self, where: int | str,
                   action: Callable[[Machine], object] | None = None) -> Breakpoint:
        """Stop before the instruction at a linear address or symbol ("start_kernel", "f+0x12").

        ``action(machine)`` is called each time, and the guest goes on unless that calls `stop`.
        Without one the run ends there, with kind "breakpoint". Raises InputError.
        """
        return self.debugger.add(where, action)

    def step(self, count: int = 1, *, interrupts: bool = True) -> Outcome | None:
        """Run ``count`` instructions; the Outcome if the guest ended in one of them.

        To take an interrupt is a step too, which ends at its handler. Without ``interrupts`` they
        wait, and the steps stay in the code they are in; only a halted CPU is always woken.
        """
        self._resume_clock()
        try:
            for _ in range(count):
                while True:
                    self._serve()
                    if self._ended is not None or self._stopped is not None:
                        return self._outcome()
                    why = self.vcpu.step(interrupts)
                    if why == Stop.HALTED and self._ended is None:
                        self._halt()
                        continue
                    break
                if why != Stop.DEBUGGED and self._ended is None:
                    self._die(why)
        finally:
            self._pause_clock()
        return self._outcome() if self._ended is not None else None

    def translate(self, virtual: int) -> int | None:
        """Guest-physical address behind a linear one, by the page tables of now; None: unmapped."""
        return self.vcpu.translate_address(virtual)

    # What the engine may use: bt.machine.cpu.EngineHost ------------------------------------------

    def install_firmware(self) -> int:
        """Put into RAM what firmware leaves there; the address of the ACPI RSDP, or 0."""
        return self.pc.install_firmware(self.ram)

    @property
    def power(self) -> PowerControl:
        """The reset and exit device."""
        return self.pc.power

    def console_output(self, data: bytes) -> None:
        """As if COM1 had sent it."""
        self.pc.com1.flush()
        assert self.pc.com1.on_output is not None
        self.pc.com1.on_output(data)

    def channel_output(self, data: bytes) -> None:
        """The guest wrote to its only console: with a command, that is the command's output."""
        sink = self._channels.get(2)
        if sink is None:
            self.console_output(data)
        else:
            self._panic.see(data)
            sink(data)

    def use_console(self, console: InputPort) -> None:
        """All input goes to ``console`` from now on."""
        self._ports = dict.fromkeys(self._ports, console)

    def end(self, kind: str, status: int = 0) -> None:
        """From a callback: the run is over, with this Outcome."""
        self._end(Outcome(kind, status))

    def died(self, reason: str) -> None:
        """From a callback: the guest has given up; what it printed of that is added."""
        said = f": {self._panic.text}" if self._panic.text else ""
        self._end(Outcome("died", 3, death_report(self.vcpu, reason + said, self.symbols())))

    def _connect(self, console: Callable[[bytes], None],
                 channels: Mapping[int, Callable[[bytes], None]]) -> None:
        def to_console(data: bytes) -> None:
            self._panic.see(data)
            console(data)

        self.pc.com1.on_output = to_console
        self._channels = channels
        for number, port in ((2, self.pc.com2), (3, self.pc.com3)):
            if number in channels:
                port.on_output = channels[number]
        self._ports: dict[int, InputPort] = {1: self.pc.com1, 2: self.pc.com2, 3: self.pc.com3}
        self.pc.power.on_reset = lambda source: self.end("reset")
        self.pc.on_power_off(lambda: self.end("powered-off"))
        self.pc.power.on_exit = lambda status: self.end("powered-off", status)

    # Devices beside the board's own ------------------------------------------------------------

    def add_virtio(self, device: VirtioDevice) -> None:
        """Put a virtio device on the PCI bus, or where ``virtio`` says. Before `load`, which makes
        the ACPI tables.

        Raises InputError if the machine has none of it.
        """
        if self.virtio == "mmio" and not self.engine.paravirtual:
            self._add_virtio_mmio(device)
            return
        if self.pc.pci is None:
            raise InputError(f"{device.name} needs a machine with PCI: "
                             + ("engine pv has none" if self.engine.paravirtual
                                else "use --machine pc"))
        from bt.virtio.pci import VirtioPci  # costs what only such machines need
        try:
            # Without a local APIC nobody takes messages, and Linux 6.1 warns of the attempt.
            self.pc.pci.add(VirtioPci(device, self.dma, self.device_report,
                                      msix=self.pc.pci.on_message is not None))
        except ValueError as error:
            raise InputError(f"no room for one more {device.name}: {error}") from None

    def _add_virtio_mmio(self, device: VirtioDevice) -> None:
        from bt.virtio.mmio import SIZE, VirtioMmio
        try:
            base, line = self.pc.virtio_place(SIZE)
        except ValueError as error:
            raise InputError(f"no room for one more {device.name}: {error}") from None
        self.bus.claim_mmio(VirtioMmio(device, self.dma, line, self.device_report, base=base),
                            base, SIZE)

    def add_console(self, size: tuple[int, int] | None = None) -> None:
        """A virtio console in place of the serial ports; ``size``: columns and rows of the
        terminal. Before the run. Raises InputError.
        """
        from bt.virtio.console import VirtioConsole
        console = VirtioConsole(self.channel_output, size)
        self.add_virtio(console)
        self.use_console(console)

    @cached_property
    def host(self) -> Host:
        """What network cables need: descriptors of the host to wait for, virtual time."""
        from bt.machine.watch import HostWatcher  # costs a descriptor, and a thread later
        from bt.net.link import Host
        return Host(HostWatcher(self.post), self.timers, self.vcpu.now_ns)

    def add_disk(self, disk: Disk, interface: str = "virtio", serial: str = "") -> None:
        """A disk, as "virtio", "ata" (at most two) or "xen". Before ``load``. Raises InputError."""
        if (interface == "xen") != self.engine.paravirtual:
            raise InputError("a Xen domain has no hardware: its disks are if=xen"
                             if self.engine.paravirtual else "if=xen needs the engine pv")
        if interface == "xen":
            self.domain_disks.append(disk)
            return
        if interface == "virtio":
            from bt.virtio.blk import VirtioBlk
            self.add_virtio(VirtioBlk(disk, serial.encode()))
            return
        from bt.devices.ata import AtaChannel
        if self._ata is None:
            self._ata = AtaChannel(self.bus, self.pc.isa_line(AtaChannel.IRQ))
            if self.pc.pci is not None:
                from bt.devices.ide import PciIde
                self.pc.pci.add(PciIde())
        self._ata.add(disk, serial)

    def device_report(self, text: str) -> None:
        """Something about a device that a user should know; only the first so many are kept."""
        if len(self.stats.reports) < 100:
            self.stats.reports.append(text)
            self.on_report(text)

    # Before the run ---------------------------------------------------------------------------

    def load(self, path: Path, *, cmdline: str = "", initrd: Path | bytes | None = None,
             kind: str | None = None, base: int | None = None,
             bits: int | None = None) -> boot.Loaded:
        """Load a kernel (bt.boot.load) and set the vCPU to its entry state.

        What is set up for it besides is the engine's business (bt.engines.base.Engine.load).
        """
        self._kernel = path
        return self._engine.load(self, GuestFile(path, cmdline, initrd, kind, base, bits))

    def symbols(self) -> SymbolTable:
        """Names for the guest's addresses, read when first asked for; empty if none are known."""
        if self._symbols is None:
            if self._kernel is None:
                return SymbolTable()
            from bt.symbols.guest import GuestSymbols  # costs what only reports and traces need
            self._symbols = GuestSymbols(self.ram, self._kernel)
        return self._symbols.table(self.vcpu.registers())

    # From other threads -----------------------------------------------------------------------

    def feed(self, data: bytes, port: int = 1) -> None:
        """Input for COM ``port`` (1-3). Safe from any thread."""
        self._input.append((port, data))
        self.vcpu.kick()

    def pending_input(self, port: int = 1) -> int:
        """Bytes fed to COM ``port`` that the guest has not read yet. Safe from any thread."""
        waiting = sum(len(data) for number, data in tuple(self._input) if number == port)
        return waiting + self._ports[port].pending_input

    def post(self, call: Callable[[], None]) -> None:
        """Make ``call`` soon on the vCPU's thread, where devices may be touched. From any thread.
        """
        self._posted.append(call)
        self.vcpu.kick()

    def stop(self, reason: str) -> None:
        """End the run soon, with kind "stopped" ("timeout" for that reason). From any thread."""
        if self._stopped is None or self._stopped.kind not in ("timeout", "stopped"):
            self._stopped = Outcome("timeout", 124) if reason == "timeout" else \
                Outcome("stopped", 0)
        self.vcpu.kick()

    def pause(self, kind: str) -> None:
        """As `stop`, with another kind of outcome: the caller means to go on."""
        if self._stopped is None:
            self._stopped = Outcome(kind, 0)
        self.vcpu.kick()

    # The loop ---------------------------------------------------------------------------------

    def run(self, timeout: float | None = None) -> Outcome:
        """Run until the guest ends, ``stop`` is called, or ``timeout`` wall seconds have passed.

        It can be called again after an outcome that is not the guest's end ("stopped", "timeout",
        "breakpoint"); the guest's clock stands still meanwhile.
        """
        vcpu, timers = self.vcpu, self.timers
        self._resume_clock()
        started = time.perf_counter()
        alarm = None
        if timeout is not None:
            alarm = threading.Timer(timeout, self._time_out)
            alarm.daemon = True
            alarm.start()
        try:
            while True:
                self._serve()
                if self._ended is not None or self._stopped is not None:
                    break
                self._running = True
                why = vcpu.run(timers.next_deadline())
                self._running = False
                if why == Stop.KICKED or self._ended is not None:
                    # Engine trap finishes the block of the OUT that ended the machine, HLT and all.
                    continue
                if why == Stop.HALTED:
                    self._halt()
                elif why != Stop.DEBUGGED:
                    self._die(why)
                elif self.debugger.hit() and self._stopped is None:
                    self._stopped = Outcome("breakpoint", 0)
        finally:
            self._running = False
            self._pause_clock()
            if alarm is not None:
                alarm.cancel()
            self.pc.flush()
            self.stats.wall_s += time.perf_counter() - started
        return self._outcome()

    def _serve(self) -> None:
        """What the machine does between two stretches of the guest."""
        self._take_input()
        for _ in range(len(self._posted)):  # what these post in turn waits for its turn
            self._posted.popleft()()
        self.timers.run_due()

    def _resume_clock(self) -> None:
        if not self._flushes:
            self._flushes = True
            self.timers.at(self.vcpu.now_ns() + _FLUSH_NS, self._flush)
        if self._left_at is not None:
            self.vcpu.lose_time(int((time.perf_counter() - self._left_at) * 1e9))
            self._left_at = None

    def _pause_clock(self) -> None:
        self._left_at = time.perf_counter()

    def _outcome(self) -> Outcome:
        if self._ended is None:
            stopped, self._stopped = self._stopped, None
            return stopped or Outcome("stopped", 0)
        if self._ended.kind in ("reset", "halted") and self._panic.text:
            report = death_report(self.vcpu, f"it said: {self._panic.text}", self.symbols())
            return Outcome("died", 3, report)
        return self._ended

    def _time_out(self) -> None:
        self.stop("timeout")

    def _flush(self) -> None:
        self.pc.flush()
        self.timers.at(self.vcpu.now_ns() + _FLUSH_NS, self._flush)

    def _take_input(self) -> None:
        while self._input:
            number, data = self._input.popleft()
            taken = self._ports[number].feed(data)
            if taken < len(data):
                self._input.appendleft((number, data[taken:]))
                return

    def _earlier(self, deadline_ns: int) -> None:
        if self._running:
            self.vcpu.set_deadline(deadline_ns)

    def _halt(self) -> None:
        if not self.vcpu.interrupts_enabled:
            # Nothing can wake this CPU: it is how a kernel without power control ends.
            self._ended = Outcome("halted", 0)
            return
        self.pc.flush()
        if not self.pc.interrupts.intr and not self._input and not self._posted:
            self.vcpu.wait(self.timers.next_deadline())

    def _end(self, outcome: Outcome) -> None:
        self._ended = outcome
        self.vcpu.leave()

    def _die(self, why: int) -> None:
        vcpu = self.vcpu
        if why == Stop.SHUTDOWN:
            # A Xen domain has no triple faults: it says what went wrong.
            reason = vcpu.message or "triple fault"
        elif why == Stop.VOID:
            reason = f"it jumped into the void: no memory at physical {vcpu.fault_address:#x}"
        elif why == Stop.STUCK:
            reason = f"an endless fault loop at address {vcpu.fault_address:#x}"
        elif why == Stop.UNSUPPORTED:
            reason = vcpu.message
        else:
            reason = f"the CPU underneath gave up: {vcpu.message}"
        self._ended = Outcome("died", 3, death_report(vcpu, reason, self.symbols()))
