# SPDX-License-Identifier: GPL-2.0-or-later
"""Engine pv with our own interface: docs/pv-abi.md, sentence by sentence, and hostile kernels."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
from fuzz_pv import survive
from pvkernel import FAR, NUMBER, PROTECTED, RAM, assemble, call, run, run_source

import guests
from bt.errors import InputError
from bt.machine.machine import Machine
from guests.asm import elf32
from translator import pvabi, vcpupage
from translator.sensitive import BY_NAME

ENOENT, EFAULT, EINVAL, ENOSYS = ((1 << 64) - e for e in (2, 14, 22, 38))


def keep(index: int, register: str = "rax") -> str:
    return f"    mov [results + {8 * index}], {register}"


def results(*calls: tuple) -> list[int]:
    """The results of hypercalls made one after the other."""
    source = "\n".join(f"{call(*one)}\n{keep(i)}" for i, one in enumerate(calls))
    _, outcome, seen = run_source(source + "\n    EXIT 5")
    assert (outcome.kind, outcome.status) == ("powered-off", 5)
    return seen[:len(calls)]


def test_tasks_is_one_source_for_both_builds():
    outputs = {}
    for name, engine in (("tasks", "bt"), ("tasks-pv", "pv")):
        image = guests.image(name).read_bytes()
        machine, outcome, text = run(image, engine)
        assert (outcome.kind, outcome.status) == ("powered-off", 0)
        outputs[name] = text
        if engine == "pv":
            assert machine.stats.hypercalls["iret"] > 10
            # SYSCALL is user code's, and no exit of the kernel.
            native = set(machine.stats.exits["control"]) & set(BY_NAME) - {"SYSCALL"}
            assert not native, "a native instruction is left in the build"
    assert outputs["tasks"] == outputs["tasks-pv"] and "task D killed" in outputs["tasks"]


def test_nothing_is_scanned():
    machine, _, _ = run(guests.image("tasks-pv").read_bytes())
    assert machine.vcpu.scanner_counters() == (0, 0, 0)


def test_version_and_unknown_numbers():
    assert results(("version",), ("features",), (26,), (31,), (32,), (0xFFFFFFFF,)) == \
        [1, 0, ENOSYS, ENOSYS, ENOSYS, ENOSYS]


def test_unknown_numbers_are_counted():
    machine, _, _ = run_source(f"{call(26)}\n{call(77)}\n{call('version')}\n    EXIT")
    assert machine.stats.hypercalls["unknown"] == 2
    assert machine.stats.to_json()["hypercalls"]["version"] == 1


@pytest.mark.parametrize(("one", "wanted"), [
    (("set_gdt", FAR), EFAULT),
    (("set_idt", 1 << 63), EINVAL),
    (("set_tss", 0), EINVAL),
    (("set_tss", 0x10), EINVAL),
    (("set_tss", 0xFFF8), EINVAL),
    (("set_ldt", 0x28), EINVAL),
    (("set_ldt", 0), 0),
    (("set_stack", 0x1000), EINVAL),
    (("read_cr", 1), ENOENT),
    (("write_cr", 1, 0), ENOENT),
    (("write_cr", 0, 0x80000000), EINVAL),
    (("write_cr", 0, 1 << 32), EINVAL),
    (("write_cr", 4, 1 << 60), EINVAL),
    (("write_cr", 4, 0), EINVAL),
    (("write_cr", 8, 16), EINVAL),
    (("invlpg", FAR), 0),
    (("flush_tlb",), 0),
    (("in", 0x10000, 1), EINVAL),
    (("in", 0x80, 3), EINVAL),
    (("out", 0x80, 0, 0), EINVAL),
    (("out", 0x80, 4, 0), 0),
    (("rdmsr", 0x12345), ENOENT),
    (("rdmsr", 1 << 40), ENOENT),
    (("wrmsr", 0x12345, 0), EINVAL),
    (("wrmsr", 0xC0000101, 1 << 63), EINVAL),
    (("set_segment", 1, 0x10), EINVAL),
    (("set_segment", 6, 0x10), EINVAL),
    (("set_segment", 3, 0x800), EINVAL),
    (("set_segment", 2, 0), 0),
    (("set_segment_base", 3, 0), EINVAL),
    (("set_segment_base", 0, 1 << 63), EINVAL),
    (("console_write", FAR, 1), EFAULT),
    (("console_write", 0x100000, 0), 0),
    (("console_write", 0x100000, 1 << 63), 4096),
    (("shutdown", 3, 0), EINVAL),
    (("shutdown", 0, 256), EINVAL),
], ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else "")
def test_bad_arguments_are_errors(one, wanted):
    assert results(one) == [wanted]


def test_values_and_registers():
    """Results are where the page says, and every other register keeps its value."""
    source = f"""
    mov rbx, 0x1111
    mov rcx, 0x2222
    mov r11, 0x3333
    mov rbp, 0x4444
    {call("set_segment_base", 2, 0x5555000)}
    {call("read_cr", 3)}
    {keep(0, "rdx")}
    {call("rdmsr", 0xC0000102)}
    {keep(1, "rdx")}
    {call("swapgs")}
    {call("rdmsr", 0xC0000101)}
    {keep(2, "rdx")}
    {call("out", 0x70, 1, 0x0D)}
    {call("in", 0x71, 1)}
    {keep(3, "rdx")}
    {keep(4, "rbx")}
    {keep(5, "rcx")}
    {keep(6, "r11")}
    {keep(7, "rbp")}
    {keep(8, "rdi")}
    {call("cpuid", 0x40000000, 0)}
    {keep(9, "rbx")}
    {call("write_cr", 2, 0xABCD000)}
    mov rax, [VCPU_CR2]
    {keep(10)}
    EXIT"""
    program = assemble(source)
    _, _, seen = run_source(source)
    assert seen[0] == program.symbols["page_tables"]
    assert seen[1:4] == [0x5555000, 0x5555000, 0x80]
    assert seen[4:9] == [0x1111, 0x2222, 0x3333, 0x4444, 0x71]
    assert seen[9] == int.from_bytes(b"Ring", "little")
    assert seen[10] == 0xABCD000


def test_console_and_shutdown():
    source = f"""
    mov rdi, text
    mov esi, 5
    mov eax, {NUMBER["console_write"]}
    int 0x82
    {call("shutdown", 0, 77)}"""
    _, outcome, text = run(elf32(assemble(source, data='text: .ascii "hello"')))
    assert (text, outcome.kind, outcome.status) == ("hello", "powered-off", 77)


@pytest.mark.parametrize(("reason", "kind", "status"), [(1, "reset", 0), (2, "died", 3)])
def test_other_ways_to_end(reason, kind, status):
    _, outcome, _ = run_source(call("shutdown", reason, 0))
    assert (outcome.kind, outcome.status) == (kind, status)


def test_halt_with_interrupts_off_is_the_end():
    _, outcome, _ = run_source(call("halt", 0))
    assert outcome.kind == "halted"


def test_hypercalls_of_user_code_are_refused():
    """#GP with the error code of a gate with DPL 0, at the instruction."""
    source = f"""
    mov rdi, idt + 13 * 16
    mov rax, refused
    mov [rdi], ax
    mov word ptr [rdi + 2], KCODE
    mov word ptr [rdi + 4], 0x8e00
    shr rax, 16
    mov [rdi + 6], ax
    mov rax, stack_top
    mov [tss + 4], rax
    mov rdi, idt_pointer
    {call("set_idt").replace("    mov rdi", ";")}
    {call("set_tss", 0x28)}
    {keep(3)}
    ; user pages: the first 2 MiB
    or qword ptr [page_tables + 0x2000], 4
    {call("flush_tlb")}
    push UDATA
    push stack_top - 0x2000
    push 2
    push UCODE
    mov rax, user
    push rax
    IRETQ
user:
    xor eax, eax
    int 0x82
    ud2
refused:
    pop rax
    {keep(0)}
    pop rax
    sub rax, user
    {keep(1)}
    pop rax
    {keep(2)}
    EXIT 9"""
    data = "idt_pointer: .word 256 * 16 - 1\n.quad idt\n.align 16\nidt: .space 4096"
    _, outcome, seen = run_source(source, data=data)
    assert outcome.status == 9
    assert seen[:4] == [0x82 * 8 + 2, 2, 0x23, 0]


