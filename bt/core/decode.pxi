# SPDX-License-Identifier: GPL-2.0-or-later
# Operands of one sensitive instruction: prefixes, ModRM, effective address (SDM vol. 2, chapter 2).
#
# The scanner has already said which instruction it is and how long; this finds its operands and
# reads and writes them as the instruction would, with the guest's own rights.

cdef inline bint is_prefix(uint8_t byte, int bits) noexcept nogil:
    return byte == 0x26 or byte == 0x2e or byte == 0x36 or byte == 0x3e or \
        0x64 <= byte <= 0x67 or byte == 0xf0 or byte == 0xf2 or byte == 0xf3 or \
        (bits == 64 and byte & 0xf0 == 0x40)

cdef bint decode(Vm *vm, const uint8_t *code, int length, int bits, Insn *out) noexcept nogil:
    """Fill ``out``. False if the bytes end before the instruction does."""
    cdef int at = 0
    cdef bint op66 = False
    cdef bint ad67 = False
    cdef uint8_t byte
    memset(out, 0, sizeof(Insn))
    out.code = code
    out.length = length
    out.bits = bits
    out.seg = -1
    while at < length:
        byte = code[at]
        if byte == 0x66:
            op66 = True
        elif byte == 0x67:
            ad67 = True
        elif byte == 0xf2 or byte == 0xf3:
            out.rep = byte
        elif byte == 0x26:
            out.seg = R_ES
        elif byte == 0x2e:
            out.seg = R_CS
        elif byte == 0x36:
            out.seg = R_SS
        elif byte == 0x3e:
            out.seg = R_DS
        elif byte == 0x64:
            out.seg = R_FS
        elif byte == 0x65:
            out.seg = R_GS
        elif byte != 0xf0:
            break
        at += 1
    if at < length and bits == 64 and code[at] & 0xf0 == 0x40:
        out.rex = code[at]
        at += 1
    if at >= length:
        return False
    if bits == 16:
        out.opsize = 4 if op66 else 2
        out.adsize = 4 if ad67 else 2
    elif bits == 32:
        out.opsize = 2 if op66 else 4
        out.adsize = 2 if ad67 else 4
    else:
        out.opsize = 8 if out.rex & 8 else (2 if op66 else 4)
        out.adsize = 4 if ad67 else 8
    out.opcode = code[at]
    at += 1
    if out.opcode == 0x0f:
        if at >= length:
            return False
        out.two_byte = 1
        out.opcode = code[at]
        at += 1
        if out.opcode == 0x38:          # only INVPCID lives here
            if at >= length:
                return False
            out.opcode = code[at]
            at += 1
    out.imm = at
    if not has_modrm(out):
        return True
    if at >= length:
        return False
    return decode_modrm(vm, out, at)

cdef inline bint has_modrm(Insn *insn) noexcept nogil:
    """Which of the table's opcodes carry a ModRM byte."""
    cdef uint8_t op = insn.opcode
    if insn.two_byte:
        return op <= 0x03 or 0x20 <= op <= 0x23 or op == 0xb2 or op == 0xb4 or op == 0xb5 or \
            op == 0x82 or op == 0xc7
    return op == 0x8c or op == 0x8e or op == 0xc4 or op == 0xc5 or op == 0xff

cdef bint decode_modrm(Vm *vm, Insn *insn, int at) noexcept nogil:
    cdef const uint8_t *code = insn.code
    cdef uint64_t *regs = vm.env.regs
    cdef uint64_t ea = 0
    cdef int base = -1, index = -1, scale = 0, sib, need = 0
    cdef uint8_t modrm = code[at]
    at += 1
    insn.modrm = modrm
    insn.mod = modrm >> 6
    insn.reg = ((modrm >> 3) & 7) | (8 if insn.rex & 4 else 0)
    insn.rm = (modrm & 7) | (8 if insn.rex & 1 else 0)
    insn.imm = at
    # Control and debug register moves name registers whatever mod says.
    if insn.two_byte and 0x20 <= insn.opcode <= 0x23:
        insn.mod = 3
    if insn.mod == 3:
        return True
    insn.ea_seg = R_DS
    if insn.adsize == 2:
        if (modrm & 7) == 0 or (modrm & 7) == 1 or (modrm & 7) == 7:
            ea = regs[RBX]
        elif (modrm & 7) == 2 or (modrm & 7) == 3 or ((modrm & 7) == 6 and insn.mod != 0):
            ea = regs[RBP]
            insn.ea_seg = R_SS
        if (modrm & 7) == 0 or (modrm & 7) == 2 or (modrm & 7) == 4:
            ea += regs[RSI]
        elif (modrm & 7) == 1 or (modrm & 7) == 3 or (modrm & 7) == 5:
            ea += regs[RDI]
        if insn.mod == 1:
            need = 1
        elif insn.mod == 2 or (modrm & 7) == 6:
            need = 2
    else:
        if (modrm & 7) == 4:
            if at >= insn.length:
                return False
            sib = code[at]
            at += 1
            base = (sib & 7) | (8 if insn.rex & 1 else 0)
            index = ((sib >> 3) & 7) | (8 if insn.rex & 2 else 0)
            scale = sib >> 6
            if index == 4:
                index = -1
            if (sib & 7) == 5 and insn.mod == 0:
                base = -1
                need = 4
        elif (modrm & 7) == 5 and insn.mod == 0:
            need = 4
            if insn.bits == 64:
                ea = vm.next_rip
        else:
            base = insn.rm
        if insn.mod == 1:
            need = 1
        elif insn.mod == 2:
            need = 4
        if base >= 0:
            ea += regs[base]
            if base == RSP or base == RBP:
                insn.ea_seg = R_SS
        if index >= 0:
            ea += regs[index] << scale
    if at + need > insn.length:
        return False
    if need == 1:
        ea += <int64_t><int8_t>code[at]
    elif need == 2:
        ea += <uint64_t>(code[at] | (code[at + 1] << 8))
    elif need == 4:
        ea += <int64_t>(<const int32_t *>(code + at))[0]
    insn.imm = at + need
    if insn.adsize == 2:
        ea &= 0xffff
    elif insn.adsize == 4:
        ea &= <uint64_t>0xffffffff
    if insn.seg >= 0:
        insn.ea_seg = insn.seg
    insn.ea = ea
    return True

