# SPDX-License-Identifier: GPL-2.0-or-later
# Event delivery: exceptions, software interrupts and IRQs through the guest's own IDT.
#
# Unicorn never delivers anything itself: everything reaches a hook. Here the gate is read, checked,
# the stack chosen (TSS, IST), the frame pushed and the handler entered, as SDM vol. 3 chapter 6
# describes for 16-, 32- and 64-bit gates and for the real-mode vector table. A fault on the way
# becomes the next event: double fault, and at last shutdown.

cdef inline bint contributory(int vector) noexcept nogil:
    return vector == EX_DE or EX_TS <= vector <= EX_GP

cdef inline bint pushes_error(int vector) noexcept nogil:
    return vector == EX_DF or EX_TS <= vector <= EX_PF or vector == EX_AC

cdef inline void set_cr2(Vm *vm, uint64_t gva) noexcept nogil:
    vm.cr2 = vm.page[PG_CR2] = gva
    if vm.hvm != NULL:
        vm.env.cr[2] = gva

cdef void raise_exception(Vm *vm, int vector, uint32_t error) noexcept nogil:
    """Deliver an exception at env.eip, with the rules for faults during delivery."""
    cdef int first = vector
    cdef uint64_t rip = vm.env.eip
    if vm.hooked[ROWS + (vector & 31)] and not exception_before(vm, &vector, &error):
        return
    first = vector
    vm.raised += 1
    if vector == EX_PF:
        set_cr2(vm, vm.fault_gva)
        vm.exits[EXIT_PAGE_FAULT] += vm.hvm == NULL     # there it is an event like any other
    while deliver(vm, vector, False, pushes_error(vector), error) != 0:
        if vm.stop:
            return
        if first == EX_DF:
            vm.stop = STOP_SHUTDOWN
            leave(vm)
            return
        if vm.fault_vector == EX_PF:
            set_cr2(vm, vm.fault_gva)
        if (contributory(first) and contributory(vm.fault_vector)) or \
                (first == EX_PF and (contributory(vm.fault_vector) or
                                     vm.fault_vector == EX_PF)):
            vector = EX_DF
            error = 0
        else:
            # The error code names the new fault's own selector; EXT says that an event was being
            # delivered (SDM vol. 3, 6.13).
            vector = vm.fault_vector
            error = vm.fault_error if vector == EX_PF else vm.fault_error | 1
        first = vector
        if vm.hooked[ROWS + (vector & 31)] and not exception_before(vm, &vector, &error):
            return
    if vm.hooked[ROWS + (vector & 31)]:
        event_after(vm, ROWS + (vector & 31), rip, error, vm.cr2)

cdef void raise_pending(Vm *vm) noexcept nogil:
    """Raise what vm.fault_* describes, at the instruction being emulated."""
    vm.env.eip = vm.rip
    raise_exception(vm, vm.fault_vector, vm.fault_error)

cdef void raise_gp(Vm *vm, uint32_t error) noexcept nogil:
    vm.env.eip = vm.rip
    raise_exception(vm, EX_GP, error)

cdef void raise_ud(Vm *vm) noexcept nogil:
    vm.env.eip = vm.rip
    raise_exception(vm, EX_UD, 0)

cdef void soft_interrupt(Vm *vm, int vector, uint64_t start) noexcept nogil:
    """INT n, INT3, INTO: env.eip is behind the instruction, ``start`` at it."""
    cdef int hooked = vm.hooked[ROWS + EXIT_SOFTINT]
    if hooked and not event_before(vm, ROWS + EXIT_SOFTINT, start, vm.env.eip, vector, 0):
        return
    if deliver(vm, vector, True, False, 0) != 0:
        if not vm.stop:
            vm.env.eip = start
            raise_exception(vm, vm.fault_vector, vm.fault_error)
    elif hooked:
        event_after(vm, ROWS + EXIT_SOFTINT, start, vector, 0)

cdef int deliver(Vm *vm, int vector, bint soft, bint has_error, uint32_t error) noexcept nogil:
    """One delivery attempt with no effect unless it succeeds. 0, or -1 with vm.fault_*."""
    if vm.xen != NULL:
        return deliver_xen(vm, vector, soft, has_error, error)
    if not vm.cr0 & CR0_PE:
        return deliver_real(vm, vector)
    if vm.efer & EFER_LMA:
        if in_v86(vm):
            # Unicorn's IRETD lets any code in here; on hardware long mode has no such mode. The
            # frame would have a CS of the code's own choice, which a kernel believes.
            vm.stop = STOP_UNSUPPORTED
            vm.message = b"an interrupt in virtual-8086 mode, which long mode does not have"
            leave(vm)
            return -1
        return deliver64(vm, vector, soft, has_error, error)
    return deliver32(vm, vector, soft, has_error, error)