def test_hypercall_page_is_filled():
    source = f"""
    mov rdi, 3
    call page + {NUMBER["read_cr"]} * {pvabi.HYPERCALL_SLOT}
    {keep(0)}
    {keep(1, "rdx")}
    push KDATA
    push stack_top
    push 2
    push KCODE
    mov rax, after
    push rax
    mov rax, 0x1234
    jmp page + {NUMBER["iret"]} * {pvabi.HYPERCALL_SLOT}
after:
    {keep(2)}
    EXIT
.align 4096
page: .space 4096
"""
    program = assemble(source)
    image = bytearray(elf32(program))
    at = image.index(b"Ring1\0\0\0") + 8
    struct.pack_into("<Q", image, at + 8, program.symbols["page"])
    machine, outcome, _ = run(bytes(image))
    assert outcome.status == 0
    raw = machine.ram.read(program.symbols["results"], 24)
    assert struct.unpack("<3Q", raw) == (0, program.symbols["page_tables"], 0x1234)
    assert machine.ram.read(program.symbols["page"], 4096) == pvabi.hypercall_page()


@pytest.mark.parametrize("paging", [False, True])
def test_the_vcpu_page_in_32_bit_code(paging):
    """At the low half of the address, with paging off and with tables that do not map it."""
    turn_on = """
    mov edi, page_tables + 0x1000
    mov eax, 3
    mov ecx, 1024
@fill:
    mov [edi], eax
    add eax, 0x1000
    add edi, 4
    loop @fill
    mov eax, page_tables + 0x1003
    mov [page_tables], eax
    mov eax, page_tables
    WRITE_CR32 3
    READ_CR32 0
    or eax, CR0_PG
    WRITE_CR32 0
""" if paging else ""
    source = f"""
start:
    mov esp, stack_top
    {turn_on}
    mov dword ptr [VCPU_IF], 0x200
    READ_CR32 0
    mov [results], eax
    mov eax, [VCPU_IF]
    mov [results + 8], eax
    mov dword ptr [VCPU_IF], 0
    mov eax, [VCPU + {vcpupage.CR0}]
    mov [results + 16], eax
    mov ebx, {1 << 17}
    mov eax, {NUMBER["rdmsr"]}
    int 0x82
    mov [results + 24], eax
    mov ebx, 0x10
    mov ecx, 0x55667788
    mov edx, 0x11223344
    mov eax, {NUMBER["wrmsr"]}
    int 0x82
    mov ebx, 0x3b
    mov eax, {NUMBER["rdmsr"]}
    int 0x82
    mov [results + 32], ecx
    mov ebx, 0
    mov ecx, 6
    mov eax, {NUMBER["shutdown"]}
    int 0x82"""
    _, outcome, seen = run_source(source, form=PROTECTED)
    assert outcome.status == 6
    assert bool(seen[0] & 1 << 31) == paging
    assert seen[1:4] == [0x200, seen[0], ENOENT & 0xFFFFFFFF]
    assert seen[4] in (0x11223344, 0x11223343)      # TSC_ADJUST: what was written less the time


