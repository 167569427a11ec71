# SPDX-License-Identifier: GPL-2.0-or-later
# The memory unit: Unicorn's TLB misses are answered here by walking the guest's own page tables.
#
# There are no shadow page tables. Unicorn runs with paging off and a "virtual TLB": every miss calls
# `on_fill`, which walks the tables CR3 points at (none, 2-level, PAE, 4-level), checks rights as the
# guest's virtual CPL has them, sets accessed and dirty bits, and says which Unicorn-physical page
# to use. That last choice is where translation hides: a fetch may be given the VMM's rewritten
# copy of a page while a read of the same address is given the guest's own bytes (split views).
#
# Write-xor-execute: a page is granted for writing or for execution, never both in one entry. It
# keeps Unicorn on its fast path for stores, and it is what brings self-modifying code back to us.

cdef struct Walk:
    uint64_t gpa
    int writable                # a write would be allowed and is already marked dirty
    int executable
    int is_global               # survives a load of CR3

cdef enum:
    PTE_P = 1
    PTE_W = 2
    PTE_U = 4
    PTE_A = 0x20
    PTE_D = 0x40
    PTE_PS = 0x80
    PTE_G = 0x100

cdef uint64_t PTE_NX = <uint64_t>1 << 63
cdef uint64_t PTE_ADDRESS = 0x000ffffffffff000
cdef uint64_t PTE_RESERVED = 0x000fff0000000000      # above MAXPHYADDR = 40, below bit 52
cdef uint64_t PTE_HIGH = 0x7ff0000000000000          # ignored in 4-level paging, reserved in PAE

cdef enum:                      # page-fault error code (SDM vol. 3, 4.7)
    PF_P = 1
    PF_W = 2
    PF_U = 4
    PF_RSVD = 8
    PF_I = 16

cdef enum:
    ACCESS_READ = 0
    ACCESS_WRITE = 1
    ACCESS_FETCH = 2

cdef inline int page_fault(Vm *vm, uint64_t gva, int error) noexcept nogil:
    vm.fault_vector = EX_PF
    vm.fault_error = error
    vm.fault_gva = gva
    return -1

