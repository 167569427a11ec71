# SPDX-License-Identifier: GPL-2.0-or-later
"""The byte ring that console and xenstore share, against a plain list of bytes."""

import random

from bt.xen import ring

SIZE, BASE = 16, 8


def test_what_goes_in_comes_out_wherever_it_wraps():
    rng = random.Random(3)
    page = bytearray(BASE + SIZE + 8)
    index = (1 << 32) - 40      # indices wrap at 32 bits, and 16 divides that
    for _ in range(200):
        data = rng.randbytes(rng.randrange(SIZE + 1))
        ring.write(memoryview(page), BASE, SIZE, index, data)
        assert ring.read(memoryview(page), BASE, SIZE, index, len(data)) == data
        index = index + len(data) & 0xFFFF_FFFF
    assert not any(page[:BASE]) and not any(page[BASE + SIZE:]), "nothing beside the ring"
