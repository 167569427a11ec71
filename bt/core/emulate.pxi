# SPDX-License-Identifier: GPL-2.0-or-later
# The control unit: what each sensitive instruction does to the virtual CPU.
#
# One handler a row of translator/sensitive.py, found by name at import. On entry vm.rip is the
# instruction's offset in CS, vm.next_rip the one behind it, env.eip == vm.next_rip; a handler either
# does the whole instruction or raises the guest's exception at vm.rip. Handlers check the virtual
# CPL themselves: the same code may be reached from user mode, and from engine `trap`, where the
# instruction faulted instead of being rewritten.

cdef inline bint kernel_only(Vm *vm) noexcept nogil:
    """Raise #GP(0) and say False unless the guest is in its kernel."""
    if vm.cpl == 0:
        return True
    raise_gp(vm, 0)
    return False

cdef inline void done(Vm *vm, int status) noexcept nogil:
    if status != 0:
        raise_pending(vm)

# Interrupt flag -------------------------------------------------------------------------------

cdef inline void put_if(Vm *vm, uint64_t value) noexcept nogil:
    vm.page[PG_VIF] = value
    if vm.cpl == 3 or vm.hvm != NULL or not (vm.translate or vm.pv != NULL):
        vm.env.eflags = (vm.env.eflags & ~<uint64_t>FL_IF) | value

cdef void do_cli(Vm *vm, Insn *insn) noexcept nogil:
    if vm.cpl > iopl(vm):
        raise_gp(vm, 0)
    elif vm.xen == NULL:        # a Xen domain's flag is in vcpu_info; Xen ignores CLI and STI
        put_if(vm, 0)

cdef void do_sti(Vm *vm, Insn *insn) noexcept nogil:
    if vm.cpl > iopl(vm):
        raise_gp(vm, 0)
    elif vm.xen == NULL and not interrupts_on(vm):
        put_if(vm, FL_IF)
        interrupts_opened(vm, True)

cdef void do_pushf(Vm *vm, Insn *insn) noexcept nogil:
    cdef int size = insn.opsize
    if insn.bits == 64 and size == 4:
        size = 8
    done(vm, push(vm, get_flags(vm) & ~<uint64_t>(FL_RF | FL_VM), size))

cdef void do_popf(Vm *vm, Insn *insn) noexcept nogil:
    cdef int size = insn.opsize
    cdef uint64_t value, keep, flags
    if insn.bits == 64 and size == 4:
        size = 8
    if peek_stack(vm, 0, &value, size) != 0:
        raise_pending(vm)
        return
    move_stack(vm, size)
    flags = get_flags(vm)
    # Bits POPF may change (SDM vol. 2, POPF): all arithmetic ones, TF, DF, NT, AC, ID; IOPL at CPL 0;
    # IF when CPL <= IOPL. RF becomes 0.
    keep = FL_ARITH | FL_TF | FL_DF | FL_NT | FL_AC | FL_ID
    if vm.cpl == 0:
        keep |= FL_IOPL
    if vm.cpl <= iopl(vm):
        keep |= FL_IF
    if size == 2:
        keep &= 0xffff
    set_flags(vm, ((flags & ~keep) | (value & keep)) & ~<uint64_t>FL_RF)
    if not flags & FL_IF and interrupts_on(vm):
        interrupts_opened(vm, False)

cdef void do_hlt(Vm *vm, Insn *insn) noexcept nogil:
    if not kernel_only(vm):
        return
    vm.shadow = 0
    if vm.intr and interrupts_on(vm):
        take_irq(vm)
        return
    vm.halted = 1
    vm.stop = STOP_HLT
    leave(vm)

# Descriptor tables and system segments --------------------------------------------------------

cdef void store_table(Vm *vm, Insn *insn, Descriptor *table) noexcept nogil:
    cdef uint8_t image[10]
    cdef uint16_t limit = <uint16_t>table.limit
    memcpy(image, &limit, 2)
    memcpy(image + 2, &table.base, 8)
    done(vm, write_virt(vm, ea_linear(vm, insn), image, 10 if insn.bits == 64 else 6, vm.cpl == 3))

