# SPDX-License-Identifier: GPL-2.0-or-later
"""Random hypercalls from a hostile guest: ``python tools/fuzz_hypercalls.py [--seconds 300]``.

Small domains (tests/xen/hostile.py), one after the other, make hypercalls with arguments that are
random, half valid and valid: the domain's own page tables, frames of everybody, pointers to lists
of requests. A domain may die of what it does; the VMM may not. After each domain:

- every type count is what a recount from roots, pins, GDT and held pages gives; so no frame of a
  page table is mapped writable, and none of the VMM's is mapped that may not be (``violations``);
- the VMM's own frames are as they were, but for what hypercalls write there;
- the descriptors that the CPU loads, and the pool of code copies, are untouched;
- the guest was never at real CPL 0.

Prints the seed of each domain that broke something, and exits 1 then. ``--seed N`` starts there:
domain number K of a run has seed N + K.
"""

from __future__ import annotations

import argparse
import random
import struct
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / "tests" / "xen")]

import hostile  # noqa: E402
from hostile import (  # noqa: E402
    BASE,
    L1,
    L2,
    L3,
    L4,
    MASK,
    NR_PAGES,
    A,
    D,
    Hostile,
    P,
    U,
    W,
    entry,
    gva,
)

TABLES = (L4, L3, L2, L1)
#: Pages the lists of requests lie on, and pages that become tables of the fuzzer's making.
LISTS = range(32, 48)
OWN = range(48, 80)
_GDT_AT = 0x10000       # in the window: the CPU's descriptors (bt/core/xen.pxi)
_BATCHES = 40
_CALLS = 16
# IRET and those that end a domain at once come seldom.
_RARE = (hostile.IRET, hostile.SCHED_OP, hostile.SET_TRAP_TABLE, hostile.STACK_SWITCH,
         hostile.SET_CALLBACKS)
_HOT = (hostile.MMU_UPDATE, hostile.MMUEXT_OP, hostile.UPDATE_VA_MAPPING, hostile.MULTICALL,
        hostile.SET_GDT, hostile.UPDATE_DESCRIPTOR, hostile.SET_SEGMENT_BASE, hostile.CALLBACK_OP,
        hostile.VCPU_OP, hostile.PHYSDEV_OP, hostile.XEN_VERSION, 12, 15, 18, 20, 21, 32)


