# SPDX-License-Identifier: GPL-2.0-or-later
# Hooks: how a user's Python function sees an exit, and changes what comes of it.
#
# vm.hooked has one byte an exit. It is looked at where the exit is dealt with anyway; while it is
# zero nothing here runs. Most exits call twice, before and after they are dealt with. Before, a
# function may change registers and memory, say that it has dealt with the exit itself (skip), or
# that the guest gets an exception instead (inject). Where the CPU is in the middle of an
# instruction, not all of that can be had; the limits say what cannot. An exit that is only news
# (a page became code, a block was scanned) calls once.
#
# Hooks do not nest: what a hook's own accesses cause calls no hook.

cdef enum:
    HOOK_BEFORE = 1
    HOOK_AFTER = 2

cdef enum:                      # what a hook wants done
    HOOK_GO = 0
    HOOK_SKIP = 1
    HOOK_INJECT = 2
    HOOK_FAILED = 3             # it raised

cdef enum:                      # what it cannot have
    LIMIT_NO_INJECT = 1
    LIMIT_NO_SKIP = 2
    LIMIT_NO_REGISTERS = 4      # changes would be lost: the CPU has them in its own hands
    LIMIT_NEWS = 7

cdef enum:
    SKIPPED = -1                # a row for `emulate`: nothing to do any more

cdef int row_cpuid               # filled in by vcpu.pyx at import

cdef struct Answer:
    int action
    uint64_t value              # a result in place of the real one; HOOK_INJECT: the vector
    uint32_t error

cdef void python_hook(Vm *vm, int number, int phase, uint64_t rip, const uint8_t *code, int length,
                      const uint64_t *args, int n_args, int limits,
                      Answer *answer) noexcept with gil:
    """Call the hook. Faults of its own memory accesses do not disturb the one being dealt with."""
    cdef int i
    cdef int vector = vm.fault_vector
    cdef uint32_t error = vm.fault_error
    cdef uint64_t gva = vm.fault_gva
    answer.action = HOOK_GO
    answer.value = 0
    answer.error = 0
    if vm.in_hook or not vm.running:
        return
    vm.in_hook = 1
    vm.locked = limits & LIMIT_NO_REGISTERS
    try:
        action, value, code_of_error = (<Vcpu>vm.owner).exit_hook(
            number, phase, rip, vm.cpl, code_bits(vm), vm.hardware_code,
            (<const char *>code)[:length] if length else b"",
            tuple([args[i] for i in range(n_args)]), limits)
        answer.value = value
        answer.error = code_of_error
        answer.action = action
    except BaseException as raised:
        answer.action = HOOK_FAILED
        python_failed(vm, raised)
    vm.in_hook = 0
    vm.locked = 0
    vm.fault_vector = vector
    vm.fault_error = error
    vm.fault_gva = gva
    if vm.python_wants:
        vm.kick = 1
        leave(vm)

cdef inline void note(Vm *vm, int pseudo, uint64_t a, uint64_t b) noexcept nogil:
    """Count a pseudo-exit that is only news."""
    vm.exits[pseudo] += 1
    if vm.hooked[ROWS + pseudo]:
        note_hook(vm, pseudo, a, b)

cdef void note_hook(Vm *vm, int pseudo, uint64_t a, uint64_t b) noexcept nogil:
    cdef uint64_t args[2]
    cdef Answer answer
    args[0] = a
    args[1] = b
    python_hook(vm, ROWS + pseudo, HOOK_BEFORE, vm.env.eip, NULL, 0, args, 2, LIMIT_NEWS, &answer)

cdef bint settle(Vm *vm, Answer *answer, uint64_t rip, uint64_t after) noexcept nogil:
    """Act on an answer. True: deal with the exit; env.eip is ``after``. False: it is dealt with."""
    if answer.action == HOOK_INJECT:
        vm.env.eip = rip
        raise_exception(vm, <int>(answer.value & 31), answer.error)
        return False
    if answer.action == HOOK_FAILED:
        vm.env.eip = rip        # not done: the machine can be looked at, and run on
        return False
    if vm.env.eip != rip:
        return False            # the hook sent the guest elsewhere
    vm.env.eip = after
    return answer.action == HOOK_GO

