"""How a search went."""

from __future__ import annotations

import pytest

from gptailor_merge.objectives.scores import Score
from gptailor_merge.report.search_history import Box, span, trials
from tests.report.runs import candidate, one_recipe


def test_tokens_and_seconds_add_up_and_the_best_is_of_what_was_scored_on_everything() -> None:
    candidates = one_recipe()
    made = trials(candidates, [c for c in candidates if c.status == "scored"], (), None)
    assert [trial.tokens for trial in made] == [100, 200, 225, 325, 325, 325]
    assert made[-1].seconds == pytest.approx(2.1)
    # Neither a probe, of another size, nor an estimate is the best.
    assert [trial.best for trial in made] == [None, 0.5, 0.5, 0.3, 0.3, 0.3]


@pytest.mark.parametrize(
    ("points", "volume"),
    [([(0, 0)], 1.0), ([(1, 1)], 0.0), ([(0.5, 0.5)], 0.25), ([(0.5, 0.5), (0.25, 0.75)], 0.3125)],
)
def test_the_volume_is_what_the_points_dominate(points: list[tuple[float, float]], volume: float) -> None:
    box = Box.around([(10.0, -2.0), (14.0, -1.0)])
    scaled = [(10 + 4 * x, -2 + y) for x, y in points]
    assert box.volume(scaled) == pytest.approx(volume)


def test_of_a_front_the_best_is_its_volume() -> None:
    values = [(1.0, 1.0), (0.5, 0.5), (0.75, 0.75), (0.25, 0.75)]
    candidates = [
        candidate(n, "scored", 0.0, 0.1, scores={"x": {"t": Score(x, 1)}, "y": {"t": Score(y, 1)}})
        for n, (x, y) in enumerate(values)
    ]
    box = Box((0.0, 0.0), (1.0, 1.0))
    made = trials(candidates, candidates, ("x", "y"), box)
    assert [trial.best for trial in made] == pytest.approx([0.0, 0.25, 0.25, 0.3125])


def test_what_is_drawn_holds_the_best_the_others_and_three_quarters_of_the_candidates() -> None:
    candidates = one_recipe()
    made = trials(candidates, [c for c in candidates if c.status == "scored"], (), None)
    assert span(made) == pytest.approx((0.3 - 0.02, 0.7 + 0.02))
    low, high = span(made, [0.1, 0.9]) or (0, 0)
    assert low < 0.1
    assert high > 0.9
    assert span(made[:1]) is None
