# SPDX-License-Identifier: GPL-2.0-or-later
# Control transfers that change privilege or load CS: IRET, SYSCALL/SYSRET, SYSENTER/SYSEXIT, INT n,
# far JMP, CALL and RET (SDM vol. 2; vol. 3, 5.8).

cdef uint32_t FLAT_CODE = D_P | D_S | D_CODE | D_RW | D_A | D_G
cdef uint32_t FLAT_DATA = D_P | D_S | D_RW | D_A | D_G | D_B

cdef int load_code_segment(Vm *vm, uint32_t selector, int new_cpl, uint32_t *e) noexcept nogil:
    """Check a CS that a return or far transfer names; ``new_cpl`` is the CPL after it."""
    if selector & 0xfffc == 0:
        return fault(vm, EX_GP, 0)
    if descriptor_read(vm, selector, e) != 0:
        return -1
    if e[1] & (D_S | D_CODE) != D_S | D_CODE:
        return fault(vm, EX_GP, selector & 0xfffc)
    if e[1] & D_C:
        if descriptor_dpl(e[1]) > new_cpl:
            return fault(vm, EX_GP, selector & 0xfffc)
    elif descriptor_dpl(e[1]) != new_cpl:
        return fault(vm, EX_GP, selector & 0xfffc)
    if vm.efer & EFER_LMA and e[1] & D_L and e[1] & D_B:
        return fault(vm, EX_GP, selector & 0xfffc)
    if not e[1] & D_P:
        return fault(vm, EX_NP, selector & 0xfffc)
    return 0

cdef int return_outer(Vm *vm, uint32_t cs, uint32_t *ce, uint32_t ss, int new_cpl) noexcept nogil:
    """Load CS and SS for IRET or far RET to ``new_cpl``. 0, or -1 with nothing changed."""
    cdef uint32_t se[2]
    cdef bint null_ss = False
    if ss & 0xfffc == 0:
        if not (vm.efer & EFER_LMA and ce[1] & D_L) or new_cpl == 3 or <int>(ss & 3) != new_cpl:
            return fault(vm, EX_GP, 0)
        null_ss = True
    else:
        if descriptor_read(vm, ss, se) != 0:
            return -1
        if <int>(ss & 3) != new_cpl or descriptor_dpl(se[1]) != new_cpl or \
                se[1] & (D_S | D_CODE | D_RW) != D_S | D_RW:
            return fault(vm, EX_GP, ss & 0xfffc)
        if not se[1] & D_P:
            return fault(vm, EX_SS, ss & 0xfffc)
    descriptor_touch(vm, cs, ce)
    segment_cache(vm, R_CS, cs, ce)
    if null_ss:
        segment_null(vm, R_SS, ss)
        vm.env.segs[R_SS].flags = FLAT_DATA
    else:
        descriptor_touch(vm, ss, se)
        segment_cache(vm, R_SS, ss, se)
    return 0

