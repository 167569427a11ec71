# SPDX-License-Identifier: GPL-2.0-or-later
# Exits: what Unicorn calls when the guest did something, and the way from there to a handler.
#
# Every callback runs without the interpreter lock. Python is entered only through the functions at
# the end (devices, CPUID and MSR policy, interrupt acknowledge, stub making, tracing).

cdef extern from *:
    """
    #define full_barrier() __atomic_thread_fence(__ATOMIC_SEQ_CST)
    """
    void full_barrier() noexcept nogil

cdef inline void stop_cpu(Vm *vm) noexcept nogil:
    """Have Unicorn stop at the start of the next block, with RIP looked up there. Any thread may.

    uc_emu_stop is the public way, and wrong here: while a stop is asked for, Unicorn calls no more
    than the first of all hooks for instructions. The RDTSC, CPUID or SYSENTER that ends the same
    block would be executed by Unicorn itself, with the host's clock and another CPU's features.
    """
    vm.skip_sync[0] = 0
    vm.stops.error[0] = ERR_STOPPED
    vm.stops.request[0] = 1
    vm.stops.high[0] = 0xffff

cdef inline void leave(Vm *vm) noexcept nogil:
    """Come out of emu_start after this instruction; vm.stop says whether `run` returns too."""
    vm.stop_now = 1
    stop_cpu(vm)

cdef inline void rip_is_known(Vm *vm) noexcept nogil:
    """From a hook of RDTSC in 64-bit code: spare the next such hooks a search for RIP.

    Unicorn searches a tree and decodes a table to learn where an instruction with a hook is, which
    takes longer than most exits, and for these the translator has stored RIP before. The one flag
    that turns the search off is also read when a stop finds its way out of a block, where RIP is
    not stored: so it is on only while no stop is asked for. Whoever asks for one turns it off first
    (`stop_cpu`), the kicker's thread after it has set vm.kick, which is looked at here after the
    flag is on: in whatever order the two run, it ends off. emu_start turns it off, too.

    SYSENTER has a hook and no stored RIP: in 64-bit code it never comes to its hook
    (`hide_sysenter`), and other code is entered with the flag off (`update_hflags`).
    """
    if vm.skip_sync[0] or not vm.skips_sync or not vm.env.hflags & HF_CS64:
        return
    vm.skip_sync[0] = 1
    full_barrier()
    if vm.kick or vm.stop_now:
        vm.skip_sync[0] = 0

cdef void emulate(Vm *vm, int row, uint64_t rip, const uint8_t *code, int length,
                  int bits) noexcept nogil:
    """Do one sensitive instruction on the virtual CPU."""
    cdef Insn insn
    cdef bint stepping
    cdef int hooked = vm.hooked[row]
    cdef uint64_t before[3]
    cdef uint32_t raised
    cdef uint64_t at = 0
    cdef uint64_t began = 0
    vm.rip = rip
    if vm.intr and interrupts_on(vm):
        # A pending interrupt is older than this instruction.
        vm.env.eip = rip
        take_irq(vm)
        if vm.env.eip != rip or vm.stop:
            return
    if vm.hvm != NULL:          # the shadow of STI or MOV SS lasts one instruction: this one
        vm.env.hflags &= ~<uint32_t>HF_INHIBIT_IRQ
    vm.next_rip = rip + length
    if bits != 64:
        vm.next_rip &= <uint64_t>0xffffffff
    vm.row_exits[row] += 1
    if vm.recorder != NULL:
        at = linear(vm, rip)
        began = host_ns()
    stepping = (vm.env.eflags & FL_TF) != 0
    vm.env.eip = vm.next_rip
    if hooked:
        note_registers(vm, before)
        if not row_before(vm, row, rip, code, length, before):
            hooked = 0
            if vm.env.eip != vm.next_rip:
                return
            row = SKIPPED
    if row != SKIPPED:
        if not decode(vm, code, length, bits, &insn):
            raise_ud(vm)
            return
        if vm.tracing:
            python_trace(vm, row, 0)
        raised = vm.raised
        vm.handlers[row](vm, &insn)
        if vm.recorder != NULL:
            record_exit(vm, row, at, began)
        if hooked & HOOK_AFTER and vm.raised == raised:
            row_after(vm, row, code, length, before)
        if vm.env.eip != vm.next_rip:
            return
    if stepping:
        vm.dr[6] |= 0x4000
        raise_exception(vm, EX_DB, 0)
    elif vm.intr:
        take_irq(vm)

