# SPDX-License-Identifier: GPL-2.0-or-later
"""Every number and layout of bt.kvm.abi against what the C compiler makes of Linux's headers."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from structlayout import offsets

from bt.kvm import abi

pytestmark = pytest.mark.skipif(
    not Path("/usr/include/linux/kvm.h").exists() or shutil.which("cc") is None,
    reason="needs a C compiler and Linux's headers (linux-libc-dev)")

#: Names of ours for a size or the offset of a field.
EXPRESSIONS = {
    "SREGS_SIZE": "sizeof(struct kvm_sregs)",
    "SREGS_GDT": "offsetof(struct kvm_sregs, gdt)",
    "SREGS_IDT": "offsetof(struct kvm_sregs, idt)",
    "SREGS_CONTROL": "offsetof(struct kvm_sregs, cr0)",
    "MSR_FILTER_SIZE": "sizeof(struct kvm_msr_filter)",
    "MSR_FILTER_RANGES": "offsetof(struct kvm_msr_filter, ranges)",
    "RUN_REQUEST_INTERRUPT_WINDOW": "offsetof(struct kvm_run, request_interrupt_window)",
    "RUN_IMMEDIATE_EXIT": "offsetof(struct kvm_run, immediate_exit)",
    "RUN_EXIT_REASON": "offsetof(struct kvm_run, exit_reason)",
    "RUN_READY_FOR_INTERRUPT": "offsetof(struct kvm_run, ready_for_interrupt_injection)",
    "RUN_IF_FLAG": "offsetof(struct kvm_run, if_flag)",
    "RUN_CR8": "offsetof(struct kvm_run, cr8)",
    "RUN_DETAIL": "offsetof(struct kvm_run, io)",
    "RUN_MMIO_DATA": "offsetof(struct kvm_run, mmio.data)",
    "RUN_MSR_ERROR": "offsetof(struct kvm_run, msr.error)",
    "RUN_MSR_INDEX": "offsetof(struct kvm_run, msr.index)",
    "RUN_MSR_DATA": "offsetof(struct kvm_run, msr.data)",
}

#: Layout -> (C type, its fields that ours stand for, first and last byte that ours covers).
LAYOUTS = {
    "MEMORY_REGION": ("struct kvm_userspace_memory_region",
                      "slot flags guest_phys_addr memory_size userspace_addr"),
    "REGISTERS": ("struct kvm_regs", " ".join(abi.REGS)),
    "SEGMENT": ("struct kvm_segment",
                "base limit selector type present dpl db s l g avl unusable"),
    "DTABLE": ("struct kvm_dtable", "base limit"),
    "CPUID_HEAD": ("struct kvm_cpuid2", "nent padding"),
    "CPUID_ENTRY": ("struct kvm_cpuid_entry2", "function index flags eax ebx ecx edx"),
    "INTERRUPT": ("struct kvm_interrupt", "irq"),
    "ENABLE_CAP": ("struct kvm_enable_cap", "cap flags args"),
    "TRANSLATION": ("struct kvm_translation",
                    "linear_address physical_address valid writeable usermode"),
    "GUEST_DEBUG": ("struct kvm_guest_debug",
                    "control pad " + " ".join(f"arch.debugreg[{i}]" for i in range(8))),
    "MSR_FILTER_RANGE": ("struct kvm_msr_filter_range", "flags nmsrs base bitmap"),
}
#: Layouts that are parts of struct kvm_run: where they begin, and the fields.
PARTS = {
    "RUN_IO": ("io", "io.direction io.size io.port io.count io.data_offset"),
    "RUN_MMIO": ("mmio", "mmio.phys_addr mmio.len mmio.is_write"),
    "RUN_DEBUG": ("debug", "debug.arch.exception debug.arch.pad debug.arch.pc debug.arch.dr6 "
                  "debug.arch.dr7"),
    "RUN_FAIL_ENTRY": ("fail_entry", "fail_entry.hardware_entry_failure_reason"),
    "RUN_INTERNAL": ("internal", "internal.suberror internal.ndata emulation_failure.flags "
                     "emulation_failure.insn_size emulation_failure.insn_bytes"),
}
#: Made of others: tested by hand below.
COMPOSED = {"CONTROL", "ONE_MSR", "SIGNAL_MASK"}


def compile_and_run(folder: Path, expressions: dict[str, str]) -> dict[str, int]:
    source, program = folder / "abi.c", folder / "abi"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <sys/ioctl.h>\n#include <linux/kvm.h>\n"
        "int main(void) {\n" + "".join(
            f'printf("%s %llu\\n", "{name}", (unsigned long long)({expression}));\n'
            for name, expression in expressions.items()) + "return 0;\n}\n")
    subprocess.run(["cc", "-w", "-o", str(program), str(source)], check=True)
    output = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in
            (line.rsplit(" ", 1) for line in output.splitlines())}


def test_numbers(tmp_path: Path) -> None:
    ours = {name: value for name, value in vars(abi).items()
            if isinstance(value, int) and name[0] != "_"}
    assert len(ours) > 70
    assert compile_and_run(tmp_path, {name: EXPRESSIONS.get(name, name) for name in ours}) == ours


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(tmp_path: Path, name: str) -> None:
    kind, fields = LAYOUTS[name]
    layout = getattr(abi, name)
    theirs = compile_and_run(tmp_path, {"size": f"sizeof({kind})"} | {
        field: f"offsetof({kind}, {field})" for field in fields.split()})
    assert layout.size == theirs.pop("size")
    assert offsets(layout.format) == list(theirs.values())


@pytest.mark.parametrize("name", PARTS)
def test_layout_in_the_shared_page(tmp_path: Path, name: str) -> None:
    start, fields = PARTS[name]
    theirs = compile_and_run(tmp_path, {
        field: f"offsetof(struct kvm_run, {field}) - offsetof(struct kvm_run, {start})"
        for field in fields.split()})
    assert offsets(getattr(abi, name).format) == list(theirs.values())


def test_composed_layouts(tmp_path: Path) -> None:
    theirs = compile_and_run(tmp_path, {
        "one msr": "sizeof(struct kvm_msrs) + sizeof(struct kvm_msr_entry)",
        "value": "sizeof(struct kvm_msrs) + offsetof(struct kvm_msr_entry, data)",
        "mask": "sizeof(struct kvm_signal_mask) + 8",
        "control": "offsetof(struct kvm_sregs, interrupt_bitmap) "
                   "- offsetof(struct kvm_sregs, cr0)",
        **{name: f"offsetof(struct kvm_sregs, {name}) - offsetof(struct kvm_sregs, cr0)"
           for name in abi.CONTROLS},
    })
    assert abi.ONE_MSR.size == theirs["one msr"]
    assert offsets(abi.ONE_MSR.format)[-1] == theirs["value"]
    assert abi.SIGNAL_MASK.size == theirs["mask"]
    assert abi.CONTROL.size == theirs["control"]
    assert [theirs[name] for name in abi.CONTROLS] == offsets(abi.CONTROL.format)


def test_every_layout_is_tested() -> None:
    layouts = {name for name, value in vars(abi).items() if isinstance(value, struct.Struct)}
    assert layouts == set(LAYOUTS) | set(PARTS) | COMPOSED
