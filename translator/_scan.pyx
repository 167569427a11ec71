# SPDX-License-Identifier: GPL-2.0-or-later
"""The scanner: which instructions of the table does this code contain?

It runs over every block of guest code before that block runs for the first time, so it must be
right about every length (one wrong length and the rest of the block is misread) and it must be
quick (a Linux boot has 400,000 instructions of new code).

An instruction is looked at in three steps:

1. Its prefixes, opcode and ModRM byte are picked out here (`parse`). That needs no decoder: the
   prefixes are a fixed set of byte values, and the opcode follows them.
2. If the table has an encoding for the opcode, it is compared with the ModRM fields and prefixes
   (`classify`). Most opcodes have none.
3. The length. Capstone is the authority on lengths and on what is an instruction at all, but it
   writes the text of every instruction it decodes, which makes it ten times slower than the rest
   of this file together. So the plain instructions that compilers emit all the time (MOV, LEA,
   ALU, Jcc, CALL...) are measured here (`plain_length`), and everything else, with everything the
   table knows, goes to capstone. tests/translator compares the two over the whole encoding space.

One handle and one instruction buffer a code size are kept for the life of the process, so only
one thread may scan at a time. Every vCPU does its scanning under one lock or in one thread.
"""

from libc.string cimport memset
from libc.stdint cimport uint8_t, uint16_t, uint64_t

from translator import sensitive


cdef extern from "capstone/capstone.h" nogil:
    ctypedef size_t csh
    ctypedef struct cs_insn:
        uint16_t size
    int CS_ARCH_X86
    int CS_MODE_16
    int CS_MODE_32
    int CS_MODE_64
    int cs_open(int arch, int mode, csh* handle)
    cs_insn* cs_malloc(csh handle)
    bint cs_disasm_iter(csh handle, const uint8_t** code, size_t* size, uint64_t* address,
                        cs_insn* insn)


cdef enum:
    MODES = 3              # index 0, 1, 2 = 16-, 32-, 64-bit code
    MAPS = 3               # one-byte, 0F, 0F 38
    MAX_LENGTH = 15        # the architecture's limit on an instruction, bytes
    MAX_CANDIDATES = 512

# Bits of Insn.prefixes.
cdef enum:
    OPERAND_SIZE = 1       # 66
    ADDRESS_SIZE = 2       # 67
    REPNE = 4              # F2
    REP = 8                # F3 (of F2 and F3 the last one counts)
    LOCK = 16              # F0
    REX_W = 32
    REX_B = 64

# `plain` entries: what follows an opcode whose length needs no decoder. 0 = ask capstone.
cdef enum:
    PLAIN = 1
    MODRM = 2
    IMM8 = 4
    IMM16 = 8
    IMMZ = 16              # 2 or 4 bytes by operand size
    IMMV = 32              # as IMMZ, but 8 bytes with REX.W
    BRANCH = 64            # operand-size prefix: vendors disagree, so capstone decides


cdef struct Candidate:
    unsigned char has_modrm
    unsigned char regs         # bit n = reg field n allowed
    unsigned char rms          # bit n = rm field n allowed
    unsigned char mem          # mod != 3 allowed
    unsigned char direct       # mod == 3 allowed
    unsigned char prefixes     # OPERAND_SIZE, REPNE or REP: the mandatory prefix; 0 = any
    unsigned char no_rex_b
    unsigned short row


cdef struct Insn:
    unsigned int map
    unsigned int opcode
    unsigned int prefixes
    unsigned int length        # of prefixes and opcode
    unsigned int modrm         # the byte after them; meaningless where the opcode has no ModRM


cdef csh handle[MODES]
cdef cs_insn* decoded[MODES]
cdef Candidate candidates[MAX_CANDIDATES]
cdef unsigned short first_candidate[MODES][MAPS][256]
cdef unsigned char candidate_count[MODES][MAPS][256]
cdef unsigned char plain[MODES][2][256]
cdef unsigned char plain_regs[MODES][2][256]     # allowed values of the reg field
cdef unsigned char prefix_bit[256]               # legacy prefixes; NO_EFFECT for segment overrides
cdef unsigned char NOTHING[256]                  # a selection of no row
cdef enum:
    NO_EFFECT = 128


