# SPDX-License-Identifier: GPL-2.0-or-later
# Xen PV: hypercalls, bounce frames and the other things a guest kernel does often.
#
# The guest kernel is at virtual CPL 0 (real 1), its user code at 3, so the machinery of the other
# engines serves here too. What differs from a PC: there is no IDT (set_trap_table), exceptions arrive
# as bounce frames, the interrupt flag is a byte in vcpu_info, two page-table roots are switched with
# the mode, and privileged work comes as SYSCALL from the kernel. Sources: xen/include/public of the
# headers named in bt/xen/abi.py; the shape of frames: what xen/arch/x86/x86_64/entry.S builds.

cdef enum:
    HC_SET_TRAP_TABLE = 0
    HC_MMU_UPDATE = 1
    HC_SET_GDT = 2
    HC_STACK_SWITCH = 3
    HC_SET_CALLBACKS = 4
    HC_FPU_TASKSWITCH = 5
    HC_SET_DEBUGREG = 8
    HC_GET_DEBUGREG = 9
    HC_UPDATE_DESCRIPTOR = 10
    HC_MULTICALL = 13
    HC_UPDATE_VA_MAPPING = 14
    HC_XEN_VERSION = 17
    HC_VM_ASSIST = 21
    HC_IRET = 23
    HC_VCPU_OP = 24
    HC_SET_SEGMENT_BASE = 25
    HC_MMUEXT_OP = 26
    HC_SCHED_OP = 29
    HC_CALLBACK_OP = 30
    HC_COUNT = 64

cdef enum:
    CALLBACK_EVENT = 0
    CALLBACK_FAILSAFE = 1
    CALLBACK_SYSCALL = 2
    CALLBACK_SYSENTER = 5
    CALLBACK_SYSCALL32 = 7
    CALLBACKS = 8

cdef enum:                      # FLAT_RING3_* and VGCF_in_syscall (public/arch-x86/xen-x86_64.h)
    FLAT_CS32 = 0xe023
    FLAT_SS = 0xe02b
    FLAT_CS64 = 0xe033
    VGCF_IN_SYSCALL = 0x100
cdef uint32_t XEN_GDT_FIRST = 0xe000    # selectors from here on are Xen's own
cdef uint32_t XEN_GDT_LIMIT = 0xe03f
cdef uint64_t XEN_GDT_OFFSET = 0x10000  # of the CPU's descriptor table, in the window
cdef uint64_t HYPERVISOR_END = 0xffff880000000000       # HYPERVISOR_VIRT_END
# RFLAGS that a guest may choose: all that exist but IOPL, VM, VIF and VIP.
cdef uint64_t XEN_FLAGS = 0x254fd5

cdef void xen_make_gdt(Vm *vm) noexcept nogil:
    """The CPU's descriptor table while the guest's kernel runs: its flat segments, at real CPL 1.

    Everything else in it is zero, so loading any other selector still faults and comes to us.
    """
    cdef uint64_t *table = <uint64_t *>(vm.window + XEN_GDT_OFFSET)
    table[0xe028 >> 3] = <uint64_t>0x00cfb3000000ffff
    table[0xe030 >> 3] = <uint64_t>0x00afbb000000ffff
    vm.env.gdt.base = WINDOW + XEN_GDT_OFFSET

cdef struct Trap:
    uint64_t address
    uint8_t flags               # bits 0-1 DPL, bit 2: events are disabled in the handler

cdef struct Xen:
    uint64_t nr_pages           # frames the guest owns: 0 .. nr_pages - 1
    uint8_t *kind               # PGT_* of each
    uint32_t *count             # references that hold the type
    uint8_t *pinned
    uint8_t *shared             # VMM frames behind nr_pages: 1 may be mapped, 2 also writable
    uint64_t *m2p
    uint64_t m2p_entry          # for L4 slot 256
    uint64_t kernel_root        # mfn
    uint64_t user_root
    uint64_t kernel_sp
    uint64_t vcpu_info          # GPA
    Trap traps[256]
    uint64_t callbacks[CALLBACKS]
    uint8_t callback_flags[CALLBACKS]
    uint64_t gdt[16]
    int gdt_frames
    uint64_t calls[HC_COUNT]
    uint64_t table_writes
    uint64_t upcalls
    int again                   # the hypercall was interrupted: made again, with these arguments
    uint64_t next[4]

