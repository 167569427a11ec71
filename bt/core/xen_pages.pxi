# SPDX-License-Identifier: GPL-2.0-or-later
# Direct paging: the guest builds the page tables that are walked, the VMM checks every entry.
#
# Each frame the guest owns has a type while something holds it to that type: page table of level 1-4,
# descriptor table, or writable. The types exclude each other, so a page table can never be mapped
# writable, and every entry in use has been checked. (Xen: docs/misc/pvh and xen/arch/x86/mm.c
# describe the same accounting; names here follow it.) Reference counts of frames without a type are
# not kept: all frames have one owner and are never given back.
#
# Errors are Xen's: -EINVAL for a bad frame, entry or type.

cdef enum:
    PGT_NONE = 0                # 1-4: page table of that level
    PGT_L1 = 1
    PGT_L4 = 4
    PGT_SEG = 5
    PGT_WRITABLE = 6

cdef enum:
    E_PERM = -1
    E_NOENT = -2
    E_SRCH = -3
    E_FAULT = -14
    E_BUSY = -16
    E_INVAL = -22
    E_NOSYS = -38

# Bits an entry may not have: PAT-as-large in upper levels, frame numbers above 40 bits, and (as
# Xen's L1_DISALLOW) the global and software bits are harmless here.
cdef uint64_t PTE_FORBIDDEN = 0x000fff0000000000

cdef enum:
    XEN_SLOT_FIRST = 256        # L4 slots that belong to Xen
    XEN_SLOT_LAST = 271

cdef inline uint64_t *frame_entries(Vm *vm, uint64_t mfn) noexcept nogil:
    return <uint64_t *>(vm.ram + (mfn << 12))

cdef int type_get(Vm *vm, uint64_t mfn, int wanted) noexcept nogil:
    """Take a reference that holds ``mfn`` to a type, validating its content first if it is new."""
    cdef Xen *x = vm.xen
    cdef int status
    if mfn >= x.nr_pages:
        return E_INVAL
    if x.count[mfn] != 0:
        if x.kind[mfn] != wanted:
            return E_BUSY if wanted == PGT_WRITABLE else E_INVAL
        if x.count[mfn] == <uint32_t>-1:
            return E_BUSY
        x.count[mfn] += 1
        return 0
    # Claimed before it is validated: an entry of the table that names the table itself fails.
    x.kind[mfn] = wanted
    x.count[mfn] = 1
    status = 0
    if wanted <= PGT_L4:
        # From here on its mappings must be read-only; translations that were not go.
        forget_writes(vm, mfn)
        status = table_validate(vm, mfn, wanted)
    elif wanted == PGT_SEG:
        forget_writes(vm, mfn)
        status = segments_validate(vm, mfn)
    if status != 0:
        x.kind[mfn] = PGT_NONE
        x.count[mfn] = 0
    return status

cdef void type_put(Vm *vm, uint64_t mfn) noexcept nogil:
    cdef Xen *x = vm.xen
    if mfn >= x.nr_pages or x.count[mfn] == 0:
        return
    x.count[mfn] -= 1
    if x.count[mfn] == 0:
        if PGT_L1 <= x.kind[mfn] <= PGT_L4:
            table_release(vm, mfn, x.kind[mfn], 512)
        x.kind[mfn] = PGT_NONE

cdef inline bint guest_slot(int level, int slot) noexcept nogil:
    return level != 4 or slot < XEN_SLOT_FIRST or slot > XEN_SLOT_LAST

cdef int entry_get(Vm *vm, uint64_t entry, int level) noexcept nogil:
    """Take what a present entry of a level-``level`` table refers to."""
    cdef Xen *x = vm.xen
    cdef uint64_t mfn = (entry & PTE_ADDRESS) >> 12
    if not entry & PTE_P:
        return 0
    if entry & PTE_FORBIDDEN:
        return E_INVAL
    if level > 1:
        if entry & PTE_PS:
            return E_INVAL
        return type_get(vm, mfn, level - 1)
    if mfn >= x.nr_pages:
        # Frames of the VMM that the guest may map: those it was told of.
        if mfn >= vm.ram_size >> 12 or not x.shared[mfn - x.nr_pages]:
            return E_INVAL
        if entry & PTE_W and x.shared[mfn - x.nr_pages] != 2:
            return E_INVAL
        return 0
    if entry & PTE_W:
        return type_get(vm, mfn, PGT_WRITABLE)
    return 0

