# SPDX-License-Identifier: GPL-2.0-or-later
"""The core's micro-guests once more, under engine hvm: each must end as it does under bt."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import micro
import pytest
import test_core_code
import test_core_events
import test_core_micro
import test_core_mmio
import test_core_mmu
import test_core_oracle
import test_core_preempt
import test_core_safety

#: Tests about rewriting, stubs or the window, or about a choice of ours that hardware makes
#: otherwise: how wide SGDT writes to a device, how soon a block ends.
_NOT_HERE = {
    "test_code_is_replaced_while_it_has_traps_and_stubs", "test_the_guest_reads_its_own_bytes",
    "test_jump_into_the_region_of_a_stub", "test_jump_between_absorbed_instructions",
    "test_kernel_stub_code_shared_with_user_mode", "test_single_step_over_a_stub",
    "test_interrupt_storm_over_hot_stubs",
    "test_user_mode_cannot_touch_the_window", "test_the_kernel_cannot_read_or_write_stub_code",
    "test_scribbling_on_the_vcpu_page_hurts_only_the_guest",
    "test_the_page_gives_user_mode_no_rights", "test_the_vmms_own_accesses_get_there_too",
    "test_an_interrupt_raised_by_an_access_comes_soon",
}
_MODULES = (test_core_code, test_core_events, test_core_micro, test_core_mmio, test_core_mmu,
            test_core_oracle, test_core_preempt, test_core_safety)


def _tests() -> dict[str, Callable[..., None]]:
    """Those that do not choose an engine themselves."""
    return {name: test for module in _MODULES for name, test in vars(module).items()
            if name.startswith("test_") and name not in _NOT_HERE
            and "engine" not in inspect.signature(test).parameters}


globals().update(_tests())


@pytest.fixture(autouse=True)
def _under_hvm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro, "ENGINE", "hvm")