cdef void emulate_site(Vm *vm, Site *site, uint64_t rip, uint64_t gva) noexcept nogil:
    cdef uint8_t copy[16]
    cdef const uint8_t *code = vm.ram + site.gpa
    cdef int row = site.row
    cdef int length = site.length
    cdef int bits = site.bits
    if bits != code_bits(vm):
        # The same bytes met as code of another size: they may be another instruction.
        vm.env.eip = rip
        if not emulate_here(vm, &vm.kernel_rows[0]):
            raise_ud(vm)
        return
    if (site.gpa & 0xfff) + length > 4096:
        vm.fault_vector = 0
        if fetch_code(vm, gva, copy, length) < length:
            # Its second page was unmapped since it was scanned.
            vm.rip = rip
            if vm.fault_vector:
                raise_pending(vm)
            else:
                vm.env.eip = rip
                vm.stop = STOP_VOID
                leave(vm)
            return
        code = copy
    site.hits += 1
    if site.hits == vm.hot and not site.fixed and not site.stub:
        if vm.hooked[row]:
            site.fixed = 2      # a stub would not come to the hook
        else:
            python_hot(vm, site, gva)
    emulate(vm, row, rip, code, length, bits)

cdef void stub_slow(Vm *vm, Stub *stub) noexcept nogil:
    """The int3 of a stub: do the site's instruction here and go on behind it, inside the stub."""
    cdef uint8_t code[16]
    cdef uint64_t after = stub.site_gva + stub.length
    cdef uint64_t resume = WINDOW + stub.start + stub.resume
    if fetch_code(vm, stub.site_gva, code, stub.length) < stub.length:
        return
    emulate(vm, stub.row, stub.site_gva, code, stub.length, 64)
    if vm.env.eip == after and not vm.stop:
        vm.env.eip = resume
        if vm.shadow == after:
            vm.shadow = resume          # run_guest steps over the absorbed instruction there

cdef void stub_step(Vm *vm, Stub *stub) noexcept nogil:
    """Do a stub's instruction under the guest's TF; `emulate` raises the #DB behind it."""
    cdef uint8_t code[16]
    if fetch_code(vm, stub.site_gva, code, stub.length) == stub.length:
        emulate(vm, stub.row, stub.site_gva, code, stub.length, 64)

cdef bint assist(Vm *vm) noexcept nogil:
    """A fault that is really one of ours: the CPU's descriptor tables are empty, RDTSC is off.

    Under engine `trap` this is also how privileged instructions of the kernel arrive.
    """
    cdef const uint8_t *rows = &vm.assist_rows[0]
    if vm.cpl == 0:
        if vm.translate:
            return False
        rows = &vm.kernel_rows[0]
    return emulate_here(vm, rows)

cdef bint emulate_here(Vm *vm, const uint8_t *rows) noexcept nogil:
    """Emulate the instruction at env.eip if it is in one of ``rows``.

    What an instruction is depends on nothing but its own bytes and the code size, so what the
    scanner said of these bytes once is true of them always.
    """
    cdef uint8_t code[16]
    cdef Finding found
    cdef uint64_t gva = linear(vm, vm.env.eip)
    cdef int bits = code_bits(vm)
    cdef int avail = fetch_code(vm, gva, code, 15)
    cdef Assisted *known = &vm.assisted[(gva ^ (gva >> 8)) & (ASSISTED - 1)]
    if known.rows != rows or known.bits != bits or avail < known.length or \
            memcmp(code, known.code, known.length) != 0:
        if scan_block(bits, code, avail, 1, gva, rows, &found, 1, NULL, NULL) != 1:
            return False
        known.rows = rows
        known.bits = bits
        known.row = found.row
        known.length = found.length
        memcpy(known.code, code, found.length)
    emulate(vm, known.row, vm.env.eip, code, known.length, bits)
    return True