cdef void do_iret(Vm *vm, Insn *insn) noexcept nogil:
    cdef Env *env = vm.env
    cdef int size = insn.opsize
    cdef uint64_t rip, cs, flags, rsp = 0, ss = 0, keep, old
    cdef uint32_t ce[2]
    cdef int new_cpl, was = vm.cpl
    cdef bint with_stack
    cdef uint64_t frame[5]
    if vm.xen != NULL and vm.cpl == 0:
        xen_plain_iret(vm)
        return
    if not protected(vm):
        iret_real(vm, size)
        return
    if vm.efer & EFER_LMA == 0 and get_flags(vm) & FL_NT:
        vm.stop = STOP_UNSUPPORTED
        vm.message = b"the guest used a task switch"
        leave(vm)
        return
    if vm.efer & EFER_LMA and get_flags(vm) & FL_NT:
        raise_gp(vm, 0)
        return
    if size == 8:
        if read_virt(vm, env.regs[RSP], frame, 40, vm.cpl == 3) != 0:
            raise_pending(vm)
            return
        rip = frame[0]
        cs = frame[1]
        flags = frame[2]
        rsp = frame[3]
        ss = frame[4]
    elif peek_stack(vm, 0, &rip, size) != 0 or peek_stack(vm, size, &cs, size) != 0 or \
            peek_stack(vm, 2 * size, &flags, size) != 0:
        raise_pending(vm)
        return
    cs &= 0xffff
    ss &= 0xffff
    new_cpl = cs & 3
    if size == 4 and flags & FL_VM and vm.cpl == 0 and not vm.efer & EFER_LMA:
        iret_v86(vm, rip, cs, flags)
        return
    if new_cpl < vm.cpl or new_cpl == 1 or new_cpl == 2:
        raise_gp(vm, cs & 0xfffc)
        return
    with_stack = insn.bits == 64 or new_cpl != vm.cpl
    if with_stack and size != 8:
        if peek_stack(vm, 3 * size, &rsp, size) != 0 or peek_stack(vm, 4 * size, &ss, size) != 0:
            raise_pending(vm)
            return
        ss &= 0xffff
    if load_code_segment(vm, cs, new_cpl, ce) != 0:
        raise_pending(vm)
        return
    if vm.efer & EFER_LMA and ce[1] & D_L and not canonical(rip):
        raise_gp(vm, 0)
        return
    old = get_flags(vm)
    keep = FL_ARITH | FL_TF | FL_DF | FL_NT | FL_RF | FL_AC | FL_ID
    if vm.cpl == 0:
        keep |= FL_IOPL
    if vm.cpl <= iopl(vm):
        keep |= FL_IF
    if size == 2:
        keep &= 0xffff
    flags = (old & ~keep) | (flags & keep)
    if with_stack:
        if return_outer(vm, <uint32_t>cs, ce, <uint32_t>ss, new_cpl) != 0:
            raise_pending(vm)
            return
    else:
        descriptor_touch(vm, cs, ce)
        segment_cache(vm, R_CS, cs, ce)
        move_stack(vm, 3 * size)
    env.eip = rip
    set_cpl(vm, new_cpl, flags)
    if with_stack:
        if insn.bits == 64:
            env.regs[RSP] = rsp
        else:
            env.regs[RSP] = (env.regs[RSP] & ~stack_pointer_mask(vm)) | \
                (rsp & stack_pointer_mask(vm))
    if new_cpl != was:
        drop_privileged_segments(vm)
    if not old & FL_IF and flags & FL_IF:
        interrupts_opened(vm, False)

cdef void iret_real(Vm *vm, int size) noexcept nogil:
    cdef uint64_t ip, cs, flags, keep = 0x7fd5
    if peek_stack(vm, 0, &ip, size) != 0 or peek_stack(vm, size, &cs, size) != 0 or \
            peek_stack(vm, 2 * size, &flags, size) != 0:
        raise_pending(vm)
        return
    move_stack(vm, 3 * size)
    vm.env.segs[R_CS].selector = cs & 0xffff
    vm.env.segs[R_CS].base = (cs & 0xffff) << 4
    vm.env.eip = ip & 0xffff
    if size == 4:
        keep |= FL_AC | FL_ID | FL_RF
    if in_v86(vm):
        keep &= ~<uint64_t>FL_IOPL
    set_flags(vm, (get_flags(vm) & ~keep) | (flags & keep))
    update_hflags(vm)
    interrupts_opened(vm, False)

cdef void iret_v86(Vm *vm, uint64_t ip, uint64_t cs, uint64_t flags) noexcept nogil:
    """IRET of the kernel to virtual-8086 mode (SDM vol. 2, IRET: RETURN-TO-VIRTUAL-8086-MODE)."""
    cdef uint64_t rest[6]       # ESP, SS, ES, DS, FS, GS
    cdef int i
    if vm.hvm == NULL:
        vm.stop = STOP_UNSUPPORTED
        vm.message = b"the guest entered virtual-8086 mode"
        leave(vm)
        return
    for i in range(6):
        if peek_stack(vm, 12 + 4 * i, &rest[i], 4) != 0:
            raise_pending(vm)
            return
    segment_v86(vm, R_CS, <uint32_t>cs)
    segment_v86(vm, R_SS, <uint32_t>rest[1])
    segment_v86(vm, R_ES, <uint32_t>rest[2])
    segment_v86(vm, R_DS, <uint32_t>rest[3])
    segment_v86(vm, R_FS, <uint32_t>rest[4])
    segment_v86(vm, R_GS, <uint32_t>rest[5])
    vm.env.regs[RSP] = rest[0]
    vm.env.eip = ip & 0xffff
    vm.cpl = 3
    set_flags(vm, flags & (FL_ARITH | FL_TF | FL_IF | FL_DF | FL_IOPL | FL_NT | FL_RF | FL_VM |
                           FL_AC | FL_ID))
    update_hflags(vm)
    interrupts_opened(vm, False)

