# SPDX-License-Identifier: GPL-2.0-or-later
# Guest pages, the code found on them, and the rewritten copies.
#
# A guest-physical page is *data* (vm.code[gpn] is NULL: may be written, not executed) or *code*
# (has a CodePage: may be executed; a write comes back to us). The two changes of state are here:
#
#   page_to_code   the first fetch from a page. If the page may still be writable through some
#                  cached translation, all are forgotten, so that the next store is seen.
#   page_to_data   the first store to a page of code. Its blocks, sites and copy are dropped, or kept
#                  out of reach until the page is fetched from again. A block of the page may be the
#                  one that is running, and be linked to another of them: the vCPU stops where it
#                  ends.
#
# A code page is executed in place until something on it must change; then it gets a copy, and the
# copy is what Unicorn fetches from (split views). The guest reads and writes only its own page.

cdef inline uint64_t ram_pa(uint64_t gpn) noexcept nogil:
    """Unicorn-physical address of a guest page itself."""
    return PA_RAM + (gpn << 12)

cdef inline uint64_t fetch_pa(CodePage *page) noexcept nogil:
    """Unicorn-physical address a code page is fetched from."""
    if page.copy >= 0:
        return PA_COPY + (<uint64_t>page.copy << 12)
    return ram_pa(page.gpn)

cdef void drop_blocks(Vm *vm, uint64_t pa, uint32_t length) noexcept nogil:
    """Forget Unicorn's translations of [pa, pa+length) inside one page.

    The public call takes a virtual address; a non-canonical one that only we answer names the page.
    """
    cdef uint32_t offset = pa & 0xfff
    if length == 0:
        length = 1
    if offset + length > 4096:
        length = 4096 - offset
    vm.probing = 1
    vm.probe_pa = pa & ~<uint64_t>0xfff
    uc_ctl_remove_cache(vm.uc, GVA_PROBE + pa, GVA_PROBE + pa + length)
    vm.probing = 0

cdef CodePage *new_page(Vm *vm, uint64_t gpn) noexcept nogil:
    """A page of which nothing is translated yet. NULL only when the host is out of memory."""
    cdef CodePage *page = vm.free_pages
    if page != NULL:
        vm.free_pages = page.next_free
        memset(page, 0, sizeof(CodePage))
    else:
        page = <CodePage *>calloc(1, sizeof(CodePage))
        if page == NULL:
            return NULL
    page.gpn = <uint32_t>gpn
    page.copy = -1
    return page

cdef CodePage *page_to_code(Vm *vm, uint64_t gpn) noexcept nogil:
    """Make a data page a code page. NULL only when the host is out of memory."""
    cdef CodePage *page = kept_page(vm, gpn)
    if page == NULL:
        page = new_page(vm, gpn)
    if page == NULL:
        return NULL
    vm.code[gpn] = page
    if vm.recorder != NULL:
        record(vm, LOG_CODE, 0, gpn << 12, 0, 0, NULL, 0, 0)
    forget_writes(vm, gpn)
    note(vm, EXIT_CODE_PAGE, gpn << 12, 0)
    return page

cdef void page_to_data(Vm *vm, CodePage *page) noexcept nogil:
    """Make a code page a data page: nothing that was translated of it can run."""
    cdef uint64_t gpn = page.gpn
    if vm.recorder != NULL:
        record(vm, LOG_DATA, linear(vm, vm.env.eip), gpn << 12, 0, 0, NULL, 0, 0)
    vm.code[gpn] = NULL
    forget(vm, &page.fetched_at)
    if page.copy < 0 and vm.recorder == NULL:
        keep_page(vm, page)
    else:
        drop_page(vm, page)
    note(vm, EXIT_SMC, gpn << 12, 0)
    leave(vm)

cdef void drop_page(Vm *vm, CodePage *page) noexcept nogil:
    """The page's translations, sites and copy are gone."""
    cdef Site *site = page.sites
    cdef Site *after
    drop_blocks(vm, ram_pa(page.gpn), 4096)
    if page.copy >= 0:
        drop_blocks(vm, fetch_pa(page), 4096)
        vm.copy_used[page.copy] = 0
        if vm.n_patches:
            forget_patches(vm, page.gpn)
    while site != NULL:
        after = site.page_next
        site_unlink(vm, site)
        site = after
    page.next_free = vm.free_pages
    vm.free_pages = page

# Pages that come back ---------------------------------------------------------------------------
#
# A kernel that patches itself writes a few bytes to a page and goes on in it. So the blocks of a
# page that was written stay, as long as there is room for what was on the page before. They cannot
# run: a block is found through a translation for fetching, which the page has none of, or through a
# link from a block of the same page, or of the page before if that block reaches into this one;
# these are dropped. When the page is fetched from again, what is there is compared with what was,
# and the blocks that were made of other bytes are dropped.