cdef void load_table(Vm *vm, Insn *insn, Descriptor *table) noexcept nogil:
    cdef uint8_t image[10]
    cdef uint16_t limit
    cdef uint64_t base
    if not kernel_only(vm):
        return
    memset(image, 0, 10)
    if read_virt(vm, ea_linear(vm, insn), image, 10 if insn.bits == 64 else 6, False) != 0:
        raise_pending(vm)
        return
    memcpy(&limit, image, 2)
    memcpy(&base, image + 2, 8)
    if insn.bits != 64:
        base &= 0xffffff if insn.opsize == 2 else <uint64_t>0xffffffff
    elif not canonical(base):
        raise_gp(vm, 0)
        return
    table.base = base
    table.limit = limit
    if vm.hvm != NULL:
        hvm_publish(vm)

cdef void do_sgdt(Vm *vm, Insn *insn) noexcept nogil:
    store_table(vm, insn, &vm.gdt)

cdef void do_sidt(Vm *vm, Insn *insn) noexcept nogil:
    store_table(vm, insn, &vm.idt)

cdef void do_lgdt(Vm *vm, Insn *insn) noexcept nogil:
    load_table(vm, insn, &vm.gdt)

cdef void do_lidt(Vm *vm, Insn *insn) noexcept nogil:
    load_table(vm, insn, &vm.idt)

cdef void store_selector(Vm *vm, Insn *insn, uint64_t value) noexcept nogil:
    done(vm, operand_write(vm, insn, insn.opsize if insn.mod == 3 else 2, value))

cdef void do_sldt(Vm *vm, Insn *insn) noexcept nogil:
    if not protected(vm):
        raise_ud(vm)
    else:
        store_selector(vm, insn, vm.ldt.selector)

cdef void do_str(Vm *vm, Insn *insn) noexcept nogil:
    if not protected(vm):
        raise_ud(vm)
    else:
        store_selector(vm, insn, vm.tr.selector)

cdef void load_system(Vm *vm, Insn *insn, Descriptor *into, bint is_tss) noexcept nogil:
    """LLDT and LTR (SDM vol. 2)."""
    cdef uint64_t selector
    if not protected(vm):
        raise_ud(vm)
        return
    if not kernel_only(vm):
        return
    if operand_read(vm, insn, 2, &selector) != 0 or \
            load_system_selector(vm, <uint32_t>selector, into, is_tss) != 0:
        raise_pending(vm)
    elif vm.hvm != NULL:
        hvm_publish(vm)

cdef int load_system_selector(Vm *vm, uint32_t selector, Descriptor *into,
                              bint is_tss) noexcept nogil:
    """Load LDTR or TR. 0, or -1 with the fault set and nothing changed."""
    cdef uint64_t address
    cdef uint32_t e[4]
    cdef int kind
    if selector & 0xfffc == 0:
        if is_tss:
            return fault(vm, EX_GP, 0)
        into.selector = selector
        into.limit = 0
        into.base = 0
        return 0
    memset(e, 0, sizeof(e))
    if selector & 4 or descriptor_at(vm, selector, &address) != 0:
        return fault(vm, EX_GP, selector & 0xfffc)
    if read_virt(vm, address, e, 16 if vm.efer & EFER_LMA else 8, False) != 0:
        return -1
    kind = (e[1] >> 8) & 0x1f
    if (is_tss and kind != 9 and (kind != 1 or vm.efer & EFER_LMA)) or \
            (not is_tss and kind != 2):
        return fault(vm, EX_GP, selector & 0xfffc)
    if not e[1] & D_P:
        return fault(vm, EX_NP, selector & 0xfffc)
    into.selector = selector
    into.base = descriptor_base(e[0], e[1]) | (<uint64_t>e[2] << 32)
    into.limit = descriptor_limit(e[0], e[1])
    if is_tss:
        e[1] |= 0x200           # busy
        write_virt(vm, address + 4, &e[1], 4, False)
    into.flags = e[1]
    return 0

cdef void do_lldt(Vm *vm, Insn *insn) noexcept nogil:
    load_system(vm, insn, &vm.ldt, False)

cdef void do_ltr(Vm *vm, Insn *insn) noexcept nogil:
    load_system(vm, insn, &vm.tr, True)