cdef int walk(Vm *vm, uint64_t gva, int access, bint user, Walk *out) noexcept nogil:
    """Translate ``gva``. 0, or -1 with vm.fault_* set (SDM vol. 3, chapter 4).

    Sets A in every entry used and D in the last one on a write, as the CPU does.
    """
    cdef uint64_t table, entry, rights = PTE_W | PTE_U
    cdef uint64_t *slot
    cdef uint32_t entry32
    cdef uint32_t *slot32
    cdef uint64_t nx = 0, reserved = PTE_RESERVED
    cdef int error, level, shift
    if not vm.cr0 & CR0_PG:
        out.gpa = gva
        out.writable = 1
        out.executable = 1
        out.is_global = 1
        return 0
    error = (PF_W if access == ACCESS_WRITE else 0) | (PF_U if user else 0)
    if access == ACCESS_FETCH and vm.efer & EFER_NXE and vm.cr4 & CR4_PAE:
        error |= PF_I
    if vm.cr4 & CR4_PAE:
        if vm.efer & EFER_LMA:
            level = 4
            table = vm.cr3 & PTE_ADDRESS
        else:
            # The four PDPTEs have no rights and no A/D; the CPU loads them with CR3. We read them
            # at the walk, which only a guest that edits live PDPTEs could tell apart.
            level = 2
            reserved |= PTE_HIGH
            table = (vm.cr3 & <uint64_t>0xffffffe0) + ((gva >> 30) & 3) * 8
            if not is_ram(vm, table):
                return page_fault(vm, gva, error)
            entry = (<uint64_t *>(vm.ram + table))[0]
            if not entry & PTE_P:
                return page_fault(vm, gva, error)
            table = entry & PTE_ADDRESS
        while True:
            shift = 3 + 9 * level
            table += ((gva >> shift) & 511) * 8
            if not is_ram(vm, table):
                return page_fault(vm, gva, error | PF_P | PF_RSVD)
            slot = <uint64_t *>(vm.ram + table)
            entry = slot[0]
            if not entry & PTE_P:
                return page_fault(vm, gva, error)
            if entry & reserved or (entry & PTE_NX and not vm.efer & EFER_NXE):
                return page_fault(vm, gva, error | PF_P | PF_RSVD)
            rights &= entry
            nx |= entry & PTE_NX
            if level == 1:
                break
            if entry & PTE_PS:
                if level == 4 or (level == 3 and not vm.efer & EFER_LMA) or \
                        entry & (((<uint64_t>1 << shift) - 1) & ~<uint64_t>0x1fff):
                    return page_fault(vm, gva, error | PF_P | PF_RSVD)
                break
            if not entry & PTE_A and npt_store(vm, table):
                slot[0] = entry | PTE_A
            table = entry & PTE_ADDRESS
            level -= 1
        if (user and not rights & PTE_U) or (nx and access == ACCESS_FETCH):
            return page_fault(vm, gva, error | PF_P)
        if access == ACCESS_WRITE and not rights & PTE_W and (user or vm.cr0 & CR0_WP):
            return page_fault(vm, gva, error | PF_P)
        if access == ACCESS_WRITE:
            if not entry & PTE_D or not entry & PTE_A:
                entry |= PTE_D | PTE_A
                if npt_store(vm, table):
                    slot[0] = entry
        elif not entry & PTE_A:
            entry |= PTE_A
            if npt_store(vm, table):
                slot[0] = entry
        out.gpa = (entry & PTE_ADDRESS & ~((<uint64_t>1 << shift) - 1)) | \
            (gva & ((<uint64_t>1 << shift) - 1))
        out.executable = nx == 0
    else:
        table = (vm.cr3 & <uint64_t>0xfffff000) + ((gva >> 22) & 1023) * 4
        if not is_ram(vm, table):
            return page_fault(vm, gva, error | PF_P | PF_RSVD)
        slot32 = <uint32_t *>(vm.ram + table)
        entry32 = slot32[0]
        if not entry32 & PTE_P:
            return page_fault(vm, gva, error)
        rights &= entry32
        shift = 22
        if not (entry32 & PTE_PS and vm.cr4 & CR4_PSE):
            if not entry32 & PTE_A and npt_store(vm, table):
                slot32[0] = entry32 | PTE_A
            shift = 12
            table = (entry32 & <uint64_t>0xfffff000) + ((gva >> 12) & 1023) * 4
            if not is_ram(vm, table):
                return page_fault(vm, gva, error | PF_P | PF_RSVD)
            slot32 = <uint32_t *>(vm.ram + table)
            entry32 = slot32[0]
            if not entry32 & PTE_P:
                return page_fault(vm, gva, error)
            rights &= entry32
        elif entry32 & 0x200000:
            return page_fault(vm, gva, error | PF_P | PF_RSVD)
        if (user and not rights & PTE_U) or \
                (access == ACCESS_WRITE and not rights & PTE_W and (user or vm.cr0 & CR0_WP)):
            return page_fault(vm, gva, error | PF_P)
        if access == ACCESS_WRITE:
            entry32 |= PTE_D
        if (entry32 | PTE_A) != slot32[0] and npt_store(vm, table):
            slot32[0] = entry32 | PTE_A
        out.gpa = entry32 & <uint64_t>0xfffff000
        if shift == 22:         # PSE-36: bits 13-20 of the entry are address bits 32-39
            out.gpa = (entry32 & <uint64_t>0xffc00000) | (<uint64_t>(entry32 & 0x1fe000) << 19)
        out.gpa |= gva & ((<uint64_t>1 << shift) - 1)
        out.executable = 1
        entry = entry32
    out.is_global = entry & PTE_G and vm.cr4 & CR4_PGE
    out.writable = (rights & PTE_W or (not user and not vm.cr0 & CR0_WP)) and entry & PTE_D
    return 0

cdef inline bint canonical(uint64_t gva) noexcept nogil:
    cdef int64_t top = <int64_t>gva >> 47
    return top == 0 or top == -1

cdef void flush_tlb(Vm *vm) noexcept nogil:
    """Forget every cached translation, Unicorn's and ours."""
    uc_ctl_flush_tlb(vm.uc)
    vm.gen += GEN_STEP
    vm.flush_gen += 1
    vm.n_locals = 0
    note(vm, EXIT_TLB_FLUSH, 0, 0)

