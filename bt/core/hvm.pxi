# SPDX-License-Identifier: GPL-2.0-or-later
# Engine hvm: the guest's kernel at CPL 0, in Unicorn's own AMD-V guest mode (AMD64 APM vol. 2, ch. 15).
#
# Nothing is scanned and nothing rewritten. The CPU holds the guest's real state: CPL 0, IF, CS, the
# control registers, GDTR, IDTR, LDTR, TR. A VMCB says which instructions come back to us; VMRUN,
# executed at ring 0 with the VMCB's address in RAX, enters the guest. An intercepted instruction
# arrives at `hvm_exit` with AMD's exit code, and is done by the handlers of the other engines.
#
# What Unicorn leaves out of AMD-V is done here:
#
#   - #VMEXIT makes no world switch. The CPU stays in guest mode, we work on its state, and the next
#     instruction is the guest's. So there is one VMRUN, at the start and after each change of the
#     intercepts; what an exit costs is the way out of the translated code and back.
#   - Events are never delivered. A vector below 256 in UC_HOOK_INTR is an event that nobody
#     intercepts: what follows (events.pxi) is the CPU's own work, and counts as no exit.
#   - IN and OUT are not checked against the I/O permission map. The hook of each makes the exit.
#   - Nested paging is for QEMU's own page walk, which is not used: the virtual TLB (mmu.pxi) does
#     both levels.
#
# Control registers, descriptor tables, MSRs and debug registers change by intercepted instructions
# only, so the Vm's copies of them are right and `hvm_publish` gives them to the CPU. What the guest
# changes without an exit (CPL, CR2, and by a task switch CR3, LDTR and TR) `hvm_sync` reads back.

cdef extern from *:
    """
    /* Exported by libunicorn though not declared in its headers: QEMU's #VMEXIT. Does not return: it
       jumps back into Unicorn's main loop, which calls UC_HOOK_INTR with 0x100 + code. */
    extern void cpu_vmexit_x86_64(void *env, unsigned code, unsigned long long info1,
                                  unsigned long retaddr);
    """
    void cpu_vmexit "cpu_vmexit_x86_64" (void *env, uint32_t code, uint64_t info1,
                                         uintptr_t retaddr) nogil

# Pages of the window that are the host's: no guest-physical address can name them, and while the
# guest runs the window is in nobody's address space.
cdef enum:
    HVM_STUB = 0x1000           # VMLOAD, VMRUN
    HVM_SAVE = 0x2000           # host state-save area
    HVM_VMCB = 0x3000
    HVM_MSRPM = 0x4000          # 8 KB, all ones: each RDMSR and WRMSR exits
    HVM_IOPM = 0x6000           # 12 KB, all ones

# VMCB (APM vol. 2, appendix B): control area, and state-save area from 0x400.
cdef enum:
    VMCB_CR_READ = 0x000        # u16
    VMCB_CR_WRITE = 0x002
    VMCB_DR_READ = 0x004
    VMCB_DR_WRITE = 0x006
    VMCB_EXCEPTIONS = 0x008     # u32
    VMCB_MISC = 0x00c           # u64: bit n is exit code 0x60 + n
    VMCB_IOPM_PA = 0x040
    VMCB_MSRPM_PA = 0x048
    VMCB_ASID = 0x058           # u32
    VMCB_TLB_CONTROL = 0x05c    # u8: 1 = flush all
    VMCB_INT_CTL = 0x060        # u32
    VMCB_EXIT_CODE = 0x070
    VMCB_EXIT_INFO1 = 0x078
    VMCB_EXIT_INFO2 = 0x080
    VMCB_NP_ENABLE = 0x090
    VMCB_NRIP = 0x0c8
    VMCB_SEGMENTS = 0x400       # ES CS SS DS FS GS, 16 bytes each
    VMCB_GDTR = 0x460
    VMCB_LDTR = 0x470
    VMCB_IDTR = 0x480
    VMCB_TR = 0x490
    VMCB_CPL = 0x4cb
    VMCB_EFER = 0x4d0
    VMCB_CR4 = 0x548
    VMCB_CR3 = 0x550
    VMCB_CR0 = 0x558
    VMCB_DR7 = 0x560
    VMCB_DR6 = 0x568
    VMCB_RFLAGS = 0x570
    VMCB_RIP = 0x578
    VMCB_RSP = 0x5d8
    VMCB_RAX = 0x5f8
    VMCB_STAR = 0x600
    VMCB_LSTAR = 0x608
    VMCB_CSTAR = 0x610
    VMCB_SFMASK = 0x618
    VMCB_KERNEL_GS = 0x620
    VMCB_SYSENTER_CS = 0x628
    VMCB_SYSENTER_ESP = 0x630
    VMCB_SYSENTER_EIP = 0x638
    VMCB_CR2 = 0x640
    VMCB_PAT = 0x668

