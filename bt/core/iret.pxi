# SPDX-License-Identifier: GPL-2.0-or-later
# IRETQ of a kernel to its own ring, as a call out of the block.
#
# Linux serialises with it (sync_core): 108,000 times in a boot. Unicorn reads nine words through its
# slow path, loads two segments that are loaded, and leaves for its main loop: 108 ns. Here are the
# cases in which nothing changes but RIP, RSP and the arithmetic flags; all else is left to Unicorn.
#
# Engine hvm, whose IRETQ is no exit, and Xen domains, whose flat kernel segments are real: under the
# others an IRETQ of the kernel traps.

cdef enum:
    HF2_NMI = 1 << 2            # IRET ends the blocking of NMIs

# What IRET makes of a null SS at CPL 0.
cdef uint32_t NULL_SS = D_P | D_S | D_RW | D_A | D_B | D_G

cdef bint loaded_already(Vm *vm, int seg, uint64_t selector) noexcept nogil:
    """Whether loading ``selector`` would leave CS or SS as it is. False also if it is not known."""
    cdef Seg *s = &vm.env.segs[seg]
    cdef const uint32_t *e
    selector &= 0xffff
    if s.selector != selector or (selector | 7) > vm.env.gdt.limit or selector & 4:
        return False
    if selector & 0xfffc == 0:
        return seg == R_SS and vm.hvm != NULL and s.flags == NULL_SS
    selector &= 0xfff8
    if vm.xen != NULL:
        e = <const uint32_t *>(vm.window + XEN_GDT_OFFSET + selector)
    else:
        e = <const uint32_t *>cached(vm, vm.reads, vm.env.gdt.base + selector, 8)
        if e == NULL:
            touch(vm, vm.env.gdt.base + selector, ACCESS_READ, False)
            return False
    return e[1] == s.flags and descriptor_base(e[0], e[1]) == s.base and \
        descriptor_limit(e[0], e[1]) == s.limit

cdef int plain_iretq(Vm *vm, uint64_t rip, uint64_t unused) noexcept nogil:
    """1: the IRETQ is done. 0: it is not, and nothing has changed."""
    cdef Env *env = vm.env
    cdef const uint64_t *frame
    if env.hflags & HF_CPL == 3 or env.hflags2 & HF2_NMI:
        return 0
    if vm.hvm != NULL and (vm.hvm.wanted[VMEXIT_IRET] or
                           (<uint32_t *>(vm.cpu + CPU_INTERRUPT_REQUEST))[0]):
        return 0
    frame = <const uint64_t *>cached(vm, vm.reads, env.regs[RSP], 40)
    if frame == NULL:
        touch(vm, env.regs[RSP], ACCESS_READ, False)
        return 0
    # Above 32 bits Unicorn does not look; whoever has something there gets what it makes of it.
    if (frame[2] ^ env.eflags) & ~<uint64_t>(FL_ARITH | FL_DF | 2) or env.eflags & FL_NT or \
            not canonical(frame[0]) or not loaded_already(vm, R_CS, frame[1]) or \
            not loaded_already(vm, R_SS, frame[4]):
        return 0
    env.eip = frame[0]
    set_arithmetic(env, frame[2])
    env.df = -1 if frame[2] & FL_DF else 1
    env.regs[RSP] = frame[3]
    return 1