cdef inline int parse(int mode, const unsigned char* code, size_t avail, Insn* insn) noexcept nogil:
    """Splits off prefixes and opcode. 0 if the code ends first."""
    cdef size_t at = 0
    cdef unsigned int byte, bit, prefixes = 0
    if avail > MAX_LENGTH:
        avail = MAX_LENGTH
    while True:
        if at >= avail:
            return 0
        byte = code[at]
        bit = prefix_bit[byte]
        if bit:
            # A REX prefix counts only directly before the opcode.
            prefixes &= ~<unsigned int>(REX_W | REX_B)
            if bit & (REP | REPNE):
                prefixes &= ~<unsigned int>(REP | REPNE)
            prefixes |= bit
        elif mode == 2 and byte & 0xF0 == 0x40:
            prefixes &= ~<unsigned int>(REX_W | REX_B)
            if byte & 8:
                prefixes |= REX_W
            if byte & 1:
                prefixes |= REX_B
        else:
            break
        at += 1
    insn.map = 0
    if byte == 0x0F:
        at += 1
        if at >= avail:
            return 0
        insn.map = 1
        byte = code[at]
        if byte == 0x38:
            at += 1
            if at >= avail:
                return 0
            insn.map = 2
            byte = code[at]
    at += 1
    insn.opcode = byte
    insn.prefixes = prefixes
    insn.length = <unsigned int> at
    insn.modrm = code[at] if at < avail else 0
    return 1


cdef inline int classify(int mode, const Insn* insn) noexcept nogil:
    """The row of the table, or -1."""
    cdef unsigned int n = candidate_count[mode][insn.map][insn.opcode]
    cdef unsigned int mandatory
    cdef Candidate* c
    if n == 0:
        return -1
    c = &candidates[first_candidate[mode][insn.map][insn.opcode]]
    while n:
        if c.has_modrm:
            if not c.regs >> (insn.modrm >> 3 & 7) & 1 or not c.rms >> (insn.modrm & 7) & 1:
                n -= 1
                c += 1
                continue
            if not (c.direct if insn.modrm >= 0xC0 else c.mem):
                n -= 1
                c += 1
                continue
        if c.prefixes:
            # F2 and F3 win over 66 as mandatory prefixes (SDM 2 section 2.1.2).
            mandatory = insn.prefixes & (REP | REPNE)
            if not mandatory:
                mandatory = insn.prefixes & OPERAND_SIZE
            if mandatory != c.prefixes:
                n -= 1
                c += 1
                continue
        if not (c.no_rex_b and insn.prefixes & REX_B):
            return c.row
        n -= 1
        c += 1
    return -1


cdef inline unsigned int modrm_length(int mode, const unsigned char* at, size_t avail) noexcept nogil:
    """Bytes of ModRM, SIB and displacement without an address-size prefix; 0 if cut short."""
    cdef unsigned int mod, rm
    if avail < 1:
        return 0
    mod = at[0] >> 6
    rm = at[0] & 7
    if mod == 3:
        return 1
    if mode == 0:
        if mod == 0:
            return 3 if rm == 6 else 1
        return 2 if mod == 1 else 3
    if rm == 4:
        if avail < 2:
            return 0
        if mod == 0:
            return 6 if at[1] & 7 == 5 else 2
        return 3 if mod == 1 else 6
    if mod == 0:
        return 5 if rm == 5 else 1
    return 2 if mod == 1 else 5


cdef inline unsigned int plain_length(int mode, const unsigned char* code, size_t avail,
                                      const Insn* insn) noexcept nogil:
    """The length of a plain instruction, or 0: ask capstone."""
    cdef unsigned int kind, length, part, small
    if insn.map > 1 or insn.prefixes & (ADDRESS_SIZE | LOCK | REP | REPNE):
        return 0
    kind = plain[mode][insn.map][insn.opcode]
    if not kind or (kind & BRANCH and insn.prefixes & OPERAND_SIZE):
        return 0
    length = insn.length
    if kind & MODRM:
        part = modrm_length(mode, code + length, avail - length)
        if not part or not plain_regs[mode][insn.map][insn.opcode] >> (insn.modrm >> 3 & 7) & 1:
            return 0
        if insn.map == 0 and insn.opcode == 0x8D and insn.modrm >= 0xC0:
            return 0                       # LEA has no register form
        length += part
        if insn.map == 0 and insn.opcode & 0xFE == 0xF6 and insn.modrm & 0x30 == 0:
            kind |= IMM8 if insn.opcode == 0xF6 else IMMZ      # TEST, alone in its group
    if kind & (IMM8 | IMM16 | IMMZ | IMMV):
        if kind & IMM8:
            length += 1
        if kind & IMM16:
            length += 2
        if kind & (IMMZ | IMMV):
            small = (mode == 0) != (insn.prefixes & OPERAND_SIZE != 0)
            if insn.prefixes & REX_W:
                length += 8 if kind & IMMV else 4
            else:
                length += 2 if small else 4
    return length if length <= avail and length <= MAX_LENGTH else 0