cdef uint64_t EFER_SVME = 0x1000
cdef uint32_t MSR_VM_HSAVE_PA = 0xc0010117

# Exit codes (APM vol. 2, appendix C).
cdef enum:
    VMEXIT_CR_READ = 0x00
    VMEXIT_CR_WRITE = 0x10
    VMEXIT_DR_READ = 0x20
    VMEXIT_DR_WRITE = 0x30
    VMEXIT_EXCEPTION = 0x40
    VMEXIT_MISC = 0x60
    VMEXIT_VINTR = 0x64
    VMEXIT_RDTSC = 0x6e
    VMEXIT_PUSHF = 0x70
    VMEXIT_POPF = 0x71
    VMEXIT_IRET = 0x74
    VMEXIT_SWINT = 0x75
    VMEXIT_INVD = 0x76
    VMEXIT_IOIO = 0x7b
    VMEXIT_SHUTDOWN = 0x7f
    VMEXIT_RDTSCP = 0x87
    VMEXIT_WBINVD = 0x89
    VMEXIT_COUNT = 0xa0         # codes counted one by one
    VMEXIT_NPF = 0x400

cdef enum:
    HVM_DECODED = 1 << 10

cdef struct Decoded:            # an intercepted instruction met before; good while the bytes are
    uint64_t gva
    uint16_t row
    uint8_t length              # 0 = none
    uint8_t bits
    uint8_t code[16]

cdef struct Hvm:
    char *vmcb
    MsrFields fields
    int launch                  # VMRUN is due: first entry, or the intercepts have changed
    int by_block                # windows for interrupts are found by the block hook
    uint8_t asked[VMEXIT_COUNT]         # by the policy, by exit code
    uint8_t wanted[VMEXIT_COUNT]        # ... and what hooks need
    uint64_t exits[VMEXIT_COUNT]
    Decoded decoded[HVM_DECODED]

cdef int row_int3, row_int_n, row_int1, row_xsetbv, row_invd   # vcpu.pyx fills these in

cdef inline uint16_t *vmcb16(Hvm *hvm, int offset) noexcept nogil:
    return <uint16_t *>(hvm.vmcb + offset)

cdef inline uint32_t *vmcb32(Hvm *hvm, int offset) noexcept nogil:
    return <uint32_t *>(hvm.vmcb + offset)

cdef inline uint64_t *vmcb64(Hvm *hvm, int offset) noexcept nogil:
    return <uint64_t *>(hvm.vmcb + offset)

# The guest's state in the CPU ---------------------------------------------------------------------

cdef inline uint64_t *env64(Vm *vm, size_t offset) noexcept nogil:
    return <uint64_t *>(<char *>vm.env + offset)

cdef void give_table(Seg *into, Descriptor *table) noexcept nogil:
    into.selector = table.selector
    into.base = table.base
    into.limit = table.limit
    into.flags = table.flags

