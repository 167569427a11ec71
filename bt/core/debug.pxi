# SPDX-License-Identifier: GPL-2.0-or-later
# Breakpoints and single steps for whoever looks at the guest from outside (Python, gdb).
#
# A breakpoint is a linear address. Where a block is found to cover one, the byte at it becomes int3
# in the page's copy, the copy that rewritten instructions live on: the guest's own bytes do not
# change, and its reads do not show it. That works before the address is mapped at all (a kernel's
# first instructions run elsewhere), in every address space, and under every engine of this core.
#
# A step is one instruction under the CPU's TF, as for the shadow of STI (events.pxi), with the
# breakpoint's byte put back for the time. An interrupt is a step of its own, or waits until the
# debugger lets the guest run. The guest's TF is its own: ours is gone before an exit looks at the
# flags, and out of what a PUSHF stored.

cdef enum:
    STEP_NONE = 0
    STEP_WANTED = 1             # one instruction, then stop with STOP_DEBUG
    STEP_DONE = 2
    STEP_OVER = 3               # one instruction at a breakpoint that nobody wants to hear of now

cdef inline bint is_break(Vm *vm, uint64_t gva) noexcept nogil:
    cdef int i
    for i in range(vm.n_breaks):
        if vm.breaks[i] == gva:
            return True
    return False

cdef bint is_patched(Vm *vm, uint64_t gpa) noexcept nogil:
    cdef int i
    for i in range(vm.n_patches):
        if vm.patches[i].gpa == gpa:
            return True
    return False

cdef void break_add(Vm *vm, uint64_t gva) noexcept nogil:
    """Remember a breakpoint. It gets into place where a block that covers it is translated next.

    In other address spaces too, therefore all blocks go; not from inside one, which may be running.
    A stub that stands for the instruction would pass it by.
    """
    cdef Site *site
    cdef int i
    vm.breaks[vm.n_breaks] = gva
    vm.n_breaks += 1
    for i in range(SITE_BUCKETS):
        site = vm.buckets[i]
        while site != NULL:
            if site.stub and gva - site.gva < site.region:
                unstub(vm, vm.code[site.gpa >> 12], site)
            site = site.hash_next
    vm.flush_wanted = 1
    if vm.running:
        leave(vm)

cdef bint interrupted(Vm *vm) noexcept nogil:
    """Take an interrupt if one waits and can be taken here; whether it was."""
    cdef uint64_t before = vm.exits[EXIT_IRQ]
    leave_stub(vm)
    vm.step_taking = 1
    if vm.xen != NULL:
        xen_events(vm)
    else:
        take_irq(vm)
    vm.step_taking = 0
    return vm.exits[EXIT_IRQ] != before

cdef bint break_blocks(Vm *vm, uint64_t gva, uint32_t span) noexcept nogil:
    """Put the breakpoints of [gva, gva+span) in place. True: the block there is no longer right."""
    cdef int i
    cdef bint changed = False
    for i in range(vm.n_breaks):
        if vm.breaks[i] - gva < span and patch_break(vm, vm.breaks[i]):
            changed = True
    return changed

cdef bint patch_break(Vm *vm, uint64_t gva) noexcept nogil:
    """Make the byte at ``gva`` an int3 in the page's copy. False: it is one, or nothing is there."""
    cdef uint64_t gpn, gpa, before
    cdef CodePage *page
    if fetch_page(vm, gva, &gpn) != 0:
        return False
    gpa = (gpn << 12) | (gva & 0xfff)
    if is_patched(vm, gpa):
        return False
    page = vm.code[gpn]
    if page == NULL:
        page = page_to_code(vm, gpn)
    if page == NULL or vm.n_patches == MAX_PATCHES:
        vm.stop = STOP_UNSUPPORTED
        vm.message = b"more breakpoints in place than the VMM has room for"
        return False
    before = fetch_pa(page)
    unstub_between(vm, gva, 1)
    if not page_copy(vm, page):
        vm.stop = STOP_UNSUPPORTED
        vm.message = b"more rewritten code pages than the VMM has room for"
        return False
    drop_blocks(vm, before + (gva & 0xfff), 1)
    drop_blocks(vm, fetch_pa(page) + (gva & 0xfff), 1)
    vm.copies[(<uint64_t>page.copy << 12) + (gva & 0xfff)] = 0xcc
    vm.patches[vm.n_patches].gpa = gpa
    vm.patches[vm.n_patches].gva = gva
    vm.n_patches += 1
    return True

cdef void show_patches(Vm *vm, uint64_t gpn, bint on, uint32_t first, uint32_t last) noexcept nogil:
    """Put the int3 of a page's bytes first..last in, or the guest's own bytes back."""
    cdef CodePage *page = vm.code[gpn]
    cdef uint64_t gpa
    cdef uint32_t offset
    cdef int i
    if page == NULL or page.copy < 0:
        return
    for i in range(vm.n_patches):
        gpa = vm.patches[i].gpa
        offset = gpa & 0xfff
        if gpa >> 12 == gpn and first <= offset <= last and site_at(vm, gpa) == NULL:
            vm.copies[(<uint64_t>page.copy << 12) + offset] = 0xcc if on else vm.ram[gpa]
            drop_blocks(vm, fetch_pa(page) + offset, 1)