class Fuzz:
    """One domain's life."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.guest = Hostile()
        self.results: Counter[str] = Counter()
        self.vmm = self._vmm_frames()
        self.descriptors = bytes(self.guest.vcpu.window_map[_GDT_AT:])

    def _vmm_frames(self) -> dict[int, bytes]:
        """Frames of the VMM's that no hypercall writes to: the M2P's page tables, without A."""
        guest = self.guest
        tables = range(guest.frames.readonly.stop, guest.shared_info)
        return {frame: struct.pack("<512Q", *(
            word & ~(A | D) for word in struct.unpack("<512Q", guest.ram.read(frame << 12, 4096))))
            for frame in tables}

    # Arguments ----------------------------------------------------------------------------------

    def frame(self) -> int:
        choose = self.random
        return choose.choice((
            choose.choice(TABLES), choose.choice(OWN), choose.choice(OWN),
            choose.randrange(NR_PAGES), choose.choice(LISTS),
            NR_PAGES + choose.randrange(50), choose.getrandbits(40),
            self.guest.shared_info, self.guest.domain.m2p_gpa >> 12))

    def entry(self) -> int:
        choose = self.random
        kind = choose.randrange(12)
        if kind == 0:
            return choose.getrandbits(64)
        if kind == 1:
            return choose.getrandbits(64) & ~P
        flags = choose.choice((P | W | U | A | D, P | A, P | W | A | D, P | U | A, P | W, P))
        if kind == 2:
            flags |= 1 << choose.choice((7, 8, 9, 63, 40, 51))
        return entry(self.frame(), flags)

    def pointer(self) -> int:
        choose = self.random
        return choose.choice((
            gva(choose.choice(LISTS), choose.randrange(512) * 8), gva(choose.choice(LISTS)),
            gva(choose.choice(OWN), choose.randrange(4096)), gva(self.random.choice(TABLES)),
            0xFFFF_8000_0000_0000 + choose.randrange(8192), BASE + (NR_PAGES << 12) - 8,
            choose.getrandbits(64), choose.getrandbits(47), 0, MASK - choose.randrange(64)))

    def any(self) -> int:
        choose = self.random
        return choose.choice((
            choose.randrange(20), choose.getrandbits(64), choose.getrandbits(32), self.pointer(),
            self.frame(), self.entry(), 0x7FF0, 1 << choose.randrange(64)))

    def count(self) -> int:
        choose = self.random
        return choose.choice((1, 1, 2, 5, 20, 512, choose.getrandbits(32), 1 << 31, 1 << 63, MASK))

    def put_list(self, *words: int) -> int:
        """Put words anywhere on a page of lists; their address."""
        frame, at = self.random.choice(LISTS), self.random.randrange(512 - len(words))
        if self.guest.kind(frame)[0] == 6:          # else it is a table by now, and checked
            for index, word in enumerate(words):
                self.guest.put(frame, at + index, word)
        return gva(frame, at * 8)

    def fill_page(self) -> None:
        """A page that may become a table: the kernel of a hostile guest writes what it likes."""
        frame = self.random.choice(OWN)
        if self.guest.kind(frame)[1] and self.guest.kind(frame)[0] != 6:
            return
        self.guest.clear(frame)
        for _ in range(self.random.randrange(12)):
            self.guest.put(frame, self.random.randrange(512), self.entry())

    # Hypercalls ---------------------------------------------------------------------------------

    def domid(self) -> int:
        return 0x7FF0 if self.random.random() < .97 else self.any()

    def call(self, depth: int = 0) -> tuple[int, ...]:
        choose = self.random
        number = choose.choice(_HOT)
        if choose.random() < .02:
            number = choose.choice((*_RARE, choose.randrange(63), choose.getrandbits(32)))
        if choose.random() < .1:
            return (number, *(self.any() for _ in range(5)))
        done = choose.choice((0, 0, self.pointer()))
        if number == hostile.MMU_UPDATE:
            pairs = []
            for _ in range(choose.randrange(1, 6)):
                table = choose.choice((*TABLES, *OWN, self.frame()))
                pairs += [(table << 12) + choose.randrange(512) * 8
                          + choose.choice((0, 0, 0, 2, choose.randrange(8))), self.entry()]
            return number, self.put_list(*pairs), self.or_count(len(pairs) // 2), done, self.domid()
        if number == hostile.MMUEXT_OP:
            words = []
            for _ in range(choose.randrange(1, 5)):
                command = choose.choice((0, 1, 2, 3, 3, 4, 4, 5, 15, 16, 17, 6, 7, 13,
                                         choose.randrange(64)))
                words += [command, self.frame(), choose.choice((self.frame(), self.any()))]
            return number, self.put_list(*words), self.or_count(len(words) // 3), done, self.domid()
        if number == hostile.UPDATE_VA_MAPPING:
            # Not the driver's own pages: it could ask no more.
            frame = choose.choice((*TABLES, *OWN, *LISTS, choose.randrange(100, NR_PAGES)))
            if choose.random() < .5:
                return number, gva(frame), entry(frame, choose.choice((P | W | A | D, P | A))), 2
            return number, gva(frame), self.entry(), choose.randrange(8)
        if number == hostile.MULTICALL and depth < 2:
            words = []
            inner = choose.randrange(1, 6)
            for _ in range(inner):
                made = self.call(depth + 1)
                words += [made[0], 0, *made[1:], *[0] * (7 - len(made))]
            return number, self.put_list(*words), self.or_count(inner)
        if number == hostile.SET_GDT:
            frames = [self.frame() for _ in range(3)]
            return number, self.put_list(*frames), choose.choice((1, 512, 1024, 1536, self.count()))
        if number == hostile.UPDATE_DESCRIPTOR:
            return number, (self.frame() << 12) + choose.randrange(512) * 8, choose.choice((
                0x00AF9B000000FFFF, 0x0000890000000067, choose.getrandbits(64), 0))
        words = [self.any() for _ in range(8)]
        return (number, choose.choice((choose.randrange(14), self.any())),
                choose.choice((0, self.put_list(*words))), self.put_list(*words), self.any(),
                self.any())

    def or_count(self, count: int) -> int:
        return count if self.random.random() < .9 else self.count()

    def store(self) -> str:
        """Kernel code that writes to a page table, and may fault."""
        table = self.random.choice((*TABLES, *OWN))
        code = self.random.choice(("mov [rax], rbx", "xchg [rax], rbx", "or [rax], rbx",
                                   "and [rax], rbx", "lock cmpxchg [rax], rbx", "mov [rax], bl",
                                   "bts qword ptr [rax], 1", "mov dword ptr [rax+4], ebx"))
        return (f"mov rax, {gva(table, self.random.randrange(512) * 8)}\n"
                f"mov rbx, {self.entry()}\n{code}\nmov rax, {gva(hostile.DRIVER)}\njmp rax")

    # A life -------------------------------------------------------------------------------------

    def live(self) -> int:
        """Make hypercalls until the domain dies or has had enough; how many were made."""
        guest, made = self.guest, 0
        for batch in range(_BATCHES):
            self.fill_page()
            if batch % 4 == 3:
                guest.put(hostile.COMMAND, 0, guest.place(self.store()))
                alive = guest.go(2_000_000)
            else:
                calls = [self.call() for _ in range(_CALLS)]
                guest.prepare(*calls)
                alive = guest.go(2_000_000)
                made += len(calls)
                for index in range(len(calls)):
                    result = guest.get(hostile.COMMAND, 8 + index * 8 + 6)
                    if result != 0x5A5A5A5A:
                        self.results["error" if result >> 63 else "done"] += 1
            if not alive:
                self.results["domains that did not come back"] += 1
                break
        return made

    def broken(self) -> list[str]:
        """What must not be."""
        guest = self.guest
        found = hostile.violations(guest)
        for frame, content in self._vmm_frames().items():
            if content != self.vmm[frame]:
                found.append(f"frame {frame:#x} of the VMM's was written")
        unused = guest.ram.view[guest.frames.next << 12:guest.frames.end << 12]
        if any(bytes(unused)):
            found.append("frames that nobody was given were written")
        if guest.vcpu.window_map[_GDT_AT:] != self.descriptors:
            found.append("the CPU's descriptors were written")
        if any(guest.vcpu.copies_map[:1 << 16]):
            found.append("the pool of code copies was written")
        if guest.vcpu.audit_counters()[1]:
            found.append("the guest was at real CPL 0")
        return found


def run(seconds: float, seed: int) -> tuple[int, int, Counter[str], list[str]]:
    """Domains, hypercalls, results, and what broke (one line each)."""
    end = time.monotonic() + seconds
    domains = made = 0
    results: Counter[str] = Counter()
    broken: list[str] = []
    while time.monotonic() < end and len(broken) < 20:
        number = seed + domains
        try:
            fuzz = Fuzz(number)
            made += fuzz.live()
            broken += [f"seed {number}: {what}" for what in fuzz.broken()]
            results += fuzz.results
        except Exception:
            broken.append(f"seed {number}: {traceback.format_exc()}")
        domains += 1
    return domains, made, results, broken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300, help="how long (default 300)")
    parser.add_argument("--seed", type=int, default=None, help="of the first domain")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().getrandbits(31)
    domains, made, results, broken = run(options.seconds, seed)
    print(f"seed {seed}: {domains} domains, {made} hypercalls ("
          + ", ".join(f"{count} {what}" for what, count in sorted(results.items()))
          + f"): {len(broken)} violations")
    for line in broken:
        print(line)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