cdef void flush_page(Vm *vm, uint64_t gva) noexcept nogil:
    """INVLPG: one page only. The write grants of other pages stay valid."""
    tlb_flush_page(vm.cpu, gva)
    vm.gen += GEN_STEP

# A guest page that changes its state or type leaves translations behind that no longer hold. Where
# they can be is remembered as one word: 0 nowhere, the page's address | 1, or with bit 1 set more
# than one address. Nearly all pages have one, and losing it costs far less than losing all.

cdef inline void granted(uint64_t *where, uint64_t gva) noexcept nogil:
    cdef uint64_t at = (gva & ~<uint64_t>0xfff) | 1
    if where[0] == 0:
        where[0] = at
    elif where[0] != at:
        where[0] |= 2

cdef void forget(Vm *vm, uint64_t *where) noexcept nogil:
    """Drop the translations that `granted` was told of."""
    if where[0] & 2:
        flush_tlb(vm)
    elif where[0]:
        flush_page(vm, where[0] & ~<uint64_t>0xfff)
    where[0] = 0

cdef inline void write_granted(Vm *vm, uint64_t gpn, uint64_t gva) noexcept nogil:
    if vm.write_gen[gpn] != vm.flush_gen:
        vm.write_gen[gpn] = vm.flush_gen
        vm.written_at[gpn] = 0
    granted(&vm.written_at[gpn], gva)

cdef inline void forget_writes(Vm *vm, uint64_t gpn) noexcept nogil:
    """No cached translation lets anyone write to this page any more."""
    if vm.write_gen[gpn] == vm.flush_gen:
        forget(vm, &vm.written_at[gpn])
        vm.write_gen[gpn] = 0

cdef void flush_locals(Vm *vm) noexcept nogil:
    """What a load of CR3 forgets: all but global pages (SDM vol. 3, 4.10.4.1).

    A kernel that switches address spaces for a moment (Linux patching its text does, thousands of
    times a boot) has few pages of its own to lose; they go one by one and the rest stays.
    """
    cdef uint32_t i
    if vm.n_locals > MAX_LOCALS:
        flush_tlb(vm)
        return
    for i in range(vm.n_locals):
        tlb_flush_page(vm.cpu, vm.locals[i])
    vm.n_locals = 0
    vm.gen += GEN_STEP

cdef bint on_fill(uc_engine *uc, uint64_t gva, int kind, uc_tlb_entry *entry,
                  void *data) noexcept nogil:
    """Answer one TLB miss (UC_HOOK_TLB_FILL). Page-aligned ``gva``.

    False stops emu_start with exact state; `run` then raises the guest's fault.
    """
    cdef Vm *vm = <Vm *>data
    cdef Walk found
    cdef int access
    cdef bint user
    if vm.probing:
        entry.paddr = vm.probe_pa
        entry.perms = UC_PROT_EXEC | UC_PROT_READ
        return True
    if vm.hvm != NULL:
        if not vm.env.hflags & HF_GUEST:
            return hvm_fill(vm, gva, kind, entry)
        hvm_sync(vm)
        vm.hardware_code = VMEXIT_NPF
    user = vm.cpl == 3
    vm.exits[EXIT_TLB_FILL] += 1
    if kind == UC_MEM_FETCH:
        access = ACCESS_FETCH
    elif kind == UC_MEM_WRITE:
        access = ACCESS_WRITE
    else:
        access = ACCESS_READ
    if vm.efer & EFER_LMA:
        if not canonical(gva):
            vm.fault_vector = EX_GP
            vm.fault_error = 0
            vm.fill_refused = 1
            return False
    else:
        gva &= <uint64_t>0xffffffff
    if vm.hooked[ROWS + EXIT_TLB_FILL] and not fill_before(vm, gva, access):
        vm.fill_refused = 1
        return False
    if in_window(vm, gva) and not user:
        if window_wins(vm, gva, &found):
            entry.paddr = PA_WINDOW + window_offset(vm, gva)
            if vm.xen != NULL:
                # No page and no stubs there, only the CPU's descriptor table.
                entry.perms = UC_PROT_READ
                return access == ACCESS_READ or refuse(vm, gva, access)
            entry.perms = UC_PROT_READ | UC_PROT_WRITE
            if window_offset(vm, gva) >= WINDOW_STUBS:
                entry.perms = UC_PROT_EXEC
                return access == ACCESS_FETCH or refuse(vm, gva, access)
            return access != ACCESS_FETCH or refuse(vm, gva, access)
        # The guest has memory of its own there: its mapping wins. Stop, and take the stubs back.
        if vm.pv == NULL:
            vm.window_lost = 1
            vm.fill_refused = 1
            return False
    if walk(vm, gva, access, user, &found) != 0:
        vm.fill_refused = 1
        return False
    if not fill_page(vm, gva, &found, access, entry):
        vm.fill_refused = 1
        return False
    if vm.xen != NULL:
        # No global pages, but the upper half is the same in all roots (xen_pages.pxi looks).
        found.is_global = gva >> 47 != 0 and not user
    if not found.is_global:     # after fill_page, which may flush
        if vm.n_locals < MAX_LOCALS:
            vm.locals[vm.n_locals] = gva
        vm.n_locals += vm.n_locals <= MAX_LOCALS
    if vm.hooked[ROWS + EXIT_TLB_FILL] & HOOK_AFTER:
        fill_after(vm, gva, access, found.gpa)
    return True