cdef inline uint64_t segmented(Vm *vm, int seg, uint64_t offset) noexcept nogil:
    """Linear address of seg:offset."""
    if vm.env.hflags & HF_CS64:
        if seg == R_FS or seg == R_GS:
            return vm.env.segs[seg].base + offset
        return offset
    return (vm.env.segs[seg].base + offset) & <uint64_t>0xffffffff

cdef inline uint64_t ea_linear(Vm *vm, Insn *insn) noexcept nogil:
    return segmented(vm, insn.ea_seg, insn.ea)

cdef inline void set_reg(Vm *vm, int reg, uint64_t value, int size) noexcept nogil:
    """Write a general register as a ``size``-byte operation does (32-bit writes clear the top)."""
    if size == 8:
        vm.env.regs[reg] = value
    elif size == 4:
        vm.env.regs[reg] = value & <uint64_t>0xffffffff
    elif size == 2:
        vm.env.regs[reg] = (vm.env.regs[reg] & ~<uint64_t>0xffff) | (value & 0xffff)
    else:
        vm.env.regs[reg] = (vm.env.regs[reg] & ~<uint64_t>0xff) | (value & 0xff)

cdef inline uint64_t get_reg(Vm *vm, int reg, int size) noexcept nogil:
    if size == 8:
        return vm.env.regs[reg]
    return vm.env.regs[reg] & ((<uint64_t>1 << (size * 8)) - 1)

cdef inline uint64_t stack_pointer_mask(Vm *vm) noexcept nogil:
    if vm.env.hflags & HF_CS64:
        return ~<uint64_t>0
    return <uint64_t>0xffffffff if vm.env.hflags & HF_SS32 else 0xffff

cdef inline void move_stack(Vm *vm, int64_t delta) noexcept nogil:
    cdef uint64_t mask = stack_pointer_mask(vm)
    cdef uint64_t rsp = vm.env.regs[RSP]
    vm.env.regs[RSP] = (rsp & ~mask) | ((rsp + <uint64_t>delta) & mask)

cdef int push(Vm *vm, uint64_t value, int size) noexcept nogil:
    cdef uint64_t mask = stack_pointer_mask(vm)
    cdef uint64_t at = segmented(vm, R_SS, (vm.env.regs[RSP] - size) & mask)
    if write_virt(vm, at, &value, size, vm.cpl == 3) != 0:
        return -1
    move_stack(vm, -size)
    return 0

cdef int peek_stack(Vm *vm, int offset, uint64_t *value, int size) noexcept nogil:
    cdef uint64_t mask = stack_pointer_mask(vm)
    value[0] = 0
    return read_virt(vm, segmented(vm, R_SS, (vm.env.regs[RSP] + offset) & mask), value, size,
                     vm.cpl == 3)

cdef int operand_read(Vm *vm, Insn *insn, int size, uint64_t *value) noexcept nogil:
    """r/m operand. 0, or -1 with the fault set."""
    value[0] = 0
    if insn.mod == 3:
        value[0] = get_reg(vm, insn.rm, size)
        return 0
    return read_virt(vm, ea_linear(vm, insn), value, size, vm.cpl == 3)

cdef int operand_write(Vm *vm, Insn *insn, int size, uint64_t value) noexcept nogil:
    if insn.mod == 3:
        set_reg(vm, insn.rm, value, size)
        return 0
    return write_virt(vm, ea_linear(vm, insn), &value, size, vm.cpl == 3)
