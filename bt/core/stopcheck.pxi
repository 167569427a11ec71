# SPDX-License-Identifier: GPL-2.0-or-later
# A cheaper check for stops at the start of every block.
#
# Unicorn's blocks begin with a call of a function that looks at one word (CPUState's
# icount_decr, by which a stop is asked for) and nearly always returns: 8 % of a boot of Linux. So a
# load of the word and a jump around the call are put in front of it, as QEMU has them (gen_tb_start
# in include/exec/gen-icount.h). Nothing else changes: a vCPU that shall stop still comes to the
# call, at the same place, and the function does what it did.
#
# There is a place to put them because Unicorn looks up a block's first address twice (see
# temporaries.pxi for that look-up): before it has emitted anything of the block, which is where the
# load and the jump go, and before its first instruction, which is where the jump leads. What it
# emits in between is the call, and before it that of a hook on blocks if there is one at this
# address; such a block is left alone.

cdef void begin_block(Vm *vm, uint64_t pc) noexcept nogil:
    """Nothing of the block at ``pc`` is emitted yet: jump around the call that comes next."""
    cdef TcgHead *tcg = <TcgHead *>vm.tcg
    cdef TcgTemp *word
    cdef TcgOp *op
    if vm.tcg_env == NULL:
        vm.tcg_env = find_global(tcg, b"env", 4)
        vm.tcg_cc_op = find_global(tcg, b"cc_op", 6)
    if not vm.stops_in_line or fold_hooked(vm, pc):
        return
    word = tcg_temp_new(tcg, TCG_TYPE_I32, 0)
    vm.past_stop_call = gen_new_label(tcg)
    op = tcg_emit_op(tcg, OP_LD_I32)
    op.args[0] = <uintptr_t>word
    op.args[1] = <uintptr_t>vm.tcg_env
    op.args[2] = <uintptr_t>(<char *>vm.stops.high - 2 - <char *>vm.env)
    # A TCGv is a TCGTemp by its distance from the TCGContext.
    tcg_gen_brcondi(tcg, TCG_COND_GE, <void *>(<char *>word - <char *>tcg), 0,
                    vm.past_stop_call)
    tcg_temp_free(tcg, word)

cdef void begin_instructions(Vm *vm) noexcept nogil:
    """The call is emitted: the jump leads here."""
    place_label(vm.tcg, vm.past_stop_call)
    vm.past_stop_call = NULL

cdef uint32_t on_test_in_stop(uc_engine *uc, uint32_t port, int size, void *data) noexcept nogil:
    stop_cpu(<Vm *>data)
    return 0

cdef int put_stops_in_line(Vm *vm) except -1:
    """Have blocks look for stops themselves from now on, and see them do it; else RuntimeError."""
    cdef uc_hook interrupts, fills, inputs
    cdef int err
    uc_hook_add(vm.uc, &interrupts, UC_HOOK_INTR, <void *>on_test_interrupt, vm, 1, 0)
    uc_hook_add(vm.uc, &fills, UC_HOOK_TLB_FILL, <void *>on_test_fill, vm, 1, 0)
    uc_hook_add(vm.uc, &inputs, UC_HOOK_INSN, <void *>on_test_in_stop, vm, 1, 0, UC_X86_INS_IN)
    vm.stops_in_line = 1
    try:
        # mov ecx, 9 ; l: dec ecx ; jnz l ; int3
        test_run(vm, b"\xb9\x09\x00\x00\x00\xff\xc9\x75\xfc\xcc", 3)
        if test_vector != 3 or vm.env.regs[RCX] != 0:
            raise RuntimeError("unicorn's blocks do not begin as those of 2.1.4")
        # in al, 0x80, which asks for a stop ; jmp l ; l: int3
        err = test_run(vm, b"\xe4\x80\xeb\x00\xcc", 3)
        if err != ERR_STOPPED or test_vector != -1 or vm.env.eip != 4:
            raise RuntimeError("unicorn's blocks do not stop as those of 2.1.4")
    finally:
        test_clean(vm)
        uc_hook_del(vm.uc, interrupts)
        uc_hook_del(vm.uc, fills)
        uc_hook_del(vm.uc, inputs)
    return 0