cdef int probe_selector(Vm *vm, Insn *insn, uint32_t *e, uint64_t *selector) noexcept nogil:
    """Common part of LAR, LSL, VERR, VERW: 1 descriptor in e, 0 not accessible, -1 fault raised."""
    cdef uint64_t address
    cdef int dpl
    if not protected(vm):
        raise_ud(vm)
        return -1
    if operand_read(vm, insn, 2, selector) != 0:
        raise_pending(vm)
        return -1
    if selector[0] & 0xfffc == 0 or descriptor_at(vm, selector[0], &address) != 0:
        return 0
    if read_virt(vm, address, e, 8, False) != 0:
        raise_pending(vm)
        return -1
    dpl = descriptor_dpl(e[1])
    if e[1] & (D_S | D_CODE | D_C) != D_S | D_CODE | D_C and \
            (dpl < vm.cpl or dpl < <int>(selector[0] & 3)):
        return 0
    return 1

cdef void set_zf(Vm *vm, bint on) noexcept nogil:
    cdef uint64_t flags = real_flags(vm)
    flags = flags | FL_ZF if on else flags & ~<uint64_t>FL_ZF
    vm.env.cc_src = flags & FL_ARITH
    vm.env.cc_op = CC_OP_EFLAGS

cdef void do_lar(Vm *vm, Insn *insn) noexcept nogil:
    cdef uint32_t e[2]
    cdef uint64_t selector
    cdef int kind, status = probe_selector(vm, insn, e, &selector)
    if status < 0:
        return
    if status and not e[1] & D_S:
        kind = (e[1] >> 8) & 0xf
        if vm.efer & EFER_LMA:
            status = kind == 2 or kind == 9 or kind == 11 or kind == 12
        else:
            status = kind != 0 and kind != 6 and kind != 7 and kind != 8 and kind != 10 and \
                kind != 13 and kind < 14
    if status:
        set_reg(vm, insn.reg, e[1] & 0x00f0ff00, insn.opsize)
    set_zf(vm, status)

cdef void do_lsl(Vm *vm, Insn *insn) noexcept nogil:
    cdef uint32_t e[2]
    cdef uint64_t selector
    cdef int kind, status = probe_selector(vm, insn, e, &selector)
    if status < 0:
        return
    if status and not e[1] & D_S:
        kind = (e[1] >> 8) & 0xf
        status = kind == 2 or kind == 9 or kind == 11 or \
            (not vm.efer & EFER_LMA and (kind == 1 or kind == 3))
    if status:
        set_reg(vm, insn.reg, descriptor_limit(e[0], e[1]), insn.opsize)
    set_zf(vm, status)

cdef void verify(Vm *vm, Insn *insn, bint write) noexcept nogil:
    cdef uint32_t e[2]
    cdef uint64_t selector
    cdef int status = probe_selector(vm, insn, e, &selector)
    if status < 0:
        return
    if status:
        if not e[1] & D_S:
            status = 0
        elif e[1] & D_CODE:
            status = not write and e[1] & D_RW
        else:
            status = not write or e[1] & D_RW
    set_zf(vm, status != 0)

cdef void do_verr(Vm *vm, Insn *insn) noexcept nogil:
    verify(vm, insn, False)

cdef void do_verw(Vm *vm, Insn *insn) noexcept nogil:
    verify(vm, insn, True)

# Segment registers ----------------------------------------------------------------------------

cdef void do_mov_from_seg(Vm *vm, Insn *insn) noexcept nogil:
    cdef uint32_t value
    cdef int seg = insn.reg & 7
    if seg == R_CS:
        value = virtual_cs(vm)
    elif seg == R_SS:
        value = virtual_ss(vm)
    else:
        value = vm.env.segs[seg].selector
    done(vm, operand_write(vm, insn, insn.opsize if insn.mod == 3 else 2, value))

cdef void do_mov_to_seg(Vm *vm, Insn *insn) noexcept nogil:
    cdef uint64_t selector
    cdef int seg = insn.reg & 7
    if seg == R_CS or seg > R_GS:
        raise_ud(vm)
        return
    if operand_read(vm, insn, 2, &selector) != 0 or load_data_segment(vm, seg, selector) != 0:
        raise_pending(vm)
        return
    if seg == R_SS:
        vm.page[PG_SS] = virtual_ss(vm)
        shadow_next(vm)

cdef inline int stack_size(Insn *insn) noexcept nogil:
    """Operand size of a push or pop (64-bit code has no 32-bit form)."""
    return 8 if insn.bits == 64 and insn.opsize == 4 else insn.opsize

