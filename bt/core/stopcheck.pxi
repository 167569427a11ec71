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

cdef extern from *:
    """
    /* Exported by libunicorn though not declared in its headers (qemu/tcg/tcg.c, tcg-op.c). */
    extern void *tcg_temp_new_internal_x86_64(void *tcg, int type, unsigned char local);
    extern void tcg_temp_free_internal_x86_64(void *tcg, void *temp);
    extern void *gen_new_label_x86_64(void *tcg);
    extern void tcg_gen_op1_x86_64(void *tcg, int op, unsigned long a);
    extern void tcg_gen_op3_x86_64(void *tcg, int op, unsigned long a, unsigned long b,
                                   unsigned long c);
    extern void tcg_gen_brcondi_i32_x86_64(void *tcg, int cond, void *temp, int value, void *label);
    """
    void *tcg_temp_new "tcg_temp_new_internal_x86_64" (void *tcg, int type, uint8_t local) nogil
    void tcg_temp_free "tcg_temp_free_internal_x86_64" (void *tcg, void *temp) nogil
    void *gen_new_label "gen_new_label_x86_64" (void *tcg) nogil
    void tcg_gen_op1 "tcg_gen_op1_x86_64" (void *tcg, int op, uintptr_t a) nogil
    void tcg_gen_op3 "tcg_gen_op3_x86_64" (void *tcg, int op, uintptr_t a, uintptr_t b,
                                           uintptr_t c) nogil
    void tcg_gen_brcondi "tcg_gen_brcondi_i32_x86_64" (void *tcg, int cond, void *temp, int value,
                                                       void *label) nogil

cdef struct TcgHead:            # the head of TCGContext
    void *pools[5]
    int32_t nb_labels
    int32_t nb_globals
    int32_t nb_temps
    int32_t nb_indirects
    int32_t nb_ops              # set to 0 at the start of a block; used for tcg_op_buf_full alone

cdef enum:
    TCG_TYPE_I32 = 0
    TCG_COND_GE = 3
    INDEX_SET_LABEL = 1         # TCGOpcode: the place in tcg/tcg-opc.h
    INDEX_LD_I32 = 13

cdef struct TcgTemp:            # TCGTemp (tcg/tcg.h)
    uint64_t kinds
    uint64_t val
    void *mem_base
    int64_t mem_offset
    const char *name
    uint64_t state
    void *state_ptr

cdef void *find_tcg_env(TcgHead *tcg) noexcept nogil:
    """The global that stands for the pointer to CPUX86State; NULL if there is none of its name.

    Only while nothing of a block is emitted: a new temporary is behind all others then, and so says
    where they begin.
    """
    cdef TcgTemp temp
    cdef char name[4]
    cdef TcgTemp *last = <TcgTemp *>tcg_temp_new(tcg, TCG_TYPE_I32, 0)
    cdef TcgTemp *first = last - (tcg.nb_temps - 1)
    cdef int i
    tcg_temp_free(tcg, last)
    for i in range(tcg.nb_globals):
        if peek(<uint64_t>(first + i), &temp, sizeof(temp)) and \
                peek(<uint64_t>temp.name, name, 4) and memcmp(name, b"env", 4) == 0:
            return first + i
    return NULL

cdef void begin_block(Vm *vm, uint64_t pc) noexcept nogil:
    """Nothing of the block at ``pc`` is emitted yet: jump around the call that comes next."""
    cdef TcgHead *tcg = <TcgHead *>vm.tcg
    cdef void *word
    vm.past_stop_call = NULL
    if not vm.stops_in_line or fold_hooked(vm, pc):
        return
    if vm.tcg_env == NULL:
        vm.tcg_env = find_tcg_env(tcg)
        if vm.tcg_env == NULL:
            vm.stops_in_line = 0        # `put_stops_in_line` complains
            return
    word = tcg_temp_new(tcg, TCG_TYPE_I32, 0)
    vm.past_stop_call = gen_new_label(tcg)
    tcg_gen_op3(tcg, INDEX_LD_I32, <uintptr_t>word, <uintptr_t>vm.tcg_env,
                <uintptr_t>(<char *>vm.stops.high - 2 - <char *>vm.env))
    # A TCGv is a TCGTemp by its distance from the TCGContext.
    tcg_gen_brcondi(tcg, TCG_COND_GE, <void *>(<char *>word - <char *>tcg), 0,
                    vm.past_stop_call)
    tcg_temp_free(tcg, word)

cdef void begin_instructions(Vm *vm) noexcept nogil:
    """The call is emitted: the jump leads here."""
    (<uint32_t *>vm.past_stop_call)[0] |= 1         # TCGLabel.present
    tcg_gen_op1(vm.tcg, INDEX_SET_LABEL, <uintptr_t>vm.past_stop_call)
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
        if vm.tcg_env == NULL or test_vector != 3 or vm.env.regs[RCX] != 0:
            raise RuntimeError("unicorn's blocks do not begin as those of 2.1.4")
        # in al, 0x80, which asks for a stop ; jmp l ; l: int3
        err = test_run(vm, b"\xe4\x80\xeb\x00\xcc", 3)
        if err != ERR_STOPPED or test_vector != -1 or vm.env.eip != 4:
            raise RuntimeError("unicorn's blocks do not stop as those of 2.1.4")
    finally:
        memset(vm.window, 0, 512)
        uc_ctl_flush_tb(vm.uc)
        uc_ctl_flush_tlb(vm.uc)
        uc_hook_del(vm.uc, interrupts)
        uc_hook_del(vm.uc, fills)
        uc_hook_del(vm.uc, inputs)
    return 0

