# SPDX-License-Identifier: GPL-2.0-or-later
"""A Xen guest that does whatever a test says: a small domain built by hand, and its driver.

The kernel asks Python what to do next (a hypercall that only this rig answers), makes the
hypercalls it finds on its command page or runs code that the test assembled, and comes back; an
exception comes back too, with what the handler saw. So the state before and after is a real
guest's, reached through the real SYSCALL, and a test is a few lines.

Frames (machine frame = page number; virtual address = BASE + 4096 * frame, all of them writable but
the page tables)::

    1 driver   2 command page   3-6 L4 L3 L2 L1   11 xenstore   12 console   13 stack
    14 trap table   16-31 assembled code   32-511 the test's, empty
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import partial

import keystone

from bt.boot.entry import EntryState
from bt.boot.xen import XenDomain, _write_m2p
from bt.core import vcpu as core
from bt.engines.xen import io_allowed, shutdown
from bt.machine.cpuid import xen_cpuid
from bt.machine.machine import Machine, Outcome
from bt.xen.domain import XenDomainState
from bt.xen.frames import XenFrames

BASE = 0xFFFF_FFFF_8000_0000
NR_PAGES = 512
DRIVER, COMMAND, L4, L3, L2, L1, STORE, CONSOLE, STACK, TRAPS, CODE = (
    1, 2, 3, 4, 5, 6, 11, 12, 13, 14, 16)
FREE = 32
P, W, U, A, D, PS, NX = 1, 2, 4, 0x20, 0x40, 0x80, 1 << 63
MASK = (1 << 64) - 1
ADDRESS = 0x000F_FFFF_FFFF_F000
MAX_CALLS = 32
#: Vectors a record may have besides the CPU's.
EVENT, SYSCALL, FAILSAFE = 256, 257, 258

(SET_TRAP_TABLE, MMU_UPDATE, SET_GDT, STACK_SWITCH, SET_CALLBACKS, FPU_TASKSWITCH) = range(6)
(SET_DEBUGREG, UPDATE_DESCRIPTOR, MULTICALL, UPDATE_VA_MAPPING, XEN_VERSION, IRET, VCPU_OP,
 SET_SEGMENT_BASE, MMUEXT_OP, SCHED_OP, CALLBACK_OP, PHYSDEV_OP) = (
    8, 10, 13, 14, 17, 23, 24, 25, 26, 29, 30, 33)
_LOOK = 63
PIN_L1, PIN_L2, PIN_L3, PIN_L4, UNPIN, NEW_BASEPTR = range(6)
SET_LDT, NEW_USER_BASEPTR, CLEAR_PAGE, COPY_PAGE = 13, 15, 16, 17
DOMID_SELF = 0x7FF0
EPERM, ENOENT, ESRCH, EFAULT, EBUSY, EINVAL, ENOSYS = -1, -2, -3, -14, -16, -22, -38
PF, GP, UD = 14, 13, 6
# With an error code: those have one qword more in their frame.
_ERRORS = frozenset({8, 10, 11, 12, 13, 14, 17})


def gva(frame: int, offset: int = 0) -> int:
    return BASE + (frame << 12) + offset


def entry(frame: int, flags: int = P | W | A | D) -> int:
    """A page-table entry."""
    return frame << 12 | flags


_STACK_TOP = gva(STACK + 1)
_DRIVER = f"""
back:
    mov eax, {_LOOK}
    syscall
    mov r15, {gva(COMMAND)}
    mov rsp, {_STACK_TOP}
    mov rcx, [r15]
    jmp rcx
calls:
    mov rbx, [r15+8]
    lea rbp, [r15+64]
one:
    test rbx, rbx
    je back
    mov rax, [rbp]
    mov rdi, [rbp+8]
    mov rsi, [rbp+16]
    mov rdx, [rbp+24]
    mov r10, [rbp+32]
    mov r8, [rbp+40]
    syscall
    mov [rbp+48], rax
    add rbp, 64
    dec rbx
    jmp one
trap:
    mov r15, {gva(COMMAND)}
    mov [r15+16], rax
    mov rsi, rsp
    lea rdi, [r15+2112]
    mov ecx, 9
copy:
    mov rax, [rsi]
    mov [rdi], rax
    add rsi, 8
    add rdi, 8
    dec ecx
    jne copy
    jmp back