cdef int gate_code(Vm *vm, uint32_t selector, uint32_t *e, int *new_cpl) noexcept nogil:
    """Read and check a gate's code segment (SDM vol. 3, 6.12.1)."""
    if selector & 0xfffc == 0:
        return fault(vm, EX_GP, 0)
    if descriptor_read(vm, selector, e) != 0:
        return -1
    if e[1] & (D_S | D_CODE) != D_S | D_CODE or descriptor_dpl(e[1]) > vm.cpl:
        return fault(vm, EX_GP, selector & 0xfffc)
    if not e[1] & D_P:
        return fault(vm, EX_NP, selector & 0xfffc)
    new_cpl[0] = vm.cpl if e[1] & D_C else descriptor_dpl(e[1])
    if (new_cpl[0] == 1 or new_cpl[0] == 2) and vm.hvm == NULL:
        vm.stop = STOP_UNSUPPORTED
        vm.message = b"the guest entered ring 1 or 2, which this vCPU does not have"
        return -1
    return 0

cdef int deliver64(Vm *vm, int vector, bint soft, bint has_error, uint32_t error) noexcept nogil:
    cdef Env *env = vm.env
    cdef uint32_t gate[4]
    cdef uint32_t e[2]
    cdef uint64_t frame[6]
    cdef uint64_t rsp, flags
    cdef uint32_t selector = 0, old_ss
    cdef int kind, new_cpl = 0, ist, words, at
    if <uint32_t>(vector * 16 + 15) > vm.idt.limit:
        return fault(vm, EX_GP, vector * 8 + 2)
    if read_virt(vm, vm.idt.base + vector * 16, gate, 16, False) != 0:
        return -1
    kind = (gate[1] >> 8) & 0x1f
    if kind != 0xe and kind != 0xf:
        return fault(vm, EX_GP, vector * 8 + 2)
    if soft and descriptor_dpl(gate[1]) < vm.cpl:
        return fault(vm, EX_GP, vector * 8 + 2)
    if not gate[1] & D_P:
        return fault(vm, EX_NP, vector * 8 + 2)
    selector = gate[0] >> 16
    if gate_code(vm, selector, e, &new_cpl) != 0:
        return -1
    if e[1] & (D_L | D_B) != D_L:
        return fault(vm, EX_GP, selector & 0xfffc)
    ist = gate[1] & 7
    if ist:
        if vm.tr.limit < <uint32_t>(36 + ist * 8 + 7):
            return fault(vm, EX_TS, vm.tr.selector & 0xfffc)
        if read_virt(vm, vm.tr.base + 28 + ist * 8, &rsp, 8, False) != 0:
            return -1
    elif new_cpl < vm.cpl:
        if vm.tr.limit < 11:
            return fault(vm, EX_TS, vm.tr.selector & 0xfffc)
        if read_virt(vm, vm.tr.base + 4, &rsp, 8, False) != 0:
            return -1
    else:
        rsp = env.regs[RSP]
    rsp &= ~<uint64_t>15
    flags = get_flags(vm)
    old_ss = virtual_ss(vm)
    at = 0
    if has_error:
        frame[0] = error
        at = 1
    frame[at] = env.eip
    frame[at + 1] = virtual_cs(vm)
    frame[at + 2] = flags
    frame[at + 3] = env.regs[RSP]
    frame[at + 4] = old_ss
    words = at + 5
    rsp -= words * 8
    if write_virt(vm, rsp, frame, words * 8, new_cpl == 3) != 0:
        return -1
    descriptor_touch(vm, selector, e)
    segment_cache(vm, R_CS, selector, e)
    if new_cpl != vm.cpl:
        segment_null(vm, R_SS, new_cpl)
        env.segs[R_SS].flags = D_P | D_S | D_RW | D_A | D_B | D_G
    env.regs[RSP] = rsp
    env.eip = (<uint64_t>gate[2] << 32) | (gate[1] & <uint64_t>0xffff0000) | (gate[0] & 0xffff)
    flags &= ~<uint64_t>(FL_TF | FL_NT | FL_RF | FL_VM)
    if kind == 0xe:
        flags &= ~<uint64_t>FL_IF
    set_cpl(vm, new_cpl, flags)
    return 0

cdef inline uint64_t stack_mask(uint32_t ss_flags) noexcept nogil:
    return <uint64_t>0xffffffff if ss_flags & D_B else 0xffff

# What the frame of an event in virtual-8086 mode has beyond any other (SDM vol. 3, 21.3.1).
cdef int[4] v86_pushed = [R_ES, R_DS, R_FS, R_GS]

