# SPDX-License-Identifier: GPL-2.0-or-later
# Ring1's own paravirtual interface: hypercalls by INT 0x82, and the traps of a patched kernel.
# docs/pv-abi.md is the contract; the numbers come from translator/pvabi.py.
#
# A hypercall is a function of three arguments; what it returns goes to RAX. It never raises an
# exception in the guest (IRET and SYSRET apart, which leave for good): a wrong argument is an
# error number. Whatever the guest passes is a number or a linear address that is looked up with
# the guest's own rights; there is no host address to get wrong.
#
# A patched kernel's stubs lie in the window (see translator/stubs.py), where the vCPU page's scratch
# fields are in use: no interrupt is delivered there, `leave_stub` says so.

cdef enum:
    PV_CALLS = 32               # more than there are
    PV_MAX_STAYS = 64           # no stub of ours has so many blocks
    PV_PIECE = 4096             # bytes console_write takes at once

cdef enum:
    PV_VECTOR = 0x82

ctypedef int64_t (*Hypercall)(Vm *vm, uint64_t a, uint64_t b, uint64_t c) noexcept nogil

cdef Hypercall pv_table[PV_CALLS]

# Where the window is -----------------------------------------------------------------------------

cdef inline bint window_wins(Vm *vm, uint64_t gva, Walk *found) noexcept nogil:
    """Whether the window, and not memory of the guest's, is at ``gva``.

    A kernel that declared our interface knows of the window. Only the low half of its address is
    the guest's again in long mode, where 32-bit code runs for a few instructions at most. A Xen
    domain's window holds the descriptors that the CPU itself loads: never the guest's to give.
    """
    if vm.xen != NULL:
        return True
    if vm.pv != NULL and (gva >> 32 or not vm.efer & EFER_LMA):
        return True
    if walk(vm, gva, ACCESS_READ, False, found) != 0:
        return True
    return vm.pv != NULL and not is_ram(vm, found.gpa)

# Hypercalls --------------------------------------------------------------------------------------

cdef int64_t pv_version(Vm *vm, uint64_t a, uint64_t b, uint64_t c) noexcept nogil:
    return 1

cdef int64_t pv_features(Vm *vm, uint64_t a, uint64_t b, uint64_t c) noexcept nogil:
    return 0

cdef int64_t pv_nosys(Vm *vm, uint64_t a, uint64_t b, uint64_t c) noexcept nogil:
    return E_NOSYS

cdef int64_t pv_error(Vm *vm) noexcept nogil:
    """The error for the fault that a helper left in vm.fault_*."""
    return E_FAULT if vm.fault_vector == EX_PF else E_INVAL

cdef int64_t pv_load_table(Vm *vm, Descriptor *table, uint64_t pointer) noexcept nogil:
    cdef uint8_t image[10]
    cdef uint16_t limit
    cdef uint64_t base = 0
    cdef int bits = code_bits(vm)
    if read_virt(vm, pointer, image, 10 if bits == 64 else 6, False) != 0:
        return pv_error(vm)
    memcpy(&limit, image, 2)
    memcpy(&base, image + 2, 8 if bits == 64 else 4)
    if bits == 64 and not canonical(base):
        return E_INVAL
    table.base = base
    table.limit = limit
    return 0

cdef int64_t pv_set_gdt(Vm *vm, uint64_t a, uint64_t b, uint64_t c) noexcept nogil:
    return pv_load_table(vm, &vm.gdt, a)

cdef int64_t pv_set_idt(Vm *vm, uint64_t a, uint64_t b, uint64_t c) noexcept nogil:
    return pv_load_table(vm, &vm.idt, a)

cdef int64_t pv_set_ldt(Vm *vm, uint64_t a, uint64_t b, uint64_t c) noexcept nogil:
    return 0 if load_system_selector(vm, a & 0xffff, &vm.ldt, False) == 0 else pv_error(vm)

cdef int64_t pv_set_tss(Vm *vm, uint64_t a, uint64_t b, uint64_t c) noexcept nogil:
    return 0 if load_system_selector(vm, a & 0xffff, &vm.tr, True) == 0 else pv_error(vm)

cdef int64_t pv_set_stack(Vm *vm, uint64_t a, uint64_t b, uint64_t c) noexcept nogil:
    """The stack for entries from user mode: it goes to the TSS, where deliveries look for it."""
    cdef uint32_t pair[2]
    if vm.tr.selector & 0xfffc == 0:
        return E_INVAL
    if vm.efer & EFER_LMA:
        return 0 if write_virt(vm, vm.tr.base + 4, &a, 8, False) == 0 else E_FAULT
    pair[0] = <uint32_t>a
    pair[1] = b & 0xffff
    return 0 if write_virt(vm, vm.tr.base + 4, pair, 8, False) == 0 else E_FAULT