cdef bint fill_page(Vm *vm, uint64_t gva, Walk *found, int access,
                    uc_tlb_entry *entry) noexcept nogil:
    """Choose the page and the rights for a translation, and the page's new state if it changes."""
    cdef uint64_t gpn
    cdef CodePage *page
    if not is_ram(vm, found.gpa):
        if access == ACCESS_FETCH:
            vm.fault_gva = found.gpa
            vm.stop = STOP_VOID
            return False
        entry.paddr = PA_ABSENT + found.gpa % ABSENT_SIZE
        entry.perms = UC_PROT_READ
        if access == ACCESS_WRITE or found.writable:
            entry.perms |= UC_PROT_WRITE
        return True
    if vm.npt != NULL and npt_fill(vm, found, access, entry):
        return True
    gpn = found.gpa >> 12
    page = vm.code[gpn]
    if access == ACCESS_FETCH:
        if page == NULL:
            page = page_to_code(vm, gpn)
            if page == NULL:
                vm.stop = STOP_UNSUPPORTED
                vm.message = b"the host has no memory left for code pages"
                return False
        granted(&page.fetched_at, gva)
        if page.copy >= 0:
            entry.paddr = PA_COPY + (<uint64_t>page.copy << 12)
            entry.perms = UC_PROT_EXEC
        else:
            entry.paddr = ram_pa(gpn)
            entry.perms = UC_PROT_EXEC | UC_PROT_READ
        return True
    entry.paddr = ram_pa(gpn)
    entry.perms = UC_PROT_READ
    if access == ACCESS_WRITE:
        if page != NULL:
            page_to_data(vm, page)
        write_granted(vm, gpn, gva)
        entry.perms |= UC_PROT_WRITE
    elif page == NULL:
        if found.writable:
            write_granted(vm, gpn, gva)
            entry.perms |= UC_PROT_WRITE
    elif page.copy < 0 and found.executable:
        granted(&page.fetched_at, gva)
        entry.perms |= UC_PROT_EXEC
    return True

cdef inline bint refuse(Vm *vm, uint64_t gva, int access) noexcept nogil:
    """Refuse an access of the wrong kind inside the window: to the guest nothing is mapped there."""
    page_fault(vm, gva, (PF_W if access == ACCESS_WRITE else 0))
    vm.fill_refused = 1
    return False

# The VMM's own accesses to guest-virtual memory: stacks, descriptor tables, operands ------------

