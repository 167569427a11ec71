# SPDX-License-Identifier: GPL-2.0-or-later
# A call of a function of ours, out of a block and in front of an instruction.
#
# All that the function sees of the vCPU is in memory by then, lazy flags included. RIP is not: the
# function gets the address of the instruction, and says where to go on by env.eip.

cdef inline TcgOp *op_before(TcgOp *op) noexcept nogil:
    return <TcgOp *>(<char *>op.link[1] - sizeof(uintptr_t))

cdef inline bint callable_here(Vm *vm) noexcept nogil:
    """Whether an instruction of the block under translation may be replaced by a call: not where a
    single step, RF or an interrupt shadow has to be seen to, and in 64-bit code only.
    """
    return vm.env.hflags & HF_CS64 and not vm.env.hflags & HF_INHIBIT_IRQ and \
        not vm.env.eflags & (FL_TF | FL_RF)

cdef bint emit_call(Vm *vm, uint64_t pc, void *function, uint64_t last,
                    TcgTemp *result) noexcept nogil:
    """Call ``function(vm, pc, last)`` before the instruction at ``pc``, which comes next.

    result: a 32-bit temporary for what it returns, or NULL. False: nothing was put in.
    """
    cdef void *tcg = vm.tcg
    cdef TcgOp *op
    cdef TcgOp *start
    cdef int i, at = 0
    cdef uint64_t args[3]
    # The kind of lazy flags, which the translator knows and has perhaps not stored: it is written
    # down in the mark that begins each instruction, together with the address. 0: it is stored.
    op = tcg_emit_op(tcg, OP_MOVI_I32)
    start = op_before(op)
    if start.head & 0xff == OP_SET_LABEL:
        start = op_before(start)
    if start.args[0] == pc and start.args[1] != 0:
        op.args[0] = <uintptr_t>vm.tcg_cc_op
        op.args[1] = start.args[1]
    else:
        op.args[0] = <uintptr_t>tcg_temp_new(tcg, TCG_TYPE_I32, 0)
        op.args[1] = 0
        if start.args[0] != pc:
            return False
    args[0] = <uint64_t>vm
    args[1] = pc
    args[2] = last
    for i in range(3):          # a TCGv is a TCGTemp by its distance from the TCGContext
        args[i] = <uint64_t>tcg + <uint64_t>tcg_const(tcg, <int64_t>args[i])
    op = tcg_emit_op(tcg, OP_CALL)
    op.head |= 3 << 8           # arguments
    if result != NULL:
        op.head |= 1 << 12
        op.args[0] = <uintptr_t>result
        at = 1
    for i in range(3):
        op.args[at + i] = <uintptr_t>args[i]
    op.args[at + 3] = <uintptr_t>function
    op.args[at + 4] = 0         # reads and writes all registers
    return True

cdef void emit_try(Vm *vm, uint64_t pc, void *function) noexcept nogil:
    """Likewise (``last`` is 0), and go on at env.eip if it returns 1; if 0, with the instruction as
    Unicorn has it.
    """
    cdef TcgHead *tcg = <TcgHead *>vm.tcg
    cdef TcgTemp *done
    cdef void *label
    if function == NULL or not callable_here(vm):
        return
    done = tcg_temp_new(tcg, TCG_TYPE_I32, 0)
    if emit_call(vm, pc, function, 0, done):
        label = gen_new_label(tcg)
        tcg_gen_brcondi(tcg, TCG_COND_EQ, <void *>(<char *>done - <char *>tcg), 0, label)
        tcg_gen_goto_next(tcg)
        place_label(tcg, label)
    tcg_temp_free(tcg, done)

cdef int test_tries

cdef int on_test_try(Vm *vm, uint64_t rip, uint64_t last) noexcept nogil:
    """Does the instruction if ZF is set, by going to 8."""
    global test_tries
    test_tries += rip == 2
    if not real_flags(vm) & FL_ZF:
        return 0
    vm.env.eip = 8
    return 1

cdef int tries_check(Vm *vm) except -1:
    """See that IRETQ, RDTSC and RDTSCP can call ours first; else RuntimeError."""
    global test_tries
    cdef uc_hook interrupts, fills
    test_tries = 0
    uc_hook_add(vm.uc, &interrupts, UC_HOOK_INTR, <void *>on_test_interrupt, vm, 1, 0)
    uc_hook_add(vm.uc, &fills, UC_HOOK_TLB_FILL, <void *>on_test_fill, vm, 1, 0)
    vm.iretq_call = vm.rdtsc_call = <void *>on_test_try
    try:
        for code in (b"\x48\xcf", b"\x0f\x31", b"\x0f\x01\xf9"):
            # cmp al, al ; the instruction ; nops ; 8: int3. Then cmp ah, al, and Unicorn's own,
            # which is #GP: a null CS on the stack, CR4.TSD.
            vm.env.regs[RAX] = 0x5200
            vm.env.regs[RSP] = 0x1000
            for compare, vector, rip in ((b"\x38\xc0", 3, 9), (b"\x38\xc4", EX_GP, 2)):
                test_run(vm, compare + code + b"\x90" * (6 - len(code)) + b"\xcc", 1)
                if test_vector != vector or vm.env.eip != <uint64_t>rip:
                    raise RuntimeError("unicorn does not translate IRETQ and RDTSC as 2.1.4 does")
        if test_tries != 6:
            raise RuntimeError("unicorn does not translate IRETQ and RDTSC as 2.1.4 does")
    finally:
        vm.iretq_call = vm.rdtsc_call = NULL
        test_clean(vm)
        uc_hook_del(vm.uc, interrupts)
        uc_hook_del(vm.uc, fills)
    return 0