cdef void take_table(Descriptor *into, Seg *table) noexcept nogil:
    into.selector = table.selector
    into.base = table.base
    into.limit = table.limit
    into.flags = table.flags

cdef void hvm_publish(Vm *vm) noexcept nogil:
    """Give the CPU what intercepted instructions change."""
    cdef Env *env = vm.env
    env.cr[0] = vm.cr0
    env.cr[3] = vm.cr3
    env.cr[4] = vm.cr4
    env64(vm, OFF_EFER)[0] = vm.efer | EFER_SVME
    give_table(&env.gdt, &vm.gdt)
    give_table(&env.idt, &vm.idt)
    give_table(&env.ldt, &vm.ldt)
    give_table(&env.tr, &vm.tr)
    env.tr.flags &= ~<uint32_t>TSS_BUSY
    env64(vm, vm.hvm.fields.star)[0] = vm.star
    (<uint32_t *>(<char *>env + vm.hvm.fields.sysenter_cs))[0] = <uint32_t>vm.sysenter_cs

cdef enum:
    TSS_BUSY = 0x200            # QEMU's call gates abort the process over a TR that has it set

cdef inline void hvm_sync(Vm *vm) noexcept nogil:
    """Read back what the guest may have changed without an exit."""
    cdef Env *env = vm.env
    vm.cpl = env.hflags & HF_CPL
    vm.cr2 = env.cr[2]
    if env.cr[3] != vm.cr3:             # a task switch; it has flushed Unicorn's own TLB
        vm.cr3 = env.cr[3]
        vm.gen += GEN_STEP
    take_table(&vm.ldt, &env.ldt)
    take_table(&vm.tr, &env.tr)

# Entering guest mode ------------------------------------------------------------------------------

cdef void save_segment(Hvm *hvm, int offset, Seg *s) noexcept nogil:
    """A segment in VMCB format: attributes are bits 8-15 and 20-23 of the descriptor's second dword.
    """
    vmcb16(hvm, offset)[0] = <uint16_t>s.selector
    vmcb16(hvm, offset + 2)[0] = <uint16_t>(((s.flags >> 8) & 0xff) | ((s.flags >> 12) & 0xf00))
    vmcb32(hvm, offset + 4)[0] = s.limit
    vmcb64(hvm, offset + 8)[0] = s.base

cdef void hvm_intercepts(Vm *vm) noexcept nogil:
    """The intercept vectors of the control area, from the set of exit codes."""
    cdef Hvm *hvm = vm.hvm
    cdef int code
    memset(hvm.vmcb, 0, 0x40)
    for code in range(VMEXIT_COUNT):
        if not hvm.wanted[code]:
            pass
        elif code < VMEXIT_EXCEPTION:
            vmcb16(hvm, (code >> 4) * 2)[0] |= <uint16_t>(1 << (code & 15))
        elif code < VMEXIT_MISC:
            vmcb32(hvm, VMCB_EXCEPTIONS)[0] |= <uint32_t>1 << (code - VMEXIT_EXCEPTION)
        else:
            vmcb64(hvm, VMCB_MISC)[0] |= <uint64_t>1 << (code - VMEXIT_MISC)