cdef int scan_block(int bits, const unsigned char* code, size_t avail, size_t span,
                    unsigned long long address, const unsigned char* selected, Finding* out,
                    int cap, unsigned int* insns, unsigned int* consumed) noexcept nogil:
    """Finds the selected rows among the instructions that start in code[0:span].

    May read code[0:avail]. `selected[row]` != 0 asks for a row. Stops at the first bytes that are
    no instruction or that `avail` cuts short, and when `cap` findings have been written. `insns`
    and `consumed` (either may be NULL) receive the number of instructions and bytes passed.
    Returns the number of findings, or -1 for a code size that does not exist.
    """
    cdef int mode, row, found = 0
    cdef size_t at = 0, rest
    cdef unsigned int length, count = 0
    cdef Insn insn
    cdef const uint8_t* cursor
    cdef uint64_t pc
    if bits == 64:
        mode = 2
    elif bits == 32:
        mode = 1
    elif bits == 16:
        mode = 0
    else:
        return -1
    if span > avail:
        span = avail
    while at < span:
        if not parse(mode, code + at, avail - at, &insn):
            break
        row = classify(mode, &insn)
        length = 0
        if row < 0:
            length = plain_length(mode, code + at, avail - at, &insn)
        if not length:
            cursor = code + at
            rest = avail - at
            if rest > MAX_LENGTH:
                rest = MAX_LENGTH
            pc = address + at
            if not cs_disasm_iter(handle[mode], &cursor, &rest, &pc, decoded[mode]):
                break
            length = decoded[mode].size
        if row >= 0 and selected[row]:
            if found == cap:
                break
            out[found].offset = <unsigned int> at
            out[found].row = <unsigned short> row
            out[found].length = <unsigned char> length
            out[found].reserved = 0
            found += 1
        at += length
        count += 1
    if insns != NULL:
        insns[0] = count
    if consumed != NULL:
        consumed[0] = <unsigned int> at
    return found


def scan(int bits, const unsigned char[::1] code, size_t span, unsigned long long address,
         const unsigned char[::1] selected):
    """`scan_block` for Python: ([(offset, row, length), ...], instructions, bytes passed)."""
    cdef Finding found[256]
    cdef int n, i
    cdef unsigned int insns, consumed, total = 0
    cdef size_t base = 0, avail = code.shape[0]
    if bits not in (16, 32, 64):
        raise ValueError(f"code size must be 16, 32 or 64 bits, not {bits}")
    if selected.shape[0] < 256:
        raise ValueError("the selection needs 256 entries")
    result = []
    if span > avail:
        span = avail
    while base < span:
        n = scan_block(bits, &code[base], avail - base, span - base, address + base, &selected[0],
                       found, 256, &insns, &consumed)
        for i in range(n):
            result.append((base + found[i].offset, found[i].row, found[i].length))
        total += insns
        base += consumed
        if n < 256:
            break
    return result, total, base


cdef inline bint straddles(int bits, const unsigned char* code, size_t rest, size_t limit) noexcept:
    """Whether the bytes at ``code`` are an instruction that ends after ``limit`` bytes."""
    cdef unsigned int insns = 0, consumed = 0
    if rest > MAX_LENGTH:
        rest = MAX_LENGTH
    scan_block(bits, code, rest, 1, 0, NOTHING, NULL, 0, &insns, &consumed)
    return insns == 1 and consumed > limit