cdef void forget_patches(Vm *vm, uint64_t gpn) noexcept nogil:
    """A page's copy is gone, and its int3 with it."""
    cdef int i = 0
    while i < vm.n_patches:
        if vm.patches[i].gpa >> 12 == gpn:
            vm.n_patches -= 1
            vm.patches[i] = vm.patches[vm.n_patches]
        else:
            i += 1

cdef void break_remove(Vm *vm, uint64_t gva) noexcept nogil:
    """Forget a breakpoint and take its int3 away, unless another address has the same byte."""
    cdef uint64_t gpa
    cdef int i
    for i in range(vm.n_breaks):
        if vm.breaks[i] == gva:
            vm.n_breaks -= 1
            vm.breaks[i] = vm.breaks[vm.n_breaks]
            break
    i = 0
    while i < vm.n_patches:
        if vm.patches[i].gva != gva:
            i += 1
            continue
        gpa = vm.patches[i].gpa
        show_patches(vm, gpa >> 12, False, gpa & 0xfff, gpa & 0xfff)
        vm.n_patches -= 1
        vm.patches[i] = vm.patches[vm.n_patches]

cdef bint hit_break(Vm *vm) noexcept nogil:
    """An int3 was executed (env.eip is behind it). True: it was put there for a breakpoint."""
    cdef uint64_t rip = vm.env.eip - 1
    cdef uint64_t gva = linear(vm, rip)
    cdef uint64_t gpn
    if is_break(vm, gva):
        vm.env.eip = rip
        vm.hit = gva
        vm.stop = STOP_DEBUG
        leave(vm)
        return True
    if fetch_page(vm, gva, &gpn) != 0 or not is_patched(vm, (gpn << 12) | (gva & 0xfff)) or \
            site_at(vm, (gpn << 12) | (gva & 0xfff)) != NULL:
        return False
    # The same byte at another address, where nobody wants to stop.
    vm.env.eip = rip
    vm.debug_step = STEP_OVER
    leave(vm)
    return True

cdef void open_step(Vm *vm) noexcept nogil:
    """Set the vCPU up to run the one instruction at RIP, as the guest wrote it."""
    cdef uint64_t gva = linear(vm, vm.env.eip)
    cdef uint64_t gpn
    cdef uint8_t code[15]
    cdef int i, length
    vm.step_pushf = 0
    vm.step_popf = 0
    vm.step_gva = gva
    vm.step_open = 1
    unstub_between(vm, gva, 15)
    if fetch_page(vm, gva, &gpn) == 0:
        show_patches(vm, gpn, False, gva & 0xfff, (gva & 0xfff) + 14)
        if (gva & 0xfff) + 14 > 4095 and fetch_page(vm, gva + 15, &gpn) == 0:
            show_patches(vm, gpn, False, 0, 13)
    if vm.env.eflags & FL_TF:
        return                  # the guest steps by itself: its #DB ends the instruction too
    length = fetch_code(vm, gva, code, 15)
    for i in range(length):
        # Where these are no traps of ours, PUSHF stores our TF and POPF overwrites it.
        if code[i] == 0x9c:
            vm.step_pushf = 1
        elif code[i] == 0x9d:
            vm.step_popf = popped_tf(vm)
        if code[i] != 0x66 and code[i] & 0xf0 != 0x40:
            break
    vm.env.eflags |= FL_TF
    vm.stepping = 1

cdef void close_step(Vm *vm) noexcept nogil:
    """The instruction may have been done; the int3 go back to where they were."""
    cdef uint64_t gpn
    cdef uint64_t gva = vm.step_gva
    vm.step_open = 0
    if vm.n_patches == 0:
        return
    if fetch_page(vm, gva, &gpn) == 0:
        show_patches(vm, gpn, True, gva & 0xfff, (gva & 0xfff) + 14)
        if (gva & 0xfff) + 14 > 4095 and fetch_page(vm, gva + 15, &gpn) == 0:
            show_patches(vm, gpn, True, 0, 13)

cdef inline void step_ends(Vm *vm) noexcept nogil:
    """The instruction being stepped came to its end, in whatever way."""
    if vm.debug_step:
        vm.debug_step = STEP_DONE if vm.debug_step == STEP_WANTED else STEP_NONE
        leave(vm)

cdef inline uint64_t flags_on_stack(Vm *vm) noexcept nogil:
    """Linear address of the second byte on the stack, which has TF in bit 0 if it is flags."""
    cdef uint64_t at = vm.env.regs[RSP] + 1
    if vm.env.hflags & HF_CS64:
        return at
    return (vm.env.segs[R_SS].base + (at & stack_pointer_mask(vm))) & <uint64_t>0xffffffff

cdef bint popped_tf(Vm *vm) noexcept nogil:
    """Whether the POPF to come sets TF."""
    cdef uint8_t byte = 0
    return read_virt(vm, flags_on_stack(vm), &byte, 1, vm.cpl == 3) == 0 and byte & 1

cdef void mend_step(Vm *vm) noexcept nogil:
    """A PUSHF or POPF ran on the CPU itself under our TF: leave what it would have left."""
    cdef uint8_t byte
    cdef uint64_t at = flags_on_stack(vm)
    if vm.step_popf:
        vm.env.eflags |= FL_TF
    if not vm.step_pushf:
        return
    if read_virt(vm, at, &byte, 1, vm.cpl == 3) == 0:
        byte &= 0xfe
        write_virt(vm, at, &byte, 1, vm.cpl == 3)
