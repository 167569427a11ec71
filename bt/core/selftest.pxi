# SPDX-License-Identifier: GPL-2.0-or-later
# Proof, at every start, that the private places of layout.pxi are where we think.

cdef int test_vector
cdef int test_is_int
cdef int test_error

cdef void on_test_interrupt(uc_engine *uc, uint32_t vector, void *data) noexcept nogil:
    global test_vector, test_is_int, test_error
    cdef Vm *vm = <Vm *>data
    test_vector = vector
    test_is_int = env_int(vm.env, OFF_IS_INT)[0]
    test_error = env_int(vm.env, OFF_ERROR_CODE)[0]
    env_int(vm.env, OFF_OLD_EXCEPTION)[0] = -1
    if vector == 0x100 + VMEXIT_VINTR:          # or it comes again, before the stop is seen
        (<uint32_t *>(vm.cpu + CPU_INTERRUPT_REQUEST))[0] = 0
    uc_emu_stop(uc)

cdef bint on_test_fill(uc_engine *uc, uint64_t gva, int kind, uc_tlb_entry *entry,
                       void *data) noexcept nogil:
    """Identity for the window's first pages, nothing else."""
    if gva >= WINDOW_SIZE:
        return False
    entry.paddr = PA_WINDOW + gva
    entry.perms = UC_PROT_READ | (UC_PROT_EXEC if gva < 0x1000 else UC_PROT_WRITE)
    return True

cdef uint8_t *test_before
cdef uint8_t *test_after

cdef void on_test_stop(uc_engine *uc, void *data) noexcept nogil:
    """Ask for a stop, and keep CPUState as it is without and with that."""
    memcpy(test_before, (<Vm *>data).cpu, CPU_SPAN)
    uc_emu_stop(uc)
    memcpy(test_after, (<Vm *>data).cpu, CPU_SPAN)

cdef void on_test_stop_cpu(uc_engine *uc, void *data) noexcept nogil:
    stop_cpu(<Vm *>data)

cdef int stop_check(Vm *vm) except -1:
    """Find what a stop is made of, and see `stop_cpu` make one. RuntimeError if it does not.

    The program is SYSCALL, whose hook stops, and an endless loop.
    """
    global test_before, test_after
    cdef uc_hook hook
    test_before = <uint8_t *>malloc(2 * CPU_SPAN)
    if test_before == NULL:
        raise MemoryError
    test_after = test_before + CPU_SPAN
    try:
        uc_hook_add(vm.uc, &hook, UC_HOOK_INSN, <void *>on_test_stop, vm, 1, 0, UC_X86_INS_SYSCALL)
        test_run(vm, b"\x0f\x05\xeb\xfe", 3)
        uc_hook_del(vm.uc, hook)
        stop_words(vm.cpu, test_before, test_after, &vm.stops)
    finally:
        free(test_before)
    # Of struct uc_struct: uint64_t invalid_addr; int invalid_error.
    vm.stops.error = <int32_t *>(<char *>vm.uc + vm.invalid_addr + 8)
    uc_hook_add(vm.uc, &hook, UC_HOOK_INSN, <void *>on_test_stop_cpu, vm, 1, 0, UC_X86_INS_SYSCALL)
    if test_run(vm, b"\x0f\x05\xeb\xfe", 3) != ERR_STOPPED or vm.env.eip != 2:
        raise RuntimeError("unicorn does not stop as 2.1.4 does")
    uc_hook_del(vm.uc, hook)
    return 0

cdef uint64_t test_syscall_rip
cdef uint64_t test_in_rip

cdef void on_test_syscall(uc_engine *uc, void *data) noexcept nogil:
    global test_syscall_rip
    test_syscall_rip = (<Vm *>data).env.eip
    (<Vm *>data).skip_sync[0] = 1

cdef uint32_t on_test_in(uc_engine *uc, uint32_t port, int size, void *data) noexcept nogil:
    global test_in_rip
    test_in_rip = (<Vm *>data).env.eip
    return 0

cdef uint64_t TEST_FAULT = 0x123456789abc

