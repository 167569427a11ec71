# SPDX-License-Identifier: GPL-2.0-or-later
# The inner loop: enter the guest, and on the way out do what can be done without Python.

cdef enum:
    STUCK_AFTER = 1000000       # identical faults in a row

cdef void guest_fault(Vm *vm) noexcept nogil:
    """emu_start stopped because `on_fill` refused: raise the guest's page fault (or #GP)."""
    cdef uint64_t at = 0
    cdef uint64_t began = 0
    vm.rip = vm.env.eip
    # A handler that itself faults at once executes nothing; its time must pass all the same.
    count_block(vm)
    if not leave_stub(vm):
        # A fault where a stub has none: the guest took away memory its own stack is on.
        vm.stop = STOP_UNSUPPORTED
        vm.message = b"a fault inside an emulation stub"
        return
    if vm.fault_vector == EX_PF:
        vm.fault_gva = (<uint64_t *>(<char *>vm.uc + vm.invalid_addr))[0]
        if not vm.efer & EFER_LMA:
            vm.fault_gva &= <uint64_t>0xffffffff
        if vm.fault_gva == vm.last_fault_gva and vm.env.eip == vm.last_fault_rip:
            vm.same_faults += 1
            if vm.same_faults > STUCK_AFTER:
                vm.stop = STOP_STUCK
                return
        else:
            vm.same_faults = 0
            vm.last_fault_gva = vm.fault_gva
            vm.last_fault_rip = vm.env.eip
    if vm.xen != NULL and vm.cpl == 0 and vm.fault_vector == EX_PF and \
            vm.fault_error == PF_P | PF_W and xen_table_write(vm, vm.fault_gva):
        return
    if vm.hvm != NULL:
        if not hvm_assist(vm):
            hvm_fault(vm)
        return
    if vm.tracing:
        python_trace(vm, -2, vm.fault_vector)
    if vm.recorder != NULL:
        at = linear(vm, vm.rip)
        began = host_ns()
    raise_exception(vm, vm.fault_vector, vm.fault_error)
    if vm.recorder != NULL:
        record_exit(vm, 256 + EXIT_PAGE_FAULT, at, began)

cdef void run_guest(Vm *vm) noexcept nogil:
    """Run until vm.stop says why not."""
    cdef uc_err err
    while not vm.stop:
        if vm.kick and not vm.debug_step:
            if leave_stub(vm):
                vm.kick = 0
                vm.stop = STOP_KICK
                note(vm, EXIT_KICK, 0, 0)
                # An interrupt that waited for this stop is taken on the way back in.
                return
        if vm.debug_step:
            if vm.debug_step == STEP_DONE:
                vm.stop = STOP_DEBUG
                return
            if (vm.halted or vm.step_irqs) and interrupted(vm):
                step_ends(vm)
                continue
            if not vm.halted:
                leave_stub(vm)
                open_step(vm)
        elif vm.xen != NULL:
            xen_events(vm)
            if vm.stop:
                return
        elif vm.intr and interrupts_on(vm) and not begin_step(vm) and leave_stub(vm):
            take_irq(vm)
            if vm.stop:
                return
        if vm.halted:
            # Woken for something that is not an interrupt to the guest: it sleeps on.
            vm.stop = STOP_HLT
            return
        vm.stop_now = 0
        if vm.flush_wanted:
            vm.flush_wanted = 0
            uc_ctl_flush_tb(vm.uc)
        flags_in(vm)
        if vm.hvm != NULL:
            hvm_request_window(vm)
            err = uc_emu_start(vm.uc, hvm_start(vm), 0, 0, 0)
            hvm_sync(vm)
        else:
            err = uc_emu_start(vm.uc, vm.env.eip, 0, 0, 0)
        flags_out(vm)
        if vm.flags_late:
            vm.flags_late = 0
            set_arithmetic(vm.env, vm.late_flags)
        clear_step(vm)
        vm.late_step = 0
        if vm.step_open:
            close_step(vm)
        if vm.fill_refused:
            vm.fill_refused = 0
            if vm.window_lost:
                vm.window_lost = 0
                leave_stub(vm)
                close_window(vm)
            elif not vm.stop:
                step_ends(vm)
                # A block of nothing at the start of a page has Unicorn ask for the page before.
                if vm.barred and at_barred(vm):
                    barred_instruction(vm)
                else:
                    guest_fault(vm)
        elif err == UC_ERR_OK and vm.barred and not vm.stop:
            if at_barred(vm):
                step_ends(vm)
                barred_instruction(vm)
            else:
                # The guest has other code there by now, and has not said so.
                flush_tlb(vm)
                uc_ctl_flush_tb(vm.uc)
        elif err != UC_ERR_OK and err != ERR_STOPPED:
            vm.uc_error = err
            vm.stop = STOP_CPU
