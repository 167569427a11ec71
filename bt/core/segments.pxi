# SPDX-License-Identifier: GPL-2.0-or-later
# Segments, privilege and flags: where one ring down is hidden.
#
# Virtual CPL 0 runs at real CPL 1, so CS and SS hold the guest's selectors with RPL 1; their virtual
# value is the same selector with the virtual CPL. DS, ES, FS and GS hold exactly what the guest
# loaded. The CPU's own GDT, LDT and IDT are empty (limit 0): every segment load that is not a null
# selector faults, in any ring, and is done here from the guest's own tables with the guest's own
# privilege rules. So no shadow descriptor tables exist and nothing can be out of date.
#
# Under engine hvm nothing is hidden: real and virtual CPL are the same, the CPU's tables are the
# guest's, and what is below asks `vm.hvm` where that makes a difference.

cdef enum:                      # second dword of a descriptor
    D_A = 1 << 8
    D_RW = 1 << 9
    D_C = 1 << 10               # conforming / expand-down
    D_CODE = 1 << 11
    D_S = 1 << 12
    D_P = 1 << 15
    D_L = 1 << 21
    D_B = 1 << 22
    D_G = 1 << 23

cdef inline int descriptor_dpl(uint32_t e2) noexcept nogil:
    return (e2 >> 13) & 3

cdef inline uint32_t descriptor_limit(uint32_t e1, uint32_t e2) noexcept nogil:
    cdef uint32_t limit = (e1 & 0xffff) | (e2 & 0xf0000)
    if e2 & D_G:
        limit = (limit << 12) | 0xfff
    return limit

cdef inline uint32_t descriptor_base(uint32_t e1, uint32_t e2) noexcept nogil:
    return (e1 >> 16) | ((e2 & 0xff) << 16) | (e2 & <uint64_t>0xff000000)

cdef inline uint32_t virtual_cs(Vm *vm) noexcept nogil:
    """CS as the guest must see it."""
    if not vm.cr0 & CR0_PE or vm.hvm != NULL:
        return vm.env.segs[R_CS].selector & 0xffff
    return (vm.env.segs[R_CS].selector & 0xfffc) | vm.cpl

cdef inline uint32_t virtual_ss(Vm *vm) noexcept nogil:
    if not vm.cr0 & CR0_PE or vm.hvm != NULL:
        return vm.env.segs[R_SS].selector & 0xffff
    return (vm.env.segs[R_SS].selector & 0xfffc) | vm.cpl

cdef inline bint in_v86(Vm *vm) noexcept nogil:
    """Virtual-8086 mode, which only engine hvm has."""
    return (vm.env.eflags & FL_VM) != 0

cdef inline bint protected(Vm *vm) noexcept nogil:
    """Whether selectors name descriptors. If not, they are paragraph numbers."""
    return vm.cr0 & CR0_PE and not in_v86(vm)

cdef inline uint32_t real_cpl(Vm *vm, int cpl) noexcept nogil:
    """The ring of the CPU that stands for a virtual one."""
    if vm.hvm != NULL:
        return cpl
    return 3 if cpl == 3 else 1

cdef void update_hflags(Vm *vm) noexcept nogil:
    """Recompute what Unicorn's translator keys on: privilege, code and stack size, segment bases.

    The CPU is always in long mode; a guest that is not runs in compatibility segments. Not so under
    engine hvm: there it is in the guest's mode.
    """
    cdef Env *env = vm.env
    cdef uint32_t hf = env.hflags & ~<uint32_t>(HF_CPL | HF_CS32 | HF_SS32 | HF_ADDSEG | HF_CS64)
    hf |= real_cpl(vm, vm.cpl)
    if vm.hvm == NULL:
        hf |= HF_LMA | HF_PE
    else:
        # What interrupts had to wait for is over, too.
        hf &= ~<uint32_t>(HF_LMA | HF_PE | HF_INHIBIT_IRQ)
        if vm.cr0 & CR0_PE:
            hf |= HF_PE
        if vm.efer & EFER_LMA:
            hf |= HF_LMA
    if vm.efer & EFER_LMA and env.segs[R_CS].flags & D_L:
        hf |= HF_CS64 | HF_CS32 | HF_SS32
    else:
        if env.segs[R_CS].flags & D_B:
            hf |= HF_CS32
        if env.segs[R_SS].flags & D_B:
            hf |= HF_SS32
        if not hf & HF_CS32 or env.segs[R_DS].base | env.segs[R_ES].base | env.segs[R_SS].base:
            hf |= HF_ADDSEG
        vm.skip_sync[0] = 0
    env.hflags = hf

