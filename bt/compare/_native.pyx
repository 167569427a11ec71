# SPDX-License-Identifier: GPL-2.0-or-later
# cython: language_level=3
"""Ring 0 on plain Unicorn, with no VMM: what guests/nano is compared with.

Unicorn's own MMU walks the guest's page tables, IRETQ, SYSRETQ, LTR, MOV to CR8 and INVLPG are
Unicorn's, and the kernel is at CPL 0. Unicorn has no delivery of exceptions and no SYSCALL, so a
CPU that anybody could run a kernel on needs the two hooks below. They do the least that the manual
allows (Intel SDM 3A 6.14, 2B SYSCALL): read the gate, choose the stack, push the frame, go there. No
check of rights, no other mode, nothing counted. That makes the result the lowest price that an
exception can have on this CPU, and it is what "native" means in `bt compare`.

Ports are answered in a hook too, as Unicorn does not reach any device by itself: COM1 takes bytes
and is always ready, 0x501 ends the run, everything else reads as ones.
"""

include "../core/unicorn.pxi"
include "../core/layout.pxi"

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer, Py_buffer

cdef extern from *:
    """
    typedef struct { uint32_t index; uint64_t value; } msr_value;   /* uc_x86_msr */
    """
    ctypedef struct msr_value:
        uint32_t index
        uint64_t value

from unicorn import x86_const as _regs

cdef enum:
    OUTPUT_MAX = 1 << 16
    COM1 = 0x3f8
    COM1_CONTROL = 0x3fb
    COM1_STATUS = 0x3fd
    DLAB = 0x80                 # in the control register: COM1 takes the divisor, not bytes
    EXIT_PORT = 0x501

cdef uint32_t CODE64 = 0x00af9b00           # descriptor flags: present, DPL 0, 64-bit code
cdef uint32_t DATA = 0x00cf9300             # present, DPL 0, writable
cdef uint64_t FLAGS_OFF = 0x300             # TF and IF: what an interrupt gate clears

cdef struct Cpu:
    uc_engine *uc
    Env *env
    uint8_t *ram
    uint64_t size
    uint64_t star
    uint64_t lstar
    uint64_t fmask
    int msr_register
    int exit_status                         # -1 until the guest has written one
    uint32_t com1_control
    int failed                              # vector that could not be delivered, or -1
    int length
    uint8_t output[OUTPUT_MAX]

cdef inline void segment(Env *env, int seg, uint32_t selector, uint32_t flags) noexcept nogil:
    env.segs[seg].selector = selector
    env.segs[seg].base = 0
    env.segs[seg].limit = <uint32_t>0xffffffff
    env.segs[seg].flags = flags

cdef inline uint64_t get_flags(Cpu *cpu) noexcept nogil:
    cdef uint64_t flags = 0
    uc_reg_read(cpu.uc, UC_X86_REG_EFLAGS, &flags)
    return flags | 2

cdef uint64_t get_msr(Cpu *cpu, uint32_t index) noexcept nogil:
    cdef msr_value msr
    msr.index = index
    msr.value = 0
    uc_reg_read(cpu.uc, cpu.msr_register, &msr)
    return msr.value

cdef int allow_nx(Cpu *cpu) except -1:
    """EFER.NXE, for the data pages of the caller's page tables."""
    cdef msr_value msr
    msr.index = <uint32_t>0xc0000080
    msr.value = get_msr(cpu, msr.index) | 1 << 11
    return check(uc_reg_write(cpu.uc, cpu.msr_register, &msr), "EFER")

cdef inline void fail(Cpu *cpu, int vector) noexcept nogil:
    cpu.failed = vector
    uc_emu_stop(cpu.uc)

cdef void on_interrupt(uc_engine *uc, uint32_t vector, void *data) noexcept nogil:
    """Deliver through a 64-bit interrupt gate. RAM is mapped one to one where the tables are."""
    cdef Cpu *cpu = <Cpu *>data
    cdef Env *env = cpu.env
    cdef uint64_t gate = env.idt.base + 16 * vector
    cdef uint64_t rsp = env.regs[RSP]
    cdef uint64_t *frame
    cdef uint32_t *words
    cdef bint has_error = vector in (8, 10, 11, 12, 13, 14, 17) and \
        not env_int(env, OFF_IS_INT)[0]
    env_int(env, OFF_OLD_EXCEPTION)[0] = -1     # or the next exception would be a double fault
    if gate + 16 > cpu.size or 16 * vector + 15 > env.idt.limit:
        fail(cpu, vector)
        return
    words = <uint32_t *>(cpu.ram + gate)
    if env.hflags & HF_CPL:
        if env.tr.base + 12 > cpu.size:
            fail(cpu, vector)
            return
        rsp = (<uint64_t *>(cpu.ram + env.tr.base + 4))[0]
    rsp &= ~<uint64_t>15
    if not words[1] & 0x8000 or rsp > cpu.size or rsp < 48:
        fail(cpu, vector)
        return
    frame = <uint64_t *>(cpu.ram + rsp) - 5
    frame[4] = env.segs[R_SS].selector
    frame[3] = env.regs[RSP]
    frame[2] = get_flags(cpu)
    frame[1] = env.segs[R_CS].selector
    frame[0] = env.eip
    if has_error:
        frame -= 1
        frame[0] = <uint32_t>env_int(env, OFF_ERROR_CODE)[0]
    env.regs[RSP] = <uint64_t>(<uint8_t *>frame - cpu.ram)
    env.eip = (words[0] & 0xffff) | (words[1] & <uint32_t>0xffff0000) | <uint64_t>words[2] << 32
    if env.hflags & HF_CPL:
        segment(env, R_SS, 0, DATA)
        env.hflags &= ~<uint32_t>HF_CPL
    segment(env, R_CS, words[0] >> 16, CODE64)
    env.eflags &= ~FLAGS_OFF