cdef void entry_put(Vm *vm, uint64_t entry, int level) noexcept nogil:
    if not entry & PTE_P:
        return
    if level > 1 or (entry & PTE_W and (entry & PTE_ADDRESS) >> 12 < vm.xen.nr_pages):
        type_put(vm, (entry & PTE_ADDRESS) >> 12)

cdef int table_validate(Vm *vm, uint64_t mfn, int level) noexcept nogil:
    cdef uint64_t *table = frame_entries(vm, mfn)
    cdef int i, status
    for i in range(512):
        if not table[i] & PTE_P or not guest_slot(level, i):
            continue
        status = entry_get(vm, table[i], level)
        if status != 0:
            table_release(vm, mfn, level, i)
            return E_INVAL
    if level == 4:
        for i in range(XEN_SLOT_FIRST, XEN_SLOT_LAST + 1):
            table[i] = 0
        table[XEN_SLOT_FIRST] = vm.xen.m2p_entry
    return 0

cdef void table_release(Vm *vm, uint64_t mfn, int level, int entries) noexcept nogil:
    cdef uint64_t *table = frame_entries(vm, mfn)
    cdef int i
    for i in range(entries):
        if table[i] & PTE_P and guest_slot(level, i):
            entry_put(vm, table[i], level)

cdef int entry_set(Vm *vm, uint64_t mfn, int slot, uint64_t value, bint keep_ad) noexcept nogil:
    """Write one checked entry of a typed page table."""
    cdef int level = vm.xen.kind[mfn]
    cdef uint64_t *at = frame_entries(vm, mfn) + slot
    cdef uint64_t old = at[0]
    cdef int status
    if not guest_slot(level, slot):
        return E_INVAL
    if keep_ad:
        value |= old & (PTE_A | PTE_D)
    if value & PTE_P and old & PTE_P and (value ^ old) & (PTE_ADDRESS | PTE_W | PTE_PS) == 0 and \
            not value & PTE_FORBIDDEN:
        at[0] = value           # same frame, same rights to it
        return 0
    status = entry_get(vm, value, level)
    if status != 0:
        return E_INVAL
    at[0] = value
    entry_put(vm, old, level)
    return 0

# Descriptors ----------------------------------------------------------------------------------

cdef bint descriptor_good(uint64_t *descriptor) noexcept nogil:
    """Check one descriptor, raising privileges below the guest kernel's to 3 (Xen: the same)."""
    cdef uint32_t high = <uint32_t>(descriptor[0] >> 32)
    if not high & D_P:
        return True
    if not high & D_S:
        return False            # no TSS, LDT or gate of the guest's making
    if descriptor_dpl(high) < 3:
        high |= 3 << 13
        descriptor[0] = (descriptor[0] & <uint64_t>0xffffffff) | (<uint64_t>high << 32)
    return True

cdef int segments_validate(Vm *vm, uint64_t mfn) noexcept nogil:
    cdef uint64_t *table = frame_entries(vm, mfn)
    cdef int i
    for i in range(512):
        if not descriptor_good(&table[i]):
            return E_INVAL
    return 0

# Hypercalls -----------------------------------------------------------------------------------

cdef uint64_t PREEMPTED = 0x80000000     # MMU_UPDATE_PREEMPTED: count of a call that goes on
cdef uint64_t DOMID_SELF = 0x7ff0

cdef int finished(Vm *vm, uint64_t done, uint64_t items) noexcept nogil:
    """Tell the guest how many items were done, if it asked."""
    cdef uint32_t value = <uint32_t>items
    return copy_out(vm, done, &value, 4) if done else 0