cdef void hvm_fill_vmcb(Vm *vm) noexcept nogil:
    """The whole VMCB, from the guest state that the CPU holds now."""
    cdef Hvm *hvm = vm.hvm
    cdef Env *env = vm.env
    cdef int seg
    hvm_intercepts(vm)
    vmcb64(hvm, VMCB_IOPM_PA)[0] = PA_WINDOW + HVM_IOPM
    vmcb64(hvm, VMCB_MSRPM_PA)[0] = PA_WINDOW + HVM_MSRPM
    vmcb32(hvm, VMCB_ASID)[0] = 1
    vmcb32(hvm, VMCB_TLB_CONTROL)[0] = 1        # nothing of the host's may stay in the TLB
    vmcb32(hvm, VMCB_INT_CTL)[0] = 0
    vmcb64(hvm, VMCB_NP_ENABLE)[0] = 1
    for seg in range(6):
        save_segment(hvm, VMCB_SEGMENTS + seg * 16, &env.segs[seg])
    save_segment(hvm, VMCB_GDTR, &env.gdt)
    save_segment(hvm, VMCB_LDTR, &env.ldt)
    save_segment(hvm, VMCB_IDTR, &env.idt)
    save_segment(hvm, VMCB_TR, &env.tr)
    hvm.vmcb[VMCB_CPL] = vm.cpl
    vmcb64(hvm, VMCB_EFER)[0] = vm.efer | EFER_SVME
    vmcb64(hvm, VMCB_CR0)[0] = vm.cr0
    vmcb64(hvm, VMCB_CR2)[0] = vm.cr2
    vmcb64(hvm, VMCB_CR3)[0] = vm.cr3
    vmcb64(hvm, VMCB_CR4)[0] = vm.cr4
    vmcb64(hvm, VMCB_DR6)[0] = 0xffff0ff0       # the guest's own are never armed (quirks)
    vmcb64(hvm, VMCB_DR7)[0] = 0x400
    vmcb64(hvm, VMCB_RFLAGS)[0] = get_flags(vm)
    vmcb64(hvm, VMCB_RIP)[0] = env.eip
    vmcb64(hvm, VMCB_RSP)[0] = env.regs[RSP]
    vmcb64(hvm, VMCB_RAX)[0] = env.regs[RAX]
    vmcb64(hvm, VMCB_STAR)[0] = vm.star
    vmcb64(hvm, VMCB_LSTAR)[0] = vm.lstar
    vmcb64(hvm, VMCB_CSTAR)[0] = vm.cstar
    vmcb64(hvm, VMCB_SFMASK)[0] = vm.fmask
    vmcb64(hvm, VMCB_KERNEL_GS)[0] = kernel_gs(vm)[0]
    vmcb64(hvm, VMCB_SYSENTER_CS)[0] = vm.sysenter_cs
    vmcb64(hvm, VMCB_SYSENTER_ESP)[0] = vm.sysenter_esp
    vmcb64(hvm, VMCB_SYSENTER_EIP)[0] = vm.sysenter_eip
    vmcb64(hvm, VMCB_PAT)[0] = vm.pat

cdef uint64_t hvm_host_state(Vm *vm) noexcept nogil:
    """The VMM's own CPU state, at the stub: ring 0, 64-bit, RAX = the VMCB. Gives RIP.

    hvm_fill_vmcb has saved the guest's. On hardware VMRUN would write this to the save area; here it
    does too, though no #VMEXIT reads it back.
    """
    cdef Env *env = vm.env
    enter_flat(vm, R_CS, 0x10, FLAT_CODE | D_L)
    enter_flat(vm, R_SS, 0x18, FLAT_DATA)
    env.cr[0] = CR0_PE | CR0_ET | CR0_PG
    env.cr[4] = CR4_PAE
    env64(vm, OFF_EFER)[0] = EFER_LMA | EFER_LME | EFER_SVME
    env.hflags = (env.hflags & ~<uint32_t>(HF_CPL | HF_GUEST | HF_INHIBIT_IRQ | HF_ADDSEG)) | \
        HF_SVME | HF_PE | HF_LMA | HF_CS64 | HF_CS32 | HF_SS32
    env.eflags = 2
    env.regs[RAX] = PA_WINDOW + HVM_VMCB
    env.eip = WINDOW + HVM_STUB
    return env.eip

cdef inline bint hvm_fill(Vm *vm, uint64_t gva, int kind, uc_tlb_entry *entry) noexcept nogil:
    """A TLB miss of the host's own, at the stub. VMRUN flushes what it leaves."""
    if kind != UC_MEM_FETCH or gva != WINDOW + HVM_STUB:
        return False
    entry.paddr = PA_WINDOW + HVM_STUB
    entry.perms = UC_PROT_EXEC
    return True