cdef void on_syscall(uc_engine *uc, void *data) noexcept nogil:
    """SYSCALL from 64-bit code. Unicorn adds the instruction's two bytes to RIP afterwards."""
    cdef Cpu *cpu = <Cpu *>data
    cdef Env *env = cpu.env
    if cpu.lstar == 0:
        cpu.star = get_msr(cpu, <uint32_t>0xc0000081)
        cpu.lstar = get_msr(cpu, <uint32_t>0xc0000082)
        cpu.fmask = get_msr(cpu, <uint32_t>0xc0000084)
    env.regs[RCX] = env.eip + 2
    env.regs[R11] = get_flags(cpu)
    env.eflags &= ~cpu.fmask
    segment(env, R_CS, (cpu.star >> 32) & 0xfffc, CODE64)
    segment(env, R_SS, ((cpu.star >> 32) & 0xfffc) + 8, DATA)
    env.hflags &= ~<uint32_t>HF_CPL
    env.eip = cpu.lstar - 2

cdef uint32_t on_in(uc_engine *uc, uint32_t port, int size, void *data) noexcept nogil:
    return 0x60 if port == COM1_STATUS else <uint32_t>0xffffffff

cdef void on_out(uc_engine *uc, uint32_t port, int size, uint32_t value,
                 void *data) noexcept nogil:
    cdef Cpu *cpu = <Cpu *>data
    if port == COM1:
        if not cpu.com1_control & DLAB and cpu.length < OUTPUT_MAX:
            cpu.output[cpu.length] = value & 0xff
            cpu.length += 1
    elif port == COM1_CONTROL:
        cpu.com1_control = value
    elif port == EXIT_PORT:
        cpu.exit_status = value & 0xff
        uc_emu_stop(uc)

cdef int check(uc_err error, str what) except -1:
    if error != UC_ERR_OK:
        raise RuntimeError(f"unicorn: {what}: {uc_strerror(error).decode()}")
    return 0

cdef int add_hook(Cpu *cpu, int kind, void *callback, int instruction) except -1:
    cdef uc_hook handle
    return check(uc_hook_add(cpu.uc, &handle, kind, callback, cpu, <uint64_t>1, <uint64_t>0,
                             instruction), "hook")

cdef int set_register(Cpu *cpu, str name, uint64_t value) except -1:
    return check(uc_reg_write(cpu.uc, getattr(_regs, f"UC_X86_REG_{name}"), &value), name)

def run(ram not None, *, uint64_t entry, uint64_t cr3, uint32_t code, uint32_t data):
    """Run 64-bit ring-0 code from ``entry`` until it writes port 0x501: (status, COM1's bytes).

    ram: a writable buffer of whole pages, the physical memory from 0 on; it must hold page tables
    at ``cr3`` that map what the code uses one to one. code, data: selectors of flat segments.
    Raises RuntimeError when the guest ended in any other way.
    """
    cdef Py_buffer view
    cdef Cpu *cpu
    cdef uc_err error
    cdef char *state
    PyObject_GetBuffer(ram, &view, PyBUF_WRITABLE)
    cpu = <Cpu *>calloc(1, sizeof(Cpu))
    try:
        if cpu == NULL:
            raise MemoryError()
        check(uc_open(UC_ARCH_X86, UC_MODE_64, &cpu.uc), "open")
        check(uc_ctl_set_cpu_model(cpu.uc, UC_CPU_X86_HASWELL), "CPU model")
        layout_find(cpu.uc, &cpu.env, &state)
        cpu.ram, cpu.size = <uint8_t *>view.buf, view.len
        cpu.msr_register = _regs.UC_X86_REG_MSR
        cpu.exit_status = cpu.failed = -1
        check(uc_mem_map_ptr(cpu.uc, 0, cpu.size, UC_PROT_READ | UC_PROT_WRITE | UC_PROT_EXEC,
                             cpu.ram), "RAM")
        add_hook(cpu, UC_HOOK_INTR, <void *>on_interrupt, 0)
        add_hook(cpu, UC_HOOK_INSN, <void *>on_syscall, UC_X86_INS_SYSCALL)
        add_hook(cpu, UC_HOOK_INSN, <void *>on_in, UC_X86_INS_IN)
        add_hook(cpu, UC_HOOK_INSN, <void *>on_out, UC_X86_INS_OUT)
        allow_nx(cpu)
        set_register(cpu, "CR4", 0x20)          # PAE
        set_register(cpu, "CR3", cr3)
        set_register(cpu, "CR0", 0x80010001)    # PG WP PE; Unicorn starts in 64-bit mode
        segment(cpu.env, R_CS, code, CODE64)
        for seg in (R_SS, R_DS, R_ES, R_FS, R_GS):
            segment(cpu.env, seg, data, DATA)
        with nogil:
            error = uc_emu_start(cpu.uc, entry, ~<uint64_t>0, 0, 0)
        if cpu.failed >= 0:
            raise RuntimeError(f"exception {cpu.failed} at {cpu.env.eip:#x} has no handler")
        check(error, f"at {cpu.env.eip:#x}")
        if cpu.exit_status < 0:
            raise RuntimeError(f"stopped at {cpu.env.eip:#x}")
        return cpu.exit_status, cpu.output[:cpu.length]
    finally:
        if cpu != NULL and cpu.uc != NULL:
            uc_close(cpu.uc)
        free(cpu)
        PyBuffer_Release(&view)