cdef inline uint8_t *vcpu_info(Vm *vm) noexcept nogil:
    """vcpu_info: u8 upcall_pending, u8 upcall_mask, u64 pending_sel, {u64 cr2, ..} (public/xen.h)."""
    return vm.ram + vm.xen.vcpu_info

cdef inline bint guest_range(uint64_t gva, uint64_t length) noexcept nogil:
    """Whether a pointer of the guest's keeps out of Xen's part of the address space."""
    cdef uint64_t last = gva + length - 1
    return last >= gva and (last >> 47 == 0 or gva >= HYPERVISOR_END)

cdef int copy_in(Vm *vm, uint64_t gva, void *out, int length) noexcept nogil:
    """Read a hypercall's argument. 0, or -1: -EFAULT."""
    return read_virt(vm, gva, out, length, False) if guest_range(gva, length) else -1

cdef int copy_out(Vm *vm, uint64_t gva, const void *data, int length) noexcept nogil:
    return write_virt(vm, gva, data, length, False) if guest_range(gva, length) else -1

cdef bint preempted(Vm *vm, uint64_t done) noexcept nogil:
    """Whether a hypercall that did ``done`` of its items must let the VMM look around.

    A list can be as long as the address space (all of it may map one frame), so that a guest could
    stay in here for years. Work done counts as time of the deterministic clock.
    """
    if done == 0:
        return False
    if done & 63 == 0:
        count_block(vm)
    return vm.kick != 0

cdef int64_t again(Vm *vm, uint64_t a, uint64_t b, uint64_t c, uint64_t d) noexcept nogil:
    """Have the same hypercall made once more, with other arguments."""
    vm.xen.again = 1
    vm.xen.next[0] = a
    vm.xen.next[1] = b
    vm.xen.next[2] = c
    vm.xen.next[3] = d
    return 0

cdef uint64_t xen_descriptor(Vm *vm, uint32_t selector, bint *found) noexcept nogil:
    """A descriptor of the guest's GDT or of Xen's own."""
    cdef Xen *x = vm.xen
    cdef uint32_t index = (selector & 0xffff) >> 3
    found[0] = True
    if selector >= XEN_GDT_FIRST:
        # FLAT_RING3_CS32/DS32/CS64 and aliases (public/arch-x86/xen-x86_64.h)
        if (selector & 0xfffc) == 0xe020:
            return <uint64_t>0x00cffb000000ffff
        if (selector & 0xfffc) == 0xe028:
            return <uint64_t>0x00cff3000000ffff
        if (selector & 0xfffc) == 0xe030:
            return <uint64_t>0x00affb000000ffff
        found[0] = False
        return 0
    if index >> 9 >= <uint32_t>x.gdt_frames:
        found[0] = False
        return 0
    return frame_entries(vm, x.gdt[index >> 9])[index & 511]

cdef void xen_enter_kernel(Vm *vm) noexcept nogil:
    """From user to kernel mode: the other page-table root and GS base.

    What was cached under one root is not true under the other, and still there on the way back.
    """
    vm.cr3 = vm.xen.kernel_root << 12
    swap_gs(vm)
    vm.gen &= ~<uint64_t>1

cdef void xen_enter_user(Vm *vm) noexcept nogil:
    vm.cr3 = vm.xen.user_root << 12
    swap_gs(vm)
    vm.gen |= 1

cdef inline void swap_gs(Vm *vm) noexcept nogil:
    cdef uint64_t base = vm.env.segs[R_GS].base
    vm.env.segs[R_GS].base = vm.page[PG_KGS]
    vm.page[PG_KGS] = base

cdef inline void xen_flat_kernel(Vm *vm) noexcept nogil:
    """CS and SS as Xen gives them to the guest's kernel."""
    enter_flat(vm, R_CS, FLAT_CS64, FLAT_CODE | D_L)
    enter_flat(vm, R_SS, FLAT_SS, FLAT_DATA)

cdef inline void xen_user_segment(Vm *vm, int seg, uint32_t selector, uint32_t other) noexcept nogil:
    """CS or SS of user mode, by ``selector``; or ``other``'s, of Xen's own, if that is no segment."""
    cdef uint32_t e[2]
    cdef bint found = False
    cdef uint64_t raw = xen_descriptor(vm, selector, &found)
    if not found or not raw >> 47 & 1:
        raw = xen_descriptor(vm, other, &found)
    e[0] = <uint32_t>raw
    e[1] = <uint32_t>(raw >> 32) | (3 << 13)
    segment_cache(vm, seg, selector, e)