cdef void test_mode(Vm *vm, int cpl) noexcept nogil:
    """Long-mode flat segments at a real CPL, by the same writes the core uses."""
    cdef Seg *cs = &vm.env.segs[R_CS]
    cdef Seg *ss = &vm.env.segs[R_SS]
    cs.selector = ss.selector = 0x10 | cpl
    cs.base = ss.base = 0
    cs.limit = ss.limit = <uint64_t>0xffffffff
    cs.flags = FLAT_CODE | D_L | (cpl << 13)
    ss.flags = FLAT_DATA | (cpl << 13)
    vm.env.hflags = (vm.env.hflags & ~<uint32_t>HF_CPL) | cpl | HF_LMA | HF_CS64 | HF_CS32 | \
        HF_SS32 | HF_PE
    vm.env.cr[0] = CR0_PE | CR0_ET
    vm.env.cr[4] = CR4_PAE | CR4_TSD | CR4_FSGSBASE
    vm.env.eflags = 2
    vm.env.cc_op = CC_OP_EFLAGS
    vm.env.cc_src = 0
    vm.env.df = 1

cdef int test_run(Vm *vm, bytes code, int cpl) except -2:
    global test_vector, test_is_int, test_error
    memset(vm.window, 0x90, 64)
    memcpy(vm.window, <const char *>code, len(code))
    uc_ctl_flush_tb(vm.uc)
    uc_ctl_flush_tlb(vm.uc)
    test_mode(vm, cpl)
    test_vector = test_is_int = test_error = -1
    return uc_emu_start(vm.uc, 0, 0, 0, 0)

cdef void test_clean(Vm *vm) noexcept nogil:
    """Nothing is left of a test's code."""
    memset(vm.window, 0, 512)
    uc_ctl_flush_tb(vm.uc)
    uc_ctl_flush_tlb(vm.uc)

cdef int layout_check(Vm *vm) except -1:
    """Show each private field by its effect; RuntimeError names the first that is wrong."""
    cdef uc_hook interrupts, fills, syscalls, inputs
    cdef uint8_t head[UC_STRUCT_SCAN]
    cdef size_t off
    cdef size_t flag = no_exit_offset(vm.uc)
    (<char *>vm.uc)[flag] = 1
    vm.skip_sync = <uint8_t *>vm.uc + skip_sync_offset(vm.uc)
    uc_hook_add(vm.uc, &interrupts, UC_HOOK_INTR, <void *>on_test_interrupt, vm, 1, 0)
    uc_hook_add(vm.uc, &fills, UC_HOOK_TLB_FILL, <void *>on_test_fill, vm, 1, 0)
    try:
        if (<uint64_t *>(<char *>vm.env + OFF_EFER))[0] & EFER_LMA == 0:
            raise RuntimeError("unicorn's EFER is not where 2.1.4 has it")
        # int3: a software interrupt, RIP behind it
        test_run(vm, b"\xcc", 1)
        if test_vector != 3 or test_is_int != 1 or vm.env.eip != 1:
            raise RuntimeError("unicorn's exception_is_int or RIP is not where 2.1.4 has it")
        # hlt in ring 1 and 3: #GP(0) there, so the privilege we wrote is the privilege that runs
        for cpl in (1, 3):
            test_run(vm, b"\xf4", cpl)
            if test_vector != 13 or test_is_int != 0 or test_error != 0 or vm.env.eip != 0:
                raise RuntimeError("unicorn's privilege level is not where 2.1.4 has it")
        # mov ax, 0x28 ; mov ds, ax with an empty GDT: #GP(0x28) is the error code's place
        test_run(vm, b"\x66\xb8\x28\x00\x8e\xd8", 1)
        if test_vector != 13 or test_error != 0x28:
            raise RuntimeError("unicorn's error_code is not where 2.1.4 has it")
        # three of them in a row: clearing old_exception keeps them #GPs
        for _ in range(3):
            test_run(vm, b"\x66\xb8\x28\x00\x8e\xd8", 1)
        if test_vector != 13:
            raise RuntimeError("unicorn's old_exception is not where 2.1.4 has it")
        # mov rax, [TEST_FAULT]: the refused address is kept in the engine
        test_run(vm, b"\x48\xa1" + int(TEST_FAULT).to_bytes(8, "little"), 1)
        peek(<uint64_t>vm.uc, head, UC_STRUCT_SCAN)
        for off in range(0, UC_STRUCT_SCAN - 8, 8):
            if (<uint64_t *>(head + off))[0] == TEST_FAULT:
                vm.invalid_addr = off
                break
        else:
            raise RuntimeError("unicorn's invalid_addr was not found")
        # nop ; in al, 0x80 ; int3, then the same behind a SYSCALL whose hook turns the search for
        # RIP off: the SYSCALL's own is right once more, the IN's is the start of its block.
        uc_hook_add(vm.uc, &syscalls, UC_HOOK_INSN, <void *>on_test_syscall, vm, 1, 0,
                    UC_X86_INS_SYSCALL)
        uc_hook_add(vm.uc, &inputs, UC_HOOK_INSN, <void *>on_test_in, vm, 1, 0, UC_X86_INS_IN)
        try:
            test_run(vm, b"\x90\xe4\x80\xcc", 3)
            if test_in_rip != 1:
                raise RuntimeError("unicorn does not find RIP for a hook as 2.1.4 does")
            test_run(vm, b"\x0f\x05\x90\x0f\x05\x90\xe4\x80\xcc", 3)
            if test_syscall_rip != 3 or test_in_rip != 5:
                raise RuntimeError("unicorn's skip_sync_pc_on_exit is not where 2.1.4 has it")
        finally:
            vm.skip_sync[0] = 0
            uc_hook_del(vm.uc, syscalls)
            uc_hook_del(vm.uc, inputs)
        stop_check(vm)
    finally:
        uc_hook_del(vm.uc, interrupts)
        uc_hook_del(vm.uc, fills)
    return 0