cdef inline void audit(Vm *vm) noexcept nogil:
    """The one thing that must never be: the guest at real CPL 0, or out of guest mode."""
    if vm.hvm != NULL:
        vm.audit_cpl0 += vm.env.hflags & (HF_GUEST | HF_SVME) != HF_GUEST | HF_SVME and \
            vm.env.eip != WINDOW + HVM_STUB
    elif vm.env.hflags & HF_CPL == 0 or \
            (vm.cr0 & CR0_PE and vm.env.segs[R_CS].selector & 3 == 0):
        vm.audit_cpl0 += 1

cdef inline bint stepped_by_us(Vm *vm, bint is_debug) noexcept nogil:
    """An exit ends the step that is under way. True: it is nothing but our own #DB."""
    cdef int stepped = vm.debug_step
    if vm.stepping:
        end_step(vm)
        if is_debug:
            vm.shadow = 0
            if stepped:
                mend_step(vm)
            return True
    elif vm.late_step:
        # QEMU's SYSENTER raises it by the TF from before, which was ours.
        vm.late_step = 0
        return is_debug
    elif vm.debug_step:
        step_ends(vm)
    return False

cdef void on_interrupt(uc_engine *uc, uint32_t vector, void *data) noexcept nogil:
    """UC_HOOK_INTR: every exception and software interrupt."""
    cdef Vm *vm = <Vm *>data
    cdef Env *env = vm.env
    cdef uint64_t gva
    cdef Site *site
    cdef Stub *stub
    cdef uint8_t byte[2]
    cdef int stepped = vm.debug_step
    # QEMU would turn the next fault into a double fault; delivery is ours, so is that rule.
    env_int(env, OFF_OLD_EXCEPTION)[0] = -1
    if vm.hvm != NULL:
        hvm_interrupt(vm, vector)
        return
    audit(vm)
    if stepped_by_us(vm, vector == EX_DB and not env_int(env, OFF_IS_INT)[0]):
        return
    if not env_int(env, OFF_IS_INT)[0]:
        exception(vm, vector, <uint32_t>env_int(env, OFF_ERROR_CODE)[0])
        return
    if vm.n_patches and vector == EX_BP and not stepped and hit_break(vm):
        return
    if vm.pv != NULL and pv_interrupt(vm, vector):
        return
    if vector == EX_BP:
        gva = linear(vm, env.eip - 1)
        site = site_of(vm, gva)
        if site != NULL:
            emulate_site(vm, site, env.eip - 1, gva)
            return
        stub = stub_of(vm, gva)
        if stub != NULL and vm.cpl == 0:
            stub_slow(vm, stub)
            return
        if vm.warming:
            vm.stop = STOP_KICK
            leave(vm)
            return
        if fetch_code(vm, gva - 1, byte, 2) == 2 and byte[1] != 0xcc and \
                not (byte[0] == 0xcd and byte[1] == 3):
            # Our own trap, of a page that was written while its block still ran: run the new bytes.
            note(vm, EXIT_STALE_TRAP, gva, 0)
            env.eip -= 1
            return
        soft_event(vm, vector, 2 if byte[1] == 3 else 1)
        return
    soft_event(vm, vector, 1 if vector == EX_OF and is_into(vm) else 2)

cdef bint is_into(Vm *vm) noexcept nogil:
    cdef uint8_t byte = 0
    return fetch_code(vm, linear(vm, vm.env.eip - 1), &byte, 1) == 1 and byte == 0xce

cdef void soft_event(Vm *vm, int vector, int length) noexcept nogil:
    cdef uint64_t at
    cdef uint64_t began = host_ns() if vm.recorder != NULL else 0
    vm.exits[EXIT_SOFTINT] += 1
    vm.rip = vm.env.eip - length
    at = linear(vm, vm.rip)
    if vm.tracing:
        python_trace(vm, -1, vector)
    soft_interrupt(vm, vector, vm.rip)
    if vm.recorder != NULL:
        record_exit(vm, 256 + EXIT_SOFTINT, at, began)