def sweep(int bits, const unsigned char[::1] code, unsigned long long address,
          const unsigned int[::1] starts, const unsigned char[::1] selected, int filler):
    """Every instruction in ``code``, read one behind the other and anew from each of ``starts``.

    ``starts``: ascending offsets at which an instruction is known to begin. Where nothing can be
    decoded one byte is skipped; an instruction that would run over a start is dropped. ``filler``
    is a row that is counted and not listed. Returns ([(offset, row, length), ...], instructions
    without fillers, fillers, bytes skipped, dropped instructions).
    """
    cdef Finding found[512]
    cdef int n, i
    cdef unsigned int insns, consumed
    cdef size_t at = 0, limit, size = code.shape[0], next_start = 0, count = starts.shape[0]
    cdef size_t instructions = 0, fillers = 0, skipped = 0, dropped = 0
    if bits not in (16, 32, 64):
        raise ValueError(f"code size must be 16, 32 or 64 bits, not {bits}")
    if selected.shape[0] < 256:
        raise ValueError("the selection needs 256 entries")
    if size > 0xFFFFFFFF:
        raise ValueError("4 GB of code at most")
    result = []
    while at < size:
        while next_start < count and starts[next_start] <= at:
            next_start += 1
        limit = size
        if next_start < count and starts[next_start] < size:
            limit = starts[next_start]
        while at < limit:
            n = scan_block(bits, &code[at], limit - at, limit - at, address + at, &selected[0],
                           found, 512, &insns, &consumed)
            instructions += insns
            for i in range(n):
                if found[i].row == filler:
                    fillers += 1
                else:
                    result.append((at + found[i].offset, found[i].row, found[i].length))
            at += consumed
            if at >= limit or n == 512:
                continue
            if limit < size and straddles(bits, &code[at], size - at, limit - at):
                dropped += 1
                skipped += limit - at
                at = limit
            else:
                skipped += 1
                at += 1
    return result, instructions - fillers, fillers, skipped, dropped


cdef int mode_index(int bits):
    return {16: 0, 32: 1, 64: 2}[bits]


cdef void set_plain(int mode, int map, int opcode, int kind, int regs=0xFF):
    plain[mode][map][opcode] = PLAIN | kind
    plain_regs[mode][map][opcode] = regs


cdef void build_plain():
    """Fills `plain`: opcodes whose every form (within `regs`) is an instruction of known length."""
    cdef int mode, op, low
    for mode in range(MODES):
        for op in range(0x40):                       # ADD OR ADC SBB AND SUB XOR CMP
            low = op & 7
            if low < 4:
                set_plain(mode, 0, op, MODRM)
            elif low == 4:
                set_plain(mode, 0, op, IMM8)
            elif low == 5:
                set_plain(mode, 0, op, IMMZ)
        for op in range(0x50, 0x60):                 # PUSH, POP
            set_plain(mode, 0, op, 0)
        if mode == 2:
            set_plain(mode, 0, 0x63, MODRM)          # MOVSXD
        set_plain(mode, 0, 0x68, IMMZ)
        set_plain(mode, 0, 0x69, MODRM | IMMZ)
        set_plain(mode, 0, 0x6A, IMM8)
        set_plain(mode, 0, 0x6B, MODRM | IMM8)
        for op in range(0x70, 0x80):                 # Jcc rel8
            set_plain(mode, 0, op, IMM8 | BRANCH)
        set_plain(mode, 0, 0x80, MODRM | IMM8)
        set_plain(mode, 0, 0x81, MODRM | IMMZ)
        set_plain(mode, 0, 0x83, MODRM | IMM8)
        for op in range(0x84, 0x8C):                 # TEST, XCHG, MOV
            set_plain(mode, 0, op, MODRM)
        set_plain(mode, 0, 0x8D, MODRM)              # LEA
        for op in range(0x90, 0x9A):                 # NOP, XCHG, CBW, CWD
            set_plain(mode, 0, op, 0)
        set_plain(mode, 0, 0xA8, IMM8)
        set_plain(mode, 0, 0xA9, IMMZ)
        for op in range(0xB0, 0xB8):
            set_plain(mode, 0, op, IMM8)
        for op in range(0xB8, 0xC0):
            set_plain(mode, 0, op, IMMV)
        set_plain(mode, 0, 0xC0, MODRM | IMM8, 0xBF)
        set_plain(mode, 0, 0xC1, MODRM | IMM8, 0xBF)
        for op in range(0xD0, 0xD4):
            set_plain(mode, 0, op, MODRM, 0xBF)
        set_plain(mode, 0, 0xC2, IMM16 | BRANCH)     # RET
        set_plain(mode, 0, 0xC3, BRANCH)
        set_plain(mode, 0, 0xC6, MODRM | IMM8, 0x01)
        set_plain(mode, 0, 0xC7, MODRM | IMMZ, 0x01)
        set_plain(mode, 0, 0xC9, BRANCH)             # LEAVE
        set_plain(mode, 0, 0xE8, IMMZ | BRANCH)      # CALL, JMP
        set_plain(mode, 0, 0xE9, IMMZ | BRANCH)
        set_plain(mode, 0, 0xEB, IMM8 | BRANCH)
        set_plain(mode, 0, 0xF6, MODRM, 0xFD)        # TEST at reg 0; NOT NEG MUL IMUL DIV IDIV
        set_plain(mode, 0, 0xF7, MODRM, 0xFD)
        set_plain(mode, 0, 0xFE, MODRM, 0x03)        # INC, DEC
        set_plain(mode, 0, 0xFF, MODRM | BRANCH, 0x57)     # INC DEC CALL JMP PUSH
        set_plain(mode, 1, 0x0B, BRANCH)             # UD2
        set_plain(mode, 1, 0x1F, MODRM)              # NOP
        for op in range(0x40, 0x50):                 # CMOVcc
            set_plain(mode, 1, op, MODRM)
        for op in range(0x80, 0x90):                 # Jcc
            set_plain(mode, 1, op, IMMZ | BRANCH)
        for op in range(0x90, 0xA0):                 # SETcc
            set_plain(mode, 1, op, MODRM)
        for op in (0xA3, 0xA5, 0xAB, 0xAD, 0xB3, 0xBB, 0xAF, 0xB0, 0xB1, 0xC0, 0xC1, 0xB6, 0xB7,
                   0xBE, 0xBF):                      # BTx, SHLD, IMUL, CMPXCHG, XADD, MOVZX, MOVSX
            set_plain(mode, 1, op, MODRM)
        set_plain(mode, 1, 0xA4, MODRM | IMM8)
        set_plain(mode, 1, 0xAC, MODRM | IMM8)
        set_plain(mode, 1, 0xBA, MODRM | IMM8, 0xF0)