cdef int64_t xen_mmu_update(Vm *vm, uint64_t requests, uint64_t count, uint64_t done,
                            uint64_t foreign) noexcept nogil:
    """mmu_update: {ptr, val} pairs; the low bits of ptr are the command (public/xen.h)."""
    cdef Xen *x = vm.xen
    cdef uint64_t pair[2]
    cdef uint64_t mfn, i = 0
    cdef int64_t status = 0
    cdef uint32_t before = 0
    if foreign != DOMID_SELF:
        return E_SRCH
    if count & PREEMPTED and done and copy_in(vm, done, &before, 4) != 0:
        return E_FAULT
    count &= PREEMPTED - 1
    while i < count:
        if preempted(vm, i):
            if finished(vm, done, before + i) != 0:
                return E_FAULT
            return again(vm, requests + i * 16, (count - i) | PREEMPTED, done, foreign)
        if copy_in(vm, requests + i * 16, pair, 16) != 0:
            status = E_FAULT
            break
        mfn = pair[0] >> 12
        if pair[0] & 7 == 1:
            if mfn >= x.nr_pages:
                status = E_INVAL
            else:
                x.m2p[mfn] = pair[1]
        elif pair[0] & 7 > 2:
            status = E_NOSYS
        elif mfn >= x.nr_pages:
            status = E_INVAL
        elif x.count[mfn] and PGT_L1 <= x.kind[mfn] <= PGT_L4:
            status = entry_set(vm, mfn, (pair[0] & 0xfff) >> 3, pair[1], pair[0] & 7 == 2)
        else:
            status = type_get(vm, mfn, PGT_WRITABLE)
            if status == 0:
                if vm.code[mfn] != NULL:
                    page_to_data(vm, vm.code[mfn])
                (<uint64_t *>(vm.ram + (pair[0] & ~<uint64_t>7)))[0] = pair[1]
                type_put(vm, mfn)
        if status != 0:
            break
        i += 1
    if finished(vm, done, before + i) != 0 and status == 0:
        status = E_FAULT
    return status

cdef int l1_slot(Vm *vm, uint64_t gva, uint64_t *mfn, int *slot) noexcept nogil:
    """Find the level-1 entry of an address in the current tables; -1 if there is none."""
    cdef uint64_t table = vm.cr3 >> 12
    cdef uint64_t entry
    cdef int level = 4
    while level > 1:
        entry = frame_entries(vm, table)[(gva >> (3 + 9 * level)) & 511]
        if not entry & PTE_P or entry & PTE_PS:
            return -1
        table = (entry & PTE_ADDRESS) >> 12
        if table >= vm.xen.nr_pages:
            return -1
        level -= 1
    mfn[0] = table
    slot[0] = (gva >> 12) & 511
    return 0

cdef int64_t xen_update_va(Vm *vm, uint64_t gva, uint64_t value, uint64_t flags) noexcept nogil:
    """update_va_mapping."""
    cdef uint64_t mfn
    cdef int slot
    cdef int64_t status
    if l1_slot(vm, gva, &mfn, &slot) != 0 or vm.xen.kind[mfn] != PGT_L1:
        return E_INVAL
    status = entry_set(vm, mfn, slot, value, False)
    if flags & 3 == 1:
        flush_tlb(vm)
    elif flags & 3 == 2:
        flush_page(vm, gva)
    return status

cdef bint same_upper_half(uint64_t *one, uint64_t *other) noexcept nogil:
    """Whether two L4 tables translate the kernel's half alike, accessed bits aside."""
    cdef uint64_t differ = 0
    cdef int i
    for i in range(XEN_SLOT_FIRST, 512):
        differ |= one[i] ^ other[i]
    return differ & ~<uint64_t>(PTE_A | PTE_D) == 0

