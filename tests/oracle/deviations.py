# SPDX-License-Identifier: GPL-2.0-or-later
"""Lines of the sensitive guests on which QEMU 7.2's TCG is not what the manual says.

Nothing else than what is listed here is taken from anywhere but QEMU. ``QEMU_SAYS`` is checked
too: when a newer QEMU is right, the test that compares them says so and the entry can go.
SDM = Intel 64 and IA-32 Architectures Software Developer's Manual.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Deviation:
    """A line without its result, what TCG prints, what the manual demands, and where."""

    line: str
    qemu_says: str
    sdm_says: str
    why: str


def _gate_errors() -> list[Deviation]:
    """In long mode TCG's error code for a refused INT n is n*16+2; it should be n*8+2."""
    why = "SDM 3A 6.13: an IDT error code is vector * 8 + 2 (+ EXT)"
    cases = (("dpl0-gate", "user", "GP", 0x83), ("absent-gate", "kernel", "NP", 0x84),
             ("absent-gate", "user", "NP", 0x84), ("exception-vector", "user", "GP", 0x10),
             ("beyond-idt", "kernel", "GP", 0xF0), ("beyond-idt", "user", "GP", 0xF0))
    return [Deviation(f"INT_N.{label} 64-bit {mode}", f"#{name}({n * 16 + 2:#x}) at +0x0",
                      f"#{name}({n * 8 + 2:#x}) at +0x0", why) for label, mode, name, n in cases]


def _every_width() -> list[Deviation]:
    found = []
    for bits in (16, 32, 64):
        # Offsets: in 16-bit code a 32-bit move has a prefix; the test for TCG is 11 bytes, or 10.
        move, skip = (6, 10) if bits == 16 else (5, 11)
        clear = 3 if bits == 16 else 2
        found += [
            Deviation(f"RDMSR.unknown {bits}-bit kernel", "done", f"#GP(0x0) at +{move:#x}",
                      "SDM 2 RDMSR: #GP(0) for a reserved or unimplemented register"),
            Deviation(f"WRMSR.unknown {bits}-bit kernel", "done", f"#GP(0x0) at +{move:#x}",
                      "SDM 2 WRMSR: #GP(0) for a reserved or unimplemented register"),
            Deviation(f"RDPMC.no-such-counter {bits}-bit kernel", f"#UD at +{move:#x}",
                      f"#GP(0x0) at +{move:#x}",
                      "SDM 2 RDPMC: #GP(0) for a counter that is not there; TCG has no RDPMC"),
            Deviation(f"LTR.null {bits}-bit kernel", "not run",
                      f"#GP(0x0) at +{skip + clear:#x}",
                      "SDM 2 LTR: #GP(0) for a null selector; TCG loads it and aborts later"),
            *(Deviation(f"INT1.icebp {bits}-bit {mode}", "not run", f"#DB at +{skip + 1:#x}",
                        "SDM 2 INT1: a debug trap, not subject to the gate's DPL; TCG stops "
                        "the machine for a debugger") for mode in ("kernel", "user")),
        ]
    return found


DEVIATIONS: dict[str, Deviation] = {d.line: d for d in _gate_errors() + _every_width()}


def _native_unicorn() -> list[Deviation]:
    """Unicorn's QEMU 5.0 where no intercept stands between it and the guest (engine hvm)."""
    found = []
    for bits in (16, 32, 64):
        at = 3 if bits == 16 else 4
        found.append(Deviation(
            f"OUTS.denied {bits}-bit user", "done", f"#GP(0x0) at +{at:#x}",
            "SDM 1 19.5.2: the permission bit is looked at before the count; Unicorn's OUTS with a "
            "count of 0 asks nobody"))
        if bits != 64:
            found += [Deviation(
                f"SMSW.register {bits}-bit {mode}", "ax=0x33", "ax=0x80010033",
                "SDM 2 SMSW: bits 16-31 of a 32-bit register are undefined; here they keep what "
                "they had") for mode in ("kernel", "user")]
    return found


#: Lines on which engine hvm prints ``qemu_says``.
NATIVE_UNICORN: dict[str, Deviation] = {d.line: d for d in _native_unicorn()}
