# SPDX-License-Identifier: GPL-2.0-or-later
# What `bt run --record` keeps: a log of the translator's work, and a count of exits by place.
#
# Two things are wanted after a run: what was translated, when, and what became of it (blocks, sites,
# stubs, pages); and which address came into the VMM how often, for what, and for how long. The
# first is a log of fixed-size entries with their bytes in a heap beside it, so that Python can turn
# it into rows of a table without looking at each field. The second is a hash table: a boot has two
# million exits, but at a few thousand places.
#
# Without a recorder (vm.recorder is NULL) this costs one comparison where something is counted.

cdef enum:                      # kinds of log entries (bt/record/schema.py names them)
    LOG_BLOCK = 1               # a block was translated; its original bytes
    LOG_AGAIN = 2               # ... and thrown away at once, because something in it was rewritten
    LOG_SITE = 3                # an instruction became a trap
    LOG_STUB = 4                # ... and then a stub; gpa: its address, bytes: its code
    LOG_UNSTUB = 5              # ... and then a trap again, for good
    LOG_CODE = 6                # a page became code
    LOG_DATA = 7                # a code page was written: its blocks and sites are gone
    LOG_MAX = 1 << 21           # entries that wait for Python at most; more are lost, and counted
    HEAP_MAX = 1 << 27          # bytes of their code, likewise
    PLACES = 1 << 16            # slots of the hash table of exits
    PLACES_MAX = 3 << 14        # filled at most; exits elsewhere are counted under address 0

cdef struct LogEntry:           # bt/record/schema.py: LOG_ENTRY
    uint64_t ns                 # virtual time
    uint64_t gva
    uint64_t gpa
    uint64_t heap               # where its bytes are
    uint16_t size               # how many
    uint16_t region             # LOG_STUB: bytes of guest code that the jump to it replaces
    uint8_t kind
    uint8_t cpl                 # virtual
    uint8_t bits
    uint8_t row                 # of the sensitive table

cdef struct Place:
    uint64_t address            # linear RIP of the exit
    uint64_t reason             # a row of the sensitive table, or 256 + the index of a pseudo-exit
    uint64_t count
    uint64_t ns                 # host time spent in the VMM, there and back not included

cdef struct Recorder:
    LogEntry *log
    uint32_t entries
    uint32_t room
    uint8_t *heap
    uint64_t heap_used
    uint64_t heap_room
    uint64_t lost
    Place *places
    uint32_t places_used

cdef bint record_room(Recorder *r, uint32_t size) noexcept nogil:
    """Room for one entry and ``size`` bytes; False if there is none to be had."""
    cdef void *more
    cdef uint64_t room
    if r.entries == r.room:
        room = r.room * 2 if r.room else 4096
        if room > LOG_MAX:
            return False
        more = realloc(r.log, room * sizeof(LogEntry))
        if more == NULL:
            return False
        r.log = <LogEntry *>more
        r.room = <uint32_t>room
    if r.heap_used + size > r.heap_room:
        room = r.heap_room * 2 if r.heap_room else 1 << 18
        if room > HEAP_MAX:
            return False
        more = realloc(r.heap, room)
        if more == NULL:
            return False
        r.heap = <uint8_t *>more
        r.heap_room = room
    return True

cdef void record(Vm *vm, int kind, uint64_t gva, uint64_t gpa, int row, int bits,
                 const uint8_t *code, uint32_t size, uint32_t region) noexcept nogil:
    """Append to the log. ``size`` is at most 8192, far below the smallest heap."""
    cdef Recorder *r = vm.recorder
    cdef LogEntry *entry
    if not record_room(r, size):
        r.lost += 1
        return
    entry = &r.log[r.entries]
    r.entries += 1
    entry.ns = virtual_ns(vm)
    entry.gva = gva
    entry.gpa = gpa
    entry.heap = r.heap_used
    entry.size = <uint16_t>size
    entry.region = <uint16_t>region
    entry.kind = <uint8_t>kind
    entry.cpl = <uint8_t>vm.cpl
    entry.bits = <uint8_t>bits
    entry.row = <uint8_t>row
    if size:
        memcpy(r.heap + r.heap_used, code, size)
        r.heap_used += size

cdef void record_block(Vm *vm, uint64_t gva, uint32_t size) noexcept nogil:
    """LOG_BLOCK with the guest's own bytes, whatever it is that really runs."""
    cdef uint8_t code[4096]
    cdef uint64_t gpn = 0
    cdef int avail
    if in_window(vm, gva) or fetch_page(vm, gva, &gpn) != 0:
        return
    avail = fetch_code(vm, gva, code, size if size < 4096 else 4096)
    record(vm, LOG_BLOCK, gva, (gpn << 12) | (gva & 0xfff), 0, code_bits(vm), code, avail, 0)

cdef void record_exit(Vm *vm, uint32_t reason, uint64_t address, uint64_t began) noexcept nogil:
    """Count one exit at a linear address; ``began``: host_ns() at its start."""
    cdef uint64_t ns = host_ns() - began
    record_place(vm, reason, address, ns)

cdef void record_place(Vm *vm, uint32_t reason, uint64_t address, uint64_t ns) noexcept nogil:
    cdef Recorder *r = vm.recorder
    cdef uint64_t key = (address ^ (address >> 17)) * <uint64_t>0x9e3779b1 + \
        reason * <uint64_t>0x85ebca6b
    cdef uint32_t at = <uint32_t>(key & (PLACES - 1))
    cdef Place *place = &r.places[at]
    while place.count and (place.address != address or place.reason != reason):
        at = (at + 1) & (PLACES - 1)
        place = &r.places[at]
    if not place.count:
        if r.places_used >= PLACES_MAX and address:
            # Full (hostile code can have any number of places): what is left goes to one of them.
            record_place(vm, reason, 0, ns)
            return
        r.places_used += 1
        place.address = address
        place.reason = reason
    place.count += 1
    place.ns += ns

cdef void recorder_free(Recorder *r) noexcept nogil:
    if r != NULL:
        free(r.log)
        free(r.heap)
        free(r.places)
        free(r)