cdef int deliver32(Vm *vm, int vector, bint soft, bint has_error, uint32_t error) noexcept nogil:
    cdef Env *env = vm.env
    cdef uint32_t gate[2]
    cdef uint32_t e[2]
    cdef uint32_t ss[2]
    cdef uint32_t frame[10]
    cdef uint16_t small[10]
    cdef uint32_t pair[2]
    cdef uint64_t esp, base, mask, flags
    cdef uint32_t selector, ss_selector = 0
    cdef int kind, new_cpl = 0, words = 0, i, wide
    if <uint32_t>(vector * 8 + 7) > vm.idt.limit:
        return fault(vm, EX_GP, vector * 8 + 2)
    if read_virt(vm, vm.idt.base + vector * 8, gate, 8, False) != 0:
        return -1
    kind = (gate[1] >> 8) & 0x1f
    if kind == 5:
        vm.stop = STOP_UNSUPPORTED
        vm.message = b"the guest used a task gate"
        return -1
    if kind != 6 and kind != 7 and kind != 0xe and kind != 0xf:
        return fault(vm, EX_GP, vector * 8 + 2)
    if soft and descriptor_dpl(gate[1]) < vm.cpl:
        return fault(vm, EX_GP, vector * 8 + 2)
    if not gate[1] & D_P:
        return fault(vm, EX_NP, vector * 8 + 2)
    selector = gate[0] >> 16
    if gate_code(vm, selector, e, &new_cpl) != 0:
        return -1
    if in_v86(vm) and new_cpl != 0:
        return fault(vm, EX_GP, selector & 0xfffc)
    wide = kind & 8
    flags = get_flags(vm)
    if has_error:
        frame[words] = error
        words += 1
    frame[words] = <uint32_t>env.eip
    frame[words + 1] = virtual_cs(vm)
    frame[words + 2] = <uint32_t>flags
    words += 3
    if new_cpl < vm.cpl:
        if vm.tr.limit < (11 if (vm.tr.flags >> 8) & 8 else 5):
            return fault(vm, EX_TS, vm.tr.selector & 0xfffc)
        if (vm.tr.flags >> 8) & 8:
            if read_virt(vm, vm.tr.base + 4, pair, 8, False) != 0:
                return -1
        else:
            if read_virt(vm, vm.tr.base + 2, pair, 4, False) != 0:
                return -1
            pair[1] = pair[0] >> 16
            pair[0] &= 0xffff
        ss_selector = pair[1] & 0xffff
        if ss_selector & 0xfffc == 0 or descriptor_read(vm, ss_selector, ss) != 0 or \
                ss_selector & 3 != new_cpl or descriptor_dpl(ss[1]) != new_cpl or \
                ss[1] & (D_S | D_CODE | D_RW) != D_S | D_RW:
            return fault(vm, EX_TS, ss_selector & 0xfffc)
        if not ss[1] & D_P:
            return fault(vm, EX_SS, ss_selector & 0xfffc)
        frame[words] = <uint32_t>env.regs[RSP]
        frame[words + 1] = virtual_ss(vm)
        words += 2
        if in_v86(vm):
            for i in range(4):
                frame[words + i] = env.segs[v86_pushed[i]].selector & 0xffff
            words += 4
        base = descriptor_base(ss[0], ss[1])
        mask = stack_mask(ss[1])
        esp = pair[0]
    else:
        base = env.segs[R_SS].base
        mask = stack_mask(env.segs[R_SS].flags)
        esp = env.regs[RSP]
    if wide:
        esp -= words * 4
        if write_virt(vm, (base + (esp & mask)) & <uint64_t>0xffffffff, frame, words * 4,
                      new_cpl == 3) != 0:
            return -1
    else:
        for i in range(words):
            small[i] = <uint16_t>frame[i]
        esp -= words * 2
        if write_virt(vm, (base + (esp & mask)) & <uint64_t>0xffffffff, small, words * 2,
                      new_cpl == 3) != 0:
            return -1
    if in_v86(vm):
        for i in range(4):
            segment_null(vm, v86_pushed[i], 0)
    descriptor_touch(vm, selector, e)
    segment_cache(vm, R_CS, selector, e)
    if new_cpl < vm.cpl:
        descriptor_touch(vm, ss_selector, ss)
        segment_cache(vm, R_SS, ss_selector, ss)
        env.regs[RSP] = esp & mask
    else:
        env.regs[RSP] = (env.regs[RSP] & ~mask & <uint64_t>0xffffffff) | (esp & mask)
    env.eip = (gate[0] & 0xffff) | (gate[1] & <uint64_t>0xffff0000 if wide else 0)
    flags &= ~<uint64_t>(FL_TF | FL_NT | FL_RF | FL_VM)
    if not kind & 1:
        flags &= ~<uint64_t>FL_IF
    set_cpl(vm, new_cpl, flags)
    return 0