cdef bint event_before(Vm *vm, int number, uint64_t rip, uint64_t after, uint64_t a,
                       uint64_t b) noexcept nogil:
    """Hook on an event of the instruction at ``rip``; see `settle`."""
    cdef uint64_t args[2]
    cdef Answer answer
    args[0] = a
    args[1] = b
    vm.env.eip = rip
    answer.action = HOOK_GO
    if vm.hooked[number] & HOOK_BEFORE:
        python_hook(vm, number, HOOK_BEFORE, rip, NULL, 0, args, 2, 0, &answer)
    return settle(vm, &answer, rip, after)

cdef void event_after(Vm *vm, int number, uint64_t rip, uint64_t a, uint64_t b) noexcept nogil:
    cdef uint64_t args[2]
    cdef Answer answer
    args[0] = a
    args[1] = b
    if vm.hooked[number] & HOOK_AFTER and not vm.stop:
        python_hook(vm, number, HOOK_AFTER, rip, NULL, 0, args, 2,
                    LIMIT_NO_INJECT | LIMIT_NO_SKIP, &answer)

cdef bint exception_before(Vm *vm, int *vector, uint32_t *error) noexcept nogil:
    """Hook on an exception for the guest, which may become another. False: it gets none."""
    cdef uint64_t args[2]
    cdef uint64_t rip = vm.env.eip
    cdef int number = ROWS + (vector[0] & 31)
    cdef Answer answer
    if not vm.hooked[number] & HOOK_BEFORE:
        return True
    args[0] = error[0]
    args[1] = vm.fault_gva if vector[0] == EX_PF else 0
    python_hook(vm, number, HOOK_BEFORE, rip, NULL, 0, args, 2, 0, &answer)
    if answer.action == HOOK_INJECT:
        vector[0] = <int>(answer.value & 31)
        error[0] = answer.error
        return True
    return answer.action == HOOK_GO and vm.env.eip == rip

# Instructions ---------------------------------------------------------------------------------

cdef inline void note_registers(Vm *vm, uint64_t *before) noexcept nogil:
    """What CPUID, RDMSR and WRMSR take; the instruction may overwrite it."""
    before[0] = vm.env.regs[RAX]
    before[1] = vm.env.regs[RCX]
    before[2] = vm.env.regs[RDX]

cdef bint row_before(Vm *vm, int row, uint64_t rip, const uint8_t *code, int length,
                     uint64_t *before) noexcept nogil:
    cdef uint64_t after = vm.env.eip
    cdef Answer answer
    if not vm.hooked[row] & HOOK_BEFORE:
        return True
    vm.env.eip = rip
    python_hook(vm, row, HOOK_BEFORE, rip, code, length, before, 3, 0, &answer)
    return settle(vm, &answer, rip, after)

cdef void row_after(Vm *vm, int row, const uint8_t *code, int length,
                    uint64_t *before) noexcept nogil:
    cdef Answer answer
    if not vm.stop or vm.stop == STOP_HLT:
        python_hook(vm, row, HOOK_AFTER, vm.rip, code, length, before, 3,
                    LIMIT_NO_INJECT | LIMIT_NO_SKIP, &answer)

cdef void cpuid_exit(Vm *vm, int limits) noexcept nogil:
    """CPUID that came by another way than a site. vm.rip is at it."""
    cdef uint64_t before[3]
    cdef Answer answer
    cdef int hooked = vm.hooked[row_cpuid]
    note_registers(vm, before)
    answer.action = HOOK_GO
    if hooked & HOOK_BEFORE:
        python_hook(vm, row_cpuid, HOOK_BEFORE, vm.rip, b"\x0f\xa2", 2, before, 3, limits, &answer)
    if answer.action != HOOK_GO:
        return
    answer_cpuid(vm)
    if hooked & HOOK_AFTER:
        python_hook(vm, row_cpuid, HOOK_AFTER, vm.rip, b"\x0f\xa2", 2, before, 3,
                    LIMIT_NO_INJECT | LIMIT_NO_SKIP, &answer)

# Ports and hypercalls: the answer may be a result ---------------------------------------------

