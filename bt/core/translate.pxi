# SPDX-License-Identifier: GPL-2.0-or-later
# Scan what runs, before it runs.
#
# Unicorn reports every block it translates, once, before the block first executes, with its exact
# bytes (UC_HOOK_EDGE_GENERATED). `on_block` scans those bytes with the translator's scanner. If
# something in them must not execute as it is, the first byte of each such instruction becomes int3
# in the page's copy, Unicorn's block is thrown away, and it is translated again from the copy:
# nothing unpatched has run. One byte is enough, so code that jumps to the next instruction, or even
# into the middle of the replaced one, still finds the guest's own bytes there.
#
# A site that proves hot is rewritten once more, into a jump to an inline stub in the hidden window
# (see translator/stubs.py). The jump is five bytes long, so it swallows the instructions behind the
# site; if a block is later found to start inside that region, the site goes back to being a trap.

from translator._scan cimport Finding, scan_block

cdef enum:
    MAX_FINDINGS = 64
    MAX_BLOCK = 4096 + 64
    MAX_DETOURS = 64            # entries in the middle after which a stub costs more than it saves

cdef void on_block(uc_engine *uc, uc_tb *block, uc_tb *previous, void *data) noexcept nogil:
    cdef Vm *vm = <Vm *>data
    cdef uint64_t gva = block.pc
    cdef uint64_t gpn, start, before
    cdef uint8_t code[MAX_BLOCK]
    cdef Finding found[MAX_FINDINGS]
    cdef int avail, count, i, span
    cdef unsigned int insns = 0
    cdef bint changed = False
    cdef CodePage *page
    cdef const uint8_t *rows
    note(vm, EXIT_BLOCK, gva, block.size)
    vm.recent[vm.recent_at % RECENT] = gva
    vm.recent_at += 1
    if vm.recorder != NULL:
        record_block(vm, gva, block.size)
    if vm.n_breaks and not vm.debug_step and break_blocks(vm, gva, block.size):
        if fetch_page(vm, gva, &gpn) == 0 and vm.code[gpn] != NULL:
            drop_blocks(vm, fetch_pa(vm.code[gpn]) + (gva & 0xfff), 1)
        vm.exits[EXIT_BLOCK_AGAIN] += 1
        leave(vm)
        return
    if vm.folding and not in_window(vm, gva):
        fold_watch(vm, gva, block.size)
    if not vm.translate or in_window(vm, gva):
        return
    start = host_ns()
    span = block.size
    if span > 4096:
        span = 4096
    if fetch_page(vm, gva, &gpn) != 0:
        return
    page = vm.code[gpn]
    if page == NULL:
        page = page_to_code(vm, gpn)
        if page == NULL:
            return
    before = fetch_pa(page)
    page.starts[(gva & 0xfff) >> 3] |= 1 << (gva & 7)
    if inside_stub(vm, page, gva):
        drop_blocks(vm, before + (gva & 0xfff), 1)
        block_again(vm, gva)
        stop_cpu(vm)
        return
    # The last instruction may be longer than Unicorn says: it stops decoding one it refuses.
    avail = fetch_code(vm, gva, code, span + 15)
    if span > avail:
        span = avail
    rows = &vm.kernel_rows[0]
    if vm.cpl == 3:
        rows = &vm.user_rows[0]
        # Stubs are the kernel's: user code on the same page cannot follow their jumps.
        changed = unstub_between(vm, gva, span)
    count = scan_block(code_bits(vm), code, avail, span, gva, rows, found, MAX_FINDINGS, &insns,
                       NULL)
    vm.insns_scanned += insns
    for i in range(count):
        if trap_site(vm, gva + found[i].offset, &found[i]):
            changed = True
    if changed:
        block_again(vm, gva)
        drop_blocks(vm, before + (gva & 0xfff), 1)
        if fetch_pa(page) != before:
            drop_blocks(vm, fetch_pa(page) + (gva & 0xfff), 1)
        stop_cpu(vm)
    vm.scan_ns += host_ns() - start

cdef inline void block_again(Vm *vm, uint64_t gva) noexcept nogil:
    """The block just reported is thrown away; the caller stops the CPU, which translates it anew."""
    vm.exits[EXIT_BLOCK_AGAIN] += 1
    vm.stop_now = 1
    if vm.recorder != NULL:
        record(vm, LOG_AGAIN, gva, 0, 0, code_bits(vm), NULL, 0, 0)

cdef bint trap_site(Vm *vm, uint64_t gva, Finding *found) noexcept nogil:
    """Make the instruction at ``gva`` a trap. True if the running block no longer matches."""
    cdef uint64_t gpn
    cdef CodePage *page
    cdef Site *site
    cdef uint32_t offset = gva & 0xfff
    cdef uint8_t code[16]
    if fetch_page(vm, gva, &gpn) != 0:
        return False
    page = vm.code[gpn]
    if page == NULL:
        page = page_to_code(vm, gpn)
        if page == NULL:
            return False
    site = site_at(vm, (gpn << 12) | offset)
    if site != NULL:
        # Met again, through another block or another mapping of the page. A stub's jump is
        # relative: it only leads home from the address it was made for.
        if site.stub and site.gva != gva:
            unstub(vm, page, site)
            return True
        return False
    if not page_copy(vm, page):
        vm.stop = STOP_UNSUPPORTED
        vm.message = b"more rewritten code pages than the VMM has room for"
        return True
    site = site_make(vm, page, offset, gva, found.row, found.length, code_bits(vm))
    if site == NULL:
        vm.stop = STOP_UNSUPPORTED
        vm.message = b"the host has no memory left for sites"
        return True
    vm.copies[(<uint64_t>page.copy << 12) + offset] = 0xcc
    if vm.recorder != NULL and fetch_code(vm, gva, code, site.length) == site.length:
        record(vm, LOG_SITE, gva, site.gpa, site.row, site.bits, code, site.length, 0)
    return True

