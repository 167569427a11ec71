#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Random accesses to the whole board: ports, device memory, MSRs, CR8, interrupts, time.

    python tools/fuzz_board.py [--seconds 300] [--seed 1]

The board is bt.devices.pc.Pc with a PCI card that has every kind of BAR and MSI-X. Half of the
accesses aim at a register of some device, half of the values are ones that mean something. After
each step:

- no exception came, and what was read fits its width;
- INTR is up exactly if the local APIC has something to deliver, or the 8259s have a way through;
- the bus's tables are in order, and the timer queue does not grow.

A failure names the seed and the step; a seed makes the same run again.
"""

from __future__ import annotations

import argparse
import random
import sys
import time

from bt.devices import ioapic, lapic, pci
from bt.devices.pc import Pc
from bt.machine.bus import Bus
from bt.machine.timers import TimerQueue

_STEPS = 2000                   # with one board; then a new one
_PORTS = (*range(0x20, 0x22), *range(0x40, 0x44), 0x61, 0x64, 0x70, 0x71, 0x92, 0xA0, 0xA1, 0xE9,
          *range(0x2F8, 0x300), *range(0x3E8, 0x3F0), *range(0x3F8, 0x400), 0x4D0, 0x4D1,
          *range(0x600, 0x60C), 0xCF8, 0xCF8, 0xCF8, 0xCF9, *range(0xCFC, 0xD00), 0xC000, 0xC010)
_MEMORY = (*range(lapic.BASE, lapic.BASE + 0x400, 16), *[lapic.BASE + lapic.EOI] * 6,
           *[lapic.BASE + lapic.ICR] * 12, ioapic.BASE, ioapic.BASE + 16,
           *range(0xE000_0000, 0xE000_5000, 0x404))
_VALUES = (0, 1, 2, 4, 7, 0x10, 0x11, 0x30, 0x34, 0x51, 0xEC, 0xFF, 0x1FF, 0x700, 0x8041, 0x10000,
           0x18051, 0x200EC, 0x40051, 0x80FE, 0xC000, 0x8000_0000, 0x8000_0804, 0x8000_0810,
           0x8000_0840, 0xE000_0000, 0xFEE0_0000, 0xFFFF_FFFF)
_TIMES = (1, 40, 838, 50_000, 1_000_000, 10**9, 10**14)


class Clock:
    """Time that the fuzzer lets pass."""

    ns = 0

    def now_ns(self) -> int:
        return self.ns


class Cpu:
    """What the board needs of a vCPU."""

    def __init__(self) -> None:
        self.intr = False
        self.cr8 = 0
        self.watched = 0

    def set_intr(self, level: bool) -> None:
        self.intr = level

    def watch_cr8(self, priority: int) -> None:
        self.watched = priority


class Board:
    """A new board and everything one can do to it."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.clock = Clock()
        self.timers = TimerQueue(self.clock)
        self.bus = Bus()
        self.pc = Pc(self.clock, self.timers, self.bus, 64 << 20)
        self.card = pci.PciFunction(0x1234, 0x5678, 0x020000, interrupt_pin=1)
        self.card.add_bar(0, "io", 32)
        self.card.add_bar(1, "mem32", 0x1000)
        self.card.add_bar(2, "mem64", 0x4000)
        self.card.add_msix(5, 2, 0x2000, 0x3000)
        assert self.pc.pci is not None
        self.pc.pci.add(self.card)
        self.cpu = Cpu()
        self.pc.connect(self.cpu)  # type: ignore[arg-type]
        if rng.random() < 0.8:
            self.boot()

    def boot(self) -> None:
        """As a kernel leaves it: random accesses alone would hardly ever turn the APICs on."""
        write = self.bus.write_mmio
        write(lapic.BASE + lapic.SVR, 4, 0x1FF)
        write(lapic.BASE + lapic.LVT_TIMER, 4, 0x200EC)
        for pin in range(ioapic.PINS):
            write(ioapic.BASE, 4, 0x10 + 2 * pin)
            write(ioapic.BASE + 16, 4, (0x31 + 8 * pin & 0xFF) | (0x8000 if pin >= 9 else 0))
        for port, value in ((0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0x21, 0)):
            self.bus.write(port, 1, value)

    def value(self, size: int) -> int:
        rng = self.rng
        chosen = rng.choice(_VALUES) if rng.random() < 0.5 else rng.getrandbits(64)
        return chosen & (1 << 8 * size) - 1

    def port(self) -> None:
        rng = self.rng
        port = rng.choice(_PORTS) if rng.random() < 0.9 else rng.randrange(0x10000)
        size = rng.choice((1, 1, 2, 4))
        if rng.random() < 0.6:
            self.bus.write(port, size, self.value(size))
        else:
            assert 0 <= self.bus.read(port, size) < 1 << 8 * size

    def memory(self) -> None:
        rng = self.rng
        gpa = rng.choice(_MEMORY) if rng.random() < 0.8 else rng.randrange(0xC000_0000, 1 << 32)
        size = rng.choice((4, 4, 4, 1, 2, 8))
        if gpa == lapic.BASE + lapic.SVR and rng.random() < 0.7:
            self.bus.write_mmio(gpa, 4, 0x1FF)
        elif gpa == lapic.BASE + lapic.ICR and rng.random() < 0.7:
            self.bus.write_mmio(gpa, 4, 0x40000 | rng.randrange(256))
        elif rng.random() < 0.7:
            self.bus.write_mmio(gpa, size, self.value(size))
        else:
            assert 0 <= self.bus.read_mmio(gpa, size) < 1 << 8 * size

    def msr(self) -> None:
        index = self.rng.choice((0x1B, 0x1B, 0x17, 0x6E0, self.rng.getrandbits(32)))
        if index != 0x1B or self.rng.random() < 0.1:
            self.pc.write_msr(index, self.rng.choice((0xFEE0_0900, 0xFEE0_0000, self.value(8))))
        value = self.pc.read_msr(index)
        assert value is None or 0 <= value < 1 << 64

    def cr8(self) -> None:
        old, self.cpu.cr8 = self.cpu.cr8, self.rng.randrange(16)
        watched = self.cpu.watched
        if watched and (watched > old) != (watched > self.cpu.cr8):
            self.pc.cr8_crossed()

    def take(self) -> None:
        assert 0 <= self.pc.interrupts.acknowledge() <= 255

    def outside(self) -> None:
        rng = self.rng
        what = rng.randrange(4)
        if what == 0:
            self.card.set_irq(rng.random() < 0.5)
        elif what == 1:
            self.card.msix_notify(rng.randrange(-1, 6))
        elif what == 2:
            self.pc.com1.feed(rng.randbytes(rng.randrange(40)))
        else:
            self.pc.isa_line(rng.randrange(16))(rng.random() < 0.5)

    def wait(self) -> None:
        self.clock.ns += self.rng.choice(_TIMES)
        self.timers.run_due()

    def check(self) -> None:
        apic = self.pc.lapic
        irr, isr, enabled = apic._irr, apic._isr, apic._software_enabled
        serving = max(self.cpu.cr8, isr.bit_length() - 1 >> 4 if isr else 0)
        due = enabled and bool(irr) and irr.bit_length() - 1 >> 4 > serving
        assert self.cpu.intr == apic.intr == (due or apic._ext_wanted()), "INTR"
        assert self.cpu.watched in (0, irr.bit_length() - 1 >> 4 if irr else 0), "CR8 watch"
        table = self.bus.mmio_ranges
        edges = list(table[1:1 + 2 * table[0]])
        assert edges == sorted(edges), "device memory"
        assert len(self.timers._heap) < 300, "timers"


def run(seed: int, deadline: float) -> int:
    """Steps done until ``deadline`` (time.monotonic) with boards from ``seed`` on."""
    done = 0
    while time.monotonic() < deadline:
        board = Board(random.Random(seed))
        actions = (board.port,) * 6 + (board.memory,) * 6 + (
            board.msr, board.cr8, board.take, board.take, board.outside, board.wait)
        for step in range(_STEPS):
            action = board.rng.choice(actions)
            try:
                action()
                board.check()
            except Exception as error:
                raise SystemExit(f"seed {seed}, step {step}, {action.__name__}: {error!r}") \
                    from error
            done += 1
        seed += 1
    return done


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}", flush=True)
    done = run(options.seed, time.monotonic() + options.seconds)
    print(f"{done} steps, nothing wrong")


if __name__ == "__main__":
    sys.exit(main())
