# SPDX-License-Identifier: GPL-2.0-or-later
# Ends a block before Unicorn's translator runs out of room for temporaries.
#
# Some instructions (INTO, SHUFPS, CRC32, most of the x87, ...) leave a temporary or two behind when
# they are translated. TCG has room for 512 in a block and does not look (tcg_temp_alloc), and has
# 128 places in its frame to spill them to, where it does look, and aborts (temp_allocate_frame).
# A guest that runs a few hundred of them in a row, in user mode too, would overwrite the
# translator's memory.
#
# The translator ends a block when it has "enough" operations (tcg_op_buf_full: nb_ops >= 4000). So
# something that looks at both counts between two instructions can end it, and there is such a
# place: before it translates an instruction, Unicorn looks its address up in the tree of exits
# (uc_addr_is_exit), and a GTree is looked up by a function of its own. The tree gets one exit that
# is none, and the function is replaced by `on_translate`. It is called for every instruction that
# is translated, and only then, whatever the engine. With the look-up that adds some 15 ns to the
# microsecond that the translation of one takes.
#
# The one exit is at 0, for which Unicorn invalidates nothing when a run ends
# (uc_exit_invalidate_iter). Code at 0 does not end there: the function says "not equal" to all but
# one kind of instruction, which Unicorn cannot translate at all.

ctypedef int (*Compare)(const void *key, const void *other, void *data) noexcept nogil

cdef struct GTree:              # glib_compat/gtree.c
    void *root
    Compare key_compare
    void *key_destroy_func
    void *value_destroy_func
    void *key_compare_data

cdef enum:
    # Temporaries of a block at which it ends. An ordinary block has about 15. One instruction, or
    # the end of a block, adds 6 at most, so that all of them have room in the frame.
    MAX_TEMPORARIES = 96
    OPS_ENOUGH = 1 << 20        # above 4000, whatever the instruction removes again

cdef int on_translate(const void *key, const void *other, void *data) noexcept nogil:
    """An instruction is about to be translated: the last of its block if little room is left.

    0, "equal", is for one that Unicorn cannot translate: it is made an exit, where emu_start returns.
    """
    cdef Vm *vm = <Vm *>data
    cdef TcgHead *tcg = <TcgHead *>vm.tcg
    cdef uint64_t pc = (<const uint64_t *>key)[0]
    cdef int length = translated_with_care(vm, NULL, 15, pc)
    cdef bint first = tcg.nb_ops == 0       # nothing of the block is emitted yet
    if first:
        vm.past_stop_call = NULL            # of a block that was given up
    elif vm.past_stop_call != NULL:
        begin_instructions(vm)
    if tcg.nb_temps - tcg.nb_globals >= MAX_TEMPORARIES:
        tcg.nb_ops = OPS_ENOUGH
    if length == BARRED:
        vm.barred = 1
        return 0
    if first:
        begin_block(vm, pc)
    elif length == AN_IRETQ:
        emit_try(vm, pc, vm.iretq_call)
    elif length == AN_RDTSC:
        emit_try(vm, pc, vm.rdtsc_call)
        if vm.rdtsc_call != NULL:
            tcg.nb_ops = OPS_ENOUGH         # what is behind it is another block's
    elif length:
        emit_syscall(vm, pc, length)
    return 1

# LOCK BT, BTS, BTR or BTC of a register is #UD (SDM vol. 2). Unicorn takes it for one of memory, with
# the address that the last instruction of the block left; where there was none, it aborts.

cdef inline uint8_t code_byte(Vm *vm, const uint8_t *code, uint64_t pc, int at) noexcept nogil:
    """Of ``code``, or what the translator finds. It has the page of the first byte, and reads no
    byte here that the translator would not: a fault of it is the instruction's own.
    """
    return code[at] if code != NULL else <uint8_t>cpu_ldub_code(vm.env, pc + <uint64_t>at)

cdef enum:
    BARRED = -1
    AN_IRETQ = 0x100
    AN_RDTSC = 0x200