cdef void exception(Vm *vm, int vector, uint32_t error) noexcept nogil:
    cdef Stub *stub = stub_of(vm, vm.env.eip) if vm.cpl == 0 else NULL
    cdef uint64_t at = 0
    cdef uint64_t began = 0
    vm.exits[EXIT_EXCEPTION + (vector & 31)] += 1
    leave_stub(vm)
    if vector == EX_DB and stub != NULL and vm.env.eip == stub.site_gva:
        # The guest's single step ran the jump to the stub, of which the guest must see nothing.
        stub_step(vm, stub)
        return
    if EX_TS <= vector <= EX_GP and assist(vm):
        return
    if vector == EX_GP and error & 2:
        # QEMU reports a refused INT n with the size of a 64-bit gate; hardware says n*8+2.
        error = (error >> 4) * 8 + 2
    if vector == EX_UD and vm.xen != NULL and xen_emulated_cpuid(vm):
        return
    vm.rip = vm.env.eip
    if vector == EX_DB:
        vm.dr[6] |= 0x4000
    if vm.tracing:
        python_trace(vm, -2, vector)
    if vm.recorder != NULL:
        at = linear(vm, vm.rip)
        began = host_ns()
    raise_exception(vm, vector, error)
    if vm.recorder != NULL:
        record_exit(vm, 256 + (vector & 31), at, began)

cdef bint on_invalid(uc_engine *uc, void *data) noexcept nogil:
    """UC_HOOK_INSN_INVALID: #UD. True: handled, go on at env.eip."""
    cdef Vm *vm = <Vm *>data
    cdef uint8_t opcode
    cdef int length = 0
    env_int(vm.env, OFF_OLD_EXCEPTION)[0] = -1
    if vm.hvm != NULL:
        hvm_sync(vm)
        vm.hardware_code = -1
        end_step(vm)
        hvm_event(vm, EX_UD, 0)
        return True
    end_step(vm)
    opcode = hidden_entry(vm, &length)
    if opcode == 0x34:
        hidden_sysenter(vm, length)
    else:
        # SYSEXIT is a site, or refused: by its privilege.
        exception(vm, EX_GP if opcode == 0x35 else EX_UD, 0)
    return True

cdef uint8_t hidden_entry(Vm *vm, int *length) noexcept nogil:
    """0x34 or 0x35 if the instruction at RIP is a SYSENTER or SYSEXIT of 64-bit code, else 0."""
    cdef uint8_t code[15]
    cdef int i, avail
    if code_bits(vm) != 64:
        return 0
    avail = fetch_code(vm, vm.env.eip, code, 15)
    for i in range(avail - 1):
        if code[i] == 0x0f:
            length[0] = i + 2
            return code[i + 1] if code[i + 1] & 0xfe == 0x34 else 0
        if not is_prefix(code[i], 64) or code[i] == 0xf0:       # LOCK makes them #UD
            return 0
    return 0

cdef void hidden_sysenter(Vm *vm, int length) noexcept nogil:
    """SYSENTER of 64-bit code, which arrives as #UD; with the guest's own single step behind it."""
    cdef bint stepping = (vm.env.eflags & FL_TF) != 0
    cdef uint32_t raised = vm.raised
    sysenter(vm, length)
    if stepping and vm.raised == raised and not vm.stop:
        vm.dr[6] |= 0x4000
        raise_exception(vm, EX_DB, 0)

cdef int entry_length(Vm *vm, uint8_t opcode) noexcept nogil:
    """Length of the SYSCALL or SYSENTER at RIP. Prefixes are allowed and do nothing, but count."""
    cdef uint8_t code[15]
    cdef int i, avail
    cdef uint64_t gva = linear(vm, vm.env.eip)
    cdef Cached *page = &vm.fetches[(gva >> 12) & (VMM_TLB - 1)]
    cdef const uint8_t *there
    if page.page == (gva & ~<uint64_t>0xfff) | 1 and page.gen == vm.gen and gva & 0xfff != 0xfff:
        there = vm.ram + (page.gpn << 12) + (gva & 0xfff)
        if there[0] == 0x0f and there[1] == opcode:     # next to always
            return 2
    avail = fetch_code(vm, gva, code, 15)
    for i in range(avail - 1):
        if code[i] == 0x0f and code[i + 1] == opcode:
            return i + 2
    return 2

