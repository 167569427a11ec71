# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a run's time goes: guests that spend it in a known place, and clocks that must agree.

Nothing here looks at how long anything took, only at how it is shared out.
"""

from __future__ import annotations

import signal
import struct
import time
from pathlib import Path

import pytest

from bt.machine.machine import Machine
from bt.machine.sampler import PARTS, Sampler, classify

BASE = 0x7C00
POWER_OFF = b"\xba\x01\x05\xb0\x00\xee\xf4"     # mov dx,0x501; mov al,0; out dx,al; hlt
COMPUTE = b"\x66\x0f\xaf\xc0" * 200             # imul eax,eax
CPUID = b"\x66\x31\xc0\x66\x51\x66\x31\xc9\x0f\xa2\x66\x59"  # of leaf 0, subleaf 0; keeps ecx
COUNTER = b"\xe4\x40"                           # in al,0x40: the 8254, whose state that changes
GUEST, UNICORN, CORE, PYTHON = range(len(PARTS))


def looping(body: bytes, turns: int) -> bytes:
    """16-bit code that does ``body`` so often: a loop by ECX."""
    back = b"\x66\x49"                          # dec ecx
    return (b"\xbc\x00\x70\x66\xb9" + struct.pack("<I", turns) + body + back
            + b"\x0f\x85" + struct.pack("<h", -len(body) - len(back) - 4) + POWER_OFF)


def sampled(body: bytes, turns: int, folder: Path, engine: str = "bt") -> Sampler:
    path = folder / "flat"
    path.write_bytes(looping(body, turns))
    machine = Machine(ram_bytes=16 << 20, engine=engine)
    machine.load(path, kind="flat", base=BASE, bits=16)
    with Sampler() as sampler:
        assert machine.run(timeout=60).kind == "powered-off"
    return sampler


def shares(sampler: Sampler) -> dict[str, float]:
    whole = sum(sampler.seconds.values())
    assert sampler.samples > 50
    return {name: seconds / whole for name, seconds in sampler.seconds.items()}


@pytest.mark.parametrize("engine", ["bt", "hvm"])
def test_a_loop_without_exits_is_the_guests_time(tmp_path, engine):
    found = shares(sampled(COMPUTE, 4_000_000, tmp_path, engine))
    assert found["guest"] > 0.8
    assert found["core"] + found["python"] < 0.1


@pytest.mark.parametrize("engine", ["bt", "hvm"])
def test_exits_that_are_dealt_with_in_compiled_code(tmp_path, engine):
    found = shares(sampled(CPUID, 1_000_000, tmp_path, engine))
    assert found["core"] > 0.2
    assert found["python"] < 0.1
    assert found["core"] + found["unicorn"] > 0.6    # the way to the handler and back is Unicorn's


def test_exits_to_a_device(tmp_path):
    found = shares(sampled(COUNTER, 100_000, tmp_path))
    assert found["python"] > 0.4
    assert found["guest"] < 0.1


def test_shares_are_of_the_threads_processor_time():
    """Python alone, asleep in between: what is booked is what the thread's own clock says."""
    with Sampler() as sampler:
        start = time.thread_time()
        while time.thread_time() - start < 0.2:
            pass
        time.sleep(0.2)
        while time.thread_time() - start < 0.3:
            pass
        used = time.thread_time() - start
    assert sum(sampler.seconds.values()) == pytest.approx(used, rel=0.05)
    assert shares(sampler)["python"] > 0.9


def test_two_places_share_as_the_clock_says(tmp_path):
    path = tmp_path / "flat"
    path.write_bytes(looping(COMPUTE, 4_000_000))
    machine = Machine(ram_bytes=16 << 20)
    machine.load(path, kind="flat", base=BASE, bits=16)
    with Sampler() as sampler:
        start = time.thread_time()
        machine.run(timeout=60)
        guest = time.thread_time() - start
        while time.thread_time() - start < 2 * guest:
            pass
    assert shares(sampler)["guest"] == pytest.approx(0.5, abs=0.1)
    assert shares(sampler)["python"] == pytest.approx(0.5, abs=0.1)


def test_as_json(tmp_path):
    sampler = sampled(CPUID, 100_000, tmp_path)
    found = sampler.to_json()
    assert found["samples"] == sampler.samples > 0
    assert set(found["seconds"]) == {*PARTS, "elsewhere"}
    assert found["vmm_s"] == found["seconds"]["core"] + found["seconds"]["python"]


def test_the_signal_is_as_it_was():
    before = signal.getsignal(signal.SIGPROF)
    for _ in range(100):
        with Sampler():
            time.sleep(0.0005)
    assert signal.getsignal(signal.SIGPROF) == before
    seen = []
    signal.signal(signal.SIGPROF, lambda number, frame: seen.append(number))
    try:
        with Sampler():
            pass
        signal.raise_signal(signal.SIGPROF)
        assert seen == [signal.SIGPROF]
    finally:
        signal.signal(signal.SIGPROF, before)


def test_one_at_a_time():
    with Sampler():
        with pytest.raises(RuntimeError):
            with Sampler():
                pass
    with Sampler():     # the one that was refused has left nothing behind
        pass


def test_what_is_what_in_a_process():
    maps = """\
5575000-5576000 r-xp 00001000 fe:00 1                      /usr/bin/python3.11
5600000-5700000 rw-p 00000000 00:00 0                      [heap]
10000000-50000000 rwxp 00000000 00:00 0
60000000-60001000 r-xp 00000000 00:00 0
70000000-70001000 r-xp 00000000 fe:00 2                    /x y/unicorn/lib/libunicorn.so.2
70002000-70003000 r--p 00000000 fe:00 2                    /x y/unicorn/lib/libunicorn.so.2
80000000-80001000 r-xp 00000000 fe:00 3                    /x y/bt/core/vcpu.so (deleted)
81000000-81001000 r-xp 00000000 fe:00 4                    /x y/btree/other.so
82000000-82001000 r-xp 00000000 fe:00 5                    /x y/capstone/lib/libcapstone.so
90000000-90001000 r-xp 00000000 fe:00 6                    /usr/lib/libc.so.6
90002000-90003000 r-xp 00000000 fe:00 7                    /usr/lib/libz.so.1
a0000000-a0001000 r-xp 00000000 00:00 0                    [vdso]
""".splitlines(keepends=True)
    assert classify(maps, [Path("/x y/bt")]) == [
        (0x5575000, 0x5576000, PYTHON), (0x10000000, 0x50000000, GUEST),
        (0x70000000, 0x70001000, UNICORN), (0x80000000, 0x80001000, CORE),
        (0x81000000, 0x81001000, PYTHON), (0x82000000, 0x82001000, CORE),
        (0x90002000, 0x90003000, PYTHON)]
