"""Contract tests that whoever extends this package can inherit; they need pytest."""

import pytest

pytest.register_assert_rewrite("gptailor_merge.testing")