cdef void on_syscall(uc_engine *uc, void *data) noexcept nogil:
    """What syscall.pxi leaves to Unicorn, which adds the instruction's length to RIP afterwards."""
    cdef Vm *vm = <Vm *>data
    cdef int length = entry_length(vm, 0x05)
    syscall_exit(vm, length)
    vm.env.eip -= length

cdef void syscall_exit(Vm *vm, int length) noexcept nogil:
    """SYSCALL, which never executes in Unicorn. env.eip is at it."""
    audit(vm)
    if vm.hvm != NULL:
        hvm_sync(vm)
        vm.hardware_code = -1
    end_step(vm)
    if not vm.unwatched:
        watched_syscall(vm, length)
    elif vm.xen != NULL:
        xen_syscall(vm, length)
    else:
        do_syscall(vm, length)

cdef void watched_syscall(Vm *vm, int length) noexcept nogil:
    """SYSCALL for those who see it: a trace, hooks, the recorder."""
    cdef uint64_t start = vm.env.eip
    cdef uint64_t number = vm.env.regs[RAX]
    cdef int hooked = vm.hooked[ROWS + EXIT_SYSCALL]
    cdef uint64_t at = linear(vm, start)
    cdef uint64_t began = host_ns() if vm.recorder != NULL else 0
    if vm.tracing and vm.hvm == NULL:
        python_trace(vm, -3, 0)
    if vm.xen != NULL and vm.cpl == 0:
        hooked = 0              # a hypercall, which has its own hook
    if hooked and not event_before(vm, ROWS + EXIT_SYSCALL, start, start + length, number, 0):
        return
    vm.env.eip = start
    if vm.xen != NULL:
        xen_syscall(vm, length)
    else:
        do_syscall(vm, length)
    if hooked:
        event_after(vm, ROWS + EXIT_SYSCALL, start, number, 0)
    if vm.recorder != NULL:
        record_exit(vm, 256 + EXIT_SYSCALL, at, began)

cdef void on_sysenter(uc_engine *uc, void *data) noexcept nogil:
    """SYSENTER of code that is not 64-bit; under hvm of all.

    Unlike before SYSCALL, Unicorn has not stored where the arithmetic flags are to come from
    (cc_op), and stores it behind the hook: the same that it has found out for us here. So what it
    belongs to must be there again. Flags that are others then (a user's hook may have changed them)
    are set when the vCPU has come out, which it does before the next instruction.
    """
    cdef Vm *vm = <Vm *>data
    cdef Env *env = vm.env
    cdef int length = entry_length(vm, 0x34)
    cdef uint64_t dst = env.cc_dst, src = env.cc_src, src2 = env.cc_src2
    cdef uint32_t op = env.cc_op
    cdef uint64_t flags = real_flags(vm) & FL_ARITH
    vm.late_step = vm.stepping
    if vm.hvm != NULL:
        hvm_sync(vm)
        vm.hardware_code = -1
    end_step(vm)
    sysenter(vm, length)
    env.eip -= length
    vm.late_flags = real_flags(vm) & FL_ARITH
    if vm.late_flags != flags:
        vm.flags_late = 1
        leave(vm)
    env.cc_dst = dst
    env.cc_src = src
    env.cc_src2 = src2
    env.cc_op = op

cdef void sysenter(Vm *vm, int length) noexcept nogil:
    cdef uint64_t start = vm.env.eip
    cdef uint64_t number = vm.env.regs[RAX]
    cdef int hooked = vm.hooked[ROWS + EXIT_SYSENTER]
    if hooked and not event_before(vm, ROWS + EXIT_SYSENTER, start, start + length, number, 0):
        return
    vm.env.eip = start
    do_sysenter(vm)
    if hooked:
        event_after(vm, ROWS + EXIT_SYSENTER, start, number, 0)