"""


def assemble(source: str, at: int) -> bytes:
    code, _ = keystone.Ks(keystone.KS_ARCH_X86, keystone.KS_MODE_64).asm(source, at)
    return bytes(code)


_DRIVER_CODE = assemble(_DRIVER, gva(DRIVER))
_CALLS = gva(DRIVER) + len(assemble(_DRIVER.split("calls:")[0], gva(DRIVER)))
_TRAP = gva(DRIVER) + len(assemble(_DRIVER.split("trap:")[0], gva(DRIVER)))


@dataclass(frozen=True)
class Trap:
    """What a handler of the guest was entered with."""

    vector: int
    error: int | None
    rip: int
    cs: int
    flags: int
    rsp: int
    cr2: int


class Hostile:
    """One domain. ``call`` makes a hypercall, ``run`` runs code; both as the guest's kernel."""

    def __init__(self, *, deterministic: bool = True) -> None:
        self.machine = machine = Machine(engine="pv", ram_bytes=NR_PAGES << 12,
                                         deterministic=deterministic)
        self.ram, self.vcpu = machine.ram, machine.vcpu
        self._build()
        self.state = XenDomainState(
            self.domain, self.ram, self.vcpu, machine.timers, on_console=machine.channel_output,
            on_raw_console=machine.console_output, on_shutdown=partial(shutdown, machine))
        self.looks = 0
        self.why = core.KICKED
        self.came_back = True
        self.vcpu.enter_xen(self.domain, self._hypercall, xen_cpuid,
                            partial(io_allowed, self.vcpu, self.state))
        self.state.attach()
        self._next_code = gva(CODE)
        self._next_user = 0
        assert self.go()
        self.set_traps()

    def _build(self) -> None:
        ram = self.ram
        self.frames = XenFrames(ram, NR_PAGES)
        identity = memoryview(struct.pack(f"<{NR_PAGES}Q", *range(NR_PAGES)))
        m2p, m2p_entry = _write_m2p(self.frames, identity)
        self.shared_info = self.frames.share()
        for vcpu in range(32):
            ram.view[(self.shared_info << 12) + vcpu * 64 + 1] = 1
        table = P | W | U | A | D
        self.put(L4, 511, entry(L3, table))
        self.put(L4, 256, m2p_entry)
        self.put(L3, 510, entry(L2, table))
        self.put(L2, 0, entry(L1, table))
        for frame in range(NR_PAGES):
            self.put(L1, frame, entry(frame, P | A | D | (0 if L4 <= frame <= L1 else W)))
        ram.write(DRIVER << 12, _DRIVER_CODE)
        self.domain = XenDomain(
            entry=EntryState(64, gva(DRIVER), rsp=_STACK_TOP, cr3=L4 << 12), description="hostile",
            nr_pages=NR_PAGES, frames=self.frames, start_info_gva=0,
            shared_info_gpa=self.shared_info << 12, console_gpa=CONSOLE << 12,
            xenstore_gpa=STORE << 12, l4_gpa=L4 << 12, m2p_l4_entry=m2p_entry, m2p_gpa=m2p << 12,
            tables={})
        self.m2p_entry = m2p_entry

    def _hypercall(self, number: int, *arguments: int) -> int:
        if number == _LOOK:
            self.looks += 1
            self.vcpu.leave()
            return 0
        return self.state.hypercall(number, *arguments)

    # Memory, past all checks --------------------------------------------------------------------

    def put(self, frame: int, index: int, value: int) -> int:
        """Write a qword of a frame; gives its machine address."""
        at = (frame << 12) + index * 8
        self.ram.write(at, struct.pack("<Q", value & MASK))
        return at

    def get(self, frame: int, index: int) -> int:
        return struct.unpack("<Q", self.ram.read((frame << 12) + index * 8, 8))[0]

    def clear(self, frame: int) -> None:
        self.ram.write(frame << 12, bytes(4096))

    def put_many(self, frame: int, *values: int) -> int:
        """Write qwords to the start of a frame; gives its virtual address."""
        for index, value in enumerate(values):
            self.put(frame, index, value)
        return gva(frame)

    # Running ------------------------------------------------------------------------------------

    def go(self, ns: int = 50_000_000) -> bool:
        """Let the guest run until it asks for more; False if it did not within virtual ``ns``."""
        looks = self.looks
        deadline = self.vcpu.now_ns() + ns
        while self.looks == looks and self.vcpu.now_ns() < deadline:
            self.why = self.vcpu.run(deadline)
            if self.why != core.KICKED:
                return self.looks != looks
        return self.looks != looks

    def calls(self, *calls: tuple[int, ...]) -> list[int]:
        """Make hypercalls (number, arguments...) in a row; their results."""
        self.prepare(*calls)
        self.came_back = self.go()
        return [self._signed(self.get(COMMAND, 8 + index * 8 + 6)) for index in range(len(calls))]

    def prepare(self, *calls: tuple[int, ...]) -> None:
        """What :meth:`calls` makes, when the guest runs next."""
        assert len(calls) <= MAX_CALLS
        for index, (number, *arguments) in enumerate(calls):
            words = [number, *arguments, *[0] * (5 - len(arguments)), 0x5A5A5A5A, 0]
            for word, value in enumerate(words):
                self.put(COMMAND, 8 + index * 8 + word, value)
        self.put(COMMAND, 0, _CALLS)
        self.put(COMMAND, 1, len(calls))
        self.put(COMMAND, 2, 0)

    def call(self, *call: int) -> int:
        result = self.calls(call)[0]
        assert self.came_back and self.trap() is None, (self.came_back, self.why, self.trap())
        return result

    @staticmethod
    def _signed(value: int) -> int:
        return value - (value >> 63 << 64)

    def place(self, source: str) -> int:
        """Assemble ``source`` where no code was before; gives its address. ``back``: the driver."""
        at = self._next_code
        code = assemble(source.replace("back", hex(gva(DRIVER))), at)
        self.ram.write(at - BASE, code)
        self._next_code = at + len(code) + 15 & ~15
        assert self._next_code < gva(FREE)
        return at

    def run(self, source: str) -> Trap | None:
        """Run kernel code; what exception it had, None for none."""
        self.start(source)
        self.came_back = self.go()
        assert self.came_back, (self.why, self.vcpu.message)
        return self.trap()

    def start(self, source: str) -> None:
        at = self.place(source + "\n mov rax, back\n jmp rax")
        self.put(COMMAND, 0, at)
        self.put(COMMAND, 2, 0)

    def die(self, source: str) -> Outcome:
        """Run kernel code that must be the domain's end."""
        self.start(source)
        return self.machine.run(timeout=20)

    def trap(self) -> Trap | None:
        """The exception or callback since the last command."""
        vector = self.get(COMMAND, 2) - 1
        if vector < 0:
            return None
        words = [self.get(COMMAND, 264 + index) for index in range(9)]
        error = words.pop(2) if vector in _ERRORS else None
        cr2 = struct.unpack("<Q", self.ram.read(self.vcpu.xen_holders()[4] + 16, 8))[0]
        return Trap(vector, error, words[2], words[3], words[4], words[5], cr2)

    def set_traps(self) -> None:
        handlers = []
        for vector in (*range(32), EVENT, SYSCALL, FAILSAFE):
            handlers.append(self.place(f"mov eax, {vector + 1}\n mov r15, {_TRAP}\n jmp r15"))
        for vector in range(32):
            flags = 3 if vector in (3, 4) else 0
            self.put(TRAPS, vector * 2, vector | flags << 8 | 0xE033 << 16)
            self.put(TRAPS, vector * 2 + 1, handlers[vector])
        assert self.call(SET_TRAP_TABLE, gva(TRAPS)) == 0
        event, syscall, failsafe = handlers[32:]
        assert self.call(SET_CALLBACKS, event, failsafe, syscall) == 0
        self.callbacks = (event, failsafe, syscall)

    # The calls that tests make most ------------------------------------------------------------

    def mmu_update(self, *pairs: int) -> int:
        return self.call(MMU_UPDATE, self.put_many(FREE, *pairs), len(pairs) // 2, 0, DOMID_SELF)

    def mmuext(self, command: int, first: int = 0, second: int = 0) -> int:
        at = self.put_many(FREE, command, first, second)
        return self.call(MMUEXT_OP, at, 1, 0, DOMID_SELF)

    def map(self, frame: int, value: int, flags: int = 2) -> int:
        """update_va_mapping of the page where ``frame`` is at first."""
        return self.call(UPDATE_VA_MAPPING, gva(frame), value, flags)

    def read_only(self, *frames: int) -> None:
        for frame in frames:
            assert self.map(frame, entry(frame, P | A)) == 0

    def kind(self, frame: int) -> tuple[int, int]:
        return self.vcpu.xen_frame(frame)

    def user_space(self, first: int = 40) -> int:
        """Tables from ``first`` on for user mode: page 0x400000 is frame first+4; gives the L4."""
        l4, l3, l2, l1, page = range(first, first + 5)
        table = P | W | U | A | D
        for frame in (l4, l3, l2, l1, page):
            self.clear(frame)
        self.put(l4, 0, entry(l3, table))
        self.put(l3, 0, entry(l2, table))
        self.put(l2, 2, entry(l1, table))
        self.put(l1, 0, entry(page, table))
        self.read_only(l4, l3, l2, l1)
        assert self.mmuext(PIN_L4, l4) == 0
        assert self.mmuext(NEW_USER_BASEPTR, l4) == 0
        return l4

    def enter_user(self, source: str, page: int = 44) -> Trap | None:
        """Run user code at 0x400000 + n; it comes back by its exception or system call."""
        at, self._next_user = self._next_user, self._next_user + 64
        code = assemble(source, 0x400000 + at)
        assert len(code) <= 64 and at < 0xF00
        self.ram.write((page << 12) + at, code)
        assert self.call(STACK_SWITCH, 0xE02B, _STACK_TOP) == 0
        return self.run(iret_frame(0x400000 + at, 0xE033, 0x202, 0x401000, 0xE02B))


def iret_frame(rip: int, cs: int, flags: int, rsp: int, ss: int, how: int = 0) -> str:
    """Kernel code that makes the iret hypercall with this frame."""
    words = [0, 0, 0, how, rip, cs, flags, rsp, ss]
    return "\n".join(f"mov rax, {word}\n push rax" for word in reversed(words)) + \
        f"\n mov eax, {IRET}\n syscall"


# Invariants -------------------------------------------------------------------------------------

def violations(guest: Hostile) -> list[str]:
    """What is wrong with the domain: recount all types from what holds frames, look at all tables.

    Kinds: 1-4 page table of that level, 5 descriptors, 6 writable (bt/core/xen_pages.pxi).
    """
    kernel, user, pinned, gdt, vcpu_info = guest.vcpu.xen_holders()
    wanted: dict[int, list[int]] = {}
    found: list[str] = []
    shared = guest.frames.writable
    readable = set(guest.frames.readonly) | shared

    def take(frame: int, kind: int) -> None:
        if frame >= NR_PAGES:
            found.append(f"frame {frame:#x} held as {kind} is not the guest's")
            return
        have = wanted.setdefault(frame, [kind, 0])
        have[1] += 1
        if have[0] != kind:
            found.append(f"frame {frame:#x} is both {have[0]} and {kind}")
        elif have[1] == 1 and kind <= 4:
            table(frame, kind)

    def table(frame: int, level: int) -> None:
        for slot, value in enumerate(struct.unpack("<512Q", guest.ram.read(frame << 12, 4096))):
            if level == 4 and 256 <= slot <= 271:
                expected = guest.m2p_entry if slot == 256 else 0
                if (value ^ expected) & ~(A | D):
                    found.append(f"L4 {frame:#x} has {value:#x} in Xen's slot {slot}")
                continue
            if not value & P:
                continue
            target = (value & ADDRESS) >> 12
            if level > 1:
                if value & PS:
                    found.append(f"large page {value:#x} in {frame:#x}")
                take(target, level - 1)
            elif target >= NR_PAGES:
                if target not in (shared if value & W else readable):
                    found.append(f"entry {value:#x} in {frame:#x} maps a frame of the VMM's")
            elif value & W:
                take(target, 6)

    for root in (kernel, user):
        if root:
            take(root, 4)
    for frame in pinned:
        kind = guest.kind(frame)[0]
        if not 1 <= kind <= 4:
            found.append(f"pinned frame {frame:#x} is {kind}")
        else:
            take(frame, kind)
    for frame in gdt:
        take(frame, 5)
    for frame in (CONSOLE, STORE):
        take(frame, 6)
    if vcpu_info >> 12 < NR_PAGES:
        take(vcpu_info >> 12, 6)
    for frame in range(NR_PAGES):
        kind, count = guest.kind(frame)
        expected = tuple(wanted.get(frame, (0, 0)))
        if (kind if count else 0, count) != expected:
            found.append(f"frame {frame:#x} counts as {kind} x {count}, is {expected}")
    return found