cdef int flags_check(Vm *vm) except -1:
    """`lazy_flags` says what Unicorn says, for operands at and around every border."""
    cdef uint64_t[7] border = [0, 1, 0x7f, 0x80, 0x7fffffff80008000, <uint64_t>1 << 63,
                               ~<uint64_t>0]
    cdef uint64_t flags = 0
    cdef int i, j, kind, op
    test_mode(vm, 1)
    for kind in (CC_OP_ADDB, CC_OP_SUBB, CC_OP_LOGICB, CC_OP_INCB, CC_OP_DECB):
        for op in range(kind, kind + 4):
            for i in range(7):
                for j in range(7):
                    if kind >= CC_OP_INCB and border[i] > 1:
                        continue
                    vm.env.cc_op = op
                    vm.env.cc_src = border[i]
                    vm.env.cc_dst = border[j]
                    uc_reg_read(vm.uc, UC_X86_REG_EFLAGS, &flags)
                    if <uint64_t>lazy_flags(vm.env) != flags & FL_ARITH:
                        raise RuntimeError("unicorn's lazy flags are not what 2.1.4 has")
    vm.env.cc_op = CC_OP_EFLAGS
    vm.env.cc_src = 0
    return 0

cdef int sysenter_check(Vm *vm) except -1:
    """SYSENTER in 64-bit code is #UD after `hide_sysenter`, else RuntimeError."""
    cdef uc_hook fills
    cdef int err
    uc_hook_add(vm.uc, &fills, UC_HOOK_TLB_FILL, <void *>on_test_fill, vm, 1, 0)
    try:
        err = test_run(vm, b"\x90\x0f\x34", 3)
    finally:
        uc_hook_del(vm.uc, fills)
    if err != UC_ERR_INSN_INVALID or vm.env.eip != 1:
        raise RuntimeError("unicorn's CPU vendor is not where 2.1.4 has it")
    return 0

cdef struct Stopper:
    Vm *vm
    volatile int quit
    int stops

cdef void *stopper_main(void *arg) noexcept nogil:
    cdef Stopper *s = <Stopper *>arg
    cdef uint64_t until_ns
    while not s.quit:
        stop_cpu(s.vm)
        s.stops += 1
        until_ns = host_ns() + 20000
        while host_ns() < until_ns and not s.quit:
            pass
    return NULL

cdef bint stops_are_exact(Vm *vm) except -1:
    """Whether a stop from another thread can be trusted: a counter loop under stops comes out exact.

    The loop is inc dword [rdi]; dec ecx; jnz. With the stop check left in the middle of blocks, the
    increment runs twice now and then.
    """
    cdef uc_hook interrupts, fills
    cdef pthread_t thread
    cdef Stopper stopper
    cdef int limit = 100000
    cdef uint32_t total = 200000
    global test_vector
    uc_hook_add(vm.uc, &interrupts, UC_HOOK_INTR, <void *>on_test_interrupt, vm, 1, 0)
    uc_hook_add(vm.uc, &fills, UC_HOOK_TLB_FILL, <void *>on_test_fill, vm, 1, 0)
    memset(vm.window, 0, 0x2000)
    memcpy(vm.window, b"\xff\x07\xff\xc9\x75\xfa\xcc", 7)
    uc_ctl_flush_tb(vm.uc)
    uc_ctl_flush_tlb(vm.uc)
    test_mode(vm, 1)
    vm.env.regs[RDI] = 0x1000
    vm.env.regs[RCX] = total
    vm.env.eip = 0
    test_vector = -1
    stopper.vm = vm
    stopper.quit = 0
    stopper.stops = 0
    try:
        if pthread_create(&thread, NULL, stopper_main, &stopper) != 0:
            return False
        with nogil:
            while test_vector != 3 and limit:
                uc_emu_start(vm.uc, vm.env.eip, 0, 0, 0)
                limit -= 1
            stopper.quit = 1
            pthread_join(thread, NULL)
        return test_vector == 3 and (<uint32_t *>(vm.window + 0x1000))[0] == total
    finally:
        memset(vm.window, 0, 0x2000)
        uc_ctl_flush_tb(vm.uc)
        uc_ctl_flush_tlb(vm.uc)
        uc_hook_del(vm.uc, interrupts)
        uc_hook_del(vm.uc, fills)

