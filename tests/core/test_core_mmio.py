# SPDX-License-Identifier: GPL-2.0-or-later
"""Device memory: every access of a guest outside of RAM reaches who claimed it, with its size."""

from __future__ import annotations

import pytest
from micro import NX, Micro, P, W

from bt.boot import lowmem
from bt.boot.entry import EntryState
from bt.machine.machine import Machine
from bt.machine.ram import HOLE_END, HOLE_START, Ram

BASE = 0xFED0_0000
VA = 0x40_0000_0000


class Recorder:
    """Remembers writes, and reads as the address."""

    def __init__(self) -> None:
        self.log: list[tuple] = []

    def read_mmio(self, gpa: int, size: int) -> int:
        self.log.append(("r", gpa, size))
        return 0x8877_6655_4433_0000 | gpa & 0xFFFF

    def write_mmio(self, gpa: int, size: int, value: int) -> None:
        self.log.append(("w", gpa, size, value))


def guest(code: str, device: object | None = None, **options: object) -> tuple[Micro, Recorder]:
    """A guest with a device at BASE, mapped at VA; EBX = VA."""
    micro = Micro(f"mov rbx, {VA:#x}\n{code}\nEXIT 1", **options)
    recorder = Recorder()
    micro.machine.bus.claim_mmio(device or recorder, BASE, 0x1000)
    micro.pages.map(VA, BASE, P | W | NX)
    micro.pages.map(VA + 0x1000, BASE + 0x1000, P | W | NX)
    return micro, recorder


@pytest.mark.parametrize("engine", ["bt", "trap", "hvm"])
def test_every_size_and_value(engine):
    """Unicorn makes two accesses of one with 8 bytes, as a 32-bit bus does."""
    micro, device = guest("""
        mov rax, 0x1122334455667788
        mov [rbx+0x10], al
        mov [rbx+0x12], ax
        mov [rbx+0x14], eax
        mov [rbx+0x18], rax
        movzx r8d, byte ptr [rbx+0x21]
        movzx r9d, word ptr [rbx+0x22]
        mov r10d, [rbx+0x24]
        mov r11, [rbx+0x28]
    """, engine=engine)
    result = micro.run()
    assert result.outcome.status == 1
    assert device.log == [
        ("w", BASE + 0x10, 1, 0x88), ("w", BASE + 0x12, 2, 0x7788),
        ("w", BASE + 0x14, 4, 0x55667788),
        ("w", BASE + 0x18, 4, 0x55667788), ("w", BASE + 0x1C, 4, 0x11223344),
        ("r", BASE + 0x21, 1), ("r", BASE + 0x22, 2), ("r", BASE + 0x24, 4),
        ("r", BASE + 0x28, 4), ("r", BASE + 0x2C, 4)]
    assert [result.regs[r] for r in ("r8", "r9", "r10", "r11")] == [
        0x21, 0x22, 0x44330024, 0x4433002C44330028]
    assert result.exit("mmio") == 10


def test_read_modify_write_is_one_read_and_one_write():
    micro, device = guest("mov ecx, 5\n lock xadd [rbx], ecx\n or dword ptr [rbx+4], 1")
    result = micro.run()
    assert device.log == [("r", BASE, 4), ("w", BASE, 4, 0x44330005),
                          ("r", BASE + 4, 4), ("w", BASE + 4, 4, 0x44330005)]
    assert result.regs["rcx"] == 0x44330000


def test_nobody_there_is_all_ones_and_no_exit():
    micro, device = guest("mov rcx, [rbx+0x1000]\n mov [rbx+0x1000], rcx")
    result = micro.run()
    assert result.regs["rcx"] == (1 << 64) - 1
    assert device.log == [] and result.exit("mmio") == 0 and result.exit("absent memory") == 4


def test_a_claim_moves_while_the_guest_runs():
    """The mapping is in the TLB; who answers is looked up each time."""
    class Mover(Recorder):
        def write_mmio(self, gpa: int, size: int, value: int) -> None:
            bus.unclaim_mmio(self)
            bus.claim_mmio(self, BASE + 0x1000, 0x1000)

    mover = Mover()
    micro, _ = guest("mov esi, [rbx]\n mov [rbx], eax\n mov ecx, [rbx]\n mov edi, [rbx+0x1000]",
                     mover)
    bus = micro.machine.bus
    regs = micro.run().regs
    assert (regs["rsi"], regs["rcx"], regs["rdi"]) == (0x44330000, 0xFFFFFFFF, 0x44331000)


