"""Our baselines keep the contract that ships; a new one is tested by being in the registry."""

from __future__ import annotations

import pytest

from gptailor_merge.search.baselines.registry import BASELINES
from gptailor_merge.testing.baselines import BaselineContract


@pytest.mark.parametrize("name", list(BASELINES))
class TestOurs(BaselineContract):
    """Each of ours."""

    @pytest.fixture
    def in_one_interpreter(self) -> tuple[str, ...]:
        return tuple(BASELINES)