cdef void update_features(Vm *vm) noexcept nogil:
    """CR0.MP/EM/TS, CR4.OSFXSR and EFER.SCE are real: Unicorn raises #NM and #UD for the guest."""
    cdef uint32_t hf = vm.env.hflags & ~<uint32_t>(HF_MP | HF_EM | HF_TS | HF_OSFXSR)
    hf |= <uint32_t>((vm.cr0 & (CR0_MP | CR0_EM | CR0_TS)) << 8)
    if vm.cr4 & CR4_OSFXSR:
        hf |= HF_OSFXSR
    vm.env.hflags = hf
    if vm.hvm != NULL:
        hvm_publish(vm)
        return
    # SCE decides between #UD and #GP for SYSRET outside the kernel, before privilege does.
    (<uint64_t *>(<char *>vm.env + OFF_EFER))[0] = EFER_LMA | EFER_LME | (vm.efer & EFER_SCE)
    vm.env.cr[0] = CR0_PE | CR0_ET | (vm.cr0 & (CR0_MP | CR0_EM | CR0_TS | CR0_NE))
    # FSGSBASE lets the SWAPGS stub work. Without the guest's own CR4.FSGSBASE its user code could use
    # the instructions too: documented in docs/quirks.md.
    vm.env.cr[4] = CR4_PAE | CR4_FSGSBASE | (vm.cr4 & (CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_DE))
    # TSD makes RDTSC fault outside ring 0. Without it the instruction comes to a hook of its own
    # (on_rdtsc), which costs a call and no exit. Whoever wants to see it as an exit gets the fault.
    if vm.cr4 & CR4_TSD or vm.tracing or vm.recorder != NULL or vm.hooked[row_rdtsc] or \
            vm.hooked[row_rdtscp]:
        vm.env.cr[4] |= CR4_TSD
    vm.unwatched = not vm.tracing and vm.recorder == NULL and not vm.n_hooked
    # IN and OUT that do not come by a trap need the search for RIP that `rip_is_known` leaves out,
    # if anybody looks at it. (Engine hvm is not here, engine trap has all its IN and OUT so.)
    vm.skips_sync = vm.unwatched and (vm.translate or vm.pv != NULL or vm.xen != NULL)

# Interrupt shadow ----------------------------------------------------------------------------

cdef inline void shadow_next(Vm *vm) noexcept nogil:
    """Interrupts wait for one more instruction (MOV SS, POP SS)."""
    if vm.hvm != NULL:
        vm.env.hflags |= HF_INHIBIT_IRQ
    else:
        vm.shadow = linear(vm, vm.next_rip)

# Descriptors ----------------------------------------------------------------------------------

cdef int fault(Vm *vm, int vector, uint32_t error) noexcept nogil:
    vm.fault_vector = vector
    vm.fault_error = error
    return -1

cdef int descriptor_at(Vm *vm, uint32_t selector, uint64_t *address) noexcept nogil:
    """Linear address of a selector's descriptor; -1 when it is outside its table."""
    cdef Descriptor *table = &vm.ldt if selector & 4 else &vm.gdt
    if (selector | 7) > table.limit or (selector & 4 and vm.ldt.selector & 0xfffc == 0):
        return -1
    address[0] = table.base + (selector & 0xfff8)
    return 0

cdef int descriptor_read(Vm *vm, uint32_t selector, uint32_t *e) noexcept nogil:
    """Read a descriptor into e[0], e[1]. 0, or -1 with vm.fault_* set."""
    cdef uint64_t address
    cdef bint found = False
    if vm.xen != NULL and not selector & 4:
        address = xen_descriptor(vm, selector, &found)
        e[0] = <uint32_t>address
        e[1] = <uint32_t>(address >> 32)
        return 0 if found else fault(vm, EX_GP, selector & 0xfffc)
    if descriptor_at(vm, selector, &address) != 0:
        return fault(vm, EX_GP, selector & 0xfffc)
    return read_virt(vm, address, e, 8, False)

cdef void descriptor_touch(Vm *vm, uint32_t selector, uint32_t *e) noexcept nogil:
    """Set the accessed bit in memory, as a load does."""
    cdef uint64_t address
    if vm.xen == NULL and not e[1] & D_A and descriptor_at(vm, selector, &address) == 0:
        e[1] |= D_A
        write_virt(vm, address + 4, &e[1], 4, False)

cdef void segment_cache(Vm *vm, int seg, uint32_t selector, uint32_t *e) noexcept nogil:
    cdef Seg *s = &vm.env.segs[seg]
    s.selector = selector
    s.base = descriptor_base(e[0], e[1])
    s.limit = descriptor_limit(e[0], e[1])
    s.flags = e[1]

cdef void segment_null(Vm *vm, int seg, uint32_t selector) noexcept nogil:
    cdef Seg *s = &vm.env.segs[seg]
    s.selector = selector
    s.base = 0
    s.limit = 0
    s.flags = 0