cdef int bounce(Vm *vm, uint64_t handler, bint has_error, uint32_t error,
                bint events_off) noexcept nogil:
    """Enter a guest handler with a bounce frame; -1 if its stack cannot take it (domain crash)."""
    cdef Env *env = vm.env
    cdef uint8_t *info = vcpu_info(vm)
    cdef uint64_t frame[8]
    cdef uint64_t *out
    cdef uint64_t flags = get_flags(vm)
    cdef uint64_t rsp = env.regs[RSP]
    cdef uint32_t cs = virtual_cs(vm)
    cdef uint32_t ss = virtual_ss(vm)
    cdef int n = 2, length = 64 if has_error else 56
    if vm.cpl == 3:
        xen_enter_kernel(vm)
        rsp = vm.xen.kernel_sp
    flags &= ~<uint64_t>(FL_IF | FL_IOPL)
    if not info[1]:
        flags |= FL_IF
    rsp = (rsp & ~<uint64_t>15) - length
    out = <uint64_t *>cached(vm, vm.writes, rsp, length)
    if out == NULL:
        out = frame
    out[0] = env.regs[RCX]
    out[1] = env.regs[R11]
    if has_error:
        out[n] = error
        n += 1
    out[n] = env.eip
    out[n + 1] = cs | (<uint64_t>info[1] << 32)
    out[n + 2] = flags
    out[n + 3] = env.regs[RSP]
    out[n + 4] = ss
    if out == frame and write_virt(vm, rsp, frame, length, False) != 0:
        vm.stop = STOP_SHUTDOWN
        vm.message = b"no room on the kernel stack for a bounce frame"
        leave(vm)
        return -1
    if events_off:
        info[1] = 1
    env.regs[RSP] = rsp
    env.eip = handler
    xen_flat_kernel(vm)
    set_cpl(vm, 0, (flags & ~<uint64_t>(FL_AC | FL_VM | FL_RF | FL_NT | FL_TF)) | FL_IF)
    return 0

cdef int deliver_xen(Vm *vm, int vector, bint soft, bint has_error, uint32_t error) noexcept nogil:
    """An exception or software interrupt through the guest's trap table."""
    cdef Trap *trap = &vm.xen.traps[vector & 255]
    if soft and (trap.flags & 3) < vm.cpl:
        return fault(vm, EX_GP, vector * 8 + 2)
    if trap.address == 0:
        vm.stop = STOP_SHUTDOWN
        vm.message = b"an exception without a handler in the trap table"
        leave(vm)
        return -1
    if vector == EX_PF:
        (<uint64_t *>(vcpu_info(vm) + 16))[0] = vm.cr2
    return bounce(vm, trap.address, has_error, error, (trap.flags & 4) != 0)

cdef void xen_events(Vm *vm) noexcept nogil:
    """Deliver the event upcall if one is pending and not masked."""
    cdef uint8_t *info = vcpu_info(vm)
    if info[0] and not info[1] and vm.xen.callbacks[CALLBACK_EVENT] and not vm.stop:
        vm.halted = 0
        vm.exits[EXIT_IRQ] += 1
        vm.xen.upcalls += 1
        bounce(vm, vm.xen.callbacks[CALLBACK_EVENT], False, 0, True)

cdef void xen_syscall(Vm *vm, int length) noexcept nogil:
    """SYSCALL: a hypercall from the kernel, a system call from user code. env.eip is at it."""
    cdef Env *env = vm.env
    cdef uint64_t number, start = env.eip
    cdef int64_t result
    if vm.cpl == 3:
        vm.exits[EXIT_SYSCALL] += 1
        env.eip += length
        env.regs[RCX] = env.eip
        env.regs[R11] = get_flags(vm)
        # `bounce` asks again.
        env.cc_src = env.regs[R11] & FL_ARITH
        env.cc_op = CC_OP_EFLAGS
        if vm.xen.callbacks[CALLBACK_SYSCALL] == 0:
            vm.rip = env.eip - length
            raise_ud(vm)
            return
        bounce(vm, vm.xen.callbacks[CALLBACK_SYSCALL], False, 0,
               vm.xen.callback_flags[CALLBACK_SYSCALL] & 1)
        return
    number = env.regs[RAX] & <uint64_t>0xffffffff
    vm.rip = env.eip
    env.eip += length
    if number == HC_IRET:
        vm.xen.calls[HC_IRET] += 1
        xen_iret(vm)
    else:
        vm.xen.again = 0
        result = xen_hypercall(vm, number, env.regs[RDI], env.regs[RSI], env.regs[RDX],
                               env.regs[10], env.regs[8])
        if vm.xen.again:
            env.eip = start
            env.regs[RDI] = vm.xen.next[0]
            env.regs[RSI] = vm.xen.next[1]
            env.regs[RDX] = vm.xen.next[2]
            env.regs[10] = vm.xen.next[3]
            leave(vm)
        else:
            env.regs[RAX] = <uint64_t>result
        env.regs[RCX] = env.eip
        env.regs[R11] = get_flags(vm)
    if not vm.stop:
        xen_events(vm)