cdef void do_syscall(Vm *vm, int length) noexcept nogil:
    """SYSCALL in 64-bit or compatibility code. env.eip is at the instruction."""
    cdef Env *env = vm.env
    cdef uint32_t selector
    cdef uint64_t flags
    cdef bint was64 = (env.hflags & HF_CS64) != 0
    vm.exits[EXIT_SYSCALL] += vm.hvm == NULL
    if not vm.efer & EFER_SCE or not vm.efer & EFER_LMA:
        vm.rip = env.eip
        raise_ud(vm)
        return
    selector = (vm.star >> 32) & 0xfffc
    flags = get_flags(vm)
    env.regs[RCX] = env.eip + length
    env.regs[R11] = flags & ~<uint64_t>FL_RF
    env.eip = vm.lstar if was64 else vm.cstar
    enter_flat(vm, R_CS, selector, FLAT_CODE | D_L)
    enter_flat(vm, R_SS, selector + 8, FLAT_DATA)
    set_cpl(vm, 0, flags & ~(vm.fmask | FL_RF))

cdef void do_sysret(Vm *vm, Insn *insn) noexcept nogil:
    cdef Env *env = vm.env
    cdef uint32_t selector = (vm.star >> 48) & 0xffff
    cdef uint64_t flags
    if not vm.efer & EFER_SCE:
        raise_ud(vm)
        return
    if not kernel_only(vm):
        return
    if vm.xen != NULL:
        raise_gp(vm, 0)         # modes change by hypercall, which changes the page tables too
        return
    flags = (env.regs[R11] & 0x3c7fd7) | 2
    if insn.opsize == 8:
        if not canonical(env.regs[RCX]):
            raise_gp(vm, 0)
            return
        env.eip = env.regs[RCX]
        enter_flat(vm, R_CS, (selector + 16) | 3, FLAT_CODE | D_L | (3 << 13))
    else:
        env.eip = env.regs[RCX] & <uint64_t>0xffffffff
        enter_flat(vm, R_CS, selector | 3, FLAT_CODE | D_B | (3 << 13))
    enter_flat(vm, R_SS, (selector + 8) | 3, FLAT_DATA | (3 << 13))
    set_cpl(vm, 3, flags)
    if flags & FL_IF:
        interrupts_opened(vm, False)

cdef void do_sysenter(Vm *vm) noexcept nogil:
    cdef Env *env = vm.env
    cdef uint64_t flags = get_flags(vm)
    vm.exits[EXIT_SYSENTER] += vm.hvm == NULL
    vm.rip = env.eip
    if vm.xen != NULL or not vm.cr0 & CR0_PE or vm.sysenter_cs & 0xfffc == 0:
        raise_gp(vm, 0)
        return
    if vm.efer & EFER_LMA:
        enter_flat(vm, R_CS, vm.sysenter_cs & 0xfffc, FLAT_CODE | D_L)
        env.eip = vm.sysenter_eip
        env.regs[RSP] = vm.sysenter_esp
    else:
        enter_flat(vm, R_CS, vm.sysenter_cs & 0xfffc, FLAT_CODE | D_B)
        env.eip = vm.sysenter_eip & <uint64_t>0xffffffff
        env.regs[RSP] = vm.sysenter_esp & <uint64_t>0xffffffff
    enter_flat(vm, R_SS, (vm.sysenter_cs & 0xfffc) + 8, FLAT_DATA)
    set_cpl(vm, 0, flags & ~<uint64_t>(FL_IF | FL_RF | FL_VM))

cdef void do_sysexit(Vm *vm, Insn *insn) noexcept nogil:
    cdef Env *env = vm.env
    cdef uint32_t cs = vm.sysenter_cs & 0xfffc
    cdef uint64_t flags
    if vm.xen != NULL or cs == 0 or vm.cpl != 0 or not vm.cr0 & CR0_PE:
        raise_gp(vm, 0)
        return
    flags = get_flags(vm)
    if insn.opsize == 8:
        enter_flat(vm, R_CS, (cs + 32) | 3, FLAT_CODE | D_L | (3 << 13))
        enter_flat(vm, R_SS, (cs + 40) | 3, FLAT_DATA | (3 << 13))
        env.eip = env.regs[RDX]
        env.regs[RSP] = env.regs[RCX]
    else:
        enter_flat(vm, R_CS, (cs + 16) | 3, FLAT_CODE | D_B | (3 << 13))
        enter_flat(vm, R_SS, (cs + 24) | 3, FLAT_DATA | (3 << 13))
        env.eip = env.regs[RDX] & <uint64_t>0xffffffff
        env.regs[RSP] = env.regs[RCX] & <uint64_t>0xffffffff
    set_cpl(vm, 3, flags)