cdef void segment_v86(Vm *vm, int seg, uint32_t selector) noexcept nogil:
    """A segment of virtual-8086 mode (SDM vol. 3, 21.2.2)."""
    cdef Seg *s = &vm.env.segs[seg]
    s.selector = selector & 0xffff
    s.base = s.selector << 4
    s.limit = 0xffff
    s.flags = D_P | D_S | D_RW | D_A | (3 << 13)

cdef int load_data_segment(Vm *vm, int seg, uint32_t selector) noexcept nogil:
    """MOV/POP/LxS to ES, SS, DS, FS or GS (SDM vol. 2, MOV). 0, or -1 with the fault set."""
    cdef uint32_t e[2]
    cdef int rpl = selector & 3
    cdef int dpl
    selector &= 0xffff
    if not protected(vm):
        vm.env.segs[seg].selector = selector
        vm.env.segs[seg].base = selector << 4
        update_hflags(vm)
        return 0
    if selector & 0xfffc == 0:
        if seg == R_SS:
            if not vm.env.hflags & HF_CS64 or vm.cpl == 3 or rpl != vm.cpl:
                return fault(vm, EX_GP, 0)
            rpl = real_cpl(vm, vm.cpl)
            segment_null(vm, R_SS, rpl)
            vm.env.segs[R_SS].flags = D_P | D_S | D_RW | D_A | D_B | D_G | (rpl << 13)
        else:
            segment_null(vm, seg, selector)
        update_hflags(vm)
        return 0
    if descriptor_read(vm, selector, e) != 0:
        return -1
    dpl = descriptor_dpl(e[1])
    if not e[1] & D_S:
        return fault(vm, EX_GP, selector & 0xfffc)
    if seg == R_SS:
        if e[1] & D_CODE or not e[1] & D_RW or rpl != vm.cpl or dpl != vm.cpl:
            return fault(vm, EX_GP, selector & 0xfffc)
        if not e[1] & D_P:
            return fault(vm, EX_SS, selector & 0xfffc)
    else:
        if e[1] & (D_CODE | D_RW) == D_CODE:
            return fault(vm, EX_GP, selector & 0xfffc)
        if e[1] & (D_CODE | D_C) != D_CODE | D_C and (dpl < vm.cpl or dpl < rpl):
            return fault(vm, EX_GP, selector & 0xfffc)
        if not e[1] & D_P:
            return fault(vm, EX_NP, selector & 0xfffc)
    descriptor_touch(vm, selector, e)
    segment_cache(vm, seg, selector, e)
    if seg == R_SS and vm.cpl == 0:
        vm.env.segs[R_SS].selector = (selector & 0xfffc) | real_cpl(vm, 0)
    update_hflags(vm)
    return 0

cdef void enter_flat(Vm *vm, int seg, uint32_t selector, uint32_t flags) noexcept nogil:
    """A flat segment as SYSCALL, SYSRET, SYSENTER and SYSEXIT make it, without reading a table."""
    cdef Seg *s = &vm.env.segs[seg]
    s.selector = selector
    s.base = 0
    s.limit = <uint64_t>0xffffffff
    s.flags = flags

cdef void set_cpl(Vm *vm, int cpl, uint64_t flags) noexcept nogil:
    """Change the virtual CPL; CS and SS were just loaded; RFLAGS becomes ``flags``."""
    cdef uint32_t real = real_cpl(vm, cpl)
    vm.cpl = cpl
    vm.env.segs[R_CS].selector = (vm.env.segs[R_CS].selector & 0xfffc) | real
    vm.env.segs[R_SS].selector = (vm.env.segs[R_SS].selector & 0xfffc) | real
    update_hflags(vm)
    set_flags(vm, flags)
    if vm.xen != NULL:
        # The kernel's own flat segments are real for it: IRETQ to the same ring needs no exit.
        vm.env.gdt.limit = XEN_GDT_LIMIT if cpl == 0 else 0
    vm.page[PG_CS] = (vm.env.segs[R_CS].selector & 0xfffc) | cpl
    vm.page[PG_SS] = (vm.env.segs[R_SS].selector & 0xfffc) | cpl

cdef void drop_privileged_segments(Vm *vm) noexcept nogil:
    """On a return to user mode, data segments that user code may not hold become null."""
    cdef int seg
    cdef Seg *s
    for seg in range(6):
        if seg == R_CS or seg == R_SS:
            continue
        s = &vm.env.segs[seg]
        if s.selector & 0xfffc == 0:
            continue
        if s.flags & (D_CODE | D_C) != D_CODE | D_C and descriptor_dpl(s.flags) < vm.cpl:
            segment_null(vm, seg, 0)