cdef uint8_t *touch(Vm *vm, uint64_t gva, int access, bint user) noexcept nogil:
    """Host address of one byte of guest memory with rights checked, or NULL with the fault set.

    Memory that is not RAM answers NULL with fault_vector = 0 and fault_gpa: a device's, or absent.
    """
    cdef Cached *slot
    cdef Walk found
    cdef uint64_t tag = (gva & ~<uint64_t>0xfff) | 1
    cdef CodePage *page
    if access == ACCESS_WRITE:
        slot = &vm.writes[(gva >> 12) & (VMM_TLB - 1)]
    else:
        slot = &vm.reads[(gva >> 12) & (VMM_TLB - 1)]
    if slot.page == tag and slot.gen == vm.gen and not user:
        return slot.host + (gva & 0xfff)
    vm.fault_vector = 0
    if vm.efer & EFER_LMA and not canonical(gva):
        vm.fault_vector = EX_GP
        vm.fault_error = 0
        return NULL
    if walk(vm, gva, access, user, &found) != 0:
        return NULL
    if not is_ram(vm, found.gpa):
        vm.fault_gpa = found.gpa
        return NULL
    if access == ACCESS_WRITE:
        if not npt_store(vm, found.gpa):
            vm.fault_gpa = found.gpa
            return NULL
        page = vm.code[found.gpa >> 12]
        if page != NULL:
            page_to_data(vm, page)
        write_granted(vm, found.gpa >> 12, gva)
    if not user:
        slot.page = tag
        slot.gen = vm.gen
        slot.host = vm.ram + (found.gpa & ~<uint64_t>0xfff)
    return vm.ram + found.gpa

cdef inline uint8_t *cached(Vm *vm, Cached *cache, uint64_t gva, int length) noexcept nogil:
    """Host address of kernel memory inside one page that `touch` has seen, else NULL.

    cache: vm.reads or vm.writes, which says for what.
    """
    cdef Cached *slot = &cache[(gva >> 12) & (VMM_TLB - 1)]
    if slot.page == (gva & ~<uint64_t>0xfff) | 1 and slot.gen == vm.gen and \
            <int>(gva & 0xfff) + length <= 4096:
        return slot.host + (gva & 0xfff)
    return NULL

cdef int read_virt(Vm *vm, uint64_t gva, void *out, int length, bint user) noexcept nogil:
    """Read guest-virtual memory as the CPU would. 0, or -1 with vm.fault_* set."""
    cdef uint8_t *host
    cdef int part, done = 0
    while done < length:
        part = 4096 - <int>(gva & 0xfff)
        if part > length - done:
            part = length - done
        host = touch(vm, gva, ACCESS_READ, user)
        if host != NULL:
            memcpy(<uint8_t *>out + done, host, part)
        elif vm.fault_vector:
            return -1
        else:
            device_read(vm, vm.fault_gpa, <uint8_t *>out + done, part)
        done += part
        gva += part
    return 0

cdef int write_virt(Vm *vm, uint64_t gva, const void *data, int length, bint user) noexcept nogil:
    """Write guest-virtual memory; nothing is written if any part faults. 0, or -1."""
    cdef uint8_t *host
    cdef uint8_t *host2 = NULL
    cdef uint64_t gpa, gpa2 = 0
    cdef int part = 4096 - <int>(gva & 0xfff)
    if part > length:
        part = length
    host = touch(vm, gva, ACCESS_WRITE, user)
    if host == NULL and vm.fault_vector:
        return -1
    gpa = vm.fault_gpa
    if part < length:
        host2 = touch(vm, gva + part, ACCESS_WRITE, user)
        if host2 == NULL and vm.fault_vector:
            return -1
        gpa2 = vm.fault_gpa
    if host != NULL:
        memcpy(host, data, part)
    else:
        device_write(vm, gpa, <const uint8_t *>data, part)
    if host2 != NULL:
        memcpy(host2, <const uint8_t *>data + part, length - part)
    elif part < length:
        device_write(vm, gpa2, <const uint8_t *>data + part, length - part)
    return 0

cdef int fetch_page(Vm *vm, uint64_t gva, uint64_t *gpn) noexcept nogil:
    """GPN behind an executable GVA, without touching its state. 0, or -1."""
    cdef Cached *slot = &vm.fetches[(gva >> 12) & (VMM_TLB - 1)]
    cdef uint64_t tag = (gva & ~<uint64_t>0xfff) | 1
    cdef Walk found
    if slot.page == tag and slot.gen == vm.gen:
        gpn[0] = slot.gpn
        return 0
    if walk(vm, gva, ACCESS_FETCH, False, &found) != 0 or not is_ram(vm, found.gpa):
        return -1
    slot.page = tag
    slot.gen = vm.gen
    slot.gpn = found.gpa >> 12
    gpn[0] = slot.gpn
    return 0

