# SPDX-License-Identifier: GPL-2.0-or-later
"""The scanner for compiled callers; see _scan.pyx."""


cdef struct Finding:
    unsigned int offset        # first byte (prefixes included), bytes from the start of the code
    unsigned short row         # sensitive.Row.id
    unsigned char length       # bytes, prefixes included
    unsigned char reserved     # 0


cdef int scan_block(int bits, const unsigned char* code, size_t avail, size_t span,
                    unsigned long long address, const unsigned char* selected, Finding* out,
                    int cap, unsigned int* insns, unsigned int* consumed) noexcept nogil
