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
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO

from bt import boot
from bt.core import vcpu as core
from bt.devices.pc import LegacyPc
from bt.engines import ENGINES
from bt.errors import InputError
from bt.machine import cpuid, msr
from bt.machine.bus import Bus
from bt.machine.dma import Dma
from bt.machine.panic import PanicWatch
from bt.machine.ram import Ram
from bt.machine.report import death_report
from bt.machine.stats import Stats
from bt.machine.stubs import StubMaker
from bt.machine.timers import TimerQueue
from bt.machine.tracing import Tracer

if TYPE_CHECKING:
    from bt.xen.domain import XenDomainState

#: Console output waits at most this long (virtual ns) for more to go out with.
_FLUSH_NS = 5_000_000
#: Trap executions after which a site is offered to the stub maker.
HOT = 64


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    kind: "powered-off", "halted" (HLT with interrupts off), "reset", "died", "timeout" or
    "stopped"; status: the process's exit status by design (0, 3, 124) or what the guest gave the
    exit device; report: for "died", what to show a kernel developer.
    """

    kind: str
    status: int
    report: str | None = None


class InputPort(Protocol):
    """Where input from outside goes: a serial port or a Xen console."""

    @property
    def pending_input(self) -> int: ...

    def feed(self, data: bytes) -> int: ...


class _CoreClock:
    """Virtual time for devices: the vCPU's."""

    def __init__(self) -> None:
        self.now_ns: Callable[[], int] = lambda: 0


