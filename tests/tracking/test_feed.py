"""Trackers receive every candidate of a search, and its results at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gptailor_merge.config import SearchConfig
from gptailor_merge.runs.summary import Summary
from gptailor_merge.search.candidates import Counts
from gptailor_merge.tracking.feed import tracker_feed
from gptailor_merge.tracking.registry import tracker_factories
from tests.report.runs import candidate, one_recipe
from tests.tracking.readers import READERS, files_below, read_tensorboard

pytestmark = pytest.mark.filterwarnings("ignore")  # the tracker libraries' own


@pytest.fixture
def config() -> SearchConfig:
    return SearchConfig.model_validate(
        {
            "family": {"base": "/home/alice/base", "variants": {"math": "/home/alice/math"}},
            "target": {"layers": 4},
            "objectives": [{"kind": "kl", "data": {"a": "/home/alice/a.jsonl"}}],
            "seed": 5,
        }
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """An empty run directory."""
    directory = tmp_path / "run"
    directory.mkdir()
    return directory


def summary() -> Summary:
    held_out = {model: {"perplexity": {"total": value}} for model, value in (("base", 2.0), ("found", 3.0))}
    return Summary("d", Path("best.yml"), 0.3, {}, Counts(6, 1, 1, 1, 0, 0, 0, 0, 325, 2.1), held_out, {})


def feed_search(name: str, run: Path, config: SearchConfig, *, upto: int = 6) -> None:
    """Feeds a tracker the first candidates of a search, and the results where these are all."""
    with tracker_feed(tracker_factories([name]), run, config) as feed:
        for each in one_recipe()[:upto]:
            feed.send(each)
        if upto == 6:
            feed.keep_results(summary())


@pytest.mark.parametrize("name", READERS)
def test_every_candidate_is_sent_with_its_number(name: str, config: SearchConfig, run: Path) -> None:
    feed_search(name, run, config)
    records = READERS[name](run)
    assert records["tokens"] == [(0, 100), (1, 200), (2, 225), (3, 325), (4, 325), (5, 325)]
    # A probe is of another size, and a failure has no loss; an estimate is never the best.
    assert records["loss"] == [(n, pytest.approx(x)) for n, x in ((1, 0.5), (2, 0.7), (3, 0.3), (5, 0.3))]
    assert records["best"] == [
        (n, pytest.approx(x)) for n, x in ((1, 0.5), (2, 0.5), (3, 0.3), (4, 0.3), (5, 0.3))
    ]
    assert [step for step, _ in records["scores/kl"]] == [0, 1, 2, 3, 5]


@pytest.mark.parametrize("name", READERS)
def test_the_results_are_sent_at_the_end(name: str, config: SearchConfig, run: Path) -> None:
    feed_search(name, run, config)
    records = READERS[name](run)
    assert [value for _, value in records["held_out/base/perplexity/total"]] == [2.0]
    assert [value for _, value in records["held_out/found/perplexity/total"]] == [3.0]


@pytest.mark.parametrize("name", READERS)
def test_a_search_that_breaks_off_keeps_its_candidates(name: str, config: SearchConfig, run: Path) -> None:
    def break_off() -> None:
        with tracker_feed(tracker_factories([name]), run, config) as feed:
            feed.send(one_recipe()[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert READERS[name](run)["tokens"] == [(0, 100)]


@pytest.mark.parametrize("name", READERS)
def test_no_path_and_no_user_is_sent(
    name: str, config: SearchConfig, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from trackio.utils import TRACKIO_DIR

    feed_search(name, run, config)
    content = files_below(run, Path(TRACKIO_DIR))
    assert content
    for secret in (b"alice", str(tmp_path).encode(), b"_Username"):
        assert secret not in content, secret
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", READERS)
def test_a_search_that_is_refused_leaves_nothing(name: str, config: SearchConfig, run: Path) -> None:
    with tracker_feed(tracker_factories([name]), run, config):
        pass
    assert list(run.iterdir()) == []


def test_a_resumed_search_is_sent_to_tensorboard_again(config: SearchConfig, run: Path) -> None:
    feed_search("tensorboard", run, config, upto=3)
    feed_search("tensorboard", run, config)
    assert [step for step, _ in read_tensorboard(run)["tokens"]] == [0, 1, 2, 3, 4, 5]


def test_a_search_for_a_front_sends_no_loss(config: SearchConfig, run: Path) -> None:
    document: dict[str, Any] = {
        **config.model_dump(mode="json", exclude_none=True),
        "target": {"layers": [3, 4]},
    }
    with tracker_feed(tracker_factories(["tensorboard"]), run, SearchConfig.model_validate(document)) as feed:
        feed.send(candidate(0, "scored", 0.5, 0.1))
    assert set(read_tensorboard(run)) == {"tokens", "seconds", "scores/kl"}
