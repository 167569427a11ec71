# SPDX-License-Identifier: GPL-2.0-or-later
# Port I/O: rights, then one of three answers. Absent ports and registers whose value a device has
# published are answered here; the rest goes to the device in Python (bt/machine/bus.py).

cdef bint io_allowed(Vm *vm, uint32_t port, int size) noexcept nogil:
    """IOPL, then the TSS permission bitmap (SDM vol. 1, 19.5). False: #GP(0)."""
    cdef uint16_t base
    cdef uint16_t bits
    if vm.xen != NULL:
        return vm.cpl == 0 or python_io_allowed(vm, port, size)
    if (vm.cpl <= iopl(vm) and not in_v86(vm)) or not vm.cr0 & CR0_PE:
        return True
    if vm.tr.selector & 0xfffc == 0 or not (vm.tr.flags >> 8) & 8 or vm.tr.limit < 103:
        return False
    if read_virt(vm, vm.tr.base + 0x66, &base, 2, False) != 0:
        return False
    if base + (port >> 3) + 1 > vm.tr.limit:
        return False
    if read_virt(vm, vm.tr.base + base + (port >> 3), &bits, 2, False) != 0:
        return False
    return (bits >> (port & 7)) & ((1 << size) - 1) == 0

cdef uint32_t port_in(Vm *vm, uint32_t port, int size) noexcept nogil:
    if vm.hooked[HOOK_PORT_READ]:
        return port_read_hook(vm, port, size)
    return port_read(vm, port, size)

cdef void port_out(Vm *vm, uint32_t port, int size, uint32_t value) noexcept nogil:
    if not vm.hooked[HOOK_PORT_WRITE]:
        port_write(vm, port, size, value)
    elif port_hook(vm, HOOK_PORT_WRITE, HOOK_BEFORE, port, size, &value):
        port_write(vm, port, size, value)
        port_hook(vm, HOOK_PORT_WRITE, HOOK_AFTER, port, size, &value)

cdef uint32_t port_read(Vm *vm, uint32_t port, int size) noexcept nogil:
    cdef int kind = vm.port_read_kind[port & 0xffff]
    if size == 1:
        if kind == 0:
            return 0xff
        if kind == 2:
            return vm.port_value[port & 0xffff]
    elif kind == 0 and vm.port_read_kind[(port + 1) & 0xffff] == 0 and \
            (size == 2 or (vm.port_read_kind[(port + 2) & 0xffff] == 0 and
                           vm.port_read_kind[(port + 3) & 0xffff] == 0)):
        return 0xffff if size == 2 else <uint64_t>0xffffffff
    vm.exits[EXIT_IO_PYTHON] += 1
    return python_in(vm, port & 0xffff, size)

cdef void port_write(Vm *vm, uint32_t port, int size, uint32_t value) noexcept nogil:
    cdef int i
    for i in range(size):
        if vm.port_write_kind[(port + i) & 0xffff]:
            vm.exits[EXIT_IO_PYTHON] += 1
            python_out(vm, port & 0xffff, size, value)
            return

cdef inline int io_size(Insn *insn) noexcept nogil:
    if not insn.opcode & 1:
        return 1
    return 2 if insn.opsize == 2 else 4

cdef inline uint32_t io_port(Vm *vm, Insn *insn) noexcept nogil:
    if insn.opcode & 8:
        return vm.env.regs[RDX] & 0xffff
    return insn.code[insn.imm]

cdef void do_in(Vm *vm, Insn *insn) noexcept nogil:
    cdef int size = io_size(insn)
    cdef uint32_t port = io_port(vm, insn)
    if not io_allowed(vm, port, size):
        raise_gp(vm, 0)
        return
    set_reg(vm, RAX, port_in(vm, port, size), size)

cdef void do_out(Vm *vm, Insn *insn) noexcept nogil:
    cdef int size = io_size(insn)
    cdef uint32_t port = io_port(vm, insn)
    if not io_allowed(vm, port, size):
        raise_gp(vm, 0)
        return
    port_out(vm, port, size, <uint32_t>get_reg(vm, RAX, size))