cdef int translated_with_care(Vm *vm, const uint8_t *code, int length, uint64_t pc) noexcept nogil:
    """BARRED, the length of a SYSCALL, AN_IRETQ or AN_RDTSC (without prefixes; RDTSCP too), or 0 for all
    else.

    Of ``code``, or if that is NULL of the code at ``pc``.
    """
    cdef uint8_t byte = code_byte(vm, code, pc, 0) if length else 0
    cdef int bits = 64 if vm.env.hflags & HF_CS64 else 32   # 16-bit code has the same prefixes
    cdef uint8_t last = 0
    cdef bint lock = False
    cdef int at = 0
    while is_prefix(byte, bits):
        last = byte
        lock |= byte == 0xf0
        at += 1
        if at == length:
            return 0
        byte = code_byte(vm, code, pc, at)
    if byte != 0x0f or at + 1 >= length:
        return AN_IRETQ if byte == 0xcf and at == 1 and last == 0x48 else 0
    byte = code_byte(vm, code, pc, at + 1)
    if not lock:
        if at == 0 and byte == 0x31:
            return AN_RDTSC
        if at == 0 and byte == 0x01 and length > 2 and code_byte(vm, code, pc, 2) == 0xf9:
            return AN_RDTSC
        return at + 2 if byte == 0x05 else 0
    if at + 2 >= length:
        return 0
    if byte == 0xba:        # its reg field is 4 to 7
        return BARRED if code_byte(vm, code, pc, at + 2) >= 0xe0 else 0
    return BARRED if byte & 0xe7 == 0xa3 and code_byte(vm, code, pc, at + 2) >= 0xc0 else 0

cdef bint at_barred(Vm *vm) noexcept nogil:
    """Whether such an instruction is at RIP, by the guest's tables of now."""
    cdef uint8_t code[15]
    cdef int length = fetch_code(vm, linear(vm, vm.env.eip), code, 15)
    return translated_with_care(vm, code, length, 0) == BARRED

cdef void barred_instruction(Vm *vm) noexcept nogil:
    """#UD, for what is `at_barred`."""
    # A handler that begins with one executes nothing; its time must pass all the same.
    count_block(vm)
    if vm.hvm != NULL:
        hvm_event(vm, EX_UD, 0)
    else:
        exception(vm, EX_UD, 0)

cdef enum:
    PROBE_NOPS = 4
    PROBE_FLDS = 8
    PROBE_CALLS = 2 + PROBE_NOPS + PROBE_FLDS   # the block, its instructions, the jump at its end
    PROBE_WORDS = 325                           # of UC_STRUCT_SCAN bytes

cdef struct Probe:              # which pointers of struct uc_struct may be the TCGContext
    int calls
    uint64_t at[PROBE_WORDS]    # 0: is not
    int32_t temps[PROBE_WORDS]
    int32_t ops[PROBE_WORDS]

cdef int on_probe(const void *key, const void *other, void *data) noexcept nogil:
    """Strike out what does not count as a TCGContext does: a NOP is one operation and has no
    temporary, FLD is several and leaves at least one.
    """
    cdef Probe *probe = <Probe *>data
    cdef TcgHead head
    cdef int i
    cdef bint fits
    for i in range(PROBE_WORDS):
        if probe.at[i] == 0:
            continue
        fits = peek(probe.at[i], &head, sizeof(head)) and \
            0 < head.nb_globals <= head.nb_temps < 512
        if fits and 2 <= probe.calls < 2 + PROBE_NOPS:
            fits = head.nb_temps == probe.temps[i] and head.nb_ops == probe.ops[i] + 1
        elif fits and probe.calls == 2 + PROBE_NOPS:    # may find those that the block's start freed
            fits = head.nb_temps >= probe.temps[i] and head.nb_ops > probe.ops[i] + 1
        elif fits and probe.calls > 2 + PROBE_NOPS:
            fits = head.nb_temps > probe.temps[i] and head.nb_ops > probe.ops[i] + 1
        if not fits:
            probe.at[i] = 0
            continue
        probe.temps[i] = head.nb_temps
        probe.ops[i] = head.nb_ops
    probe.calls += 1
    return 1

cdef int set_exit(uc_engine *uc, uint64_t address) except -1:
    """Make ``address`` the one exit."""
    if uc_ctl_set_exits(uc, &address, <size_t>1) != UC_ERR_OK:
        raise RuntimeError("unicorn takes no exits: this needs unicorn 2.1.4")
    return 0

