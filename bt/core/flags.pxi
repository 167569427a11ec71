# SPDX-License-Identifier: GPL-2.0-or-later
# RFLAGS: where Unicorn keeps its parts, and what of them the guest sees.

cdef extern from *:
    int __builtin_parity(unsigned int) noexcept nogil

cdef enum:                      # CCOp (QEMU target/i386/cpu.h); of bytes, then of 16, 32 and 64 bits
    CC_OP_ADDB = 6
    CC_OP_SUBB = 14
    CC_OP_LOGICB = 22
    CC_OP_INCB = 26
    CC_OP_DECB = 30

cdef int lazy_flags(Env *env) noexcept nogil:
    """The arithmetic flags behind the commonest kinds of cc_op; -1 behind the others.

    Unicorn keeps the last operation instead of its flags: cc_op the kind, cc_dst the result, cc_src
    the second operand (or the carry). Asking through the public interface costs as much as a trap's own work.
    """
    cdef uint32_t kind = env.cc_op - CC_OP_ADDB
    cdef int shift = 64 - (8 << (env.cc_op - CC_OP_ADDB & 3))
    # Operands moved up to 64 bits: signs and carries are in one place then, whatever the size.
    cdef uint64_t result = env.cc_dst << shift
    cdef uint64_t second = env.cc_src << shift
    cdef uint64_t first
    cdef int flags = 0
    if kind < 4:
        first = result - second
        flags = (result < second) | ((env.cc_dst - env.cc_src) ^ env.cc_src ^ env.cc_dst) & 0x10 | \
            ((~(first ^ second) & (first ^ result)) >> 63) << 11
    elif kind - (CC_OP_SUBB - CC_OP_ADDB) < 4:
        first = result + second
        flags = (first < second) | ((env.cc_dst + env.cc_src) ^ env.cc_src ^ env.cc_dst) & 0x10 | \
            (((first ^ second) & (first ^ result)) >> 63) << 11
    elif kind - (CC_OP_INCB - CC_OP_ADDB) < 8:
        # INC and DEC leave CF as it was, which is then what cc_src is.
        first = <uint64_t>1 << 63
        if kind < CC_OP_DECB - CC_OP_ADDB:
            flags = (env.cc_dst ^ (env.cc_dst - 1)) & 0x10
        else:
            flags = (env.cc_dst ^ (env.cc_dst + 1)) & 0x10
            first -= <uint64_t>1 << shift
        flags |= env.cc_src | (result == first) << 11
    elif kind - (CC_OP_LOGICB - CC_OP_ADDB) >= 4:
        return -1
    flags |= (result >> 63) << 7 | (result == 0) << 6
    return flags | (1 - __builtin_parity(env.cc_dst & 0xff)) << 2

cdef uint64_t real_flags(Vm *vm) noexcept nogil:
    cdef Env *env = vm.env
    cdef uint64_t flags = 0
    cdef int lazy
    if env.cc_op == CC_OP_EFLAGS:
        return (env.cc_src & FL_ARITH) | (<uint32_t>env.df & FL_DF) | env.eflags | 2
    lazy = lazy_flags(env)
    if lazy >= 0:
        return lazy | (<uint32_t>env.df & FL_DF) | env.eflags | 2
    uc_reg_read(vm.uc, UC_X86_REG_EFLAGS, &flags)
    return flags | 2

cdef uint64_t get_flags(Vm *vm) noexcept nogil:
    """RFLAGS as the guest must see it.

    In user mode the real IF and IOPL are the guest's. In the kernel they are 0, so that PUSHF
    stubs can add the virtual ones, which live on the per-vCPU page. (Engine hvm: always real.)
    """
    cdef uint64_t flags = real_flags(vm)
    if vm.cpl != 3 and vm.hvm == NULL:
        flags &= ~<uint64_t>(FL_IF | FL_IOPL)
        flags |= (vm.page[PG_VIF] & FL_IF) | (vm.page[PG_VIOPL] & FL_IOPL)
    return flags

cdef inline void set_arithmetic(Env *env, uint64_t flags) noexcept nogil:
    env.cc_src = flags & FL_ARITH
    env.cc_dst = 0
    env.cc_op = CC_OP_EFLAGS

# While emu_start runs, env.eflags has no arithmetic flags and no DF; it takes them from there when
# it begins and leaves them there when it ends (QEMU's x86_cpu_exec_enter and _exit). Everything
# here is for the state in between, and what is done outside of emu_start has the same.

cdef inline void flags_in(Vm *vm) noexcept nogil:
    """Before emu_start."""
    vm.env.eflags |= real_flags(vm) & (FL_ARITH | FL_DF)

cdef inline void flags_out(Vm *vm) noexcept nogil:
    """After emu_start."""
    cdef Env *env = vm.env
    set_arithmetic(env, env.eflags)
    env.df = -1 if env.eflags & FL_DF else 1
    env.eflags &= ~<uint64_t>(FL_ARITH | FL_DF)

cdef void set_flags(Vm *vm, uint64_t flags) noexcept nogil:
    """Give the guest ``flags`` (all bits taken as they are) at the current virtual CPL."""
    cdef Env *env = vm.env
    cdef uint64_t lost = FL_ARITH | FL_DF | FL_VM
    vm.page[PG_VIF] = flags & FL_IF
    vm.page[PG_VIOPL] = flags & FL_IOPL
    if vm.hvm != NULL:
        lost = FL_ARITH | FL_DF
    elif vm.cpl != 3 and (vm.translate or vm.pv != NULL):
        flags &= ~<uint64_t>(FL_IF | FL_IOPL)
    elif vm.cpl != 3:
        # Engine trap: IOPL 0 keeps CLI and STI trapping; IF is what PUSHF will show.
        flags &= ~<uint64_t>FL_IOPL
    set_arithmetic(env, flags)
    env.df = -1 if flags & FL_DF else 1
    env.eflags = (flags & ~lost) | 2

cdef inline bint interrupts_on(Vm *vm) noexcept nogil:
    if vm.hvm != NULL:
        return vm.env.eflags & FL_IF and not vm.env.hflags & HF_INHIBIT_IRQ
    if vm.cpl == 3:
        return (vm.env.eflags & FL_IF) != 0
    return (vm.page[PG_VIF] & FL_IF) != 0

cdef inline int iopl(Vm *vm) noexcept nogil:
    if vm.cpl == 3 or vm.hvm != NULL:
        return (vm.env.eflags >> 12) & 3
    return (vm.page[PG_VIOPL] >> 12) & 3