cdef void pv_give(Vm *vm, uint64_t value) noexcept nogil:
    """A second result: RDX; in 32-bit code its low half in EDX and its high half in ECX."""
    if code_bits(vm) == 64:
        vm.env.regs[RDX] = value
    else:
        vm.env.regs[RDX] = value & <uint64_t>0xffffffff
        vm.env.regs[RCX] = value >> 32

cdef inline uint64_t pv_wide(Vm *vm, uint64_t b, uint64_t c) noexcept nogil:
    """A 64-bit value as second argument; in 32-bit code it takes two, low half first."""
    return b if code_bits(vm) == 64 else (b & <uint64_t>0xffffffff) | (c << 32)

cdef int64_t pv_read_cr(Vm *vm, uint64_t a, uint64_t b, uint64_t c) noexcept nogil:
    if a == 0:
        pv_give(vm, vm.cr0)
    elif a == 2:
        pv_give(vm, vm.cr2)
    elif a == 3:
        pv_give(vm, vm.cr3)
    elif a == 4:
        pv_give(vm, vm.cr4)
    elif a == 8:
        pv_give(vm, vm.cr8)
    else:
        return E_NOENT
    return 0

cdef int64_t pv_write_cr(Vm *vm, uint64_t a, uint64_t b, uint64_t c) noexcept nogil:
    if a == 3:
        write_cr3(vm, b)
    elif a == 0:
        return E_INVAL if b >> 32 or not write_cr0(vm, b) else 0
    elif a == 2:
        vm.cr2 = b
        vm.page[PG_CR2] = b
    elif a == 4:
        return 0 if write_cr4(vm, b) else E_INVAL
    elif a == 8:
        if b >> 4:
            return E_INVAL
        write_cr8(vm, b)
    else:
        return E_NOENT
    return 0

cdef int64_t pv_invlpg(Vm *vm, uint64_t a, uint64_t b, uint64_t c) noexcept nogil:
    flush_page(vm, a)
    note(vm, EXIT_PAGE_INVALIDATE, a, 0)
    return 0

cdef int64_t pv_flush_tlb(Vm *vm, uint64_t a, uint64_t b, uint64_t c) noexcept nogil:
    flush_tlb(vm)
    return 0

cdef int64_t pv_sti(Vm *vm, uint64_t a, uint64_t b, uint64_t c) noexcept nogil:
    vm.page[PG_VIF] = FL_IF     # what waits is taken on the way out of the hypercall
    return 0

cdef int64_t pv_halt(Vm *vm, uint64_t a, uint64_t b, uint64_t c) noexcept nogil:
    """HLT; with a != 0, STI and HLT in one, so that no interrupt can come between."""
    if a:
        vm.page[PG_VIF] = FL_IF
    if vm.intr and interrupts_on(vm):
        return 0
    vm.halted = 1
    vm.stop = STOP_HLT
    leave(vm)
    return 0

cdef int64_t pv_in(Vm *vm, uint64_t a, uint64_t b, uint64_t c) noexcept nogil:
    if a > 0xffff or (b != 1 and b != 2 and b != 4):
        return E_INVAL
    pv_give(vm, port_in(vm, <uint32_t>a, <int>b))
    return 0

cdef int64_t pv_out(Vm *vm, uint64_t a, uint64_t b, uint64_t c) noexcept nogil:
    if a > 0xffff or (b != 1 and b != 2 and b != 4):
        return E_INVAL
    port_out(vm, <uint32_t>a, <int>b,
             <uint32_t>(c & ((<uint64_t>1 << (b * 8)) - 1)))
    return 0

cdef int64_t pv_rdmsr(Vm *vm, uint64_t a, uint64_t b, uint64_t c) noexcept nogil:
    cdef uint64_t value = 0
    if a >> 32 or not msr_read(vm, <uint32_t>a, &value):
        return E_NOENT
    pv_give(vm, value)
    return 0

cdef int64_t pv_wrmsr(Vm *vm, uint64_t a, uint64_t b, uint64_t c) noexcept nogil:
    if a >> 32:
        return E_NOENT
    return 0 if msr_write(vm, <uint32_t>a, pv_wide(vm, b, c)) else E_INVAL