# -- what is not a kernel for this engine -----------


def loads(image: bytes, tmp_path) -> None:
    path = tmp_path / "kernel.elf"
    path.write_bytes(image)
    Machine(engine="pv", ram_bytes=RAM).load(path)


def test_an_unpatched_kernel_is_refused_with_advice(tmp_path):
    with pytest.raises(InputError, match="is not paravirtual: `bt patch` makes it so"):
        loads(guests.image("tasks").read_bytes(), tmp_path)


def edited(change) -> bytes:
    image = bytearray(guests.image("tasks-pv").read_bytes())
    change(image, image.index(b"Ring1\0\0\0") + 8)
    return bytes(image)


@pytest.mark.parametrize(("change", "message"), [
    (lambda image, at: struct.pack_into("<I", image, at, 2), "version 2"),
    (lambda image, at: struct.pack_into("<I", image, at + 4, 8), "flags 0x8"),
    (lambda image, at: struct.pack_into("<Q", image, at + 8, 0x123), "no page of RAM"),
    (lambda image, at: struct.pack_into("<Q", image, at + 8, 1 << 40), "no page of RAM"),
    (lambda image, at: struct.pack_into("<Q", image, at + 16, 0x1000), "vCPU page at 0x1000"),
    (lambda image, at: struct.pack_into("<I", image, at - 16, 8), "cut short"),
    (lambda image, at: struct.pack_into("<I", image, at - 16, 1 << 30), "is not paravirtual"),
], ids=["version", "flags", "page", "far-page", "vcpu-page", "short", "long"])
def test_a_bad_note_is_a_clear_error(change, message, tmp_path):
    with pytest.raises(InputError, match=message):
        loads(edited(change), tmp_path)


# -- hostile kernels: fuzz_pv.py says what they do -----------


def test_random_hypercalls_do_no_harm():
    assert sum(survive(seed) for seed in range(12)) > 300


@pytest.mark.slow
def test_many_random_hypercalls_do_no_harm():
    for seed in range(1000, 1012):      # some 20 seconds; fuzz_pv.py goes on for as long as told
        survive(seed)


def test_the_document_has_every_hypercall():
    text = (Path(__file__).parents[2] / "docs" / "pv-abi.md").read_text()
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", text, re.MULTILINE)
    assert [(int(number), name) for number, name in rows] == list(enumerate(pvabi.HYPERCALLS))
    for name in ("VIF", "PENDING", "KGSBASE", "VIOPL"):
        assert f"| {getattr(vcpupage, name):#04x} | `{name}` |" in text