cdef uint64_t hvm_start(Vm *vm) noexcept nogil:
    """Where to start the CPU: in the guest, or at the stub when VMRUN is due."""
    if not vm.hvm.launch:
        return vm.env.eip
    vm.hvm.launch = 0
    hvm_fill_vmcb(vm)
    flush_tlb(vm)
    return hvm_host_state(vm)

# Interrupts ---------------------------------------------------------------------------------------

cdef uint64_t WINDOW_POLL_NS = 100000

cdef void hvm_request_window(Vm *vm) noexcept nogil:
    """Have the CPU exit (VINTR) at the first place where the guest takes interrupts, while one waits.

    This is V_IRQ with the VINTR intercept (APM vol. 2, 15.21.4), written to the place in the CPU that
    VMRUN would load it into.
    """
    cdef uint32_t *request = <uint32_t *>(vm.cpu + CPU_INTERRUPT_REQUEST)
    if vm.intr and not vm.hvm.by_block and not vm.debug_step:
        request[0] |= INTERRUPT_VIRQ
    else:
        request[0] &= ~<uint32_t>INTERRUPT_VIRQ

cdef void hvm_window(Vm *vm) noexcept nogil:
    """#VMEXIT VINTR: IF is 1 and nothing shadows it."""
    (<uint32_t *>(vm.cpu + CPU_INTERRUPT_REQUEST))[0] &= ~<uint32_t>INTERRUPT_VIRQ
    take_irq(vm)
    hvm_request_window(vm)

cdef inline void hvm_block(Vm *vm, uint64_t address) noexcept nogil:
    """The same from the block hook, before a block runs. For deterministic runs: when the CPU looks
    for interrupts by itself depends on Unicorn's jump cache, and so on the host."""
    if vm.intr and vm.env.hflags & HF_GUEST and interrupts_on(vm) and not vm.stop and \
            not vm.debug_step:
        vm.env.eip = address if vm.env.hflags & HF_CS64 else \
            (address - vm.env.segs[R_CS].base) & <uint64_t>0xffffffff
        cpu_vmexit(vm.env, VMEXIT_VINTR, 0, 0)

# Exits --------------------------------------------------------------------------------------------

cdef bint hvm_decode(Vm *vm, Decoded **out) noexcept nogil:
    """The instruction at RIP. False: it is in no row of the table, or (length 0) cannot be read.

    A row's bytes are looked at again each time: the guest may have written others.
    """
    cdef uint64_t gva = linear(vm, vm.env.eip)
    cdef Decoded *slot = &vm.hvm.decoded[(gva ^ (gva >> 10)) & (HVM_DECODED - 1)]
    cdef int bits = code_bits(vm)
    cdef uint8_t code[16]
    cdef int avail
    cdef Finding found
    vm.fault_vector = 0
    avail = fetch_code(vm, gva, code, 15)
    out[0] = slot
    if slot.length and slot.gva == gva and slot.bits == bits and avail >= slot.length and \
            memcmp(slot.code, code, slot.length) == 0:
        return True
    slot.length = 0
    if avail == 0:
        return False
    if scan_block(bits, code, avail, 1, gva, &all_rows[0], &found, 1, NULL, NULL) != 1 or \
            found.offset != 0 or found.length > avail:
        # Nothing of the table's. Of SVM's own instructions all three bytes are there.
        slot.gva = <uint64_t>1 << 63    # matches no address
        slot.length = not vm.fault_vector or \
            (avail >= 3 and code[0] == 0x0f and code[1] == 0x01 and code[2] >= 0xd8)
        return False
    slot.gva = gva
    slot.bits = bits
    slot.row = found.row
    slot.length = found.length
    memcpy(slot.code, code, 16)
    return True

cdef uint8_t all_rows[ROWS]