cdef void do_push_seg(Vm *vm, Insn *insn) noexcept nogil:
    cdef uint32_t value
    cdef int seg = (insn.opcode >> 3) & 7
    if seg == R_CS:
        value = virtual_cs(vm)
    elif seg == R_SS:
        value = virtual_ss(vm)
    else:
        value = vm.env.segs[seg].selector
    done(vm, push(vm, value, stack_size(insn)))

cdef void do_pop_seg(Vm *vm, Insn *insn) noexcept nogil:
    cdef uint64_t selector
    cdef int size = stack_size(insn)
    cdef int seg = (insn.opcode >> 3) & 7
    if peek_stack(vm, 0, &selector, 2) != 0 or load_data_segment(vm, seg, selector) != 0:
        raise_pending(vm)
        return
    move_stack(vm, size)
    if seg == R_SS:
        vm.page[PG_SS] = virtual_ss(vm)
        shadow_next(vm)

cdef void do_load_far_ptr(Vm *vm, Insn *insn) noexcept nogil:
    """LDS LES LSS LFS LGS."""
    cdef uint64_t offset = 0
    cdef uint64_t selector = 0
    cdef uint64_t at = ea_linear(vm, insn)
    cdef int seg
    if insn.two_byte:
        seg = R_SS if insn.opcode == 0xb2 else (R_FS if insn.opcode == 0xb4 else R_GS)
    else:
        seg = R_ES if insn.opcode == 0xc4 else R_DS
    if read_virt(vm, at, &offset, insn.opsize, vm.cpl == 3) != 0 or \
            read_virt(vm, at + insn.opsize, &selector, 2, vm.cpl == 3) != 0 or \
            load_data_segment(vm, seg, selector) != 0:
        raise_pending(vm)
        return
    set_reg(vm, insn.reg, offset, insn.opsize)
    if seg == R_SS:
        vm.page[PG_SS] = virtual_ss(vm)

cdef inline uint64_t *kernel_gs(Vm *vm) noexcept nogil:
    """KERNEL_GS_BASE, which SWAPGS exchanges: a field of the CPU, or of the page stubs work on."""
    if vm.hvm != NULL:
        return env64(vm, vm.hvm.fields.kernel_gs)
    return &vm.page[PG_KGS]

cdef void do_swapgs(Vm *vm, Insn *insn) noexcept nogil:
    cdef uint64_t base
    if not kernel_only(vm):
        return
    base = vm.env.segs[R_GS].base
    vm.env.segs[R_GS].base = kernel_gs(vm)[0]
    kernel_gs(vm)[0] = base

# Control, debug and extended control registers ------------------------------------------------

cdef void publish_crs(Vm *vm) noexcept nogil:
    """The stubs' read-only view of the control registers."""
    vm.page[PG_CR0] = vm.cr0
    vm.page[PG_CR3] = vm.cr3
    vm.page[PG_CR4] = vm.cr4

cdef bint write_cr0(Vm *vm, uint64_t value) noexcept nogil:
    cdef uint64_t old = vm.cr0
    cdef int seg
    value = (value & <uint64_t>0xe005002f) | CR0_ET
    if vm.xen != NULL and (value ^ old) & ~CR0_TS:
        return False            # WP is what keeps the page tables read-only
    if (value & CR0_PG and not value & CR0_PE) or (value & CR0_NW and not value & CR0_CD):
        return False
    if value & CR0_PG and not old & CR0_PG:
        if vm.efer & EFER_LME:
            if not vm.cr4 & CR4_PAE or vm.env.segs[R_CS].flags & D_L:
                return False
            vm.efer |= EFER_LMA
    elif old & CR0_PG and not value & CR0_PG:
        if code_bits(vm) == 64:
            return False
        vm.efer &= ~EFER_LMA
    vm.cr0 = value
    if (old ^ value) & CR0_PE and vm.hvm == NULL:
        # Entering protected mode, CS and SS keep their bases and get the real privilege level.
        for seg in range(R_CS, R_SS + 1):
            vm.env.segs[seg].selector = (vm.env.segs[seg].selector & 0xfffc) | (value & CR0_PE)
    if (old ^ value) & (CR0_PG | CR0_WP | CR0_PE):
        flush_tlb(vm)
        update_hflags(vm)
    update_features(vm)
    publish_crs(vm)
    return True