cdef int64_t new_base(Vm *vm, uint64_t mfn, bint user) noexcept nogil:
    cdef Xen *x = vm.xen
    cdef uint64_t old = x.user_root if user else x.kernel_root
    if user and mfn == 0:
        x.user_root = 0
        if old:
            flush_locals(vm)
            type_put(vm, old)
        return 0
    if type_get(vm, mfn, PGT_L4) != 0:
        return E_INVAL
    if user:
        x.user_root = mfn
    else:
        x.kernel_root = mfn
        vm.cr3 = mfn << 12
    # User code has no translations but its own, which are all among the locals.
    if user or same_upper_half(frame_entries(vm, old), frame_entries(vm, mfn)):
        flush_locals(vm)        # the upper half's translations stay true
    else:
        flush_tlb(vm)
    if old:
        type_put(vm, old)
    return 0

cdef int64_t xen_mmuext(Vm *vm, uint64_t ops, uint64_t count, uint64_t done,
                        uint64_t foreign) noexcept nogil:
    """mmuext_op: {u32 cmd, u64 arg1, u64 arg2}."""
    cdef Xen *x = vm.xen
    cdef uint64_t op[3]
    cdef uint64_t i = 0
    cdef uint32_t cmd, before = 0
    cdef int64_t status = 0
    if foreign != DOMID_SELF:
        return E_SRCH
    if count & PREEMPTED and done and copy_in(vm, done, &before, 4) != 0:
        return E_FAULT
    count &= PREEMPTED - 1
    while i < count:
        if preempted(vm, i):
            if finished(vm, done, before + i) != 0:
                return E_FAULT
            return again(vm, ops + i * 24, (count - i) | PREEMPTED, done, foreign)
        if copy_in(vm, ops + i * 24, op, 24) != 0:
            status = E_FAULT
            break
        cmd = <uint32_t>op[0]
        if cmd <= 3:                            # PIN_L1_TABLE .. PIN_L4_TABLE
            status = type_get(vm, op[1], cmd + 1)
            if status == 0:
                if x.pinned[op[1]]:
                    type_put(vm, op[1])
                    status = E_INVAL
                else:
                    x.pinned[op[1]] = 1
            else:
                status = E_INVAL
        elif cmd == 4:                          # UNPIN_TABLE
            if op[1] >= x.nr_pages or not x.pinned[op[1]]:
                status = E_INVAL
            else:
                x.pinned[op[1]] = 0
                type_put(vm, op[1])
        elif cmd == 5:                          # NEW_BASEPTR
            status = new_base(vm, op[1], False)
        elif cmd == 15:                         # NEW_USER_BASEPTR
            status = new_base(vm, op[1], True)
        elif cmd == 6 or cmd == 8 or cmd == 10:  # TLB_FLUSH_LOCAL / MULTI / ALL
            flush_tlb(vm)
        elif cmd == 7 or cmd == 9 or cmd == 11:  # INVLPG_LOCAL / MULTI / ALL
            flush_page(vm, op[1])
        elif cmd == 12:                         # FLUSH_CACHE
            pass
        elif cmd == 13:                         # SET_LDT
            status = xen_set_ldt(vm, op[1], op[2])
        elif cmd == 16 or cmd == 17:            # CLEAR_PAGE, COPY_PAGE
            status = xen_page_op(vm, op[1], op[2], cmd == 17)
        else:
            status = E_NOSYS
        if status != 0:
            break
        i += 1
    if finished(vm, done, before + i) != 0 and status == 0:
        status = E_FAULT
    return status

cdef int64_t xen_page_op(Vm *vm, uint64_t mfn, uint64_t source, bint copy) noexcept nogil:
    cdef Xen *x = vm.xen
    if mfn >= x.nr_pages or (copy and source >= x.nr_pages):
        return E_INVAL
    if type_get(vm, mfn, PGT_WRITABLE) != 0:
        return E_INVAL
    if vm.code[mfn] != NULL:
        page_to_data(vm, vm.code[mfn])
    if copy:
        memcpy(vm.ram + (mfn << 12), vm.ram + (source << 12), 4096)
    else:
        memset(vm.ram + (mfn << 12), 0, 4096)
    type_put(vm, mfn)
    return 0