cdef int hvm_enter_test(Vm *vm, uint64_t rip, bint vmrun) except -2:
    """Run the guest of `hvm_check` from ``rip``, by VMRUN or (it is in guest mode) without."""
    global test_vector
    test_vector = -1
    if vmrun:
        vm.env.eip = rip
        hvm_fill_vmcb(vm)
        vmcb32(vm.hvm, VMCB_INT_CTL)[0] = INTERRUPT_VIRQ
        hvm_host_state(vm)
        vm.env.eip = 0
    else:
        vm.env.eip = rip
    env_int(vm.env, OFF_IS_INT)[0] = 0
    return uc_emu_start(vm.uc, vm.env.eip, 0, 0, 0)

cdef int hvm_check(Vm *vm) except -1:
    """Engine hvm: VMRUN enters guest mode, intercepts exit, and the interrupt request is where V_IRQ
    puts it. RuntimeError names the first that is not so.

    At 0: VMRUN. At 0x10: CPUID. At 0x20: STI, NOP, NOP, CPUID.
    """
    cdef uc_hook interrupts, fills
    cdef uint32_t *request = <uint32_t *>(vm.cpu + CPU_INTERRUPT_REQUEST)
    cdef uint8_t kept[64]
    uc_hook_add(vm.uc, &interrupts, UC_HOOK_INTR, <void *>on_test_interrupt, vm, 1, 0)
    uc_hook_add(vm.uc, &fills, UC_HOOK_TLB_FILL, <void *>on_test_fill, vm, 1, 0)
    memcpy(kept, vm.window, 64)
    memcpy(vm.window, b"\x0f\x01\xd8", 3)
    memcpy(vm.window + 0x10, b"\x0f\xa2", 2)
    memcpy(vm.window + 0x20, b"\xfb\x90\x90\x0f\xa2", 5)
    memset(vm.hvm.wanted, 1, sizeof(vm.hvm.wanted))
    try:
        test_mode(vm, 0)
        vm.efer = EFER_LMA | EFER_LME
        vm.cr0 = CR0_PE | CR0_ET | CR0_PG
        vm.cr4 = CR4_PAE
        hvm_enter_test(vm, 0x10, True)
        if test_vector != 0x172 or not vm.env.hflags & HF_GUEST or vm.env.eip != 0x10:
            raise RuntimeError("unicorn does not enter AMD-V guest mode as 2.1.4 does")
        if request[0] != INTERRUPT_VIRQ:
            raise RuntimeError("unicorn's interrupt_request is not where 2.1.4 has it")
        request[0] = 0
        hvm_enter_test(vm, 0x20, False)
        if test_vector != 0x172 or vm.env.eip != 0x23:
            raise RuntimeError("unicorn's interrupt_request does not take an interrupt back")
        vm.env.eflags &= ~<uint64_t>FL_IF
        request[0] = INTERRUPT_VIRQ
        hvm_enter_test(vm, 0x20, False)
        if test_vector != 0x164 or vm.env.eip != 0x22:
            raise RuntimeError("unicorn does not look for interrupts behind the shadow of STI")
    finally:
        request[0] = 0
        memcpy(vm.window, kept, 64)
        vm.env.hflags &= ~<uint32_t>(HF_GUEST | HF_INHIBIT_IRQ)
        vm.cr0 = vm.cr4 = vm.efer = 0
        uc_ctl_flush_tb(vm.uc)
        uc_ctl_flush_tlb(vm.uc)
        uc_hook_del(vm.uc, interrupts)
        uc_hook_del(vm.uc, fills)
    return 0
