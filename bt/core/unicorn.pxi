# SPDX-License-Identifier: GPL-2.0-or-later
# The part of Unicorn's C interface the core uses (unicorn/unicorn.h, unicorn/x86.h of 2.1.4).

from libc.stdint cimport (int8_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t,
                          uintptr_t)
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

cdef extern from "unicorn/unicorn.h" nogil:
    ctypedef struct uc_engine:
        pass
    ctypedef size_t uc_hook
    ctypedef int uc_err
    ctypedef struct uc_tlb_entry:
        uint64_t paddr
        int perms
    ctypedef struct uc_tb:
        uint64_t pc
        uint16_t icount
        uint16_t size
    int UC_ARCH_X86
    int UC_MODE_64
    int UC_ERR_OK
    int UC_ERR_EXCEPTION
    int UC_ERR_INSN_INVALID
    int UC_PROT_READ
    int UC_PROT_WRITE
    int UC_PROT_EXEC
    int UC_MEM_READ
    int UC_MEM_WRITE
    int UC_MEM_FETCH
    int UC_TLB_VIRTUAL
    int UC_HOOK_INTR
    int UC_HOOK_INSN
    int UC_HOOK_BLOCK
    int UC_HOOK_INSN_INVALID
    int UC_HOOK_TLB_FILL
    int UC_HOOK_EDGE_GENERATED
    int UC_HOOK_MEM_FETCH_PROT
    int UC_X86_INS_SYSCALL
    int UC_X86_INS_SYSENTER
    int UC_X86_INS_IN
    int UC_X86_INS_OUT
    int UC_X86_INS_CPUID
    int UC_X86_INS_RDTSC
    int UC_X86_INS_RDTSCP
    int UC_X86_REG_EFLAGS, UC_X86_REG_RIP, UC_X86_REG_MSR
    int UC_X86_REG_RAX, UC_X86_REG_RCX, UC_X86_REG_RDX, UC_X86_REG_RBX
    int UC_X86_REG_RSP, UC_X86_REG_RBP, UC_X86_REG_RSI, UC_X86_REG_RDI
    int UC_X86_REG_R8, UC_X86_REG_R9, UC_X86_REG_R10, UC_X86_REG_R11
    int UC_X86_REG_R12, UC_X86_REG_R13, UC_X86_REG_R14, UC_X86_REG_R15
    int UC_CPU_X86_HASWELL
    uc_err uc_open(int arch, int mode, uc_engine **uc)
    uc_err uc_close(uc_engine *uc)
    uc_err uc_emu_start(uc_engine *uc, uint64_t begin, uint64_t until, uint64_t timeout,
                        size_t count)
    uc_err uc_emu_stop(uc_engine *uc)
    uc_err uc_hook_add(uc_engine *uc, uc_hook *hh, int type, void *callback, void *user_data,
                       uint64_t begin, uint64_t end, ...)
    uc_err uc_hook_del(uc_engine *uc, uc_hook hh)
    uc_err uc_reg_read(uc_engine *uc, int regid, void *value)
    uc_err uc_reg_write(uc_engine *uc, int regid, const void *value)
    uc_err uc_mem_map_ptr(uc_engine *uc, uint64_t address, uint64_t size, uint32_t perms,
                          void *ptr)
    uc_err uc_mmio_map(uc_engine *uc, uint64_t address, uint64_t size, void *read_cb,
                       void *read_data, void *write_cb, void *write_data)
    const char *uc_strerror(uc_err code)
    size_t uc_context_size(uc_engine *uc)
    uc_err uc_ctl_tlb_mode(uc_engine *uc, int mode)
    uc_err uc_ctl_exits_enable(uc_engine *uc)
    uc_err uc_ctl_set_exits(uc_engine *uc, uint64_t *exits, size_t count)
    uc_err uc_ctl_request_cache(uc_engine *uc, uint64_t address, uc_tb *block)
    uc_err uc_ctl_set_cpu_model(uc_engine *uc, int model)
    uc_err uc_ctl_flush_tlb(uc_engine *uc)
    uc_err uc_ctl_remove_cache(uc_engine *uc, uint64_t start, uint64_t end)
    uc_err uc_ctl_flush_tb(uc_engine *uc)