cdef void hvm_unreadable(Vm *vm) noexcept nogil:
    """The code at RIP is not mapped any more: the guest's page fault, or no memory at all."""
    vm.rip = vm.env.eip
    if vm.fault_vector:
        raise_pending(vm)
    else:
        vm.stop = STOP_VOID
        leave(vm)

cdef void hvm_instruction(Vm *vm, uint32_t code) noexcept nogil:
    """An intercepted instruction: the row's handler does it."""
    cdef Decoded *insn
    if hvm_decode(vm, &insn):
        if code == VMEXIT_RDTSC and insn.row == row_rdtscp:
            vm.hardware_code = VMEXIT_RDTSCP    # QEMU has one intercept for both
        elif code == VMEXIT_WBINVD and insn.row == row_invd:
            vm.hardware_code = VMEXIT_INVD      # likewise
        elif code == VMEXIT_SWINT and insn.row != row_int_n:
            # QEMU knows INT n alone; INT3 and INTO are exceptions to hardware.
            vm.hardware_code = VMEXIT_EXCEPTION + (3 if insn.row == row_int3 else 4)
            vm.env.eip += insn.length
            soft_event(vm, 3 if insn.row == row_int3 else 4, insn.length)
            return
        elif in_v86(vm) and iopl(vm) != 3 and code in (VMEXIT_PUSHF, VMEXIT_POPF, VMEXIT_IRET):
            vm.rip = vm.env.eip     # (SDM vol. 3, 21.2.7); Unicorn looks at the intercept first
            raise_gp(vm, 0)
            return
        # SYSCALL and SYSENTER have rows, but do not come here.
        emulate(vm, insn.row, vm.env.eip, insn.code, insn.length, insn.bits)
    elif insn.length:
        # VMRUN and its kin, RSM, SKINIT: this CPU does not have them (CPUID, EFER.SVME = 0).
        vm.rip = vm.env.eip
        raise_exception(vm, EX_UD, 0)
    else:
        hvm_unreadable(vm)

cdef void hvm_exit(Vm *vm, uint32_t code, uint32_t info) noexcept nogil:
    """#VMEXIT."""
    cdef Hvm *hvm = vm.hvm
    cdef int vector
    vm.hardware_code = code
    vmcb64(hvm, VMCB_EXIT_CODE)[0] = code
    vmcb64(hvm, VMCB_EXIT_INFO1)[0] = info
    if code < VMEXIT_COUNT:
        hvm.exits[code] += 1
    if code == VMEXIT_VINTR:
        hvm_window(vm)
    elif VMEXIT_EXCEPTION <= code < VMEXIT_MISC:
        vector = code - VMEXIT_EXCEPTION
        vm.exits[EXIT_EXCEPTION + vector] += 1
        if vm.tracing:
            vm.rip = vm.env.eip
            python_trace(vm, -2, vector)
        hvm_event(vm, vector, info)
    else:
        hvm_instruction(vm, code)

cdef bint hvm_absent(Vm *vm) noexcept nogil:
    """Whether the instruction at RIP is one that this CPU does not have: #UD at any CPL, where Unicorn
    looks at the CPL first. XSETBV; VMRUN and its kin (0F 01 D8 to DF) with EFER.SVME = 0.
    """
    cdef Decoded *insn
    cdef uint8_t code[15]
    cdef int i, avail
    if hvm_decode(vm, &insn):
        return insn.row == row_xsetbv
    avail = fetch_code(vm, linear(vm, vm.env.eip), code, 15)
    for i in range(avail - 2):
        if code[i] == 0x0f:
            return code[i + 1] == 0x01 and code[i + 2] >= 0xd8 and code[i + 2] <= 0xdf
        if not is_prefix(code[i], code_bits(vm)):
            return False
    return False