cdef void xen_iret(Vm *vm) noexcept nogil:
    """iret: {rax, r11, rcx, flags, rip, cs, rflags, rsp, ss} at RSP (public/arch-x86/xen-x86_64.h)."""
    cdef Env *env = vm.env
    cdef uint64_t frame[9]
    cdef uint64_t *f = <uint64_t *>cached(vm, vm.reads, env.regs[RSP], 72)
    cdef bint user
    if f == NULL or not guest_range(env.regs[RSP], 72):
        f = frame
    if f == frame and copy_in(vm, env.regs[RSP], frame, 72) != 0:
        vm.stop = STOP_SHUTDOWN
        vm.message = b"iret: no frame on the stack"
        leave(vm)
        return
    user = f[5] & 3 == 3
    if user and vm.xen.user_root == 0:
        # Frame 0 must not become its page tables.
        vm.stop = STOP_SHUTDOWN
        vm.message = b"iret to user mode without page tables for it"
        leave(vm)
        return
    vcpu_info(vm)[1] = 0 if f[6] & FL_IF else 1
    env.regs[RAX] = f[0]
    if f[3] & VGCF_IN_SYSCALL:  # returned by SYSRET, which has its own RCX and R11
        env.regs[RCX] = f[4]
        env.regs[R11] = f[6]
    else:
        env.regs[R11] = f[1]
        env.regs[RCX] = f[2]
    env.regs[RSP] = f[7]
    env.eip = f[4]
    if not user:
        xen_flat_kernel(vm)
        set_cpl(vm, 0, (f[6] & XEN_FLAGS) | FL_IF)
        return
    xen_enter_user(vm)
    if f[3] & VGCF_IN_SYSCALL and f[5] & 0xffff != FLAT_CS32:
        # SYSRET takes its selectors from STAR, which are Xen's (restore_all_guest in entry.S).
        enter_flat(vm, R_CS, FLAT_CS64, FLAT_CODE | D_L | (3 << 13))
        enter_flat(vm, R_SS, FLAT_SS, FLAT_DATA | (3 << 13))
    else:
        xen_user_segment(vm, R_CS, f[5] & 0xffff, FLAT_CS64)
        xen_user_segment(vm, R_SS, f[8] & 0xffff, FLAT_SS)
    set_cpl(vm, 3, (f[6] & XEN_FLAGS) | FL_IF)

cdef void xen_plain_iret(Vm *vm) noexcept nogil:
    """IRETQ itself in the kernel: under Xen an unprivileged instruction, good to the same ring only.

    Linux serialises with it (sync_core). The selectors on the stack are what MOV from CS gave.
    """
    cdef uint64_t f[5]
    if read_virt(vm, vm.env.regs[RSP], f, 40, False) != 0:
        raise_pending(vm)
        return
    vm.env.eip = f[0]
    vm.env.regs[RSP] = f[3]
    set_flags(vm, (f[2] & XEN_FLAGS) | FL_IF)

cdef int64_t xen_hypercall(Vm *vm, uint64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d,
                           uint64_t e) noexcept nogil:
    """One hypercall; what is not here is in bt/xen."""
    cdef uint64_t args[6]
    cdef int64_t result = 0
    if number < HC_COUNT:
        vm.xen.calls[number] += 1
    if not vm.hooked[HOOK_HYPERCALL]:
        return xen_dispatch(vm, number, a, b, c, d, e)
    args[0] = number
    args[1] = a
    args[2] = b
    args[3] = c
    args[4] = d
    args[5] = e
    if hypercall_before(vm, args, 6, &result):
        result = xen_dispatch(vm, number, a, b, c, d, e)
        if not vm.xen.again:
            hypercall_after(vm, args, 6, &result)
    return result

