from __future__ import annotations

import pytest

from gptailor_merge.errors import ConfigError
from gptailor_merge.hub.licences import check_licence


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("apache", "did you mean 'apache-2.0'?"),
        ("MIT", "did you mean 'mit'?"),
        ("", "write other for"),
        ("my terms", "write other for a licence that is not on it"),
    ],
)
def test_a_licence_that_is_not_on_the_hubs_list(key: str, hint: str) -> None:
    with pytest.raises(ConfigError, match="--license: not on the Hub's list of licences") as caught:
        check_licence(key)
    assert hint in str(caught.value)


@pytest.mark.parametrize("key", ["mit", "llama3.1", "other", "openrail++"])
def test_licences_of_the_hub(key: str) -> None:
    check_licence(key)