cdef void keep_page(Vm *vm, CodePage *page) noexcept nogil:
    cdef uint32_t slot = page.gpn % KEPT_PAGES
    if vm.kept[slot] != NULL:
        drop_page(vm, vm.kept[slot])
    vm.kept[slot] = page
    memcpy(vm.kept_bytes + (slot << 12), vm.ram + (<uint64_t>page.gpn << 12), 4096)
    drop_blocks(vm, ram_pa(page.gpn), 1)

cdef CodePage *kept_page(Vm *vm, uint64_t gpn) noexcept nogil:
    """The page as it was when it became data, with the blocks that are still true; NULL: not kept."""
    cdef uint32_t slot = gpn % KEPT_PAGES
    cdef CodePage *page = vm.kept[slot]
    cdef const uint64_t *now = <const uint64_t *>(vm.ram + (gpn << 12))
    cdef const uint64_t *was
    cdef uint32_t at = 0, start
    if page == NULL or page.gpn != gpn:
        return NULL
    vm.kept[slot] = NULL
    was = <const uint64_t *>(vm.kept_bytes + (slot << 12))
    while at < 512:
        if now[at] == was[at]:
            at += 1
            continue
        # An instruction that Unicorn refuses is longer than its block says.
        start = at * 8 - 14 if at > 1 else 0
        while at < 512 and now[at] != was[at]:
            at += 1
        drop_blocks(vm, ram_pa(gpn) + start, at * 8 - start)
    return page

cdef bint page_copy(Vm *vm, CodePage *page) noexcept nogil:
    """Give a code page its copy, if it has none. False when the pool is used up."""
    cdef uint32_t i, at
    if page.copy >= 0:
        return True
    for i in range(COPY_PAGES):
        at = (vm.next_copy + i) % COPY_PAGES
        if not vm.copy_used[at]:
            vm.copy_used[at] = 1
            vm.next_copy = at + 1
            page.copy = at
            memcpy(vm.copies + (<uint64_t>at << 12), vm.ram + (<uint64_t>page.gpn << 12), 4096)
            # Blocks of an earlier owner of this copy are long dropped; entries that still lead to
            # the guest's own page are not.
            forget(vm, &page.fetched_at)
            return True
    return False

# Sites ----------------------------------------------------------------------------------------

cdef inline uint32_t bucket(uint64_t gpa) noexcept nogil:
    return <uint32_t>((gpa ^ (gpa >> 15)) & (SITE_BUCKETS - 1))

cdef Site *site_at(Vm *vm, uint64_t gpa) noexcept nogil:
    cdef Site *site = vm.buckets[bucket(gpa)]
    while site != NULL and site.gpa != gpa:
        site = site.hash_next
    return site

cdef Site *site_of(Vm *vm, uint64_t gva) noexcept nogil:
    """The site an executed trap belongs to, or NULL. ``gva`` is linear."""
    cdef SiteCached *slot = &vm.site_cache[(gva ^ (gva >> 11)) & (SITE_CACHE - 1)]
    cdef uint64_t gpn
    if slot.gva == gva and slot.gen == vm.gen + vm.site_gen:
        return slot.site
    if fetch_page(vm, gva, &gpn) != 0:
        return NULL
    cdef Site *site = site_at(vm, (gpn << 12) | (gva & 0xfff))
    if site != NULL:
        slot.gva = gva
        slot.gen = vm.gen + vm.site_gen
        slot.site = site
    return site

cdef Site *site_make(Vm *vm, CodePage *page, uint32_t offset, uint64_t gva, int row, int length,
                     int bits) noexcept nogil:
    cdef Site *site = <Site *>calloc(1, sizeof(Site))
    if site == NULL:
        return NULL
    site.gpa = (<uint64_t>page.gpn << 12) | offset
    site.gva = gva
    site.row = row
    site.length = length
    site.bits = bits
    site.page_next = page.sites
    page.sites = site
    cdef uint32_t b = bucket(site.gpa)
    site.hash_next = vm.buckets[b]
    vm.buckets[b] = site
    vm.sites_made += 1
    return site

cdef void site_unlink(Vm *vm, Site *site) noexcept nogil:
    """Take a site out of the table and free it; the caller has dropped its page list."""
    cdef Site **link = &vm.buckets[bucket(site.gpa)]
    while link[0] != site:
        link = &link[0].hash_next
    link[0] = site.hash_next
    # A stub's code stays: a block that was already running may still be on its way to it.
    vm.site_gen += 1
    free(site)