cdef uint64_t fifo_bulk(Vm *vm, uint32_t port, int size, bint output, uint64_t at,
                        uint64_t count) noexcept nogil:
    """Move up to ``count`` elements between the FIFO of ``port`` and one page of guest memory.

    How many were moved; 0 where element by element is the way: another port, no whole element
    left, a page that cannot be accessed.
    """
    cdef uint64_t *fifo = vm.fifo
    cdef uint64_t n
    cdef uint8_t *host
    if fifo[0] != port or fifo[3] != output:
        return 0
    n = (fifo[2] - fifo[1]) // <uint64_t>size
    if n > count:
        n = count
    if n > (4096 - (at & 0xfff)) // <uint64_t>size:
        n = (4096 - (at & 0xfff)) // <uint64_t>size
    if n == 0:
        return 0
    host = touch(vm, at, ACCESS_READ if output else ACCESS_WRITE, vm.cpl == 3)
    if host == NULL:
        return 0
    if output:
        memcpy(vm.fifo_data + fifo[1], host, n * size)
    else:
        memcpy(host, vm.fifo_data + fifo[1], n * size)
    fifo[1] += n * size
    return n

cdef void string_io(Vm *vm, Insn *insn, bint output) noexcept nogil:
    """INS and OUTS, with REP: all of it, or up to the first fault (then restartable)."""
    cdef int size = io_size(insn)
    cdef uint32_t port = vm.env.regs[RDX] & 0xffff
    cdef uint64_t mask = ~<uint64_t>0
    cdef uint64_t *regs = vm.env.regs
    cdef int index = RSI if output else RDI
    cdef int seg = R_ES
    cdef uint64_t count = 1, at, moved
    cdef uint64_t value
    cdef int64_t step = size
    if not io_allowed(vm, port, size):
        raise_gp(vm, 0)
        return
    if insn.adsize != 8:
        mask = <uint64_t>0xffffffff if insn.adsize == 4 else 0xffff
    if real_flags(vm) & FL_DF:
        step = -size
    if output:
        seg = insn.seg if insn.seg >= 0 else R_DS
    if insn.rep:
        count = regs[RCX] & mask
    while count:
        at = segmented(vm, seg, regs[index] & mask)
        value = 0
        moved = 0
        if step > 0 and (mask == ~<uint64_t>0 or (regs[index] & mask) + count * size <= mask):
            moved = fifo_bulk(vm, port, size, output, at, count)
        if moved:
            pass
        elif output:
            if read_virt(vm, at, &value, size, vm.cpl == 3) != 0:
                raise_pending(vm)
                return
            port_out(vm, port, size, <uint32_t>value)
            moved = 1
        else:
            # Probe first: the device must not be read if the store then faults.
            if touch(vm, at, ACCESS_WRITE, vm.cpl == 3) == NULL and vm.fault_vector:
                raise_pending(vm)
                return
            value = port_in(vm, port, size)
            if write_virt(vm, at, &value, size, vm.cpl == 3) != 0:
                raise_pending(vm)
                return
            moved = 1
        at = (regs[index] & mask) + <uint64_t>step * moved
        set_reg(vm, index, at & mask, insn.adsize)
        count -= moved
        if insn.rep:
            set_reg(vm, RCX, count, insn.adsize)
        if vm.fifo[1] == vm.fifo[2] and vm.fifo[2]:
            vm.exits[EXIT_IO_PYTHON] += 1
            python_fifo_done(vm)        # with the registers as they are after the last element
        if vm.stop or vm.kick:
            # Come back for the rest: REP is interruptible between elements.
            if count and insn.rep:
                vm.env.eip = vm.rip
            return

cdef void do_ins(Vm *vm, Insn *insn) noexcept nogil:
    string_io(vm, insn, False)

cdef void do_outs(Vm *vm, Insn *insn) noexcept nogil:
    string_io(vm, insn, True)