cdef int64_t xen_set_ldt(Vm *vm, uint64_t base, uint64_t entries) noexcept nogil:
    if entries > 8192 or base & 0xfff or not canonical(base):
        return E_INVAL
    vm.ldt.base = base
    vm.ldt.limit = <uint32_t>(entries * 8 - 1) if entries else 0
    vm.ldt.selector = 0xfff8 if entries else 0      # "loaded": Xen's own LDT selector
    return 0

cdef int64_t xen_set_gdt(Vm *vm, uint64_t frames, uint64_t entries) noexcept nogil:
    """set_gdt: up to 14 frames; Xen's own descriptors lie behind them."""
    cdef Xen *x = vm.xen
    cdef uint64_t list[16]
    cdef int count = <int>((entries + 511) // 512)
    cdef int i
    if entries > 14 * 512:
        return E_INVAL
    if count and copy_in(vm, frames, list, count * 8) != 0:
        return E_FAULT
    for i in range(count):
        if type_get(vm, list[i], PGT_SEG) != 0:
            while i:
                i -= 1
                type_put(vm, list[i])
            return E_INVAL
    for i in range(x.gdt_frames):
        type_put(vm, x.gdt[i])
    x.gdt_frames = count
    for i in range(count):
        x.gdt[i] = list[i]
    return 0

cdef int64_t xen_update_descriptor(Vm *vm, uint64_t address, uint64_t descriptor) noexcept nogil:
    """update_descriptor: machine address of a slot in a descriptor page, new content."""
    cdef Xen *x = vm.xen
    cdef uint64_t mfn = address >> 12
    if address & 7 or mfn >= x.nr_pages or not descriptor_good(&descriptor):
        return E_INVAL
    if x.count[mfn] and x.kind[mfn] != PGT_SEG and x.kind[mfn] != PGT_WRITABLE:
        return E_INVAL
    if vm.code[mfn] != NULL:
        page_to_data(vm, vm.code[mfn])
    (<uint64_t *>(vm.ram + address))[0] = descriptor
    return 0

# Writes to page tables that trap ----------------------------------------------------------------

cdef bint xen_table_write(Vm *vm, uint64_t gva) noexcept nogil:
    """A store of the guest kernel hit a page table: do it, checked, if it is one we know.

    Linux writes entries with plain instructions where that is simpler and relies on this
    (xen_set_pte_init, ptep_set_wrprotect, ptep_get_and_clear). Emulated: MOV, XCHG, CMPXCHG, AND, OR,
    BTR and BTS of 1, 4 or 8 bytes inside one entry.
    """
    cdef Xen *x = vm.xen
    cdef uint64_t mfn, entry, old, value = 0, flags, mask, bit
    cdef int slot, length, at = 0, op, size, shift
    cdef uint8_t code[16]
    cdef Insn insn
    cdef bint op16 = False
    if l1_slot(vm, gva, &mfn, &slot) != 0:
        return False
    entry = frame_entries(vm, mfn)[slot]
    mfn = (entry & PTE_ADDRESS) >> 12
    if mfn >= x.nr_pages or not x.count[mfn] or not PGT_L1 <= x.kind[mfn] <= PGT_L4:
        return False
    length = fetch_code(vm, vm.env.eip, code, 15)
    memset(&insn, 0, sizeof(insn))
    insn.code = code
    insn.length = length
    insn.bits = 64
    insn.seg = -1
    insn.adsize = 8
    while at < length and (code[at] == 0xf0 or code[at] == 0x3e or code[at] == 0x2e or
                           code[at] == 0x66):
        op16 |= code[at] == 0x66
        at += 1
    if at < length and code[at] & 0xf0 == 0x40:
        insn.rex = code[at]
        at += 1
    if op16 or at + 3 > length:
        return False
    op = code[at]
    at += 1
    if op == 0x0f:
        op = 0x0f00 | code[at]
        at += 1
    if op == 0x80 or op == 0x88 or op == 0x86 or op == 0x20 or op == 0x08 or op == 0xc6:
        size = 1
        op = (op | 1) if op != 0x80 else 0x83
    else:
        size = 8 if insn.rex & 8 else 4
    if (gva & 7) + size > 8:
        return False
    # RIP-relative operands would need the length first; only the address of the fault counts here.
    vm.next_rip = vm.env.eip
    if not decode_modrm(vm, &insn, at) or insn.mod == 3:
        return False
    if size == 1 and not insn.rex and insn.reg > 3 and op != 0x83 and op != 0xc7:
        return False            # AH .. BH
    at = insn.imm
    if op == 0xc7:
        at += 1 if size == 1 else 4
    elif op == 0x81:
        at += 4
    elif op == 0x83 or op == 0x0fba:
        at += 1
    if at > length:
        return False
    slot = (gva & 0xfff) >> 3
    shift = (gva & 7) * 8
    mask = ~<uint64_t>0 if size == 8 else (<uint64_t>1 << (size * 8)) - 1
    entry = frame_entries(vm, mfn)[slot]
    old = (entry >> shift) & mask
    flags = real_flags(vm)
    if op == 0x89 or op == 0x87:
        value = vm.env.regs[insn.reg]
    elif op == 0xc7:
        value = code[insn.imm] if size == 1 else <uint64_t><int64_t>(<int32_t *>(code + insn.imm))[0]
    elif op == 0x0fb1:
        flags &= ~<uint64_t>FL_ARITH
        if (vm.env.regs[RAX] & mask) != old:
            set_reg(vm, RAX, old, size)
            table_done(vm, flags | FL_CF, at)
            return True
        value = vm.env.regs[insn.reg]
        flags |= FL_ZF
    elif op == 0x21 or op == 0x09 or \
            ((op == 0x81 or op == 0x83) and (insn.reg & 7 == 4 or insn.reg & 7 == 1)):
        if op == 0x83:
            value = <uint64_t><int64_t><int8_t>code[insn.imm]
        elif op == 0x81:
            value = <uint64_t><int64_t>(<int32_t *>(code + insn.imm))[0]
        else:
            value = vm.env.regs[insn.reg]
        if op == 0x21 or (op != 0x09 and insn.reg & 7 == 4):
            value = old & value
        else:
            value = old | (value & mask)
        flags = (flags & ~<uint64_t>FL_ARITH) | logic_flags(value & mask, size)
    elif op == 0x0fb3 or op == 0x0fab or (op == 0x0fba and 5 <= insn.reg & 7 <= 6):
        bit = vm.env.regs[insn.reg] if op != 0x0fba else code[insn.imm]
        if bit >= <uint64_t>(size * 8):
            return False
        flags = (flags & ~<uint64_t>FL_CF) | ((old >> bit) & 1)
        if op == 0x0fab or (op == 0x0fba and insn.reg & 7 == 5):
            value = old | (<uint64_t>1 << bit)
        else:
            value = old & ~(<uint64_t>1 << bit)
    else:
        return False
    if entry_set(vm, mfn, slot, (entry & ~(mask << shift)) | ((value & mask) << shift), False) != 0:
        return False
    if op == 0x87:
        set_reg(vm, insn.reg, old, size)
    table_done(vm, flags, at)
    x.table_writes += 1
    return True

cdef inline uint64_t logic_flags(uint64_t value, int size) noexcept nogil:
    """Flags after AND or OR (SDM vol. 1, appendix A): OF and CF clear, AF left clear."""
    cdef uint64_t low = value & 0xff
    cdef uint64_t flags = 0
    low ^= low >> 4
    low ^= low >> 2
    low ^= low >> 1
    if not low & 1:
        flags |= 4
    if value == 0:
        flags |= FL_ZF
    if value >> (size * 8 - 1):
        flags |= 0x80
    return flags

cdef inline void table_done(Vm *vm, uint64_t flags, int length) noexcept nogil:
    """Arithmetic flags and RIP after an emulated store."""
    vm.env.cc_src = flags & FL_ARITH
    vm.env.cc_op = CC_OP_EFLAGS
    vm.env.eip += length