cdef int64_t xen_dispatch(Vm *vm, uint64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d,
                          uint64_t e) noexcept nogil:
    cdef Xen *x = vm.xen
    if number == HC_MMU_UPDATE:
        return xen_mmu_update(vm, a, b, c, d)
    if number == HC_UPDATE_VA_MAPPING:
        return xen_update_va(vm, a, b, c)
    if number == HC_MMUEXT_OP:
        return xen_mmuext(vm, a, b, c, d)
    if number == HC_MULTICALL:
        return xen_multicall(vm, a, b)
    if number == HC_XEN_VERSION and b == 0:
        return python_hypercall(vm, number, a, b, c, d, e) if a != 0 else 0x00040011
    if number == HC_STACK_SWITCH:
        x.kernel_sp = b
        return 0
    if number == HC_SET_SEGMENT_BASE:
        return xen_segment_base(vm, a, b)
    if number == HC_FPU_TASKSWITCH:
        if a:
            vm.cr0 |= CR0_TS
        else:
            vm.cr0 &= ~CR0_TS
        update_features(vm)
        return 0
    if number == HC_UPDATE_DESCRIPTOR:
        return xen_update_descriptor(vm, a, b)
    if number == HC_SET_GDT:
        return xen_set_gdt(vm, a, b)
    if number == HC_SET_TRAP_TABLE:
        return xen_set_traps(vm, a)
    if number == HC_CALLBACK_OP:
        return xen_callback(vm, a, b)
    if number == HC_SET_CALLBACKS:
        if not canonical(a) or not canonical(b) or not canonical(c):
            return E_INVAL
        x.callbacks[CALLBACK_EVENT] = a
        x.callbacks[CALLBACK_FAILSAFE] = b
        x.callbacks[CALLBACK_SYSCALL] = c
        return 0
    if number == HC_VM_ASSIST:
        return 0 if a <= 1 and b <= 5 else E_INVAL
    if number == HC_SET_DEBUGREG:
        if a > 7 or a == 4 or a == 5:
            return E_INVAL
        vm.dr[a] = b
        return 0
    if number == HC_GET_DEBUGREG:
        return <int64_t>vm.dr[a] if a <= 7 else E_INVAL
    if number == HC_SCHED_OP and a == 1:
        return xen_block(vm)
    if number == HC_VCPU_OP and a == 3:
        # VCPUOP_is_up: at boot, Linux asks for each of the 8192 vCPUs that it could have.
        return E_NOENT if b & <uint64_t>0xffffffff else 1
    return python_hypercall(vm, number, a, b, c, d, e)

cdef int64_t xen_block(Vm *vm) noexcept nogil:
    """SCHEDOP_block: events on, sleep until one is pending."""
    cdef uint8_t *info = vcpu_info(vm)
    info[1] = 0
    if not info[0]:
        vm.halted = 1
        vm.stop = STOP_HLT
        leave(vm)
    return 0

cdef int64_t xen_multicall(Vm *vm, uint64_t list, uint64_t count) noexcept nogil:
    """multicall: entries of {op, result, args[6]}, 64 bytes; the result is written back."""
    cdef Xen *x = vm.xen
    cdef uint64_t entry[8]
    cdef uint64_t i = 0
    cdef int64_t result
    count &= <uint64_t>0xffffffff
    while i < count:
        if preempted(vm, i):
            return again(vm, list + i * 64, count - i, 0, 0)
        if copy_in(vm, list + i * 64, entry, 64) != 0:
            return E_FAULT
        if entry[0] == HC_MULTICALL or entry[0] == HC_IRET:
            result = E_NOSYS
        else:
            result = xen_hypercall(vm, entry[0], entry[2], entry[3], entry[4], entry[5], entry[6])
        if x.again:
            # The entry was interrupted: it keeps the arguments to go on with.
            x.again = 0
            memcpy(&entry[2], x.next, sizeof(x.next))
            if copy_out(vm, list + i * 64, entry, 64) != 0:
                return E_FAULT
            return again(vm, list + i * 64, count - i, 0, 0)
        if copy_out(vm, list + i * 64 + 8, &result, 8) != 0:
            return E_FAULT
        i += 1
        if vm.stop and i < count:
            return again(vm, list + i * 64, count - i, 0, 0)
    return 0

