# SPDX-License-Identifier: GPL-2.0-or-later
import pytest
from xenrig import Rig


@pytest.fixture
def rig() -> Rig:
    return Rig()