cdef int on_cpuid(uc_engine *uc, void *data) noexcept nogil:
    """CPUID does not fault at any privilege. Under `bt` it was rewritten before it got here."""
    (<Vm *>data).rip = (<Vm *>data).env.eip
    cpuid_exit(<Vm *>data, LIMIT_NO_INJECT)
    return 1

cdef int on_rdtsc(uc_engine *uc, void *data) noexcept nogil:
    """RDTSC where it does not fault: see `update_features`."""
    cdef Vm *vm = <Vm *>data
    rip_is_known(vm)
    vm.row_exits[row_rdtsc] += 1
    give_tsc(vm)
    return 1

cdef int on_rdtscp(uc_engine *uc, void *data) noexcept nogil:
    cdef Vm *vm = <Vm *>data
    rip_is_known(vm)
    vm.row_exits[row_rdtscp] += 1
    give_tsc(vm)
    vm.env.regs[RCX] = vm.tsc_aux & <uint64_t>0xffffffff
    return 1

cdef uint32_t on_in(uc_engine *uc, uint32_t port, int size, void *data) noexcept nogil:
    """IN never faults in Unicorn: under `trap` this is the only place that sees it.

    A refused access cannot raise #GP from here; it reads as absent (quirks).
    """
    cdef Vm *vm = <Vm *>data
    if vm.hvm != NULL:
        hvm_port(vm, port, size, True)
    vm.rip = vm.env.eip
    if not io_allowed(vm, port, size):
        return <uint64_t>0xffffffff
    return port_in(vm, port, size)

cdef void on_out(uc_engine *uc, uint32_t port, int size, uint32_t value,
                 void *data) noexcept nogil:
    cdef Vm *vm = <Vm *>data
    if vm.hvm != NULL:
        hvm_port(vm, port, size, False)
    vm.rip = vm.env.eip
    if io_allowed(vm, port, size):
        port_out(vm, port, size, value)

cdef void on_executed_block(uc_engine *uc, uint64_t address, uint32_t size,
                            void *data) noexcept nogil:
    """UC_HOOK_BLOCK: the deterministic clock, the audit, and the fallback for asynchronous stops."""
    cdef Vm *vm = <Vm *>data
    count_block(vm)
    if vm.kick and not vm.debug_step:
        stop_cpu(vm)
    if vm.audit:
        vm.audit_blocks += 1
        audit(vm)
    if vm.hvm != NULL:
        hvm_block(vm, address)

# Into Python ----------------------------------------------------------------------------------

cdef void python_failed(Vm *vm, object error) noexcept:
    """Keep a callback's exception for `run` to raise."""
    owner = <Vcpu>vm.owner
    if owner.failure is None:
        owner.failure = error
    vm.stop = STOP_PYTHON
    leave(vm)

cdef int python_acknowledge(Vm *vm) noexcept with gil:
    try:
        return (<Vcpu>vm.owner).acknowledge()
    except BaseException as error:
        python_failed(vm, error)
        return -1

cdef void python_cr8_crossed(Vm *vm) noexcept with gil:
    try:
        (<Vcpu>vm.owner).cr8_crossed()
    except BaseException as error:
        python_failed(vm, error)

cdef uint32_t python_in(Vm *vm, uint32_t port, int size) noexcept with gil:
    try:
        return <uint32_t>(<Vcpu>vm.owner).port_read(port, size)
    except BaseException as error:
        python_failed(vm, error)
        return <uint64_t>0xffffffff

cdef void python_out(Vm *vm, uint32_t port, int size, uint32_t value) noexcept with gil:
    try:
        (<Vcpu>vm.owner).port_write(port, size, value)
    except BaseException as error:
        python_failed(vm, error)
    if vm.python_wants:
        vm.kick = 1
        leave(vm)

cdef uint64_t python_mmio_read(Vm *vm, uint64_t gpa, int size) noexcept with gil:
    cdef uint64_t value = ~<uint64_t>0
    try:
        value = (<Vcpu>vm.owner).mmio_read(gpa, size)
    except BaseException as error:
        python_failed(vm, error)
    mmio_done(vm)
    return value