# CR4 bits this vCPU has (the ones its CPUID announces).
cdef uint64_t CR4_VALID = 0x7ff & ~<uint64_t>0x3 | CR4_TSD | CR4_FSGSBASE

cdef bint write_cr4(Vm *vm, uint64_t value) noexcept nogil:
    cdef uint64_t old = vm.cr4
    if value & ~CR4_VALID:
        return False
    if vm.efer & EFER_LMA and not value & CR4_PAE:
        return False
    vm.cr4 = value
    if (old ^ value) & (CR4_PSE | CR4_PAE | CR4_PGE):
        flush_tlb(vm)
    update_features(vm)
    publish_crs(vm)
    return True

cdef void write_cr3(Vm *vm, uint64_t value) noexcept nogil:
    vm.cr3 = value if vm.efer & EFER_LMA else value & <uint64_t>0xffffffff
    vm.page[PG_CR3] = vm.cr3
    if vm.hvm != NULL:
        vm.env.cr[3] = vm.cr3
    flush_locals(vm)

cdef void write_cr8(Vm *vm, uint64_t value) noexcept nogil:
    """Task priority: Python hears of it only when it decides about an interrupt that waits."""
    cdef uint64_t old = vm.cr8
    vm.cr8 = value
    if vm.cr8_watch and (vm.cr8_watch > old) != (vm.cr8_watch > value):
        python_cr8_crossed(vm)

cdef inline int register_size(Insn *insn) noexcept nogil:
    return 8 if insn.bits == 64 else 4

cdef void do_mov_from_cr(Vm *vm, Insn *insn) noexcept nogil:
    cdef uint64_t value
    cdef int cr = insn.reg
    if not kernel_only(vm):
        return
    if insn.code[0] == 0xf0 and cr == 0:
        cr = 8
    if cr == 0:
        value = vm.cr0
    elif cr == 2:
        value = vm.cr2
    elif cr == 3:
        value = vm.cr3
    elif cr == 4:
        value = vm.cr4
    elif cr == 8:
        value = vm.cr8
    else:
        raise_ud(vm)
        return
    set_reg(vm, insn.rm, value, register_size(insn))

cdef void do_mov_to_cr(Vm *vm, Insn *insn) noexcept nogil:
    cdef uint64_t value = get_reg(vm, insn.rm, register_size(insn))
    cdef int cr = insn.reg
    if not kernel_only(vm):
        return
    if insn.code[0] == 0xf0 and cr == 0:
        cr = 8
    if cr == 0:
        if value >> 32 or not write_cr0(vm, value):
            raise_gp(vm, 0)
    elif cr == 2:
        set_cr2(vm, value)
    elif vm.xen != NULL and cr == 3:
        raise_gp(vm, 0)         # page tables change by hypercall only
    elif cr == 3:
        write_cr3(vm, value)
    elif cr == 4:
        if not write_cr4(vm, value):
            raise_gp(vm, 0)
    elif cr == 8:
        if value >> 4:
            raise_gp(vm, 0)
        else:
            write_cr8(vm, value)
    else:
        raise_ud(vm)

cdef void do_mov_from_dr(Vm *vm, Insn *insn) noexcept nogil:
    cdef int dr = insn.reg
    if not kernel_only(vm):
        return
    if dr > 7 or ((dr == 4 or dr == 5) and vm.cr4 & CR4_DE):
        raise_ud(vm)
        return
    if dr == 4 or dr == 5:
        dr += 2
    set_reg(vm, insn.rm, vm.dr[dr], register_size(insn))

cdef void do_mov_to_dr(Vm *vm, Insn *insn) noexcept nogil:
    cdef int dr = insn.reg
    cdef uint64_t value = get_reg(vm, insn.rm, register_size(insn))
    if not kernel_only(vm):
        return
    if dr > 7 or ((dr == 4 or dr == 5) and vm.cr4 & CR4_DE):
        raise_ud(vm)
        return
    if dr >= 4 and value >> 32:
        raise_gp(vm, 0)
        return
    if dr == 4 or dr == 5:
        dr += 2
    # Breakpoints are remembered, never armed: the CPU underneath has none to give (quirks).
    if dr == 6:
        value = (value & 0xe00f) | <uint64_t>0xffff0ff0
    elif dr == 7:
        value = (value & <uint64_t>0xffff2fff) | 0x400
    vm.dr[dr] = value