cdef GTree *exits_tree(uc_engine *uc) except NULL:
    """The tree of exits, by an address planted in it."""
    cdef uint64_t planted = 0x5252494e47315858
    cdef uint8_t head[UC_STRUCT_SCAN]
    cdef GTree tree
    cdef uint64_t *key
    cdef uint64_t value
    cdef size_t off
    set_exit(uc, planted)
    if not peek(<uint64_t>uc, head, UC_STRUCT_SCAN):
        raise RuntimeError("unicorn's engine structure cannot be read")
    for off in range(0, UC_STRUCT_SCAN, 8):
        if peek((<uint64_t *>(head + off))[0], &tree, sizeof(tree)) and \
                peek(<uint64_t>tree.root, &key, sizeof(key)) and \
                peek(<uint64_t>key, &value, sizeof(value)) and value == planted:
            return (<GTree **>(head + off))[0]
    raise RuntimeError("unicorn's exits were not found: this needs unicorn 2.1.4")

cdef int block_length(Vm *vm, bytes code) except -1:
    """Translate ``code`` as it would be at 0, and return how many instructions its block has."""
    cdef uc_tb block
    memcpy(vm.window, <const char *>code, len(code))
    uc_ctl_flush_tb(vm.uc)
    uc_ctl_flush_tlb(vm.uc)
    test_mode(vm, 3)
    if uc_ctl_request_cache(vm.uc, <uint64_t>0, &block) != UC_ERR_OK:
        raise RuntimeError("unicorn does not translate a block: this needs unicorn 2.1.4")
    return block.icount

cdef TcgHead *tcg_context(Vm *vm, GTree *tree) except NULL:
    """The TCGContext: the one pointer of the engine to what counts as `on_probe` says."""
    cdef Probe *probe = <Probe *>calloc(1, sizeof(Probe))
    cdef Compare compare = tree.key_compare
    cdef uint64_t found = 0
    cdef int i
    if probe == NULL:
        raise MemoryError
    try:
        if not peek(<uint64_t>vm.uc, probe.at, UC_STRUCT_SCAN):
            raise RuntimeError("unicorn's engine structure cannot be read")
        tree.key_compare_data = probe
        tree.key_compare = on_probe
        block_length(vm, b"\x90" * PROBE_NOPS + b"\xd9\xc0" * PROBE_FLDS + b"\xeb\xfe")
        for i in range(PROBE_WORDS):
            if probe.at[i] != 0 and found in (0, probe.at[i]):
                found = probe.at[i]
            elif probe.at[i] != 0:
                found = 0
                break
        if found == 0 or probe.calls != PROBE_CALLS:
            raise RuntimeError("unicorn's translator was not found: this needs unicorn 2.1.4")
        return <TcgHead *>found
    finally:
        tree.key_compare = compare
        tree.key_compare_data = NULL
        free(probe)

cdef int guard_temporaries(Vm *vm) except -1:
    """Install `on_translate`, and see it end a block in time and no other; else RuntimeError."""
    cdef uc_hook fills
    cdef GTree *tree
    cdef TcgHead *tcg
    uc_hook_add(vm.uc, &fills, UC_HOOK_TLB_FILL, <void *>on_test_fill, vm, 1, 0)
    try:
        tree = exits_tree(vm.uc)
        tcg = tcg_context(vm, tree)
        vm.tcg = tcg
        tree.key_compare_data = vm
        tree.key_compare = on_translate
        set_exit(vm.uc, 0)
        # 150 of them would still have room.
        if not 16 < block_length(vm, b"\xd9\xc0" * 150 + b"\xeb\xfe") < MAX_TEMPORARIES or \
                tcg.nb_temps - tcg.nb_globals > MAX_TEMPORARIES + 16:
            raise RuntimeError("unicorn does not end a block that has no room, as 2.1.4 does")
        if block_length(vm, b"\x90" * 150 + b"\xeb\xfe") != 151:
            raise RuntimeError("unicorn ends a block that has room, as 2.1.4 does not")
    finally:
        test_clean(vm)
        uc_hook_del(vm.uc, fills)
    if vm.tcg_env == NULL or vm.tcg_cc_op == NULL:
        raise RuntimeError("unicorn's translator has no such globals: this needs unicorn 2.1.4")
    return 0
