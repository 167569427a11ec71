# SPDX-License-Identifier: GPL-2.0-or-later
"""The seam between machine and engine: what either may expect of the other.

The machine runs a :class:`VirtualCpu` and knows nothing else of it; a vCPU asks a
:class:`CpuPolicy` for what is not its own business; an engine that sets up more than a vCPU (a Xen
domain, say) works on an :class:`EngineHost`. Protocols, so that neither side imports the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from bt.boot.entry import EntryState
    from bt.devices.disk import Disk
    from bt.devices.reset import PowerControl
    from bt.machine.bus import Bus
    from bt.machine.dma import Dma
    from bt.machine.ram import Ram
    from bt.machine.timers import TimerQueue


class Stop(IntEnum):
    """Why :meth:`VirtualCpu.run` came back. The numbers are the compiled core's (state.pxi)."""

    KICKED = 1          # a deadline passed, or somebody called kick or leave
    HALTED = 2          # HLT with nothing pending
    SHUTDOWN = 3        # triple fault
    VOID = 4            # an instruction fetch where no memory is
    STUCK = 5           # no progress: an endless fault loop
    UNSUPPORTED = 6     # something the vCPU does not do; ``message`` says what
    CPU_ERROR = 7       # the CPU underneath gave up; ``message`` says why
    DEBUGGED = 9        # at a breakpoint


class TranslatorCounts(NamedTuple):
    """What translation took; all zero where nothing is translated.

    seconds: in scanner, rewriter and stub maker; instructions: scanned; sites: instructions
    rewritten; events: how often each thing happened, by name.
    """

    seconds: float = 0.0
    instructions: int = 0
    sites: int = 0
    events: Mapping[str, int] = {}


class VirtualCpu(Protocol):
    """One virtual CPU, with the guest's memory behind it. Not thread-safe, apart from ``kick``."""

    def enter(self, entry: EntryState) -> None:
        """Set the state at the guest's first instruction."""
        ...

    def run(self, deadline_ns: int | None = None) -> int:
        """Run until virtual time ``deadline_ns``, a kick, a HLT or the guest's death: a Stop."""
        ...

    def wait(self, deadline_ns: int | None = None) -> None:
        """Sleep until virtual time ``deadline_ns`` or a kick: what a halted CPU does."""
        ...

    def set_deadline(self, deadline_ns: int) -> None:
        """Change the deadline of the `run` in progress, from a callback."""
        ...

    def kick(self) -> None:
        """From any thread: make ``run`` or ``wait``, this one or the next, come back soon."""
        ...

    def leave(self) -> None:
        """From a callback: make ``run`` return KICKED after the current instruction."""
        ...

    def now_ns(self) -> int:
        """Virtual nanoseconds since power-on; never goes back."""
        ...

    @property
    def tsc_hz(self) -> int:
        """Ticks of the guest's TSC in a second of virtual time."""
        ...

    def set_intr(self, level: bool) -> None:
        """The interrupt controller's INTR line; on the vCPU's thread."""
        ...

    #: The task priority class, 0-15: what the local APIC has as TPR[7:4].
    cr8: int

    def watch_cr8(self, priority: int) -> None:
        """Call the policy's ``cr8_crossed`` when the guest's CR8 goes from below ``priority`` to it
        or above, or back: an interrupt of that class waits. 0: never."""
        ...

    def set_tracing(self, on: bool) -> None:
        """Whether each exit is told to the policy's ``trace``."""
        ...

    def dma_write_begin(self, gpa: int, length: int) -> None:
        """A device is about to write guest RAM: what the CPU cached of that code must go."""
        ...

    @property
    def interrupts_enabled(self) -> bool:
        """Whether the guest's IF is 1."""
        ...

    # For reports and debuggers; all as the guest sees it.

    @property
    def message(self) -> str:
        """What went wrong, in words, after a Stop that needs them; "" otherwise."""
        ...

    @property
    def fault_address(self) -> int:
        """Guest-physical address of the fetch that ended in VOID; linear one of a STUCK loop."""
        ...

    @property
    def bits(self) -> int:
        """Code size of the current segment: 16, 32 or 64."""
        ...

    @property
    def real_cpl(self) -> int:
        """The privilege level that the guest's code really runs at."""
        ...

    @property
    def linear_rip(self) -> int:
        """Linear address of the next instruction."""
        ...

    def registers(self) -> dict[str, int]:
        """By name: 16 general ones, rip, rflags, selectors, bases, control registers, cpl."""
        ...

    def read_virtual(self, gva: int, length: int) -> bytes | None:
        """Guest memory by linear address with kernel rights; None if it is not all mapped."""
        ...

    def write_virtual(self, gva: int, data: bytes) -> bool:
        """Write guest memory by linear address with kernel rights; False if it is not writable."""
        ...

    def translate_address(self, gva: int) -> int | None:
        """Guest-physical address behind a linear one, with kernel rights; None if there is none."""
        ...

    def read_register(self, name: str) -> int:
        """One register by a name of ``registers``. Raises KeyError."""
        ...

    def write_register(self, name: str, value: int) -> None:
        """Change one. KeyError: no such register, or not to be written; ValueError: not now, or
        not to this value."""
        ...

    # Debugging (bt.machine.debug)

    def set_breakpoint(self, gva: int) -> None:
        """Have ``run`` return DEBUGGED before the instruction at linear address ``gva``."""
        ...

    def clear_breakpoint(self, gva: int) -> None:
        """Undo ``set_breakpoint``."""
        ...

    def step(self, interrupts: bool = True) -> int:
        """Run one instruction, or (unless told not to) take an interrupt: DEBUGGED, or another
        Stop. A halted vCPU takes an interrupt in any case, or is HALTED still."""
        ...

    def lose_time(self, ns: int) -> None:
        """So much host time did not pass for the guest: somebody looked at it meanwhile."""
        ...

    # Hooks (bt.machine.exit_hooks)

    #: Called for hooked exits with the arguments of bt.machine.exit_hooks.ExitHooks.fire.
    exit_hook: Callable[..., tuple[int, int, int]] | None

    def set_hook(self, number: int, before: bool, after: bool) -> None:
        """Whether exit ``number`` (bt.machine.exit_reasons) calls ``exit_hook``, and when."""
        ...

    def recent_blocks(self) -> list[int]:
        """Linear addresses of the newest blocks that ran for the first time, oldest first."""
        ...

    # Counters

    def exit_counts(self) -> tuple[dict[str, int], dict[str, int]]:
        """Exits by reason: (the control unit's, the memory unit's)."""
        ...

    def hypercall_counts(self) -> dict[str, int]:
        """Hypercalls by name."""
        ...

    def hardware_counts(self) -> dict[str, tuple[int, int]]:
        """Exits by the hardware's own name, as (code, how many); empty without hardware."""
        ...

    def translator_counts(self) -> TranslatorCounts:
        """What translation took."""
        ...

    def audit_counters(self) -> tuple[int, int]:
        """(Blocks whose real privilege level was looked at, times it was ring 0)."""
        ...