cdef void do_int(Vm *vm, Insn *insn) noexcept nogil:
    soft_interrupt(vm, insn.code[insn.length - 1], vm.rip)

cdef void do_int1(Vm *vm, Insn *insn) noexcept nogil:
    if deliver(vm, EX_DB, False, False, 0) != 0:
        raise_pending(vm)

# Far transfers --------------------------------------------------------------------------------

cdef int far_target(Vm *vm, Insn *insn, uint64_t *selector, uint64_t *offset) noexcept nogil:
    """Operand of a far JMP or CALL: immediate ptr16:n or memory m16:n."""
    cdef int size = insn.opsize
    cdef uint64_t at
    selector[0] = 0
    offset[0] = 0
    if insn.opcode == 0xff:
        at = ea_linear(vm, insn)
        if read_virt(vm, at, offset, size, vm.cpl == 3) != 0 or \
                read_virt(vm, at + size, selector, 2, vm.cpl == 3) != 0:
            return -1
        return 0
    memcpy(offset, insn.code + insn.imm, size)
    memcpy(selector, insn.code + insn.imm + size, 2)
    return 0

cdef int far_code(Vm *vm, uint64_t selector, uint32_t *e) noexcept nogil:
    """Check the code segment a direct far JMP or CALL names; the CPL stays."""
    if e[1] & (D_S | D_CODE) != D_S | D_CODE:
        return fault(vm, EX_GP, selector & 0xfffc)
    if e[1] & D_C:
        if descriptor_dpl(e[1]) > vm.cpl:
            return fault(vm, EX_GP, selector & 0xfffc)
    elif descriptor_dpl(e[1]) != vm.cpl or <int>(selector & 3) > vm.cpl:
        return fault(vm, EX_GP, selector & 0xfffc)
    if not e[1] & D_P:
        return fault(vm, EX_NP, selector & 0xfffc)
    return 0

cdef struct Gate:               # a call gate, read
    uint64_t offset
    uint32_t selector
    uint32_t code[2]            # descriptor of the code segment behind it
    int size                    # of what it pushes: 2, 4 or 8 bytes
    int params                  # words to copy from the caller's stack
    int cpl                     # after the transfer

cdef int read_gate(Vm *vm, uint64_t selector, uint32_t *e, bint is_call, Gate *gate) noexcept nogil:
    """A system descriptor as the target of a far JMP or CALL (SDM vol. 3, 5.8.3)."""
    cdef int kind = (e[1] >> 8) & 0x1f
    cdef uint32_t high[2]
    cdef uint64_t address
    if (vm.efer & EFER_LMA and kind != 0xc) or (kind != 0xc and kind != 4 and
                                                not is_task(kind)):
        return fault(vm, EX_GP, selector & 0xfffc)
    if is_task(kind):
        vm.stop = STOP_UNSUPPORTED
        vm.message = b"the guest used a task switch"
        return -1
    if descriptor_dpl(e[1]) < vm.cpl or descriptor_dpl(e[1]) < <int>(selector & 3):
        return fault(vm, EX_GP, selector & 0xfffc)
    if not e[1] & D_P:
        return fault(vm, EX_NP, selector & 0xfffc)
    gate.selector = e[0] >> 16
    gate.offset = (e[0] & 0xffff) | (e[1] & <uint64_t>0xffff0000 if kind == 0xc else 0)
    gate.size = 4 if kind == 0xc else 2
    gate.params = e[1] & 31
    if vm.efer & EFER_LMA:
        if descriptor_at(vm, (<uint32_t>selector & 0xfffc) + 8, &address) != 0:
            return fault(vm, EX_GP, selector & 0xfffc)
        if read_virt(vm, address, high, 8, False) != 0:
            return -1
        if high[1] & 0x1f00:
            return fault(vm, EX_GP, selector & 0xfffc)
        gate.offset |= <uint64_t>high[0] << 32
        gate.size = 8
        gate.params = 0
    if gate_code(vm, gate.selector, gate.code, &gate.cpl) != 0:
        return -1
    if vm.efer & EFER_LMA and gate.code[1] & (D_L | D_B) != D_L:
        return fault(vm, EX_GP, gate.selector & 0xfffc)
    if not is_call and gate.cpl != vm.cpl:
        return fault(vm, EX_GP, gate.selector & 0xfffc)
    return 0