class Machine:
    """A legacy PC with one virtual CPU.

    ``engine``: a name of bt.engines.ENGINES. ``ram_bytes``: guest RAM. ``deterministic``: virtual
    time counts executed work, so that a run repeats exactly. ``trace``: a stream for one line an
    exit. ``console`` takes what COM1 sends; ``channels`` maps 2 and 3 to sinks of COM2 and COM3.
    ``audit`` checks the real privilege level on every executed block (slow). Raises InputError.
    """

    def __init__(self, *, engine: str = "bt", ram_bytes: int = 256 << 20,
                 deterministic: bool = False, trace: TextIO | None = None,
                 console: Callable[[bytes], None] = lambda data: None,
                 channels: Mapping[int, Callable[[bytes], None]] | None = None,
                 audit: bool = False, hot: int = HOT) -> None:
        if engine not in ENGINES:
            raise InputError(f"no engine {engine!r}: one of {', '.join(ENGINES)}")
        self.engine = ENGINES[engine]
        self._domain_bytes = ram_bytes & ~0xFFF
        extra = 0
        if self.engine.paravirtual:
            from bt.engines.xen import extra_ram  # costs what only this engine needs
            extra = extra_ram(ram_bytes)
        self.ram = Ram(ram_bytes + extra)
        self.bus = Bus()
        clock = _CoreClock()
        self.timers = TimerQueue(clock)
        self._wallclock_s = 0 if deterministic else int(time.time())
        self.pc = LegacyPc(clock, self.timers, self.bus, self.ram.size,
                           wallclock_s=self._wallclock_s)
        self._stub_maker = StubMaker()
        self._tracer = Tracer(trace)
        self.acknowledge = self.pc.pic.acknowledge
        self.cpuid = cpuid.cpuid
        self.read_msr = msr.read_msr
        self.write_msr = msr.write_msr
        self.hot_site = self._stub_maker.hot_site
        self.trace = self._tracer.exit
        self.vcpu = core.Vcpu(self.ram, self.bus, self, translate=self.engine.translate,
                              deterministic=deterministic, audit=audit, hot=hot)
        clock.now_ns = self.vcpu.now_ns
        self.dma = Dma(self.ram, self.vcpu.dma_write_begin)
        self._stub_maker.vcpu = self.vcpu
        self.vcpu.set_tracing(trace is not None)
        self.timers.on_earlier = self._earlier
        self.pc.pic.on_intr = self.vcpu.set_intr
        self._panic = PanicWatch()
        self._connect(console, dict(channels or {}))
        self.domain: XenDomainState | None = None
        self.stats = Stats(self.vcpu, engine, deterministic)
        self._ended: Outcome | None = None
        self._running = False
        self._input: deque[tuple[int, bytes]] = deque()
        self._posted: deque[Callable[[], None]] = deque()
        self._stop_reason: str | None = None

    # Hypercalls of our own interface that are not the CPU's business -----------------------------

    def pv_console(self, data: bytes) -> None:
        """console_write: as if COM1 had sent it."""
        self.pc.com1.flush()
        assert self.pc.com1.on_output is not None
        self.pc.com1.on_output(data)

    def pv_shutdown(self, reason: int, status: int) -> None:
        """shutdown: 0 power off with ``status``, 1 reboot, 2 the kernel gave up."""
        if reason == 0:
            self._on_exit(status)
        elif reason == 1:
            self._on_reset("hypercall")
        else:
            self._end(Outcome("died", 3, death_report(self.vcpu, "it said so, by hypercall")))

    # What a Xen domain tells the machine ----------------------------------------------------------

    def console_output(self, data: bytes) -> None:
        """The domain wrote to the hypervisor's console (early messages)."""
        assert self.pc.com1.on_output is not None
        self.pc.com1.on_output(data)

    def hvc_output(self, data: bytes) -> None:
        """The domain wrote to its own console; with a command, that is the command's output."""
        sink = self._channels.get(2)
        if sink is None:
            self.console_output(data)
        else:
            self._panic.see(data)
            sink(data)

    def xen_io_allowed(self, port: int, size: int) -> bool:
        """Whether user code may access a port: by its IOPL, or by the kernel's I/O bitmap."""
        assert self.domain is not None
        physdev = self.domain.physdev
        if physdev.iopl == 3:
            return True
        address, ports = physdev.bitmap
        if port + size > ports:
            return False
        bits = self.vcpu.xen_read_kernel(address + port // 8 & (1 << 64) - 1, 2)
        return bits is not None and \
            not int.from_bytes(bits, "little") >> port % 8 & (1 << size) - 1

    def xen_shutdown(self, reason: int) -> None:
        """SCHEDOP_shutdown."""
        from bt.engines.xen import ORDERLY
        kind = ORDERLY.get(reason)
        if kind is not None:
            self._end(Outcome(kind, 0))
            return
        said = f": {self._panic.text}" if self._panic.text else ""
        self._end(Outcome("died", 3, death_report(self.vcpu, f"it crashed by its own word{said}")))

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
        self.pc.power.on_reset = self._on_reset
        self.pc.power.on_exit = self._on_exit

    # Before the run ---------------------------------------------------------------------------

    def load(self, path: Path, *, cmdline: str = "", initrd: Path | bytes | None = None,
             kind: str | None = None, base: int | None = None,
             bits: int | None = None) -> boot.Loaded:
        """Load a kernel (bt.boot.load) and set the vCPU to its entry state.

        Under a paravirtual engine Linux becomes a Xen domain; other kernels must declare our own
        interface.
        """
        if self.engine.paravirtual and kind != "flat" and boot.is_linux(path):
            from bt.engines import xen
            loaded, self.domain = xen.attach(self, path, self._domain_bytes, cmdline, initrd,
                                             self._wallclock_s)
            # One console for everything: COM2, the command's channel elsewhere, is the same.
            self._ports = dict.fromkeys((1, 2, 3), self.domain.console)
            return loaded
        loaded = boot.load(path, self.ram, cmdline=cmdline, initrd=initrd, kind=kind, base=base,
                           bits=bits)
        self.vcpu.enter(loaded.entry)
        if self.engine.paravirtual:
            from bt.engines import ring1  # costs what only this engine needs
            ring1.attach(path, self.ram, self.vcpu)
        return loaded

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
        """End the run soon, with kind "stopped". Safe from any thread."""
        self._stop_reason = reason
        self.vcpu.kick()

    # The loop ---------------------------------------------------------------------------------

    def run(self, timeout: float | None = None) -> Outcome:
        """Run until the guest ends, ``stop`` is called, or ``timeout`` wall seconds have passed."""
        vcpu, timers = self.vcpu, self.timers
        started = time.perf_counter()
        alarm = None
        if timeout is not None:
            alarm = threading.Timer(timeout, self._time_out)
            alarm.daemon = True
            alarm.start()
        if vcpu.now_ns() == 0 or not self._running:
            timers.at(vcpu.now_ns() + _FLUSH_NS, self._flush)
        try:
            while True:
                self._take_input()
                for _ in range(len(self._posted)):  # what these post in turn waits for its turn
                    self._posted.popleft()()
                timers.run_due()
                if self._ended is not None or self._stop_reason is not None:
                    break
                self._running = True
                why = vcpu.run(timers.next_deadline())
                self._running = False
                if why == core.KICKED or self._ended is not None:
                    # Engine trap finishes the block of the OUT that ended the machine, HLT and all.
                    continue
                if why == core.HALTED:
                    self._halt()
                else:
                    self._die(why)
        finally:
            self._running = False
            if alarm is not None:
                alarm.cancel()
            self.pc.flush()
            self.stats.wall_s += time.perf_counter() - started
            self.stats.translator_python_s = self._stub_maker.seconds
        return self._outcome()

    def _outcome(self) -> Outcome:
        if self._ended is None:
            if self._stop_reason == "timeout":
                return Outcome("timeout", 124)
            return Outcome("stopped", 0)
        if self._ended.kind in ("reset", "halted") and self._panic.text:
            report = death_report(self.vcpu, f"it said: {self._panic.text}")
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
        if not self.pc.pic.intr and not self._input and not self._posted:
            self.vcpu.wait(self.timers.next_deadline())

    def _on_reset(self, source: str) -> None:
        self._end(Outcome("reset", 0))

    def _on_exit(self, status: int) -> None:
        self._end(Outcome("powered-off", status))

    def _end(self, outcome: Outcome) -> None:
        self._ended = outcome
        self.vcpu.leave()

    def _die(self, why: int) -> None:
        vcpu = self.vcpu
        if why == core.SHUTDOWN:
            # A Xen domain has no triple faults: it says what went wrong.
            reason = vcpu.message or "triple fault"
        elif why == core.VOID:
            reason = f"it jumped into the void: no memory at physical {vcpu.fault_address:#x}"
        elif why == core.STUCK:
            reason = f"an endless fault loop at address {vcpu.fault_address:#x}"
        elif why == core.UNSUPPORTED:
            reason = vcpu.message
        else:
            reason = f"the CPU underneath gave up: {vcpu.message}"
        self._ended = Outcome("died", 3, death_report(vcpu, reason))