cdef int fetch_code(Vm *vm, uint64_t gva, uint8_t *out, int length) noexcept nogil:
    """Copy up to ``length`` original code bytes; returns how many are there."""
    cdef uint64_t gpn
    cdef int part, done = 0
    while done < length:
        if fetch_page(vm, gva, &gpn) != 0:
            return done
        part = 4096 - <int>(gva & 0xfff)
        if part > length - done:
            part = length - done
        memcpy(out + done, vm.ram + (gpn << 12) + (gva & 0xfff), part)
        done += part
        gva += part
    return done

# Devices in memory ----------------------------------------------------------------------------
#
# All that is not RAM leads to one region of Unicorn's with these callbacks. A device has claimed the
# address, and Python is asked (bt/machine/bus.py), or nobody has.

cdef bint claimed(Vm *vm, uint64_t gpa) noexcept nogil:
    """Whether a device answers at ``gpa``: binary search in the bus's sorted, disjoint ranges."""
    cdef uint64_t low = 0, middle
    cdef uint64_t high = vm.mmio[0]
    while low < high:
        middle = (low + high) >> 1
        if vm.mmio[1 + 2 * middle] <= gpa:
            low = middle + 1
        else:
            high = middle
    return low > 0 and gpa < vm.mmio[2 * low]

cdef uint64_t gpa_read(Vm *vm, uint64_t gpa, int size) noexcept nogil:
    """A read of 1, 2, 4 or 8 bytes where no RAM is."""
    cdef uint64_t value = ~<uint64_t>0
    cdef bint device = claimed(vm, gpa)
    cdef int exit = EXIT_MMIO if device else EXIT_ABSENT
    vm.exits[exit] += 1
    if memory_hook(vm, exit, HOOK_BEFORE, gpa, size, ACCESS_READ, &value):
        if device:
            value = python_mmio_read(vm, gpa, size)
        memory_hook(vm, exit, HOOK_AFTER, gpa, size, ACCESS_READ, &value)
    return value

cdef void gpa_write(Vm *vm, uint64_t gpa, int size, uint64_t value) noexcept nogil:
    cdef bint device = claimed(vm, gpa)
    cdef int exit = EXIT_MMIO if device else EXIT_ABSENT
    if is_ram(vm, gpa):
        readonly_write(vm, gpa, size, value)
        return
    vm.exits[exit] += 1
    if memory_hook(vm, exit, HOOK_BEFORE, gpa, size, ACCESS_WRITE, &value):
        if device:
            python_mmio_write(vm, gpa, size, value)
        memory_hook(vm, exit, HOOK_AFTER, gpa, size, ACCESS_WRITE, &value)

cdef inline int device_part(uint64_t gpa, int length) noexcept nogil:
    """The widest access at ``gpa`` that is aligned and has at most ``length`` bytes."""
    cdef int size = 8
    while size > length or gpa & (size - 1):
        size >>= 1
    return size

cdef void device_read(Vm *vm, uint64_t gpa, uint8_t *out, int length) noexcept nogil:
    """A read of the VMM's own, for an instruction or a frame, that is not in RAM."""
    cdef uint64_t value
    cdef int size
    while length > 0:
        size = device_part(gpa, length)
        value = gpa_read(vm, gpa, size)
        memcpy(out, &value, size)
        out += size
        gpa += size
        length -= size

cdef void device_write(Vm *vm, uint64_t gpa, const uint8_t *data, int length) noexcept nogil:
    cdef uint64_t value
    cdef int size
    while length > 0:
        size = device_part(gpa, length)
        value = 0
        memcpy(&value, data, size)
        gpa_write(vm, gpa, size, value)
        data += size
        gpa += size
        length -= size

cdef uint64_t on_absent_read(uc_engine *uc, uint64_t offset, unsigned size,
                             void *data) noexcept nogil:
    if (<Vm *>data).hvm != NULL:
        (<Vm *>data).hardware_code = VMEXIT_NPF
    return gpa_read(<Vm *>data, offset, size)

cdef void on_absent_write(uc_engine *uc, uint64_t offset, unsigned size, uint64_t value,
                          void *data) noexcept nogil:
    if (<Vm *>data).hvm != NULL:
        (<Vm *>data).hardware_code = VMEXIT_NPF
    gpa_write(<Vm *>data, offset, size, value)