cdef inline bint is_task(int kind) noexcept nogil:
    """TSS (available or busy) or task gate."""
    return kind == 1 or kind == 3 or kind == 5 or kind == 9 or kind == 11

cdef int call_gate(Vm *vm, Gate *gate) noexcept nogil:
    """Far CALL through a call gate: 0, or -1 with nothing changed."""
    cdef Env *env = vm.env
    cdef uint64_t words[36]
    cdef uint64_t value, base, mask, rsp
    cdef uint32_t ss[2]
    cdef uint32_t pair[2]
    cdef uint32_t new_ss = 0
    cdef uint8_t frame[288]
    cdef int i, count = 2
    words[0] = vm.next_rip
    words[1] = virtual_cs(vm)
    if gate.cpl == vm.cpl:
        base = 0 if vm.env.hflags & HF_CS64 else env.segs[R_SS].base
        mask = stack_pointer_mask(vm)
        rsp = env.regs[RSP]
    else:
        for i in range(gate.params):
            if peek_stack(vm, i * gate.size, &words[2 + i], gate.size) != 0:
                return -1
        count += gate.params
        words[count] = env.regs[RSP]
        words[count + 1] = virtual_ss(vm)
        count += 2
        if vm.efer & EFER_LMA:
            if read_virt(vm, vm.tr.base + 4, &rsp, 8, False) != 0:
                return -1
            base = 0
            mask = ~<uint64_t>0
        else:
            if read_virt(vm, vm.tr.base + 4, pair, 8, False) != 0:
                return -1
            new_ss = pair[1] & 0xffff
            if new_ss & 0xfffc == 0 or descriptor_read(vm, new_ss, ss) != 0 or \
                    <int>(new_ss & 3) != gate.cpl or descriptor_dpl(ss[1]) != gate.cpl or \
                    ss[1] & (D_S | D_CODE | D_RW) != D_S | D_RW:
                return fault(vm, EX_TS, new_ss & 0xfffc)
            if not ss[1] & D_P:
                return fault(vm, EX_SS, new_ss & 0xfffc)
            base = descriptor_base(ss[0], ss[1])
            mask = stack_mask(ss[1])
            rsp = pair[0]
    for i in range(count):
        value = words[i]
        memcpy(frame + i * gate.size, &value, gate.size)
    rsp -= count * gate.size
    value = base + (rsp & mask)
    if not vm.efer & EFER_LMA:
        value &= <uint64_t>0xffffffff
    if write_virt(vm, value, frame, count * gate.size, gate.cpl == 3) != 0:
        return -1
    descriptor_touch(vm, gate.selector, gate.code)
    segment_cache(vm, R_CS, gate.selector, gate.code)
    if gate.cpl != vm.cpl:
        if vm.efer & EFER_LMA:
            segment_null(vm, R_SS, gate.cpl)
            env.segs[R_SS].flags = FLAT_DATA
        else:
            descriptor_touch(vm, new_ss, ss)
            segment_cache(vm, R_SS, new_ss, ss)
    env.regs[RSP] = (rsp & mask) if gate.cpl != vm.cpl else \
        (env.regs[RSP] & ~mask) | (rsp & mask)
    env.eip = gate.offset
    set_cpl(vm, gate.cpl, get_flags(vm))
    return 0

cdef void far_go(Vm *vm, uint64_t selector, uint32_t *e, uint64_t offset) noexcept nogil:
    descriptor_touch(vm, <uint32_t>selector, e)
    segment_cache(vm, R_CS, <uint32_t>selector, e)
    vm.env.eip = offset
    set_cpl(vm, vm.cpl, get_flags(vm))

cdef void far_real(Vm *vm, uint64_t selector, uint64_t offset) noexcept nogil:
    """Far transfer with CR0.PE clear: the selector is the paragraph."""
    vm.env.segs[R_CS].selector = selector & 0xffff
    vm.env.segs[R_CS].base = (selector & 0xffff) << 4
    vm.env.segs[R_CS].flags &= ~<uint32_t>(D_B | D_L)
    vm.env.eip = offset & 0xffff
    update_hflags(vm)