cdef bint port_hook(Vm *vm, int number, int phase, uint32_t port, int size,
                    uint32_t *value) noexcept nogil:
    """False: the access is dealt with. A hook that gives a result (SKIP) sets ``value``."""
    cdef uint64_t args[3]
    cdef Answer answer
    if not vm.hooked[number] & phase:
        return True
    args[0] = port
    args[1] = size
    args[2] = value[0]
    python_hook(vm, number, phase, vm.rip, NULL, 0, args, 3, LIMIT_NO_INJECT, &answer)
    if answer.action == HOOK_SKIP:
        value[0] = <uint32_t>answer.value
    return answer.action == HOOK_GO

cdef uint32_t port_read_hook(Vm *vm, uint32_t port, int size) noexcept nogil:
    cdef uint32_t value = <uint64_t>0xffffffff
    if port_hook(vm, HOOK_PORT_READ, HOOK_BEFORE, port, size, &value):
        value = port_read(vm, port, size)
        port_hook(vm, HOOK_PORT_READ, HOOK_AFTER, port, size, &value)
    return value

cdef bint hypercall_before(Vm *vm, uint64_t *args, int n_args, int64_t *result) noexcept nogil:
    """``args``: the number, then the arguments. False: not to be made, ``result`` is given."""
    cdef Answer answer
    if not vm.hooked[HOOK_HYPERCALL] & HOOK_BEFORE:
        return True
    python_hook(vm, HOOK_HYPERCALL, HOOK_BEFORE, vm.rip, NULL, 0, args, n_args,
                LIMIT_NO_INJECT, &answer)
    result[0] = <int64_t>answer.value
    return answer.action == HOOK_GO

cdef void hypercall_after(Vm *vm, uint64_t *args, int n_args, int64_t *result) noexcept nogil:
    cdef uint64_t with_result[8]
    cdef Answer answer
    if vm.hooked[HOOK_HYPERCALL] & HOOK_AFTER:
        memcpy(with_result, args, n_args * 8)
        with_result[n_args] = <uint64_t>result[0]
        python_hook(vm, HOOK_HYPERCALL, HOOK_AFTER, vm.rip, NULL, 0, with_result, n_args + 1,
                    LIMIT_NO_INJECT | LIMIT_NO_SKIP, &answer)
        if answer.action == HOOK_SKIP:
            result[0] = <int64_t>answer.value

# Memory ---------------------------------------------------------------------------------------

cdef bint fill_before(Vm *vm, uint64_t gva, int access) noexcept nogil:
    """Hook on a TLB miss. False: refused, vm.fault_* say with what."""
    cdef uint64_t args[2]
    cdef Answer answer
    if not vm.hooked[ROWS + EXIT_TLB_FILL] & HOOK_BEFORE:
        return True
    args[0] = gva
    args[1] = access
    python_hook(vm, ROWS + EXIT_TLB_FILL, HOOK_BEFORE, vm.env.eip, NULL, 0, args, 2,
                LIMIT_NO_SKIP | LIMIT_NO_REGISTERS, &answer)
    if answer.action != HOOK_INJECT:
        return answer.action != HOOK_FAILED
    vm.fault_vector = <int>(answer.value & 31)
    vm.fault_error = answer.error
    vm.fault_gva = gva
    return False

cdef void fill_after(Vm *vm, uint64_t gva, int access, uint64_t gpa) noexcept nogil:
    cdef uint64_t args[3]
    cdef Answer answer
    args[0] = gva
    args[1] = access
    args[2] = gpa & ~<uint64_t>0xfff
    python_hook(vm, ROWS + EXIT_TLB_FILL, HOOK_AFTER, vm.env.eip, NULL, 0, args, 3, LIMIT_NEWS,
                &answer)

cdef bint memory_hook(Vm *vm, int pseudo, int phase, uint64_t gpa, int size, int access,
                      uint64_t *value) noexcept nogil:
    """An access of a device or of nothing. False: dealt with; a result is in ``value``."""
    cdef uint64_t args[4]
    cdef Answer answer
    if not vm.hooked[ROWS + pseudo] & phase:
        return True
    args[0] = gpa
    args[1] = size
    args[2] = access
    args[3] = value[0]
    python_hook(vm, ROWS + pseudo, phase, vm.env.eip, NULL, 0, args, 4,
                LIMIT_NO_INJECT | LIMIT_NO_REGISTERS, &answer)
    if answer.action == HOOK_SKIP:
        value[0] = answer.value
    return answer.action == HOOK_GO