cdef void build_candidates() except *:
    """Turns the table's encodings into the lookup arrays."""
    cdef int used = 0, mode
    cdef Candidate* c
    bit = {None: 0, 0x66: OPERAND_SIZE, 0xF2: REPNE, 0xF3: REP}
    for bits in (16, 32, 64):
        mode = mode_index(bits)
        cells = {}
        for row in sensitive.TABLE:
            for encoding in row.encodings:
                if bits in encoding.modes:
                    cells.setdefault((encoding.map, encoding.opcode), []).append((row, encoding))
        for (map_, opcode), members in cells.items():
            if used + len(members) > MAX_CANDIDATES:
                raise MemoryError("the table has outgrown MAX_CANDIDATES")
            first_candidate[mode][map_][opcode] = used
            candidate_count[mode][map_][opcode] = len(members)
            for row, encoding in members:
                c = &candidates[used]
                c.has_modrm = encoding.modrm
                c.regs = 0xFF if encoding.reg is None else sum(1 << reg for reg in encoding.reg)
                c.rms = 0xFF if encoding.rm is None else 1 << encoding.rm
                c.mem = encoding.mod in ("mem", "any")
                c.direct = encoding.mod in ("reg", "any")
                c.prefixes = bit[encoding.prefix]
                c.no_rex_b = encoding.no_rex_b
                c.row = row.id
                used += 1


cdef void build() except *:
    cdef int mode
    memset(plain, 0, sizeof(plain))
    memset(prefix_bit, 0, sizeof(prefix_bit))
    for byte in (0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65):
        prefix_bit[byte] = NO_EFFECT
    prefix_bit[0x66] = OPERAND_SIZE
    prefix_bit[0x67] = ADDRESS_SIZE
    prefix_bit[0xF0] = LOCK
    prefix_bit[0xF2] = REPNE
    prefix_bit[0xF3] = REP
    build_plain()
    build_candidates()
    modes = (CS_MODE_16, CS_MODE_32, CS_MODE_64)
    for mode in range(MODES):
        if cs_open(CS_ARCH_X86, modes[mode], &handle[mode]):
            raise RuntimeError("capstone was built without x86")
        decoded[mode] = cs_malloc(handle[mode])
        if decoded[mode] == NULL:
            raise MemoryError("capstone instruction buffer")


build()
