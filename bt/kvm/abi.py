# SPDX-License-Identifier: GPL-2.0-or-later
"""The Linux KVM interface, as far as it is used here: numbers and layouts, under their own names.

Source: include/uapi/linux/kvm.h and arch/x86/include/uapi/asm/kvm.h of Linux (what is installed as
linux/kvm.h and asm/kvm.h); Documentation/virt/kvm/api.rst says what each call does. A test compiles
the headers and compares every constant, size and offset in this file with theirs.
"""

from __future__ import annotations

import struct

KVM_API_VERSION = 12
KVMIO = 0xAE


# ioctl numbers (asm-generic/ioctl.h): direction, size of the argument, type, number.
def _io(number: int) -> int:
    return KVMIO << 8 | number


def _iow(number: int, size: int) -> int:
    return 1 << 30 | size << 16 | _io(number)


def _ior(number: int, size: int) -> int:
    return 2 << 30 | size << 16 | _io(number)


def _iowr(number: int, size: int) -> int:
    return 3 << 30 | size << 16 | _io(number)


# Structures ---------------------------------------------------------------------------------------

#: struct kvm_userspace_memory_region: slot, flags, guest address, size, address here.
MEMORY_REGION = struct.Struct("<IIQQQ")
#: struct kvm_regs, in the order of REGS.
REGISTERS = struct.Struct("<18Q")
REGS = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11", "r12",
        "r13", "r14", "r15", "rip", "rflags")
#: struct kvm_segment: base, limit, selector, type, present, dpl, db, s, l, g, avl, unusable.
SEGMENT = struct.Struct("<QIH9Bx")
#: struct kvm_dtable: base, limit.
DTABLE = struct.Struct("<QH6x")
#: struct kvm_sregs: segments in the order of SEGMENTS, gdt, idt, then CONTROL, then a bitmap.
SREGS_SIZE = 312
SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
SREGS_GDT = SEGMENT.size * 8
SREGS_IDT = SREGS_GDT + DTABLE.size
SREGS_CONTROL = SREGS_IDT + DTABLE.size
CONTROL = struct.Struct("<7Q")
CONTROLS = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")
#: struct kvm_cpuid2's head (entries, padding), and struct kvm_cpuid_entry2: function, index, flags,
#: EAX, EBX, ECX, EDX.
CPUID_HEAD = struct.Struct("<II")
CPUID_ENTRY = struct.Struct("<7I12x")
KVM_CPUID_FLAG_SIGNIFCANT_INDEX = 1
#: struct kvm_msrs with one entry: count, padding, index, reserved, value.
ONE_MSR = struct.Struct("<IIIIQ")
#: struct kvm_interrupt: the vector.
INTERRUPT = struct.Struct("<I")
#: struct kvm_signal_mask with the kernel's 8-byte set: length, signals.
SIGNAL_MASK = struct.Struct("<IQ")
#: struct kvm_enable_cap: capability, flags, the first argument.
ENABLE_CAP = struct.Struct("<IIQ24x64x")
#: struct kvm_translation: linear address, physical address, valid, writeable, usermode.
TRANSLATION = struct.Struct("<QQ3B5x")
#: struct kvm_guest_debug: control, padding, DR0-DR7.
GUEST_DEBUG = struct.Struct("<II8Q")
KVM_GUESTDBG_ENABLE = 1
KVM_GUESTDBG_SINGLESTEP = 2
KVM_GUESTDBG_USE_HW_BP = 0x20000
#: struct kvm_msr_filter: flags, then 16 of struct kvm_msr_filter_range: flags, number, first MSR,
#: address of a bitmap with 1 for what is allowed.
MSR_FILTER_SIZE = 8 + 16 * 24
MSR_FILTER_RANGES = 8
MSR_FILTER_RANGE = struct.Struct("<III4xQ")
KVM_MSR_FILTER_WRITE = 2

# Calls --------------------------------------------------------------------------------------------