cdef void python_mmio_write(Vm *vm, uint64_t gpa, int size, uint64_t value) noexcept with gil:
    try:
        (<Vcpu>vm.owner).mmio_write(gpa, size, value)
    except BaseException as error:
        python_failed(vm, error)
    mmio_done(vm)

cdef void mmio_done(Vm *vm) noexcept nogil:
    """Unlike IN and OUT this is no exit of ours: the block goes on, and ends early if need be."""
    if vm.python_wants:
        vm.kick = 1
        leave(vm)
    elif vm.intr and interrupts_on(vm):
        leave(vm)

cdef void python_fifo_done(Vm *vm) noexcept with gil:
    try:
        (<Vcpu>vm.owner).fifo_finish()
    except BaseException as error:
        python_failed(vm, error)
    if vm.python_wants:
        vm.kick = 1
        leave(vm)

cdef void answer_cpuid(Vm *vm) noexcept nogil:
    """CPUID by the policy, which is asked once for each leaf and subleaf."""
    cdef uint64_t *regs = vm.env.regs
    cdef uint32_t leaf = <uint32_t>regs[RAX]
    cdef uint32_t subleaf = <uint32_t>regs[RCX]
    cdef CpuidCached *slot = &vm.cpuids[(leaf ^ (leaf >> 26) ^ (subleaf << 3)) & (CPUIDS - 1)]
    if not slot.valid or slot.leaf != leaf or slot.subleaf != subleaf:
        slot.valid = 0
        if not python_cpuid(vm, leaf, subleaf, slot.regs):
            return
        slot.leaf = leaf
        slot.subleaf = subleaf
        slot.valid = 1
    regs[RAX] = slot.regs[0]
    regs[RBX] = slot.regs[1]
    regs[RCX] = slot.regs[2]
    regs[RDX] = slot.regs[3]

cdef bint python_cpuid(Vm *vm, uint32_t leaf, uint32_t subleaf, uint32_t *out) noexcept with gil:
    try:
        out[0], out[1], out[2], out[3] = (<Vcpu>vm.owner).cpuid(leaf, subleaf)
        return True
    except BaseException as error:
        python_failed(vm, error)
        return False

cdef bint python_rdmsr(Vm *vm, uint32_t index, uint64_t *value) noexcept with gil:
    try:
        result = (<Vcpu>vm.owner).read_msr(index)
        if result is None:
            return False
        value[0] = result
        return True
    except BaseException as error:
        python_failed(vm, error)
        return True

cdef bint python_wrmsr(Vm *vm, uint32_t index, uint64_t value) noexcept with gil:
    try:
        return (<Vcpu>vm.owner).write_msr(index, value)
    except BaseException as error:
        python_failed(vm, error)
        return True

cdef void python_hot(Vm *vm, Site *site, uint64_t gva) noexcept with gil:
    cdef uint8_t code[32]
    cdef int avail = fetch_code(vm, gva, code, 32)
    cdef uint64_t start = host_ns()
    try:
        (<Vcpu>vm.owner).hot_site(gva, site.row, site.bits, (<char *>code)[:avail])
    except BaseException as error:
        python_failed(vm, error)
    vm.scan_ns += host_ns() - start
    if not site.stub:
        site.fixed = 1

cdef void python_trace(Vm *vm, int row, int vector) noexcept with gil:
    try:
        if vm.hvm == NULL:
            (<Vcpu>vm.owner).trace(row, vector, vm.rip, vm.cpl)
        else:
            (<Vcpu>vm.owner).trace(row, vector, vm.rip, vm.cpl, _svm.name(vm.hardware_code))
    except BaseException as error:
        python_failed(vm, error)

cdef bint on_no_fetch(uc_engine *uc, int kind, uint64_t address, int size, int64_t value,
                      void *data) noexcept nogil:
    """Never called. Where a memory hook covers a block's address, Unicorn leaves out a sweep of the
    whole TLB for each block it translates. The sweep protects code from stores; W^X does that here.
    """
    return False