cdef void do_smsw(Vm *vm, Insn *insn) noexcept nogil:
    done(vm, operand_write(vm, insn, insn.opsize if insn.mod == 3 else 2, vm.cr0))

cdef void do_lmsw(Vm *vm, Insn *insn) noexcept nogil:
    cdef uint64_t value
    if not kernel_only(vm):
        return
    if operand_read(vm, insn, 2, &value) != 0:
        raise_pending(vm)
        return
    # LMSW can set PE but not clear it.
    if not write_cr0(vm, (vm.cr0 & ~<uint64_t>0xe) | (value & 0xf)):
        raise_gp(vm, 0)

cdef void do_clts(Vm *vm, Insn *insn) noexcept nogil:
    if kernel_only(vm):
        vm.cr0 &= ~CR0_TS
        vm.page[PG_CR0] = vm.cr0
        update_features(vm)

cdef void do_undefined(Vm *vm, Insn *insn) noexcept nogil:
    """Instructions of features this vCPU's CPUID does not announce."""
    raise_ud(vm)

# Caches and TLB -------------------------------------------------------------------------------

cdef void do_invlpg(Vm *vm, Insn *insn) noexcept nogil:
    if kernel_only(vm):
        flush_page(vm, ea_linear(vm, insn))
        note(vm, EXIT_PAGE_INVALIDATE, ea_linear(vm, insn), 0)

cdef void do_nothing_privileged(Vm *vm, Insn *insn) noexcept nogil:
    """WBINVD, INVD: there are no caches to write back."""
    kernel_only(vm)

# Time and identity ----------------------------------------------------------------------------

cdef inline void give_tsc(Vm *vm) noexcept nogil:
    cdef uint64_t tsc = virtual_tsc(vm)
    vm.env.regs[RAX] = tsc & <uint64_t>0xffffffff
    vm.env.regs[RDX] = tsc >> 32

cdef void do_rdtsc(Vm *vm, Insn *insn) noexcept nogil:
    if vm.cr4 & CR4_TSD and vm.cpl == 3:
        raise_gp(vm, 0)
        return
    give_tsc(vm)

cdef void do_rdtscp(Vm *vm, Insn *insn) noexcept nogil:
    if vm.cr4 & CR4_TSD and vm.cpl == 3:
        raise_gp(vm, 0)
        return
    give_tsc(vm)
    vm.env.regs[RCX] = vm.tsc_aux & <uint64_t>0xffffffff

cdef void do_rdpmc(Vm *vm, Insn *insn) noexcept nogil:
    # No counters: any index is out of range.
    raise_gp(vm, 0)

cdef void do_cpuid(Vm *vm, Insn *insn) noexcept nogil:
    answer_cpuid(vm)

cdef void do_pause(Vm *vm, Insn *insn) noexcept nogil:
    pass

# MSRs -----------------------------------------------------------------------------------------

cdef enum:
    MSR_TSC = 0x10
    MSR_TSC_ADJUST = 0x3b
    MSR_SYSENTER_CS = 0x174
    MSR_SYSENTER_ESP = 0x175
    MSR_SYSENTER_EIP = 0x176
    MSR_PAT = 0x277

cdef uint32_t MSR_EFER = 0xc0000080
cdef uint32_t MSR_STAR = 0xc0000081
cdef uint32_t MSR_LSTAR = 0xc0000082
cdef uint32_t MSR_CSTAR = 0xc0000083
cdef uint32_t MSR_FMASK = 0xc0000084
cdef uint32_t MSR_FS_BASE = 0xc0000100
cdef uint32_t MSR_GS_BASE = 0xc0000101
cdef uint32_t MSR_KERNEL_GS_BASE = 0xc0000102
cdef uint32_t MSR_TSC_AUX = 0xc0000103

cdef void do_rdmsr(Vm *vm, Insn *insn) noexcept nogil:
    cdef uint64_t value = 0
    if not kernel_only(vm):
        return
    if not msr_read(vm, <uint32_t>vm.env.regs[RCX], &value):
        raise_gp(vm, 0)
        return
    vm.env.regs[RAX] = value & <uint64_t>0xffffffff
    vm.env.regs[RDX] = value >> 32

