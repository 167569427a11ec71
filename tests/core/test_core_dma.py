# SPDX-License-Identifier: GPL-2.0-or-later
"""A device writes to RAM: code that was translated from there must not run any more."""

from __future__ import annotations

import threading
import time

import pytest
from micro import Micro, P, W

PORT = 0x600
ENGINES = pytest.mark.parametrize("engine", ["bt", "trap", "hvm"])

MMIO, MMIO_AT = 0xE000_0000, 0x4000_0000
DOORBELLS = {
    "port": "mov dx, 0x600\n    out dx, al",
    "memory": f"mov ebx, {MMIO_AT}\n    mov [rbx], eax",
}
SOURCE = """
    xor r15d, r15d
    mov r14d, 200
again:
    call target
    add r15d, eax
    {doorbell}                  ; the device writes another MOV EAX over the target
    call target
    shl eax, 8
    add r15d, eax
    dec r14d
    jnz again
    mov eax, r15d
    EXIT 1
.section other
target:
    cli                         ; rewritten by the translator, so the page has a copy
    mov eax, 0
    ret
"""


class Writer:
    """Writes the immediate of the MOV by DMA: one more each time."""

    def __init__(self, micro: Micro) -> None:
        self.machine = micro.machine
        self.at = micro.symbol("target") + 2
        self.count = 0
        self.machine.bus.claim(self, PORT, 1)
        self.machine.bus.claim_mmio(self, MMIO, 4096)
        micro.pages.map(MMIO_AT, MMIO, P | W)

    def read_port(self, port: int, size: int) -> int:
        return 0

    def write_port(self, port: int, size: int, value: int) -> None:
        self.count = (self.count + 1) & 0x7F
        self.machine.dma.writable(self.at, 1)[0] = self.count


    def read_mmio(self, gpa: int, size: int) -> int:
        return 0

    def write_mmio(self, gpa: int, size: int, value: int) -> None:
        self.write_port(gpa, size, value)


@ENGINES
@pytest.mark.parametrize("hot", [0, 8])
@pytest.mark.parametrize("doorbell", DOORBELLS)
@pytest.mark.parametrize("same_page", [False, True])
def test_what_a_device_writes_is_what_runs(engine: str, hot: int, doorbell: str,
                                           same_page: bool) -> None:
    source = SOURCE.replace("{doorbell}", DOORBELLS[doorbell])
    if same_page:
        source = source.replace(".section other", "")
    micro = Micro(source, engine=engine, hot=hot)
    writer = Writer(micro)
    result = micro.run()
    assert result.outcome.kind == "powered-off", result.outcome
    expected, count = 0, 0
    for _ in range(200):
        expected += count
        count = (count + 1) & 0x7F
        expected += count << 8
    assert result.regs["r15"] == expected
    assert writer.count == count


def test_only_ram_can_be_announced() -> None:
    machine = Micro("EXIT 0").machine
    end = machine.ram.size
    for gpa, length in ((0, 0), (end, 1), (end - 1, 2), (1 << 63, 1 << 63)):
        with pytest.raises(ValueError):
            machine.vcpu.dma_write_begin(gpa, length)


@pytest.mark.parametrize("body", ["loop: jmp loop", "sti\nloop: hlt\njmp loop"])
def test_posted_calls_run_on_the_vcpu_thread(body: str) -> None:
    """From another thread, while the guest runs, and while it sleeps in HLT."""
    micro = Micro(body)
    machine = micro.machine
    seen: list[threading.Thread] = []

    def call() -> None:
        seen.append(threading.current_thread())
        if len(seen) == 3:
            machine.stop("seen")

    def poster() -> None:
        for _ in range(3):
            time.sleep(0.02)
            machine.post(call)

    thread = threading.Thread(target=poster)
    thread.start()
    outcome = micro.run(timeout=20).outcome
    thread.join()
    assert outcome.kind == "stopped"
    assert seen == [threading.current_thread()] * 3
