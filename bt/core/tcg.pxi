# SPDX-License-Identifier: GPL-2.0-or-later
# What of Unicorn's translator (TCG, qemu/tcg) is used to look at a block that is being made, and to
# put something of ours into it: what libunicorn exports without declaring it, and the parts of its
# structures that this needs.

cdef extern from *:
    """
    extern unsigned int cpu_ldub_code_x86_64(void *env, unsigned long long address);
    extern void *tcg_temp_new_internal_x86_64(void *tcg, int type, unsigned char local);
    extern void tcg_temp_free_internal_x86_64(void *tcg, void *temp);
    extern void *tcg_const_i64_x86_64(void *tcg, long value);
    extern void *gen_new_label_x86_64(void *tcg);
    extern void *tcg_emit_op_x86_64(void *tcg, int op);
    extern void tcg_gen_brcondi_i32_x86_64(void *tcg, int cond, void *value, int other, void *label);
    extern void tcg_gen_lookup_and_goto_ptr_x86_64(void *tcg);
    """
    # What the translator reads code by.
    uint32_t cpu_ldub_code "cpu_ldub_code_x86_64" (void *env, uint64_t address) nogil
    TcgTemp *tcg_temp_new "tcg_temp_new_internal_x86_64" (void *tcg, int type, uint8_t local) nogil
    void tcg_temp_free "tcg_temp_free_internal_x86_64" (void *tcg, TcgTemp *temp) nogil
    void *tcg_const "tcg_const_i64_x86_64" (void *tcg, int64_t value) nogil
    void *gen_new_label "gen_new_label_x86_64" (void *tcg) nogil
    TcgOp *tcg_emit_op "tcg_emit_op_x86_64" (void *tcg, int op) nogil
    void tcg_gen_brcondi "tcg_gen_brcondi_i32_x86_64" (void *tcg, int cond, void *value, int other,
                                                       void *label) nogil
    void tcg_gen_goto_next "tcg_gen_lookup_and_goto_ptr_x86_64" (void *tcg) nogil

cdef enum:
    TCG_TYPE_I32 = 0
    TCG_COND_GE = 3
    TCG_COND_EQ = 8
    OP_SET_LABEL = 1            # TCGOpcode: the place in tcg/tcg-opc.h
    OP_CALL = 2
    OP_MOVI_I32 = 6
    OP_LD_I32 = 13

cdef struct TcgHead:            # the head of TCGContext
    void *pools[5]
    int32_t nb_labels
    int32_t nb_globals
    int32_t nb_temps
    int32_t nb_indirects
    int32_t nb_ops              # set to 0 at the start of a block; used for tcg_op_buf_full alone

cdef struct TcgTemp:
    uint64_t kinds
    uint64_t val
    void *mem_base
    int64_t mem_offset
    const char *name
    uint64_t state
    void *state_ptr

cdef struct TcgOp:
    uint32_t head               # opcode; of a call: arguments (bits 8..11) and results (12..15)
    void *link[2]               # the second: address of the link of the operation before
    uintptr_t args[8]

cdef void place_label(void *tcg, void *label) noexcept nogil:
    """Jumps to ``label`` lead here."""
    cdef TcgOp *op = tcg_emit_op(tcg, OP_SET_LABEL)
    op.args[0] = <uintptr_t>label
    (<uint32_t *>label)[0] |= 1         # TCGLabel.present

cdef TcgTemp *find_global(TcgHead *tcg, const char *name, size_t size) noexcept nogil:
    """The global of this name (``size`` with the 0 behind it); NULL if there is none.

    Only while nothing of a block is emitted: a new temporary is behind all others then, and so says
    where they begin.
    """
    cdef TcgTemp temp
    cdef char other[8]
    cdef TcgTemp *last = tcg_temp_new(tcg, TCG_TYPE_I32, 0)
    cdef TcgTemp *first = last - (tcg.nb_temps - 1)
    cdef int i
    tcg_temp_free(tcg, last)
    for i in range(tcg.nb_globals):
        if peek(<uint64_t>(first + i), &temp, sizeof(temp)) and \
                peek(<uint64_t>temp.name, other, size) and memcmp(other, name, size) == 0:
            return first + i
    return NULL