cdef bint msr_read(Vm *vm, uint32_t msr, uint64_t *out) noexcept nogil:
    """False: there is no such MSR."""
    cdef uint64_t value = 0
    if msr == MSR_FS_BASE:
        value = vm.env.segs[R_FS].base
    elif msr == MSR_GS_BASE:
        value = vm.env.segs[R_GS].base
    elif msr == MSR_KERNEL_GS_BASE:
        value = kernel_gs(vm)[0]
    elif msr == MSR_EFER:
        value = vm.efer
    elif msr == MSR_STAR:
        value = vm.star
    elif msr == MSR_LSTAR:
        value = vm.lstar
    elif msr == MSR_CSTAR:
        value = vm.cstar
    elif msr == MSR_FMASK:
        value = vm.fmask
    elif msr == MSR_TSC_AUX:
        value = vm.tsc_aux
    elif msr == MSR_TSC:
        value = virtual_tsc(vm)
    elif msr == MSR_TSC_ADJUST:
        value = vm.tsc_adjust
    elif msr == MSR_SYSENTER_CS:
        value = vm.sysenter_cs
    elif msr == MSR_SYSENTER_ESP:
        value = vm.sysenter_esp
    elif msr == MSR_SYSENTER_EIP:
        value = vm.sysenter_eip
    elif msr == MSR_PAT:
        value = vm.pat
    elif not python_rdmsr(vm, msr, &value):
        return False
    out[0] = value
    return True

cdef void do_wrmsr(Vm *vm, Insn *insn) noexcept nogil:
    if kernel_only(vm) and not msr_write(vm, <uint32_t>vm.env.regs[RCX],
                                         (vm.env.regs[RAX] & <uint64_t>0xffffffff) |
                                         (vm.env.regs[RDX] << 32)):
        raise_gp(vm, 0)

cdef bint msr_write(Vm *vm, uint32_t msr, uint64_t value) noexcept nogil:
    """False: there is no such MSR, or it does not take this value."""
    cdef bint good = True
    if msr == MSR_FS_BASE or msr == MSR_GS_BASE or msr == MSR_KERNEL_GS_BASE or \
            msr == MSR_LSTAR or msr == MSR_CSTAR:
        good = canonical(value)
    if not good:
        pass
    elif msr == MSR_FS_BASE:
        vm.env.segs[R_FS].base = value
    elif msr == MSR_GS_BASE:
        vm.env.segs[R_GS].base = value
    elif msr == MSR_KERNEL_GS_BASE:
        kernel_gs(vm)[0] = value
    elif msr == MSR_EFER:
        # LMA is read-only; LME may not change while paging is on (SDM vol. 3, 9.8.5).
        if value & ~<uint64_t>(EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE) or \
                ((value ^ vm.efer) & EFER_LME and vm.cr0 & CR0_PG):
            good = False
        else:
            if (value ^ vm.efer) & EFER_NXE:
                flush_tlb(vm)
            vm.efer = (value & ~EFER_LMA) | (vm.efer & EFER_LMA)
            update_features(vm)
    elif msr == MSR_STAR:
        vm.star = value
    elif msr == MSR_LSTAR:
        vm.lstar = value
    elif msr == MSR_CSTAR:
        vm.cstar = value
    elif msr == MSR_FMASK:
        vm.fmask = value & <uint64_t>0xffffffff
    elif msr == MSR_TSC_AUX:
        vm.tsc_aux = value & <uint64_t>0xffffffff
    elif msr == MSR_TSC:
        vm.tsc_adjust = value - virtual_ns(vm)
    elif msr == MSR_TSC_ADJUST:
        vm.tsc_adjust = value
    elif msr == MSR_SYSENTER_CS:
        vm.sysenter_cs = value & 0xffff
    elif msr == MSR_SYSENTER_ESP:
        vm.sysenter_esp = value
    elif msr == MSR_SYSENTER_EIP:
        vm.sysenter_eip = value
    elif msr == MSR_PAT:
        vm.pat = value
    else:
        good = python_wrmsr(vm, msr, value)
    if vm.hvm != NULL:
        hvm_publish(vm)
    return good