cdef int deliver_real(Vm *vm, int vector) noexcept nogil:
    """Real mode: the vector table at IDTR.base holds IP:CS pairs (SDM vol. 3, 20.1.4)."""
    cdef Env *env = vm.env
    cdef uint16_t entry[2]
    cdef uint16_t frame[3]
    cdef uint64_t flags = get_flags(vm)
    cdef uint64_t sp = (env.regs[RSP] - 6) & 0xffff
    if <uint32_t>(vector * 4 + 3) > vm.idt.limit:
        return fault(vm, EX_GP, 0)
    if read_virt(vm, vm.idt.base + vector * 4, entry, 4, False) != 0:
        return -1
    frame[0] = <uint16_t>env.eip
    frame[1] = <uint16_t>env.segs[R_CS].selector
    frame[2] = <uint16_t>flags
    if write_virt(vm, env.segs[R_SS].base + sp, frame, 6, False) != 0:
        return -1
    env.regs[RSP] = (env.regs[RSP] & ~<uint64_t>0xffff) | sp
    env.segs[R_CS].selector = entry[1]
    env.segs[R_CS].base = <uint32_t>entry[1] << 4
    env.eip = entry[0]
    set_flags(vm, flags & ~<uint64_t>(FL_IF | FL_TF | FL_AC))
    update_hflags(vm)
    return 0

# Interrupts -----------------------------------------------------------------------------------

cdef void take_irq(Vm *vm) noexcept nogil:
    """Inject the interrupt controller's vector if the guest can take it here."""
    cdef int vector
    cdef uint64_t rip
    cdef uint64_t began = host_ns() if vm.recorder != NULL else 0
    if not vm.intr or not interrupts_on(vm) or vm.stop:
        return
    if vm.debug_step and not vm.step_taking:
        return                  # not in the middle of a debugger's step
    if vm.shadow and vm.shadow == linear(vm, vm.env.eip):
        return
    vm.shadow = 0
    vector = python_acknowledge(vm)
    if vector < 0:
        return
    vm.exits[EXIT_IRQ] += 1
    vm.halted = 0
    rip = vm.env.eip
    if vm.recorder != NULL:
        record_exit(vm, 256 + EXIT_IRQ, linear(vm, rip), began)
    if vm.hooked[ROWS + EXIT_IRQ] and \
            not event_before(vm, ROWS + EXIT_IRQ, rip, rip, vector, 0):
        return
    if deliver(vm, vector, False, False, 0) != 0:
        if not vm.stop:
            raise_exception(vm, vm.fault_vector, vm.fault_error
                            if vm.fault_vector == EX_PF else vm.fault_error | 1)
    elif vm.hooked[ROWS + EXIT_IRQ]:
        event_after(vm, ROWS + EXIT_IRQ, rip, vector, 0)

cdef void interrupts_opened(Vm *vm, bint shadow) noexcept nogil:
    """IF just became 1. A pending interrupt comes now, or after one more instruction (STI)."""
    if shadow:
        vm.shadow = linear(vm, vm.env.eip)
        if vm.intr:
            leave(vm)           # run_guest sees to that one instruction
    else:
        take_irq(vm)

# The shadow of STI and MOV SS lasts one instruction. A stop between blocks can fall right behind the
# STI, and STI; HLT depends on nothing coming between the two. So the instruction is run alone, by the
# CPU's own single step.

cdef bint begin_step(Vm *vm) noexcept nogil:
    """Whether an interrupt waits for the instruction at RIP, which is then set up to run alone."""
    cdef uint8_t byte = 0
    if not vm.shadow or vm.shadow != linear(vm, vm.env.eip) or not interrupts_on(vm):
        return False
    # The guest steps by itself: its #DB is an exit too. Engine trap runs PUSHF, which would show TF.
    if vm.env.eflags & FL_TF or (not vm.translate and
                                 fetch_code(vm, vm.shadow, &byte, 1) == 1 and byte == 0x9c):
        vm.shadow = 0
        return False
    vm.env.eflags |= FL_TF
    vm.stepping = 1
    return True

cdef inline void clear_step(Vm *vm) noexcept nogil:
    """Our TF goes before anybody looks at the flags."""
    if vm.stepping:
        vm.stepping = 0
        vm.env.eflags &= ~<uint64_t>FL_TF

cdef inline void end_step(Vm *vm) noexcept nogil:
    """An exit of the one instruction: it is done here, then `run_guest` looks for interrupts."""
    if vm.stepping:
        clear_step(vm)
        leave(vm)
    if vm.debug_step:
        step_ends(vm)
