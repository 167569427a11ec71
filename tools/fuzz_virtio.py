#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Drivers that lie: random queues, descriptors and requests for every virtio device.

    python tools/fuzz_virtio.py [--seconds 300] [--seed 1] [--device net]

The time is for each device. A driver (tests/virtio/virtiorig.py) puts chains into its queues, some
right, some with descriptors out of RAM, loops, directions mixed up, indirect tables, indexes that
jump; what the buffers hold is half right too. After each notification:

- no exception came, whatever the driver did: a device may stop (needs reset), and is reset then;
- RAM has changed only where the vCPU was told of it beforehand;
- a chain was given back at most once, with at most as many bytes as it could take.

A failure names the device, the seed and the step.
"""

from __future__ import annotations

import argparse
import random
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / "tests" / "virtio"),
                str(Path(__file__).resolve().parent)]

import fuzz_9p  # noqa: E402
from virtiorig import INDIRECT, NEXT, RAM_BYTES, WRITE, Rig  # noqa: E402

from bt.devices.disk import Disk  # noqa: E402
from bt.machine.timers import TimerQueue  # noqa: E402
from bt.net import header  # noqa: E402
from bt.net.link import Link, Views  # noqa: E402
from bt.ninep import wire  # noqa: E402
from bt.ninep.folder import Folder  # noqa: E402
from bt.ninep.server import Server  # noqa: E402
from bt.virtio.blk import VirtioBlk  # noqa: E402
from bt.virtio.console import VirtioConsole  # noqa: E402
from bt.virtio.device import F_VERSION_1, QUEUE_FEATURES, VirtioDevice  # noqa: E402
from bt.virtio.net import VirtioNet  # noqa: E402
from bt.virtio.ninep import VirtioNinep  # noqa: E402
from bt.virtio.rng import VirtioRng  # noqa: E402

#: Buffers of plausible descriptors are here; the queues are below.
_BUFFERS = 0x40000
_ODD = (0, 1, 4, 7, 11, 12, 16, 512, 513, 4096, 0x8000, RAM_BYTES, 0x7FFFFFFF, 0xFFFFFFFF)
_STEPS = 3000  # with one device; then a new one


class Clock:
    """Time that the fuzzer lets pass."""

    ns = 0

    def now_ns(self) -> int:
        return self.ns


class Subject:
    """One device and what is around it. ``payload``: a request its driver might make.

    ``shapes``: for each queue, whether its chains are to be read ("r"), written ("w") or both.
    """

    shapes = ("rw",)

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.clock = Clock()
        self.timers = TimerQueue(self.clock)
        self.device: VirtioDevice

    def payload(self) -> bytes:
        return self.rng.randbytes(self.rng.choice((1, 16, 100)))

    def outside(self) -> None:
        """Something happens on the host's side."""
        self.clock.ns += self.rng.choice((0, 1, 10**7, 10**9))
        self.timers.run_due()

    def close(self) -> None:
        """Let go of files."""


class Rng(Subject):
    shapes = ("w",)

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.device = VirtioRng(self.timers, self.clock.now_ns, rng.randbytes)


class Console(Subject):
    shapes = ("w", "r")

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.device = self._console = VirtioConsole(lambda data: None, (80, 25))

    def outside(self) -> None:
        self._console.feed(self.payload())


class Block(Subject):
    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self._folder = tempfile.TemporaryDirectory(prefix="fuzz-virtio-")
        image = Path(self._folder.name, "image")
        image.write_bytes(bytes(64 * 1024))
        self.device = VirtioBlk(Disk(image, rng.choice(("rw", "ro", "overlay"))))

    def payload(self) -> bytes:
        kind = self.rng.choice((0, 1, 4, 8, 0, 1, 11, self.rng.getrandbits(32)))
        sector = self.rng.choice((0, 1, 127, 128, (1 << 55) - 1, (1 << 64) - 1))
        return struct.pack("<IIQ", kind, 0, sector) + self.rng.randbytes(
            self.rng.choice((0, 0, 512, 1024, 100)))

    def close(self) -> None:
        self._folder.cleanup()