cdef int64_t pv_cpuid(Vm *vm, uint64_t a, uint64_t b, uint64_t c) noexcept nogil:
    """Leaf a, subleaf b: the results are in EAX, EBX, ECX and EDX, so there is no error."""
    vm.env.regs[RAX] = a & <uint64_t>0xffffffff
    vm.env.regs[RCX] = b & <uint64_t>0xffffffff
    cpuid_exit(vm, LIMIT_NO_INJECT)
    return <int64_t>vm.env.regs[RAX]

cdef int64_t pv_read_tsc(Vm *vm, uint64_t a, uint64_t b, uint64_t c) noexcept nogil:
    pv_give(vm, virtual_tsc(vm))
    return 0

cdef int64_t pv_set_segment(Vm *vm, uint64_t a, uint64_t b, uint64_t c) noexcept nogil:
    if a > R_GS or a == R_CS:
        return E_INVAL
    if load_data_segment(vm, <int>a, b & 0xffff) != 0:
        return pv_error(vm)
    if a == R_SS:
        vm.page[PG_SS] = virtual_ss(vm)
    return 0

cdef int64_t pv_set_segment_base(Vm *vm, uint64_t a, uint64_t b, uint64_t c) noexcept nogil:
    """a: 0 FS, 1 GS, 2 the GS base that SWAPGS brings in."""
    if not vm.efer & EFER_LMA or a > 2 or not canonical(b):
        return E_INVAL
    if a == 0:
        vm.env.segs[R_FS].base = b
    elif a == 1:
        vm.env.segs[R_GS].base = b
    else:
        vm.page[PG_KGS] = b
    return 0

cdef int64_t pv_swapgs(Vm *vm, uint64_t a, uint64_t b, uint64_t c) noexcept nogil:
    cdef uint64_t base = vm.env.segs[R_GS].base
    if not vm.efer & EFER_LMA:
        return E_INVAL
    vm.env.segs[R_GS].base = vm.page[PG_KGS]
    vm.page[PG_KGS] = base
    return 0

cdef int64_t pv_console_write(Vm *vm, uint64_t a, uint64_t b, uint64_t c) noexcept nogil:
    """b bytes at a; the number of bytes taken."""
    cdef uint8_t piece[PV_PIECE]
    cdef int length = PV_PIECE if b > PV_PIECE else <int>b
    if read_virt(vm, a, piece, length, False) != 0:
        return pv_error(vm)
    if length:
        pv_python_console(vm, piece, length)
    return length

cdef int64_t pv_shutdown(Vm *vm, uint64_t a, uint64_t b, uint64_t c) noexcept nogil:
    if a > 2 or b > 255:
        return E_INVAL
    pv_python_shutdown(vm, <int>a, <int>b)
    return 0

cdef void pv_python_console(Vm *vm, uint8_t *data, int length) noexcept with gil:
    try:
        (<Vcpu>vm.owner).pv_console((<char *>data)[:length])
    except BaseException as error:
        python_failed(vm, error)

cdef void pv_python_shutdown(Vm *vm, int reason, int status) noexcept with gil:
    try:
        (<Vcpu>vm.owner).pv_shutdown(reason, status)
    except BaseException as error:
        python_failed(vm, error)
    if vm.python_wants:
        vm.kick = 1
        leave(vm)

cdef void pv_return(Vm *vm, bint is_iret) noexcept nogil:
    """IRET and SYSRET. RAX comes from the stack, or from the vCPU page where the stack is another's.
    """
    cdef Insn insn
    cdef uint64_t rax
    cdef int size
    memset(&insn, 0, sizeof(Insn))
    insn.bits = code_bits(vm)
    insn.opsize = size = 8 if insn.bits == 64 else 4
    if not is_iret:
        vm.env.regs[RAX] = vm.page[PG_SAVE0]
        do_sysret(vm, &insn)
    elif peek_stack(vm, 0, &rax, size) != 0:
        raise_pending(vm)
    else:
        vm.env.regs[RAX] = rax
        move_stack(vm, size)
        do_iret(vm, &insn)

cdef int64_t pv_call(Vm *vm, uint64_t number, uint64_t a, uint64_t b, uint64_t c) noexcept nogil:
    cdef uint64_t args[4]
    cdef int64_t result = 0
    if not vm.hooked[HOOK_HYPERCALL]:
        return pv_table[number](vm, a, b, c)
    args[0] = number
    args[1] = a
    args[2] = b
    args[3] = c
    if hypercall_before(vm, args, 4, &result):
        result = pv_table[number](vm, a, b, c)
        hypercall_after(vm, args, 4, &result)
    return result

