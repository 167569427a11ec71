# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the processor time of a run goes: guest code, the CPU under it, or the VMM.

bt/core/sampler.pyx interrupts the machine's thread 2,000 times a second and looks at the program
counter; which part of the process that is says the host's table of mappings. So nothing is counted
twice, nothing is left out, and the shares add up to the whole.

A part is where the processor *is*, not on whose behalf. What a hook asks of Unicorn (to drop a
translation, say) is Unicorn's time, as is the way from the guest's code to a hook and back.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import bt
import translator
from bt.errors import BtError

#: The parts, by the sampler's number. guest: code that Unicorn made of the guest's. unicorn: the
#: CPU's other work: translation, translated code's helpers, its TLB, ways in and out. core: the
#: VMM's compiled half, the scanner included. python: its other half, with the libraries that only
#: Python calls, and the host's kernel for them.
PARTS = ("guest", "unicorn", "core", "python")
#: What the VMM is.
VMM = ("core", "python")
INTERVAL_NS = 500_000

_GUEST, _UNICORN, _CORE, _PYTHON = range(len(PARTS))
#: Files whose code is the caller's: libraries that any of the parts may call, and the sampler.
_ANYBODYS = ("libc.", "libc-", "libm.", "libm-", "libpthread", "librt", "libgcc_s", "ld-", "[",
             "sampler.")
#: Unicorn's buffer for translated code has 1 GB; other anonymous memory with code is small
#: (closures of libffi).
_BUFFER_MIN = 32 << 20

Range = tuple[int, int, int]


def classify(maps: Iterable[str], ours: Iterable[Path]) -> list[Range]:
    """What is what in this process: [(address, address behind it, number of the part)].

    ``maps``: lines of /proc/self/maps (proc_pid_maps(5)); ``ours``: the folders of our packages.
    Code of libraries that every part calls is left out.
    """
    folders = [f"{folder}{os.sep}" for folder in ours]
    found = []
    for line in maps:
        fields = line.rstrip("\n").split(maxsplit=5)
        if "x" not in fields[1]:
            continue
        start, end = (int(word, 16) for word in fields[0].split("-"))
        path = fields[5] if len(fields) == 6 else ""
        name = os.path.basename(path)
        if not path:
            if end - start >= _BUFFER_MIN:
                found.append((start, end, _GUEST))
        elif name.startswith("libunicorn"):
            found.append((start, end, _UNICORN))
        elif name.startswith(_ANYBODYS):
            continue
        elif name.startswith("libcapstone") or any(path.startswith(one) for one in folders):
            found.append((start, end, _CORE))
        else:
            found.append((start, end, _PYTHON))
    return found


class Sampler:
    """A context manager: what the calling thread does inside, after a machine was made there.

    Raises BtError if the host has no timer for it, RuntimeError inside another one.
    """

    def __init__(self) -> None:
        self.samples = 0
        #: Seconds of the thread's processor time by part; "elsewhere" is code in none of them.
        self.seconds = dict.fromkeys((*PARTS, "elsewhere"), 0.0)

    def __enter__(self) -> Sampler:
        from bt.core import sampler  # costs what only who measures needs

        ours = [Path(package.__file__).resolve().parent for package in (bt, translator)
                if package.__file__]
        try:
            with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
                sampler.start(classify(maps, ours), INTERVAL_NS)
        except (OSError, ValueError) as error:
            raise BtError(f"cannot sample where the time goes: {error}") from None
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        from bt.core import sampler

        self.samples, used = sampler.stop()
        self.seconds = {name: used[i] / 1e9 for i, name in enumerate(PARTS)}
        self.seconds["elsewhere"] = sum(used[len(PARTS):]) / 1e9

    @property
    def vmm_s(self) -> float:
        """Seconds in the VMM."""
        return sum(self.seconds[name] for name in VMM)

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain JSON data."""
        return {"samples": self.samples, "interval_s": INTERVAL_NS / 1e9, "seconds": self.seconds,
                "vmm_s": self.vmm_s}
