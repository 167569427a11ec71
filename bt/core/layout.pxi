# SPDX-License-Identifier: GPL-2.0-or-later
# Where Unicorn keeps the CPU, and the only code that depends on it.
#
# Unicorn's own interface cannot change the privilege level of a running CPU, cannot read the
# address of a refused access, and costs more per register than a whole exit may. So the core works
# on the CPU's state directly. Eight private places are used:
#
#   1. `struct CPUX86State`: the general registers, flags, segments and the `hflags` that the
#      translator keys its blocks on. This is the content of the documented context blob
#      (uc_context_save copies exactly this structure), so the layout is public in all but name.
#   2. `struct uc_struct.invalid_addr`: the exact address of a refused access (CR2).
#   3. `struct uc_struct.no_exit_request`: leaves the stop check out of the middle of blocks.
#      With the check, a stop between the store and the end of a read-modify-write instruction
#      makes the instruction run twice; without it, stops land between blocks only.
#   4. `struct uc_struct.skip_sync_pc_on_exit`: leaves out the search for RIP before the hook of an
#      instruction (hooks.pxi, `rip_is_known`).
#   5. `CPUX86State.cpuid_vendor1`: whether 64-bit code has SYSENTER (`hide_sysenter`).
#   6. `CPUState.exit_request`, its `icount_decr.u16.high` and `uc_struct.invalid_error`: a stop that
#      does not set stop_request (hooks.pxi, `stop_cpu`).
#   7. The tree of exits, and how many temporaries and operations a block under translation has: no
#      guest may overflow the translator (temporaries.pxi).
#   8. The translator's functions that emit operations (tcg.pxi): the check for stops at the start of a
#      block (stopcheck.pxi), and SYSCALL (syscall.pxi).
#
# All are tied to one release, which is pinned. Nothing is assumed: `layout_find` locates the
# state by values it planted, and `layout_check` proves each field by its effect before any guest
# runs. A different build fails loudly at start-up instead of corrupting a guest.

cdef struct Seg:                # SegmentCache
    uint32_t selector
    uint32_t pad
    uint64_t base
    uint32_t limit
    uint32_t flags              # the descriptor's second dword (QEMU's e2), DPL and type included

cdef struct Env:                # the head of CPUX86State
    uint64_t regs[16]           # RAX RCX RDX RBX RSP RBP RSI RDI R8..R15
    uint64_t eip
    uint64_t eflags             # without the arithmetic flags and DF, which live in cc_* and df
    uint64_t cc_dst
    uint64_t cc_src
    uint64_t cc_src2
    uint32_t cc_op
    int32_t df                  # 1 or -1
    uint32_t hflags
    uint32_t hflags2
    Seg segs[6]                 # ES CS SS DS FS GS
    Seg ldt
    Seg tr
    Seg gdt
    Seg idt
    uint64_t cr[9]

# Fields further inside, by byte offset from the start of Env (Unicorn 2.1.4, x86_64).
cdef enum:
    OFF_EFER = 592
    OFF_ERROR_CODE = 5384       # int
    OFF_IS_INT = 5388           # int
    OFF_OLD_EXCEPTION = 5496    # int

# By byte offset from the start of CPUState; engine hvm only, proved by hvm_check.
cdef enum:
    CPU_INTERRUPT_REQUEST = 28  # uint32
    INTERRUPT_VIRQ = 0x100      # a virtual interrupt waits (VMCB V_IRQ)

cdef enum:
    R_ES = 0
    R_CS = 1
    R_SS = 2
    R_DS = 3
    R_FS = 4
    R_GS = 5

cdef enum:
    RAX = 0
    RCX = 1
    RDX = 2
    RBX = 3
    RSP = 4
    RBP = 5
    RSI = 6
    RDI = 7
    R11 = 11

# hflags (QEMU target/i386/cpu.h)
cdef enum:
    HF_CPL = 3
    HF_INHIBIT_IRQ = 1 << 3     # the shadow of STI and MOV SS
    HF_CS32 = 1 << 4
    HF_SS32 = 1 << 5
    HF_ADDSEG = 1 << 6
    HF_PE = 1 << 7
    HF_MP = 1 << 9
    HF_EM = 1 << 10
    HF_TS = 1 << 11
    HF_LMA = 1 << 14
    HF_CS64 = 1 << 15
    HF_SVME = 1 << 20
    HF_GUEST = 1 << 21          # AMD-V guest mode: intercepts are active
    HF_OSFXSR = 1 << 22

cdef enum:
    CC_OP_EFLAGS = 1            # the arithmetic flags are in cc_src, as in EFLAGS

cdef extern from "sys/uio.h" nogil:
    cdef struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t process_vm_readv(int pid, const iovec *lvec, unsigned long liovcnt,
                             const iovec *rvec, unsigned long riovcnt, unsigned long flags)

cdef extern from "unistd.h" nogil:
    int getpid()

