# SPDX-License-Identifier: GPL-2.0-or-later
"""Names for what the compiled core counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from translator.sensitive import TABLE

#: Names of exceptions by vector.
EXCEPTIONS = {
    0: "#DE", 1: "#DB", 3: "#BP", 4: "#OF", 5: "#BR", 6: "#UD", 7: "#NM", 8: "#DF", 10: "#TS",
    11: "#NP", 12: "#SS", 13: "#GP", 14: "#PF", 16: "#MF", 17: "#AC", 19: "#XM",
}
#: Pseudo-exits of the memory unit; all other exits belong to the control unit.
MEMORY_UNIT = frozenset({
    "translation", "TLB flush", "code page written", "page became code", "absent memory",
    "page invalidation", "page fault injected", "mmio",
    "page not there yet", "protected memory written", "page first written",
})
#: Not counted in deterministic runs: Unicorn sizes its TLB by the host's clock (QEMU's cputlb.c,
#: tlb_mmu_resize_locked), so how often it asks again for what it dropped is not the guest's doing.
_HOST_TIMED = frozenset({"translation"})
#: Counters of translation work, which are not exits of the guest.
_TRANSLATION = (
    "block scanned", "block translated again", "stale trap", "stub installed", "stub taken back",
)


def _pseudo(counts: Sequence[int], names: Mapping[int, str]) -> dict[str, int]:
    named = {f"exception {EXCEPTIONS.get(i, i)}": counts[i] for i in range(32) if counts[i]}
    return named | {name: counts[i] for i, name in names.items() if counts[i]}


def exit_counts(rows: Sequence[int], counts: Sequence[int], names: Mapping[int, str], *,
                deterministic: bool) -> tuple[dict[str, int], dict[str, int]]:
    """Exits by name: (the control unit's, the memory unit's).

    ``rows``: by row of the sensitive table; ``counts``: by pseudo-exit, named by ``names`` (32 and
    above; below are exceptions by vector).
    """
    control = {row.name: rows[row.id] for row in TABLE if rows[row.id]}
    memory = {}
    for name, count in _pseudo(counts, names).items():
        if name not in MEMORY_UNIT:
            if name not in _TRANSLATION:
                control[name] = count
        elif not (deterministic and name in _HOST_TIMED):
            memory[name] = count
    return control, memory


def translation_counts(counts: Sequence[int], names: Mapping[int, str]) -> dict[str, int]:
    """How often each thing happened that is the translator's work."""
    pseudo = _pseudo(counts, names)
    return {name: pseudo.get(name, 0) for name in _TRANSLATION}


def xen_hypercalls(calls: Sequence[int], table_writes: int, upcalls: int) -> dict[str, int]:
    """Xen's hypercalls by name."""
    from bt.xen.abi import HYPERCALLS
    named = {HYPERCALLS.get(i, f"number {i}"): n for i, n in enumerate(calls) if n}
    return named | {"(page-table stores emulated)": table_writes, "(event upcalls)": upcalls}


def our_hypercalls(calls: Sequence[int]) -> dict[str, int]:
    """Hypercalls of our own interface by name; "unknown" counts numbers that are none."""
    from translator.pvabi import HYPERCALLS
    named = {name: calls[i] for i, name in enumerate(HYPERCALLS) if calls[i]}
    unknown = sum(calls[len(HYPERCALLS):])
    return named | ({"unknown": unknown} if unknown else {})


def reasons(names: Mapping[int, str]) -> Iterator[tuple[int, str, str]]:
    """(number, name, "control" or "memory") of each reason in `Vcpu.exit_places`."""
    for row in TABLE:
        yield row.id, row.name, "control"
    for index in range(32):
        yield 256 + index, f"exception {EXCEPTIONS.get(index, index)}", "control"
    for index, name in names.items():
        yield 256 + index, name, "memory" if name in MEMORY_UNIT else "control"