cdef int inside_stub(Vm *vm, CodePage *page, uint64_t gva) noexcept nogil:
    """Deal with a block that starts inside a stub's region. 0: it does not.

    A return to an absorbed instruction (an interrupt was taken there) goes on inside the stub. Any
    other start is a jump the stub's maker did not know of: the stub is taken back.
    """
    cdef Site *site = page.sites
    cdef Stub *stub
    cdef uint32_t offset = gva & 0xfff
    cdef uint32_t at
    cdef int i
    while site != NULL:
        if site.stub:
            at = site.gpa & 0xfff
            if at < offset < at + site.region:
                stub = vm.stub_at[site.stub]
                site.detours += 1
                for i in range(stub.n_points):
                    if stub.points[i].clean and stub.points[i].gva == gva and \
                            site.detours < MAX_DETOURS and vm.cpl != 3:
                        vm.env.eip = WINDOW + stub.start + stub.points[i].offset
                        return 1
                unstub(vm, page, site)
                return 1
        site = site.page_next
    return 0

cdef void unstub(Vm *vm, CodePage *page, Site *site) noexcept nogil:
    """Turn a stub back into a trap, for good."""
    cdef uint32_t at = site.gpa & 0xfff
    cdef uint8_t *copy = vm.copies + (<uint64_t>page.copy << 12)
    memcpy(copy + at, vm.ram + site.gpa, site.region)
    copy[at] = 0xcc
    drop_blocks(vm, fetch_pa(page) + at, site.region)
    site.stub = 0
    site.region = 0
    site.fixed = 1
    note(vm, EXIT_UNSTUB, site.gva, 0)
    if vm.recorder != NULL:
        record(vm, LOG_UNSTUB, site.gva, site.gpa, site.row, site.bits, NULL, 0, 0)

cdef bint unstub_between(Vm *vm, uint64_t gva, uint32_t length) noexcept nogil:
    """Take back the stubs of [gva, gva+length). True if there were any."""
    cdef uint64_t gpn
    cdef uint32_t at, part
    cdef CodePage *page
    cdef Site *site
    cdef bint any = False
    while length:
        part = 4096 - <uint32_t>(gva & 0xfff)
        if part > length:
            part = length
        if fetch_page(vm, gva, &gpn) != 0:
            return any
        page = vm.code[gpn]
        site = page.sites if page != NULL else NULL
        while site != NULL:
            at = site.gpa & 0xfff
            if site.stub and at < (gva & 0xfff) + part and at + site.region > gva & 0xfff:
                unstub(vm, page, site)
                any = True
            site = site.page_next
        gva += part
        length -= part
    return any

cdef void close_window(Vm *vm) noexcept nogil:
    """The guest mapped the window's addresses for itself: no stubs from now on."""
    cdef Site *site
    cdef int i
    for i in range(SITE_BUCKETS):
        site = vm.buckets[i]
        while site != NULL:
            if site.stub:
                unstub(vm, vm.code[site.gpa >> 12], site)
            site = site.hash_next
    vm.window_on = 0
    flush_tlb(vm)

cdef int stub_region_free(Vm *vm, Site *site, int region) noexcept nogil:
    """Whether no other site and no known block start lies inside the region of a planned stub.

    Every trap starts a block behind itself, so that one start is no news; control that comes to it
    again goes on inside the stub (see inside_stub).
    """
    cdef CodePage *page = vm.code[site.gpa >> 12]
    cdef uint32_t at = site.gpa & 0xfff
    cdef uint32_t i
    if page == NULL or page.copy < 0 or at + region > 4096:
        return 0
    for i in range(<uint32_t>vm.n_breaks):
        if vm.breaks[i] - site.gva < <uint64_t>region:
            return 0
    for i in range(at + 1, at + region):
        if page.starts[i >> 3] & (1 << (i & 7)) and i != at + site.length:
            return 0
        if site_at(vm, (site.gpa & ~<uint64_t>0xfff) | i):
            return 0
    return 1

cdef Stub *stub_of(Vm *vm, uint64_t gva) noexcept nogil:
    """The stub a window address lies in, or NULL."""
    if not in_window(vm, gva):
        return NULL
    return vm.stub_at[window_offset(vm, gva)]

cdef Point *stub_point(Vm *vm, uint64_t gva) noexcept nogil:
    """What to do with a vCPU that stands at ``gva`` inside a stub; NULL if that cannot be."""
    cdef Stub *stub = stub_of(vm, gva)
    cdef int i
    if stub == NULL:
        return NULL
    for i in range(stub.n_points):
        if stub.points[i].offset == gva - WINDOW - stub.start:
            return &stub.points[i]
    return NULL

cdef bint leave_stub(Vm *vm) noexcept nogil:
    """Bring a vCPU that stopped inside a stub back to a guest address with guest state.

    False only if it stands where no stop can be (the caller then lets it run on).
    """
    cdef uint64_t gva = linear(vm, vm.env.eip)
    cdef Point *point
    if vm.pv != NULL:
        return pv_leave_stub(vm, gva)
    if not in_window(vm, gva) or vm.cpl == 3:
        return True
    point = stub_point(vm, gva)
    if point == NULL:
        return False
    if point.restore & 1:
        vm.env.regs[RCX] = vm.page[PG_SAVE0]
    if point.restore & 2:
        vm.env.regs[RDX] = vm.page[PG_SAVE1]
    vm.env.regs[RSP] += <int64_t>point.rsp
    vm.env.eip = point.gva
    return True