class CpuPolicy(Protocol):
    """What a vCPU asks of its machine. Called on the vCPU's thread, while the guest stands still.

    Attributes, not methods: a machine puts other functions of the same type in their places.
    """

    #: The interrupt acknowledge cycle: the vector (0-255) to deliver.
    acknowledge: Callable[[], int]
    #: CR8 has passed the class given to ``watch_cr8``; may call ``set_intr``.
    cr8_crossed: Callable[[], None]
    #: (EAX, EBX, ECX, EDX) of a leaf and subleaf; always the same ones: answers are kept.
    cpuid: Callable[[int, int], tuple[int, int, int, int]]
    #: The value of an MSR that is not part of the CPU's running state; None is #GP.
    read_msr: Callable[[int], int | None]
    #: Whether a write to such an MSR is accepted.
    write_msr: Callable[[int, int], bool]
    #: ``--trace``: (row of the sensitive table or a negative kind, vector, rip, cpl), and under an
    #: engine with hardware its name for the exit.
    trace: Callable[..., None]


@dataclass(frozen=True)
class CpuParts:
    """What an engine makes its vCPU of.

    deterministic: virtual time counts executed work. audit: check the real privilege level on each
    executed block. hot: executions after which a trap is worth a stub; 0 never. intercept: what
    hardware is to intercept, "" for an engine's own choice.
    """

    ram: Ram
    bus: Bus
    policy: CpuPolicy
    deterministic: bool = False
    audit: bool = False
    hot: int = 64
    intercept: str = ""


class InputPort(Protocol):
    """Where input from outside goes: a serial port or a Xen console."""

    @property
    def pending_input(self) -> int: ...

    def feed(self, data: bytes) -> int: ...


class EngineHost(Protocol):
    """What an engine may use of the machine in which it sets a guest up."""

    ram: Ram
    bus: Bus
    timers: TimerQueue
    vcpu: VirtualCpu
    #: RAM that was asked for, in bytes; more may lie behind it (Engine.extra_ram).
    guest_bytes: int
    #: The date at power-on, in seconds since 1970 (UTC).
    wallclock_s: int
    dma: Dma
    #: Disks for a Xen domain, which has no bus to put them on.
    domain_disks: list[Disk]

    def device_report(self, text: str) -> None:
        """A device was stopped, and why, for the user."""
        ...

    def install_firmware(self) -> int:
        """Put into RAM what firmware leaves there: the address of the ACPI RSDP, 0 if none."""
        ...

    @property
    def power(self) -> PowerControl:
        """The reset and exit device."""
        ...

    def console_output(self, data: bytes) -> None:
        """The guest wrote to its first console."""
        ...

    def channel_output(self, data: bytes) -> None:
        """The guest wrote to its only console: with a command, that is the command's output."""
        ...

    def use_console(self, console: InputPort) -> None:
        """All input goes to ``console`` from now on."""
        ...

    def end(self, kind: str, status: int = 0) -> None:
        """From a callback: the run is over (an Outcome's kind and status)."""
        ...

    def died(self, reason: str) -> None:
        """From a callback: the guest has given up, in its own word; what it printed is added."""
        ...
