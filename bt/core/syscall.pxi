# SPDX-License-Identifier: GPL-2.0-or-later
# SYSCALL as a call out of the block.
#
# Unicorn makes SYSCALL a call of its own, which walks through all hooks on instructions to find
# ours, and then leaves for its main loop. Both cost more than what we do in between. So a call of
# our own function is put in front of that, with the address and the length of the instruction, and
# behind it the jump to where the vCPU is by then; what Unicorn emits after it is never reached, and
# removed by its translator.
#
# Not where a single step, RF or an interrupt shadow has to be seen to (`callable_here`): `on_syscall`
# does those. Under engine hvm interrupts are delivered by the main loop, but none waits for a
# SYSCALL: it never sets IF.

cdef void call_syscall(Vm *vm, uint64_t rip, uint64_t length) noexcept nogil:
    vm.env.eip = rip
    syscall_exit(vm, <int>length)

cdef void emit_syscall(Vm *vm, uint64_t pc, int length) noexcept nogil:
    """The SYSCALL at ``pc`` is about to be translated."""
    if vm.syscall_call != NULL and callable_here(vm) and \
            emit_call(vm, pc, vm.syscall_call, <uint64_t>length, NULL):
        tcg_gen_goto_next(vm.tcg)

cdef uint64_t test_call_rip
cdef uint64_t test_call_length
cdef uint64_t test_call_flags

cdef void on_test_call(Vm *vm, uint64_t rip, uint64_t length) noexcept nogil:
    global test_call_rip, test_call_length, test_call_flags
    test_call_rip = rip
    test_call_length = length
    test_call_flags = real_flags(vm)
    vm.env.eip = rip + length

cdef int put_syscalls_in_line(Vm *vm) except -1:
    """Have SYSCALL call `call_syscall` from now on, after seeing that it can; else RuntimeError."""
    cdef uc_hook interrupts, fills
    uc_hook_add(vm.uc, &interrupts, UC_HOOK_INTR, <void *>on_test_interrupt, vm, 1, 0)
    uc_hook_add(vm.uc, &fills, UC_HOOK_TLB_FILL, <void *>on_test_fill, vm, 1, 0)
    vm.syscall_call = <void *>on_test_call
    try:
        # cmp al, al ; syscall ; int3, then the same with a prefix, in a block of its own
        for flags, code in ((FL_ZF, b"\x38\xc0"), (0, b"\x84\xe4\xeb\x00\x66")):
            vm.env.regs[RAX] = 0x5200
            test_run(vm, code + b"\x0f\x05\xcc", 3)
            if test_vector != 3 or vm.env.eip != len(code) + 3 or \
                    test_call_rip + test_call_length != <uint64_t>len(code) + 2 or \
                    test_call_length != (3 if len(code) > 2 else 2) or \
                    test_call_flags & FL_ZF != <uint64_t>flags:
                raise RuntimeError("unicorn does not translate a SYSCALL as 2.1.4 does")
    finally:
        vm.syscall_call = NULL
        test_clean(vm)
        uc_hook_del(vm.uc, interrupts)
        uc_hook_del(vm.uc, fills)
    vm.syscall_call = <void *>call_syscall
    return 0