cdef int64_t xen_segment_base(Vm *vm, uint64_t which, uint64_t base) noexcept nogil:
    cdef uint32_t e[2]
    cdef uint64_t raw
    cdef bint found = False
    if which == 3:              # SEGBASE_GS_USER_SEL: load a selector into the user's GS
        vm.env.segs[R_GS].selector = base & 0xffff
        vm.page[PG_KGS] = 0
        if base & 0xfffc:
            raw = xen_descriptor(vm, base & 0xffff, &found)
            if not found or not raw >> 47 & 1:
                vm.env.segs[R_GS].selector = 0
                return 0
            e[0] = <uint32_t>raw
            e[1] = <uint32_t>(raw >> 32)
            vm.page[PG_KGS] = descriptor_base(e[0], e[1])
        return 0
    if not canonical(base):
        return E_INVAL
    if which == 0:
        vm.env.segs[R_FS].base = base
    elif which == 1:
        vm.page[PG_KGS] = base
    elif which == 2:
        vm.env.segs[R_GS].base = base
    else:
        return E_INVAL
    return 0

cdef int64_t xen_set_traps(Vm *vm, uint64_t list) noexcept nogil:
    """set_trap_table: {u8 vector, u8 flags, u16 cs, u64 address}, ends with address 0."""
    cdef uint64_t entry[2]
    cdef int i
    if list == 0:
        memset(vm.xen.traps, 0, sizeof(vm.xen.traps))
        return 0
    for i in range(257):
        if copy_in(vm, list + i * 16, entry, 16) != 0:
            return E_FAULT
        if entry[1] == 0:
            return 0
        if not canonical(entry[1]):
            return E_INVAL
        vm.xen.traps[entry[0] & 255].address = entry[1]
        vm.xen.traps[entry[0] & 255].flags = (entry[0] >> 8) & 0xff
    return E_INVAL

cdef int64_t xen_callback(Vm *vm, uint64_t cmd, uint64_t argument) noexcept nogil:
    """callback_op: register {u16 type, u16 flags, u64 address} or unregister {u16 type}."""
    cdef uint64_t what[2]
    cdef uint32_t kind
    if cmd > 1:
        return E_NOSYS
    if copy_in(vm, argument, what, 16 if cmd == 0 else 2) != 0:
        return E_FAULT
    kind = what[0] & 0xffff
    if cmd == 1:
        return E_INVAL
    if kind != CALLBACK_EVENT and kind != CALLBACK_FAILSAFE and kind != CALLBACK_SYSCALL and \
            kind != CALLBACK_SYSENTER and kind != CALLBACK_SYSCALL32:
        return E_NOSYS
    if not canonical(what[1]):
        return E_INVAL
    vm.xen.callbacks[kind] = what[1]
    vm.xen.callback_flags[kind] = (what[0] >> 16) & 0xff
    return 0

cdef bint xen_emulated_cpuid(Vm *vm) noexcept nogil:
    """ud2; "xen"; cpuid: CPUID as Xen shows it, asked for explicitly (public/arch-x86/xen.h)."""
    cdef uint8_t code[7]
    if fetch_code(vm, vm.env.eip, code, 7) < 7 or \
            memcmp(code, b"\x0f\x0b\x78\x65\x6e\x0f\xa2", 7) != 0:
        return False
    vm.rip = vm.env.eip + 5
    cpuid_exit(vm, LIMIT_NO_INJECT)
    vm.env.eip += 7
    return True

cdef bint python_io_allowed(Vm *vm, uint32_t port, int size) noexcept with gil:
    """Port access of user code: rare, and the kernel's bitmap is where a hypercall said."""
    try:
        return (<Vcpu>vm.owner).io_allowed(port, size)
    except BaseException as error:
        python_failed(vm, error)
        return False

cdef int64_t python_hypercall(Vm *vm, uint64_t number, uint64_t a, uint64_t b, uint64_t c,
                              uint64_t d, uint64_t e) noexcept with gil:
    try:
        return (<Vcpu>vm.owner).hypercall(number, a, b, c, d, e)
    except BaseException as error:
        python_failed(vm, error)
        return E_NOSYS
    finally:
        if vm.python_wants:
            vm.kick = 1
            leave(vm)