cdef void pv_hypercall(Vm *vm) noexcept nogil:
    """INT 0x82 in the kernel: env.eip is behind it."""
    cdef uint64_t *regs = vm.env.regs
    cdef uint64_t number = regs[RAX] & <uint64_t>0xffffffff
    cdef int64_t result
    vm.next_rip = vm.env.eip
    if number >= PV_CALLS:
        number = PV_CALLS - 1   # one counter for all that do not exist
    vm.pv.calls[number] += 1
    if number == vm.pv.iret or number == vm.pv.sysret:
        pv_return(vm, number == vm.pv.iret)
    elif code_bits(vm) == 64:
        result = pv_call(vm, number, regs[RDI], regs[RSI], regs[RDX])
        regs[RAX] = <uint64_t>result
    else:
        result = pv_call(vm, number, regs[RBX] & <uint64_t>0xffffffff,
                         regs[RCX] & <uint64_t>0xffffffff,
                         regs[RDX] & <uint64_t>0xffffffff)
        regs[RAX] = <uint64_t>result & <uint64_t>0xffffffff
    pv_open(vm)

cdef void kick_again(Vm *vm) noexcept nogil:
    """Ask to come out of the guest again and again, until it is somewhere it can be left."""
    if vm.deterministic:
        vm.block_deadline = vm.blocks + 1
    else:
        kicker_kick(<Kicker *>vm.kicker)

cdef bint pv_leave_stub(Vm *vm, uint64_t gva) noexcept nogil:
    """Whether the vCPU, at ``gva``, can be left. Stubs of a patched kernel have no points to leave
    at: try again behind them. One that never ends is not from our patcher: it is left anywhere.
    """
    if vm.cpl == 3 or window_offset(vm, gva) >= WINDOW_SIZE or vm.pv.stays >= PV_MAX_STAYS:
        vm.pv.stays = 0
        return True
    vm.pv.stays += 1
    kick_again(vm)
    return False

cdef inline void pv_open(Vm *vm) noexcept nogil:
    """Deliver what waits, unless the vCPU stands in a stub: then as soon as it has left it."""
    if vm.intr and interrupts_on(vm) and not vm.stop:
        if vm.cpl == 0 and window_offset(vm, linear(vm, vm.env.eip)) < WINDOW_SIZE:
            kick_again(vm)
        else:
            take_irq(vm)

# Traps of a patched kernel -----------------------------------------------------------------------

cdef PvTrap *pv_trap_at(Pv *pv, uint64_t pa) noexcept nogil:
    """The trap at a physical address (PA_WINDOW + offset in the window), or NULL."""
    cdef uint32_t at
    at = <uint32_t>((pa * <uint64_t>0x9e3779b97f4a7c15) >> 32) & pv.trap_mask
    while pv.traps[at].length:
        if pv.traps[at].pa == pa:
            return &pv.traps[at]
        at = (at + 1) & pv.trap_mask
    return NULL

cdef bint pv_trap(Vm *vm) noexcept nogil:
    """An INT3 was executed: if it stands for an instruction, do that. env.eip is behind the INT3.

    In the kernel's own memory the instruction is where the trap is, whatever address that has. In
    the window the trap knows the address of the instruction, and where its stub goes on.
    """
    cdef uint64_t rip = vm.env.eip - 1
    cdef uint64_t gva = linear(vm, rip)
    cdef uint64_t gpn
    cdef uint64_t offset = window_offset(vm, gva)
    cdef PvTrap *trap
    cdef Insn insn
    cdef uint64_t before[3]
    cdef uint64_t resume
    cdef uint32_t raised
    if offset < WINDOW_SIZE and vm.cpl == 0:
        trap = pv_trap_at(vm.pv, PA_WINDOW + offset)
        if trap == NULL:
            return False
        rip = trap.address
    else:
        if fetch_page(vm, gva, &gpn) != 0:
            return False
        trap = pv_trap_at(vm.pv, (gpn << 12) | (gva & 0xfff))
        if trap == NULL:
            return False
    if trap.bits != code_bits(vm):
        return False
    vm.rip = rip
    if vm.intr and interrupts_on(vm):
        vm.env.eip = rip        # older than this instruction, as in `emulate`
        take_irq(vm)
        if vm.env.eip != rip or vm.stop:
            return True
    vm.next_rip = rip + trap.length
    if trap.bits != 64:
        vm.next_rip &= <uint64_t>0xffffffff
    vm.row_exits[trap.row] += 1
    resume = trap.resume if offset < WINDOW_SIZE else vm.next_rip
    vm.env.eip = vm.next_rip
    if vm.hooked[trap.row]:
        note_registers(vm, before)
        if not row_before(vm, trap.row, rip, trap.code, trap.length, before):
            if vm.env.eip == vm.next_rip:
                vm.env.eip = resume
            return True
    if not decode(vm, trap.code, trap.length, trap.bits, &insn):
        raise_ud(vm)
        return True
    vm.env.eip = vm.next_rip = resume
    if vm.tracing:
        python_trace(vm, trap.row, 0)
    raised = vm.raised
    vm.handlers[trap.row](vm, &insn)
    if vm.hooked[trap.row] & HOOK_AFTER and vm.raised == raised:
        row_after(vm, trap.row, trap.code, trap.length, before)
    if vm.env.eip == vm.next_rip and vm.intr and not vm.stop:
        take_irq(vm)            # at `resume` the scratch fields are free
    return True

