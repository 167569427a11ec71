# SPDX-License-Identifier: GPL-2.0-or-later
# The second level of translation (engine hvm): what stands behind a guest-physical page.
#
# Hardware walks nested page tables here (AMD64 APM vol. 2, 15.25). The virtual TLB answers both
# levels at once, so one byte a page is enough of a table. A page is *present* once the guest, the
# loader or a device has touched it: the first touch is a #NPF, and the host gives memory. A page may
# be *read-only*: stores to it, the CPU's accessed bits among them, are dropped. While writes are
# *tracked*, the first store to each page since the bitmap was cleared is a #NPF.

cdef enum:
    NPT_PRESENT = 1
    NPT_READONLY = 2
    NPT_DIRTY = 4

cdef uint64_t PA_READONLY = <uint64_t>1 << 45   # + GPA: reads RAM, drops stores

cdef extern from "sys/mman.h" nogil:
    int mincore(void *address, size_t length, unsigned char *resident)

cdef inline bint npt_store(Vm *vm, uint64_t gpa) noexcept nogil:
    """A store of the VMM's own for the guest (accessed bits, frames). False: it must be dropped."""
    if vm.npt == NULL:
        return True
    if vm.npt[gpa >> 12] & NPT_READONLY:
        return False
    vm.npt[gpa >> 12] |= NPT_PRESENT | NPT_DIRTY
    return True

cdef bint npt_fill(Vm *vm, Walk *found, int access, uc_tlb_entry *entry) noexcept nogil:
    """A TLB miss that leads to RAM. True: answered here; else ``found.writable`` may be less."""
    cdef uint8_t *state = &vm.npt[found.gpa >> 12]
    if not state[0] & NPT_PRESENT:
        state[0] |= NPT_PRESENT
        note(vm, EXIT_NOT_THERE, found.gpa & ~<uint64_t>0xfff, 0)
    if state[0] & NPT_READONLY:
        found.writable = 0
        if access == ACCESS_WRITE:
            entry.paddr = PA_READONLY + (found.gpa & ~<uint64_t>0xfff)
            entry.perms = UC_PROT_READ | UC_PROT_WRITE
            return True
    elif vm.track_writes and not state[0] & NPT_DIRTY:
        if access != ACCESS_WRITE:
            found.writable = 0
        else:
            state[0] |= NPT_DIRTY
            note(vm, EXIT_FIRST_WRITE, found.gpa & ~<uint64_t>0xfff, 0)
    return False

cdef void npt_loaded(Vm *vm) noexcept nogil:
    """What the host has given memory for by now, the loader has written."""
    cdef unsigned char resident[4096]
    cdef uint64_t gpn = 0, pages = vm.ram_size >> 12, i, part
    while gpn < pages:
        part = min(pages - gpn, <uint64_t>4096)
        if mincore(vm.ram + (gpn << 12), part << 12, resident) == 0:
            for i in range(part):
                if resident[i] & 1:
                    vm.npt[gpn + i] |= NPT_PRESENT
        gpn += part

cdef uint64_t on_readonly_read(uc_engine *uc, uint64_t gpa, unsigned size,
                               void *data) noexcept nogil:
    cdef Vm *vm = <Vm *>data
    cdef uint64_t value = 0
    if size <= 8 and gpa <= vm.ram_size - size:
        memcpy(&value, vm.ram + gpa, size)
    return value

cdef void on_readonly_write(uc_engine *uc, uint64_t gpa, unsigned size, uint64_t value,
                            void *data) noexcept nogil:
    readonly_write(<Vm *>data, gpa, size, value)

cdef void readonly_write(Vm *vm, uint64_t gpa, int size, uint64_t value) noexcept nogil:
    vm.hardware_code = VMEXIT_NPF
    vm.exits[EXIT_READONLY] += 1
    memory_hook(vm, EXIT_READONLY, HOOK_BEFORE, gpa, size, ACCESS_WRITE, &value)
    memory_hook(vm, EXIT_READONLY, HOOK_AFTER, gpa, size, ACCESS_WRITE, &value)