cdef void hvm_event(Vm *vm, int vector, uint32_t error) noexcept nogil:
    """An exception on its way to the guest, as the CPU itself would deliver it."""
    cdef Decoded *insn
    vm.rip = vm.env.eip
    if vector == EX_DB:
        vm.dr[6] |= 0x4000
    elif vector == EX_UD and hvm_decode(vm, &insn) and insn.row == row_int1:
        # INT1 is #UD to Unicorn.
        emulate(vm, insn.row, vm.env.eip, insn.code, insn.length, insn.bits)
        return
    elif vector == EX_GP and hvm_absent(vm):
        vector = EX_UD
    raise_exception(vm, vector, error)

cdef void hvm_soft(Vm *vm, int vector) noexcept nogil:
    """INT n, INT3, INTO that nobody intercepts. env.eip is behind it."""
    cdef uint8_t code[2]
    cdef int length = 2
    if fetch_code(vm, linear(vm, vm.env.eip - 2), code, 2) == 2:
        if vector == EX_BP and code[1] == 0xcc or vector == EX_OF and code[1] == 0xce:
            length = 1
    vm.rip = vm.env.eip - length
    soft_interrupt(vm, vector, vm.rip)

cdef void hvm_interrupt(Vm *vm, uint32_t vector) noexcept nogil:
    """UC_HOOK_INTR."""
    cdef bint is_int = env_int(vm.env, OFF_IS_INT)[0]
    cdef uint32_t error = <uint32_t>env_int(vm.env, OFF_ERROR_CODE)[0]
    # Left as it is, the next #VMEXIT would be taken for an INT n, and RIP for being behind it.
    env_int(vm.env, OFF_IS_INT)[0] = 0
    cdef int stepped = vm.debug_step
    hvm_sync(vm)
    audit(vm)
    if vm.debug_step | vm.stepping | vm.late_step and \
            stepped_by_us(vm, (vector == EX_DB and not is_int) or
                          vector == 0x100 + VMEXIT_EXCEPTION + EX_DB):
        return
    if vm.n_patches and not stepped and vector == EX_BP and is_int and hit_break(vm):
        return
    if vector >= 0x100:
        hvm_exit(vm, vector - 0x100, error)
        return
    vm.hardware_code = -1
    if is_int:
        hvm_soft(vm, vector)
    else:
        hvm_event(vm, vector, error)

cdef void hvm_port(Vm *vm, uint32_t port, int size, bint is_in) noexcept nogil:
    """IN and OUT, from their hooks: #VMEXIT IOIO (APM vol. 2, 15.10.2). Does not return."""
    cdef uint32_t info = (port & 0xffff) << 16 | size << 4 | is_in
    cpu_vmexit(vm.env, VMEXIT_IOIO, info, 0)

cdef bint hvm_assist(Vm *vm) noexcept nogil:
    """A refused access of user code that was the CPU's own, to a descriptor table or a new stack.

    The CPU makes these with the kernel's rights, but `on_fill` is not told. The instruction is done
    here; if it is none that looks at tables, the fault is the guest's. Likewise INS and OUTS, whose
    port Unicorn looks at after their memory.
    """
    cdef uint32_t error = vm.fault_error
    cdef uint64_t gva = vm.fault_gva
    if vm.cpl != 3 or vm.fault_vector != EX_PF or error & PF_I:
        return False
    if emulate_here(vm, &vm.assist_rows[0]):
        return True
    vm.fault_vector = EX_PF         # reading the instruction may have changed them
    vm.fault_error = error
    vm.fault_gva = gva
    return False

cdef void hvm_fault(Vm *vm) noexcept nogil:
    """A page fault, or #GP for an address that is not canonical, found by `on_fill`."""
    cdef uint32_t code = VMEXIT_EXCEPTION + vm.fault_vector
    vm.hardware_code = -1
    if vm.hvm.wanted[code]:
        hvm_exit(vm, code, vm.fault_error)
    else:
        hvm_event(vm, vm.fault_vector, vm.fault_error)