# On /dev/kvm
KVM_GET_API_VERSION = _io(0x00)
KVM_CREATE_VM = _io(0x01)
KVM_CHECK_EXTENSION = _io(0x03)
KVM_GET_VCPU_MMAP_SIZE = _io(0x04)
KVM_GET_SUPPORTED_CPUID = _iowr(0x05, CPUID_HEAD.size)
# On a machine
KVM_CREATE_VCPU = _io(0x41)
KVM_SET_USER_MEMORY_REGION = _iow(0x46, MEMORY_REGION.size)
KVM_SET_TSS_ADDR = _io(0x47)
KVM_ENABLE_CAP = _iow(0xA3, ENABLE_CAP.size)
KVM_X86_SET_MSR_FILTER = _iow(0xC6, MSR_FILTER_SIZE)
# On a vCPU
KVM_RUN = _io(0x80)
KVM_GET_REGS = _ior(0x81, REGISTERS.size)
KVM_SET_REGS = _iow(0x82, REGISTERS.size)
KVM_GET_SREGS = _ior(0x83, SREGS_SIZE)
KVM_SET_SREGS = _iow(0x84, SREGS_SIZE)
KVM_TRANSLATE = _iowr(0x85, TRANSLATION.size)
KVM_INTERRUPT = _iow(0x86, INTERRUPT.size)
KVM_GET_MSRS = _iowr(0x88, 8)
KVM_SET_MSRS = _iow(0x89, 8)
KVM_SET_SIGNAL_MASK = _iow(0x8B, 4)
KVM_SET_CPUID2 = _iow(0x90, CPUID_HEAD.size)
KVM_SET_GUEST_DEBUG = _iow(0x9B, GUEST_DEBUG.size)
KVM_SET_TSC_KHZ = _io(0xA2)
KVM_GET_TSC_KHZ = _io(0xA3)

# Capabilities -------------------------------------------------------------------------------------

KVM_CAP_USER_MEMORY = 3
KVM_CAP_EXT_CPUID = 7
KVM_CAP_SET_GUEST_DEBUG = 23
KVM_CAP_TSC_CONTROL = 60
KVM_CAP_GET_TSC_KHZ = 61
KVM_CAP_IMMEDIATE_EXIT = 136
KVM_CAP_X86_USER_SPACE_MSR = 188
KVM_MSR_EXIT_REASON_UNKNOWN = 1 << 1
KVM_MSR_EXIT_REASON_FILTER = 1 << 2

# struct kvm_run, the page shared with the kernel --------------------------------------------------

RUN_REQUEST_INTERRUPT_WINDOW = 0
RUN_IMMEDIATE_EXIT = 1
RUN_EXIT_REASON = 8
RUN_READY_FOR_INTERRUPT = 12
RUN_IF_FLAG = 13
RUN_CR8 = 16
#: Where the part begins that depends on the reason.
RUN_DETAIL = 32
#: KVM_EXIT_IO: direction, size, port, count, offset of the data in the page.
RUN_IO = struct.Struct("<BBHIQ")
KVM_EXIT_IO_OUT = 1
#: KVM_EXIT_MMIO: guest address, (data), length, whether it is a write.
RUN_MMIO = struct.Struct("<Q8xIB")
RUN_MMIO_DATA = RUN_DETAIL + 8
#: KVM_EXIT_DEBUG: exception, padding, linear address, DR6, DR7.
RUN_DEBUG = struct.Struct("<II3Q")
#: KVM_EXIT_FAIL_ENTRY: the processor's reason.
RUN_FAIL_ENTRY = struct.Struct("<Q")
#: KVM_EXIT_INTERNAL_ERROR: kind, and for an emulation failure words, flags, length, code.
RUN_INTERNAL = struct.Struct("<IIQB15s")
KVM_INTERNAL_ERROR_EMULATION = 1
KVM_INTERNAL_ERROR_DELIVERY_EV = 3
KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES = 1
#: KVM_EXIT_X86_RDMSR and WRMSR: error (ours), reason, index, value (ours or the guest's).
RUN_MSR_ERROR = RUN_DETAIL
RUN_MSR_INDEX = RUN_DETAIL + 12
RUN_MSR_DATA = RUN_DETAIL + 16

KVM_EXIT_UNKNOWN = 0
KVM_EXIT_EXCEPTION = 1
KVM_EXIT_IO = 2
KVM_EXIT_DEBUG = 4
KVM_EXIT_HLT = 5
KVM_EXIT_MMIO = 6
KVM_EXIT_IRQ_WINDOW_OPEN = 7
KVM_EXIT_SHUTDOWN = 8
KVM_EXIT_FAIL_ENTRY = 9
KVM_EXIT_INTR = 10
KVM_EXIT_SET_TPR = 11
KVM_EXIT_NMI = 16
KVM_EXIT_INTERNAL_ERROR = 17
KVM_EXIT_SYSTEM_EVENT = 24
KVM_EXIT_X86_RDMSR = 29
KVM_EXIT_X86_WRMSR = 30

#: Names of the reasons for messages and counters.
EXIT_NAMES = {value: name for name, value in sorted(globals().items())
              if name.startswith("KVM_EXIT_") and not name.startswith("KVM_EXIT_IO_")}