cdef bint peek(uint64_t address, void *out, size_t length) noexcept nogil:
    """Copy from an address of our own process that may not be mapped; False if it is not."""
    cdef iovec local
    cdef iovec remote
    local.iov_base = out
    local.iov_len = length
    remote.iov_base = <void *>address
    remote.iov_len = length
    return process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == <ssize_t>length

cdef enum:
    UC_STRUCT_SCAN = 2600       # bytes of struct uc_struct looked through
    # Bytes after CPUState in which its CPUX86State must lie (it begins at 35,408, and is longer than
    # the rest of this). No more than the object has: what is behind it may not be mapped.
    CPU_SPAN = 40960

cdef int layout_find(uc_engine *uc, Env **env_out, char **cpu_out) except -1:
    """Find CPUState and CPUX86State by sixteen register values planted through the public API.

    Every pointer-like word at the start of the engine is tried; CPUState is the one that has a
    block with the planted registers within CPU_SPAN and, inside itself, pointers to that block
    (env_ptr) and to the engine (uc). Other objects may lie before it on the heap and see the same
    block further on, so the nearest one counts.
    """
    cdef uint64_t planted[16]
    cdef uint64_t word
    cdef uint64_t found
    cdef uint64_t best = 0
    cdef int i
    cdef size_t off, at
    cdef size_t chunk = CPU_SPAN
    cdef uint8_t *head = <uint8_t *>malloc(UC_STRUCT_SCAN)
    cdef uint8_t *body = <uint8_t *>malloc(chunk)
    cdef int[16] registers = [      # in the order of QEMU's regs[]
        UC_X86_REG_RAX, UC_X86_REG_RCX, UC_X86_REG_RDX, UC_X86_REG_RBX, UC_X86_REG_RSP,
        UC_X86_REG_RBP, UC_X86_REG_RSI, UC_X86_REG_RDI, UC_X86_REG_R8, UC_X86_REG_R9,
        UC_X86_REG_R10, UC_X86_REG_R11, UC_X86_REG_R12, UC_X86_REG_R13, UC_X86_REG_R14,
        UC_X86_REG_R15]
    try:
        for i in range(16):
            planted[i] = 0x5252494e47310000 + <uint64_t>i * 0x0101
            uc_reg_write(uc, registers[i], &planted[i])
        if not peek(<uint64_t>uc, head, UC_STRUCT_SCAN):
            raise RuntimeError("unicorn's engine structure cannot be read")
        for off in range(0, UC_STRUCT_SCAN - 8, 8):
            word = (<uint64_t *>(head + off))[0]
            if word & 7 or word < 0x10000 or not peek(word, body, chunk):
                continue
            for at in range(0, chunk - 128, 8):
                if (<uint64_t *>(body + at))[0] != planted[0]:
                    continue
                if memcmp(body + at, planted, sizeof(planted)) != 0:
                    continue
                found = word + at
                if points_to(body, at, found) and points_to(body, at, <uint64_t>uc) and \
                        word > best:
                    best = word
                    env_out[0] = <Env *>found
                    cpu_out[0] = <char *>word
                break
        if best == 0:
            raise RuntimeError(
                "unicorn's CPU state was not found: this needs unicorn 2.1.4 x86-64")
        memset(env_out[0].regs, 0, sizeof(planted))
        return 0
    finally:
        free(head)
        free(body)

cdef bint points_to(uint8_t *body, size_t length, uint64_t target) noexcept nogil:
    """Whether some aligned word of body[0:length] is ``target`` (CPUState.env_ptr)."""
    cdef size_t at
    for at in range(0, length, 8):
        if (<uint64_t *>(body + at))[0] == target:
            return True
    return False

cdef inline int32_t *env_int(Env *env, size_t offset) noexcept nogil:
    return <int32_t *>(<char *>env + offset)

cdef size_t no_exit_offset(uc_engine *uc) except? 0:
    """Byte offset of uc_struct.no_exit_request.

    It follows `int cpu_context_size` (which equals uc_context_size - 40), a u64 and two bools.
    """
    cdef uint8_t head[UC_STRUCT_SCAN]
    cdef int32_t size = <int32_t>(uc_context_size(uc) - 40)
    cdef size_t off, flag
    if not peek(<uint64_t>uc, head, UC_STRUCT_SCAN):
        raise RuntimeError("unicorn's engine structure cannot be read")
    for off in range(0, UC_STRUCT_SCAN - 32, 4):
        if (<int32_t *>(head + off))[0] == size:
            flag = ((off + 4 + 7) & ~<size_t>7) + 8 + 2
            if head[flag] == 0 and head[flag + 1] == 1:     # no_exit_request, init_done
                return flag
    raise RuntimeError("unicorn's no_exit_request flag was not found: this needs unicorn 2.1.4")

cdef enum:
    UC_STRUCT_SIZE = 14904      # bytes of struct uc_struct