class _Hostile(Link):
    """A peer that sends anything, and now and then takes nothing."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.up = True
        self.rng = rng
        self.left = 0  # frames until there is none for now

    def send(self, views: Views) -> bool:
        length = sum(len(view) for view in views)
        if not header.MIN_FRAME <= length <= header.MAX_FRAME:
            raise AssertionError(f"a frame of {length} bytes was sent")
        return self.rng.random() < 0.7

    def receive(self, views: Views) -> int:
        if not self.left:
            return 0
        self.left -= 1
        frame = self._frame()
        done = 0
        for view in views:
            part = frame[done:done + len(view)]
            view[:len(part)] = part
            done += len(part)
            if done == len(frame):
                break
        return done

    def later(self) -> None:
        self.left = 0

    def _frame(self) -> bytes:
        rng = self.rng
        length = rng.choice((1, 11, 25, 26, 60, 1514, 9000, 65550, header.MAX_FRAME + 9))
        told = header.HEADER.pack(
            rng.choice((0, 1, 1, 2, 255)), rng.choice((0, 0, 1, 4, 0x81, 3, 255)),
            rng.choice((0, 54, 66, 0xFFFF)), rng.choice((0, 1, 100, 1448, 0xFFFF)),
            rng.choice((0, 34, 54, 0xFFFF)), rng.choice((0, 16, 0xFFFF)), rng.getrandbits(16))
        ethernet = b"\x52\x54\0\0\0\1" * 2 + rng.choice((b"\x08\0", b"\x86\xdd", b"\x81\0"))
        ip = rng.choice((b"\x45\0\0\x28\0\0\0\0\x40\x06" + bytes(10), b"\x60\0\0\0\0\x14\6\x40",
                         rng.randbytes(20)))
        return (told + ethernet + ip + b"\x50" * 40).ljust(length, b"\xaa")[:length]


class Net(Subject):
    shapes = ("w", "r")

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self._link = _Hostile(rng)
        self.device = self._net = VirtioNet(self._link, b"\x52\x54\0\0\0\1")

    def payload(self) -> bytes:
        return self._link._frame()

    def outside(self) -> None:
        self._link.left = self.rng.choice((1, 3, 300))
        self._link.up = self.rng.random() < 0.9
        self.rng.choice((self._net.frames_came, self._net.room_came, self._net.cable_changed))()


class Ninep(Subject):
    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self._folder = tempfile.TemporaryDirectory(prefix="fuzz-virtio-")
        share = fuzz_9p.make_tree(Path(self._folder.name))
        self.device = VirtioNinep(Server(Folder(share, writable=True)), b"share")

    def payload(self) -> bytes:
        rng = self.rng
        choice = rng.randrange(8)
        if choice == 0:
            return wire.request("version", 0, 65536, wire.VERSION)
        if choice == 1:
            return wire.request("attach", 0, 0, wire.NO_FID, b"", b"", 0)
        if choice < 4:
            return wire.request("walk", 1, 0, rng.randrange(4), [b"file"][:rng.randrange(2)])
        name = rng.choice(("lopen", "read", "readdir", "getattr", "clunk"))
        fields = [rng.randrange(4), 0, rng.choice((0, 100, 1 << 31))]
        data = wire.request(name, 2, *fields[:len(wire.MESSAGES[wire.NUMBERS[name]].request)])
        return data if choice < 7 else data[:rng.randrange(len(data))]

    def close(self) -> None:
        self.device.full_reset()
        self._folder.cleanup()


SUBJECTS: dict[str, Callable[[random.Random], Subject]] = {
    "blk": Block, "console": Console, "net": Net, "9p": Ninep, "rng": Rng,
}


class Driver:
    """A driver of one Subject, that lies by ``rng``."""

    def __init__(self, subject: Subject, rng: random.Random) -> None:
        self.subject, self.rng = subject, rng
        self.device = subject.device
        self.rig = Rig(self.device, features=self._features(), size=16)
        self._before = bytearray(RAM_BYTES)
        self.stops = self.served = 0

    def _features(self) -> int:
        rng = self.rng
        mask = (1 << 64) - 1 if rng.random() < 0.5 else rng.getrandbits(64)
        return (self.device.features | QUEUE_FEATURES) & mask | F_VERSION_1

    def step(self) -> None:
        """One thing that the driver or the host does."""
        memoryview(self._before)[:] = self.rig.ram.view
        self.rig.written.clear()
        self._act()
        self._look()
        if self.device.why_broken is not None or self.rng.random() < 0.002:
            self.stops += self.device.why_broken is not None
            self.device.full_reset()
            self.device.agree(self._features())
            self.rig.set_up(16)

    def _act(self) -> None:
        rng, device = self.rng, self.device
        what = rng.random()
        if what < 0.1:
            self.subject.outside()
        elif what < 0.15:
            device.config_read(rng.randrange(0x1000), rng.choice((1, 2, 4, 8)))
            device.config_write(rng.randrange(0x1000), rng.randbytes(rng.choice((1, 2, 4, 8))))
        else:
            queue = rng.choice(self.rig.queues)
            for _ in range(rng.choice((1, 1, 2, 5))):
                self._offer(queue)
            device.notify(queue.index)

    def _offer(self, queue) -> None:
        rng = self.rng
        buffers = self._chain(queue)
        head = queue.chain(*buffers)
        lie = rng.random()
        if lie < 0.01:
            head = rng.getrandbits(16)
        elif lie < 0.02:
            queue.available = rng.getrandbits(16)
        elif lie < 0.04:
            queue.describe(rng.randrange(queue.size), *self._buffer(), rng.getrandbits(16))
        queue.offer(head)

    def _chain(self, queue) -> list[tuple[int, int, int]]:
        """Buffers of one request: mostly to read first, then to write, as the rules want."""
        rng = self.rng
        payload = self.subject.payload()
        at = _BUFFERS + rng.randrange(16) * 0x1000
        self.rig.ram.write(at, payload[:0x20000])
        readable = [(at, len(payload), 0)]
        if len(payload) > 1 and rng.random() < 0.3:
            cut = rng.randrange(1, len(payload))
            readable = [(at, cut, 0), (at + cut, len(payload) - cut, 0)]
        writable = [(0x80000 + rng.randrange(16) * 0x1000,
                     rng.choice((1, 12, 100, 513, 4096, 0x12000)), WRITE)
                    for _ in range(rng.choice((1, 1, 2, 3)))]
        shape = self.subject.shapes[queue.index]
        if rng.random() < 0.02:
            shape = rng.choice(("r", "w", "rw"))
        chain = readable * ("r" in shape) + writable * ("w" in shape)
        if rng.random() < 0.03:
            chain.append((*self._buffer(), rng.choice((0, WRITE, INDIRECT))))
        if rng.random() < 0.1:
            return [self._indirect(chain)]
        return chain[:queue.size]

    def _buffer(self) -> tuple[int, int]:
        rng = self.rng
        gpa = rng.choice((0, 0x10000, 0x10040, _BUFFERS, RAM_BYTES - 1, RAM_BYTES, 1 << 32,
                          (1 << 64) - 1, rng.randrange(RAM_BYTES)))
        return gpa, rng.choice(_ODD)

    def _indirect(self, chain: list[tuple[int, int, int]]) -> tuple[int, int, int]:
        table = b"".join(
            struct.pack("<QIHH", gpa, length, flags | (NEXT if i < len(chain) - 1 else 0), i + 1)
            for i, (gpa, length, flags) in enumerate(chain))
        if self.rng.random() < 0.1:
            table = table[:-self.rng.randrange(1, 16)]
        self.rig.ram.write(0xF0000, table)
        return 0xF0000, len(table), INDIRECT

    def _look(self) -> None:
        before, ram = memoryview(self._before), self.rig.ram.view
        # What the driver wrote itself is not the device's doing; all of that is in these places.
        allowed = [(q.descriptors, q.device - q.descriptors) for q in self.rig.queues]
        allowed += [(_BUFFERS, 0x40000), (0xF0000, 0x1000), *self.rig.written]
        for gpa, length in allowed:
            before[gpa:gpa + length] = ram[gpa:gpa + length]
        if self._before != ram:
            at = next(i for i, (a, b) in enumerate(zip(before, ram, strict=True)) if a != b)
            raise AssertionError(f"RAM changed at {at:#x}, and the vCPU was not told")
        for queue in self.rig.queues:
            used = queue.used()
            self.served += len(used)
            # Those that the device had, and as many again that came in the meantime.
            if len(used) > 2 * queue.size:
                raise AssertionError(f"queue {queue.index}: {len(used)} chains at once")


def fuzz(name: str, seconds: float, seed: int) -> tuple[int, int, int]:
    """Run one device for so long: steps taken, chains served, times it stopped."""
    steps = served = stops = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        rng = random.Random(seed)
        subject = SUBJECTS[name](rng)
        driver = Driver(subject, rng)
        done = 0
        try:
            while done < _STEPS and time.monotonic() < end:
                driver.step()
                done += 1
        except BaseException:
            print(f"{name}: seed {seed}, step {done}", file=sys.stderr)
            raise
        finally:
            subject.close()
        steps, served, stops = steps + done, served + driver.served, stops + driver.stops
        seed += 1
    return steps, served, stops


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300, help="for each device")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", choices=sorted(SUBJECTS), help="this one only")
    options = parser.parse_args()
    for name in [options.device] if options.device else SUBJECTS:
        steps, served, stops = fuzz(name, options.seconds, options.seed)
        print(f"{name}: {steps} steps, {served} chains served, {stops} stops by a broken rule")
    return 0


if __name__ == "__main__":
    sys.exit(main())
