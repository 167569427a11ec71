# SPDX-License-Identifier: GPL-2.0-or-later
"""REP INS and REP OUTS at a port with a FIFO: blocks, odd sizes, faults, both directions of DF."""

from __future__ import annotations

import pytest
from micro import PF, Micro

PORT = 0x600
BUFFER = 0x300000
ENGINES = pytest.mark.parametrize("engine", ["bt", "trap"])


class Source:
    """Offers blocks one after the other; the device behind the FIFO. Takes blocks written to it."""

    wide = True

    def __init__(self, micro: Micro, blocks: list[bytes], *, output: int = 0) -> None:
        self.fifo = micro.machine.bus.fifo
        self.blocks = list(blocks)
        self.taken: list[bytes] = []
        self.output = output
        micro.machine.bus.claim(self, PORT, 1)
        self._next()

    def _next(self) -> None:
        if self.output:
            self.fifo.open(PORT, self.output, output=True, done=self._done)
        elif self.blocks:
            block = self.blocks.pop(0)
            self.fifo.data[:len(block)] = block
            self.fifo.open(PORT, len(block), output=False, done=self._done)

    def _done(self, length: int) -> None:
        if self.output:
            self.taken.append(bytes(self.fifo.data[:length]))
        self._next()

    def read_port(self, port: int, size: int) -> int:
        return self.fifo.read(size)

    def write_port(self, port: int, size: int, value: int) -> None:
        self.fifo.write(size, value)


def block(number: int, length: int = 512) -> bytes:
    return bytes((number * 31 + i * 7) & 0xFF for i in range(length))


@ENGINES
@pytest.mark.parametrize(("suffix", "size"), [("b", 1), ("w", 2), ("d", 4)])
@pytest.mark.parametrize("at", [BUFFER, BUFFER + 4096 - 511])
def test_blocks_in(engine: str, suffix: str, size: int, at: int) -> None:
    """Several blocks by one REP INS, over page boundaries."""
    micro = Micro(f"""
    mov edi, {at}
    mov ecx, {3 * 512 // size}
    mov dx, {PORT}
    cld
    rep ins{suffix}
    mov r15, rdi
    EXIT 1
""", engine=engine)
    blocks = [block(n) for n in range(3)]
    source = Source(micro, blocks)
    result = micro.run()
    assert result.machine.ram.read(at, 1536) == b"".join(blocks)
    assert result.regs["r15"] == at + 1536 and result.regs["rcx"] == 0
    assert not source.blocks
    if engine == "bt":
        assert result.exit("INS") == 1


@ENGINES
def test_element_by_element_and_odd_ends(engine: str) -> None:
    micro = Micro(f"""
    mov dx, {PORT}
    in al, dx
    mov r8d, eax
    in ax, dx
    mov r9d, eax
    mov edi, {BUFFER}
    mov ecx, 2
    rep insd
    in eax, dx
    mov r10d, eax
    EXIT 1
""", engine=engine)
    data = block(1, 10)
    Source(micro, [data])
    result = micro.run()
    assert result.regs["r8"] & 0xFF == data[0]
    assert result.regs["r9"] & 0xFFFF == int.from_bytes(data[1:3], "little")
    assert result.machine.ram.read(BUFFER, 8) == data[3:10] + b"\0"
    assert result.regs["r10"] == 0


def test_backwards() -> None:
    micro = Micro(f"""
    mov dx, {PORT}
    mov edi, {BUFFER + 14}
    mov ecx, 8
    std
    rep insw
    cld
    EXIT 1
""")
    data = block(1, 16)
    Source(micro, [data])
    result = micro.run()
    words = [data[i:i + 2] for i in range(0, 16, 2)]
    assert result.machine.ram.read(BUFFER, 16) == b"".join(reversed(words))


@ENGINES
def test_blocks_out(engine: str) -> None:
    micro = Micro(f"""
    mov dx, {PORT}
    mov esi, {BUFFER}
    mov ecx, 512
    cld
    rep outsw
    EXIT 1
""", engine=engine)
    source = Source(micro, [], output=512)
    data = block(0) + block(1)
    micro.machine.ram.write(BUFFER, data)
    micro.run()
    assert source.taken == [block(0), block(1)]


def test_a_fault_in_the_middle_can_be_repaired() -> None:
    """What fitted on the mapped page is there, the registers say where it stopped."""
    micro = Micro(f"""
    mov dx, {PORT}
    mov edi, {0x600000 - 256}
    mov ecx, 256
    cld
    rep insw
    EXIT 1
""")
    micro.pages.put(micro.pages.slot(0x600000, 2), 0)
    data = block(5)
    source = Source(micro, [data])
    result = micro.run()                # the fault ends it
    record = result.records[0]
    assert record.vector == PF
    assert result.machine.ram.read(0x600000 - 256, 256) == data[:256]
    assert result.regs["rdi"] == 0x600000
    assert source.fifo.state[1] == 256
