# SPDX-License-Identifier: GPL-2.0-or-later
import pytest
from devicerig import Rig


@pytest.fixture
def rig() -> Rig:
    """A PC after power-on, at time 0."""
    return Rig()
