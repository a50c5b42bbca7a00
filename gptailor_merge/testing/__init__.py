"""Contract tests for extensions, run by pytest: inherit a suite and supply what it asks for."""

import pytest

pytest.register_assert_rewrite("gptailor_merge.testing")