cdef size_t skip_sync_offset(uc_engine *uc) except? 0:
    """Byte offset of uc_struct.skip_sync_pc_on_exit.

    Writing RIP through the public interface sets it and, further up, quit_request; nothing else in
    the structure changes from 0 to 1.
    """
    cdef uint8_t before[UC_STRUCT_SIZE]
    cdef uint8_t after[UC_STRUCT_SIZE]
    cdef uint64_t rip = 0
    cdef size_t off, last = 0
    cdef int changed = 0
    cdef bint read = peek(<uint64_t>uc, before, UC_STRUCT_SIZE)
    uc_reg_write(uc, UC_X86_REG_RIP, &rip)
    if not read or not peek(<uint64_t>uc, after, UC_STRUCT_SIZE):
        raise RuntimeError("unicorn's engine structure cannot be read")
    for off in range(UC_STRUCT_SIZE):
        if before[off] == 0 and after[off] == 1:
            (<uint8_t *>uc)[off] = 0
            last = off
            changed += 1
    if changed != 2:
        raise RuntimeError(
            "unicorn's skip_sync_pc_on_exit flag was not found: this needs unicorn 2.1.4")
    return last

cdef enum:
    ERR_STOPPED = 0x5231        # what emu_start returns after `stop_cpu`; no uc_err

cdef struct StopWords:
    volatile uint8_t *request   # exit_request
    volatile uint16_t *high     # icount_decr.u16.high, which blocks look at
    volatile int32_t *error     # uc_struct.invalid_error

cdef int stop_words(char *cpu, const uint8_t *before, const uint8_t *now, StopWords *out) except -1:
    """Where cpu_exit() wrote in CPUState: what differs between two copies of CPU_SPAN bytes."""
    cdef size_t off = 0
    out.request = NULL
    out.high = NULL
    while off < CPU_SPAN - 1:
        if now[off] == before[off]:
            pass
        elif now[off] == 1 and before[off] == 0 and out.request == NULL:
            out.request = <uint8_t *>cpu + off
        elif now[off] == 0xff and now[off + 1] == 0xff and before[off] == 0 and out.high == NULL:
            out.high = <uint16_t *>(cpu + off)
            off += 1
        else:
            out.request = NULL
            break
        off += 1
    if out.request == NULL or out.high == NULL:
        raise RuntimeError("unicorn's stop requests were not found: this needs unicorn 2.1.4")
    return 0

cdef int hide_sysenter(Env *env) except -1:
    """Make SYSENTER and SYSEXIT #UD in 64-bit code, as they are on a CPU that is not Intel's.

    The #UD comes with RIP, SYSENTER's own hook has to search for it: see `rip_is_known`. The vendor
    is used for nothing else here, since CPUID is answered by a hook.
    """
    cdef char *vendor = <char *>env
    cdef size_t at
    for at in range(OFF_ERROR_CODE, OFF_ERROR_CODE + 512, 4):
        if memcmp(vendor + at, b"GenuineIntel", 12) == 0:
            memcpy(vendor + at, b"Auth", 4)
            return 0
    raise RuntimeError("unicorn's CPU vendor was not found: this needs unicorn 2.1.4")

cdef struct MsrValue:           # uc_x86_msr
    uint32_t index
    uint64_t value

cdef struct MsrFields:          # byte offsets in Env of what these MSRs set
    size_t star
    size_t sysenter_cs
    size_t kernel_gs

cdef write_msr(uc_engine *uc, uint32_t index, uint64_t value):
    """Write an MSR of the CPU by the public interface, which checks no privilege."""
    cdef MsrValue msr
    msr.index = index
    msr.value = value
    uc_reg_write(uc, UC_X86_REG_MSR, &msr)

cdef size_t planted_msr(uc_engine *uc, Env *env, uint32_t index, uint64_t value) except? 0:
    """Byte offset in Env of the 64-bit field behind an MSR, found by writing it."""
    cdef size_t at
    write_msr(uc, index, value)
    for at in range(0, OFF_ERROR_CODE, 8):
        if (<uint64_t *>(<char *>env + at))[0] == value:
            (<uint64_t *>(<char *>env + at))[0] = 0
            return at
    raise RuntimeError(f"unicorn's MSR {index:#x} was not found: this needs unicorn 2.1.4")

cdef int msr_fields(uc_engine *uc, Env *env, MsrFields *out) except -1:
    """Find the MSRs that SYSRET, SYSEXIT and SWAPGS use. SYSENTER_CS is too short to look for; it
    lies before SYSENTER_ESP."""
    out.star = planted_msr(uc, env, 0xc0000081, 0x5252494e47312222)
    out.kernel_gs = planted_msr(uc, env, 0xc0000102, 0x00005252494e4733)
    out.sysenter_cs = planted_msr(uc, env, 0x175, 0x00005252494e4744) - 8
    return 0