def test_the_vmms_own_accesses_get_there_too():
    """Operands of emulated instructions, string I/O, and a stack that is a device's."""
    micro, device = guest("""
        mov cr2, rax
        sidt [rbx+0x16]
        mov dx, 0x80
        lea rsi, [rbx+0x40]
        mov ecx, 2
        rep outsd
        lea rdi, [rbx+0x81]
        insb
        lea rsp, [rbx+0x100]
        pushfq
    """)
    micro.run()
    idtr = [("w", BASE + 0x16, 2, 0xFFF), ("w", BASE + 0x18, 8, 0x2000)]
    assert device.log[:2] == idtr
    assert device.log[2:5] == [("r", BASE + 0x40, 4), ("r", BASE + 0x44, 4),
                               ("w", BASE + 0x81, 1, 0xFF)]
    assert device.log[5][:3] == ("w", BASE + 0xF8, 8)


def test_an_interrupt_raised_by_an_access_comes_soon():
    """The block of the access ends; then the interrupt is delivered, long before the loop does."""
    class Raiser(Recorder):
        def write_mmio(self, gpa: int, size: int, value: int) -> None:
            vm.set_intr(True)

    micro, _ = guest("""
        sti
        mov [rbx], eax
        mov r15d, 100000000
@loop:
        dec r15d
        jnz @loop
    """, Raiser())
    vm = micro.machine.vcpu
    result = micro.run()
    assert result.outcome.status == 0x7F and len(result.records) == 1
    assert result.regs["r15"] > 99_000_000


def test_ram_wins_over_a_claim():
    micro, device = guest("mov rax, [0x100000]")
    micro.machine.bus.claim_mmio(device, 0x100000, 0x1000)
    micro.run()
    assert device.log == []


def test_an_error_of_a_device_is_not_swallowed():
    class Broken(Recorder):
        def read_mmio(self, gpa: int, size: int) -> int:
            raise RuntimeError("broken device")

    micro, _ = guest("mov eax, [rbx]", Broken())
    micro.enter()
    with pytest.raises(RuntimeError, match="broken device"):
        micro.machine.run(10)


def test_code_in_a_device_is_the_void():
    micro, _ = guest(f"mov rax, {VA + 0x2000:#x}\n jmp rax")
    micro.pages.map(VA + 0x2000, BASE, P | W)
    assert "void" in micro.run().outcome.report


# RAM with a hole

def test_small_ram_has_no_hole():
    ram = Ram(64 << 20, hole=True)
    assert ram.size == ram.low_end == 64 << 20
    assert ram.regions == ((0, 64 << 20),) and ram.hole == (0, 0)


def test_ram_goes_on_above_the_hole():
    ram = Ram(4 << 30, hole=True)
    assert ram.regions == ((0, HOLE_START), (HOLE_END, 1 << 30))
    assert ram.size == 5 << 30 and ram.low_end == HOLE_START
    assert ram.contains(0, HOLE_START) and not ram.contains(0, HOLE_START + 1)
    assert ram.contains(HOLE_END, 1 << 30) and not ram.contains(HOLE_END, (1 << 30) + 1)
    assert not ram.contains(HOLE_START, 1) and not ram.contains(HOLE_END - 1, 2)
    assert not ram.contains(-1, 2) and not ram.contains(0, -1)
    kinds = lowmem.memory_map(ram)
    assert kinds[-2:] == [(0x100000, HOLE_START - 0x100000, 1), (HOLE_END, 1 << 30, 1)]


def test_a_guest_sees_the_hole_and_the_ram_above():
    machine = Machine(ram_bytes=(3 << 30) + (64 << 20), deterministic=True, machine="pc")
    device = Recorder()
    machine.bus.claim_mmio(device, HOLE_START, 0x1000)
    # 64-bit code: mov rax,[HOLE_START]; mov rbx,HOLE_END; mov [rbx],rax; mov rcx,[rbx];
    # mov rsi,[rbx-8]; out 0x501
    code = bytes.fromhex("48a1 000000c000000000 48bb 0000000001000000 488903 488b0b 488b73f8"
                         "b001 66ba0105 ee f4")
    machine.ram.write(0x100000, code)
    machine.vcpu.enter(EntryState(bits=64, rip=0x100000, rsp=0x90000,
                                  cr3=lowmem.write_identity_tables(machine.ram)))
    assert machine.run(10).status == 1
    regs = machine.vcpu.registers()
    assert regs["rcx"] == 0x4433000444330000
    assert regs["rsi"] == (1 << 64) - 1
    assert machine.ram.read(HOLE_END, 8) == (0x4433000444330000).to_bytes(8, "little")
    assert device.log == [("r", HOLE_START, 4), ("r", HOLE_START + 4, 4)]
