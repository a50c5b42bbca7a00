"""Contract tests for extensions, run by pytest: inherit a suite and supply what it asks for."""

import pytest

for suite in ("baselines", "executors", "methods", "objectives", "operations", "optimizers", "trackers"):
    pytest.register_assert_rewrite(f"{__name__}.{suite}")
