#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A picture of a boot's page faults, one after the other, with a row for each page that faulted.

    python examples/fault_picture.py [FILE.svg] [COMMAND ARGUMENT...]

Rows are in the order of addresses, so that programs, libraries, stacks and the kernel make bands.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bt import Exit, Machine

WIDTH, HEIGHT, EDGE = 900, 600, 40
COLOURS = {"read": "#2563eb", "write": "#dc2626", "execute": "#059669"}

target = Path(sys.argv[1] if len(sys.argv) > 1 else "faults.svg")
vm = Machine.linux(sys.argv[2:] or ["ls", "-l", "/proc/self/"], append="quiet")
faults: list[tuple[int, int, str]] = []


@vm.on_exit("page fault")
def see(exit: Exit) -> None:
    faults.append((vm.vcpu.now_ns(), exit.gva >> 12, exit.access))


outcome = vm.run(timeout=120)
pages = {page: row for row, page in enumerate(sorted({page for _, page, _ in faults}))}
end = max(when for when, _, _ in faults)
dots = []
for number, (when, page, access) in enumerate(faults):
    x = EDGE + (WIDTH - 2 * EDGE) * number / len(faults)
    y = HEIGHT - EDGE - (HEIGHT - 2 * EDGE) * pages[page] / max(1, len(pages) - 1)
    dots.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="3" height="3" fill="{COLOURS[access]}">'
                f"<title>{page << 12:#x} {access} at {when / 1e6:.1f} ms</title></rect>")
names = "".join(f'<text x="{EDGE + 90 * i}" y="24" fill="{colour}">{access}</text>'
                for i, (access, colour) in enumerate(COLOURS.items()))
target.write_text(
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
    f'font-family="sans-serif" font-size="14"><rect width="100%" height="100%" fill="white"/>'
    f'{names}<text x="{WIDTH - EDGE}" y="{HEIGHT - 12}" text-anchor="end">'
    f'{len(faults)} page faults, the last after {end / 1e9:.2f} s</text>'
    + "".join(dots) + "</svg>\n")
print(f"{len(faults)} page faults of {len(pages)} pages: {target}")
sys.exit(outcome.status)