cdef bint pv_interrupt(Vm *vm, uint32_t vector) noexcept nogil:
    """A software interrupt of a kernel with our interface. False: it is the guest's own."""
    if vector == EX_BP:
        return pv_trap(vm)
    if vector != PV_VECTOR:
        return False
    vm.rip = vm.env.eip - 2
    if vm.tracing:
        python_trace(vm, -1, vector)
    if vm.cpl == 0:
        pv_hypercall(vm)
    else:
        raise_gp(vm, PV_VECTOR * 8 + 2)
    return True

# Set-up ------------------------------------------------------------------------------------------

cdef int pv_install(Vm *vm) except -1:
    """Give the vCPU the interface. Hypercalls by name: pvabi.py is the one place of numbers."""
    cdef int i
    if vm.pv == NULL:
        vm.pv = <Pv *>calloc(1, sizeof(Pv))
        if vm.pv == NULL:
            raise MemoryError
    for i in range(PV_CALLS):
        pv_table[i] = pv_nosys
    pv_table[_pv_number("version")] = pv_version
    pv_table[_pv_number("features")] = pv_features
    pv_table[_pv_number("set_gdt")] = pv_set_gdt
    pv_table[_pv_number("set_idt")] = pv_set_idt
    pv_table[_pv_number("set_ldt")] = pv_set_ldt
    pv_table[_pv_number("set_tss")] = pv_set_tss
    pv_table[_pv_number("set_stack")] = pv_set_stack
    pv_table[_pv_number("read_cr")] = pv_read_cr
    pv_table[_pv_number("write_cr")] = pv_write_cr
    pv_table[_pv_number("invlpg")] = pv_invlpg
    pv_table[_pv_number("flush_tlb")] = pv_flush_tlb
    pv_table[_pv_number("sti")] = pv_sti
    pv_table[_pv_number("halt")] = pv_halt
    pv_table[_pv_number("in")] = pv_in
    pv_table[_pv_number("out")] = pv_out
    pv_table[_pv_number("rdmsr")] = pv_rdmsr
    pv_table[_pv_number("wrmsr")] = pv_wrmsr
    pv_table[_pv_number("cpuid")] = pv_cpuid
    pv_table[_pv_number("read_tsc")] = pv_read_tsc
    pv_table[_pv_number("set_segment")] = pv_set_segment
    pv_table[_pv_number("set_segment_base")] = pv_set_segment_base
    pv_table[_pv_number("swapgs")] = pv_swapgs
    pv_table[_pv_number("console_write")] = pv_console_write
    pv_table[_pv_number("shutdown")] = pv_shutdown
    vm.pv.iret = _pv_number("iret")
    vm.pv.sysret = _pv_number("sysret")
    return 0

cdef int _pv_number(str name) except -1:
    from translator.pvabi import NUMBERS
    return NUMBERS[name]

cdef int pv_add_traps(Pv *pv, traps) except -1:
    """Replace the table by (physical address, address, resume, row, bits, code) tuples."""
    cdef uint32_t size = 16, at
    cdef PvTrap *trap
    cdef bytes code
    while size < 2 * len(traps):
        size *= 2
    free(pv.traps)
    pv.traps = <PvTrap *>calloc(size, sizeof(PvTrap))
    if pv.traps == NULL:
        raise MemoryError
    pv.trap_mask = size - 1
    for pa, address, resume, row, bits, code in traps:
        at = <uint32_t>((<uint64_t>pa * <uint64_t>0x9e3779b97f4a7c15) >> 32) & pv.trap_mask
        while pv.traps[at].length:
            at = (at + 1) & pv.trap_mask
        trap = &pv.traps[at]
        trap.pa = pa
        trap.address = address
        trap.resume = resume
        trap.row = row
        trap.bits = bits
        trap.length = len(code)
        memcpy(trap.code, <const char *>code, len(code))
    return 0