cdef void far_failed(Vm *vm) noexcept nogil:
    if vm.stop:
        leave(vm)
    else:
        raise_pending(vm)

cdef int far_descriptor(Vm *vm, uint64_t selector, uint32_t *e) noexcept nogil:
    if selector & 0xfffc == 0:
        return fault(vm, EX_GP, 0)
    return descriptor_read(vm, <uint32_t>selector, e)

cdef void do_far_jmp(Vm *vm, Insn *insn) noexcept nogil:
    cdef uint64_t selector, offset
    cdef uint32_t e[2]
    cdef Gate gate
    if far_target(vm, insn, &selector, &offset) != 0:
        raise_pending(vm)
    elif not protected(vm):
        far_real(vm, selector, offset)
    elif far_descriptor(vm, selector, e) != 0:
        raise_pending(vm)
    elif not e[1] & D_S:
        if read_gate(vm, selector, e, False, &gate) != 0:
            far_failed(vm)
        else:
            far_go(vm, (gate.selector & 0xfffc) | vm.cpl, gate.code, gate.offset)
    elif far_code(vm, selector, e) != 0:
        raise_pending(vm)
    else:
        far_go(vm, selector, e, offset)

cdef void do_far_call(Vm *vm, Insn *insn) noexcept nogil:
    cdef uint64_t selector, offset
    cdef uint32_t e[2]
    cdef Gate gate
    cdef int size = insn.opsize
    cdef uint64_t saved = vm.env.regs[RSP]
    cdef bint described = protected(vm)
    if far_target(vm, insn, &selector, &offset) != 0:
        raise_pending(vm)
        return
    if described:
        if far_descriptor(vm, selector, e) != 0:
            raise_pending(vm)
            return
        if not e[1] & D_S:
            if read_gate(vm, selector, e, True, &gate) != 0 or call_gate(vm, &gate) != 0:
                far_failed(vm)
            return
        if far_code(vm, selector, e) != 0:
            raise_pending(vm)
            return
    if push(vm, virtual_cs(vm), size) != 0:
        raise_pending(vm)
        return
    if push(vm, vm.next_rip, size) != 0:
        vm.env.regs[RSP] = saved
        raise_pending(vm)
        return
    if described:
        far_go(vm, selector, e, offset)
    else:
        far_real(vm, selector, offset)

cdef void do_far_ret(Vm *vm, Insn *insn) noexcept nogil:
    cdef Env *env = vm.env
    cdef uint64_t rip, cs, rsp = 0, ss = 0
    cdef uint32_t e[2]
    cdef int size = insn.opsize
    cdef uint32_t release = 0
    cdef int new_cpl
    if insn.opcode == 0xca:
        release = insn.code[insn.imm] | (insn.code[insn.imm + 1] << 8)
    if peek_stack(vm, 0, &rip, size) != 0 or peek_stack(vm, size, &cs, size) != 0:
        raise_pending(vm)
        return
    cs &= 0xffff
    if not protected(vm):
        move_stack(vm, 2 * size + release)
        far_real(vm, cs, rip)
        return
    new_cpl = cs & 3
    if new_cpl < vm.cpl or new_cpl == 1 or new_cpl == 2:
        raise_gp(vm, cs & 0xfffc)
        return
    if load_code_segment(vm, <uint32_t>cs, new_cpl, e) != 0:
        raise_pending(vm)
        return
    if new_cpl == vm.cpl:
        descriptor_touch(vm, <uint32_t>cs, e)
        segment_cache(vm, R_CS, <uint32_t>cs, e)
        move_stack(vm, 2 * size + release)
        env.eip = rip
        set_cpl(vm, vm.cpl, get_flags(vm))
        return
    if peek_stack(vm, 2 * size + release, &rsp, size) != 0 or \
            peek_stack(vm, 3 * size + release, &ss, size) != 0 or \
            return_outer(vm, <uint32_t>cs, e, ss & 0xffff, new_cpl) != 0:
        raise_pending(vm)
        return
    env.eip = rip
    set_cpl(vm, new_cpl, get_flags(vm))
    env.regs[RSP] = rsp + release
    drop_privileged_segments(vm)
