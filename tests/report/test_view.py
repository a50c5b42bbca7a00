"""A run is turned into what its page and pictures show."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from gptailor_merge.errors import ConfigError, InputError
from gptailor_merge.objectives.scores import TOTAL, Score
from gptailor_merge.planning.resolve import plan
from gptailor_merge.report.sections import headline, total
from gptailor_merge.report.view import Spent, view
from gptailor_merge.runs.metadata import Dimensions
from gptailor_merge.runs.record import Record
from gptailor_merge.runs.run import Run
from gptailor_merge.search.candidates import Candidate
from tests.report.runs import CONFIG, candidate, one_recipe, perplexities, recipe, write

SIZES = {"base": Dimensions(5, 1000), "found": Dimensions(4, 800)}


def test_a_run_is_read_whole(tmp_path: Path) -> None:
    held_out = perplexities(base=1.0, math=1.2, code=1.3, found=1.5)
    shown = view(write(tmp_path / "run", one_recipe(), meta={"sizes": SIZES}, held_out=held_out).record())
    assert [(m.name, m.model, m.local) for m in shown.members] == [
        ("base", "base", True),
        ("math", "math", True),
        ("code", "org/code@v1", False),
    ]
    assert (shown.digest, shown.loss) == (plan(recipe(0.4)).digest, 0.3)
    assert (shown.kept, shown.depth, shown.removed) == (4, 5, (1,))
    assert shown.sizes == {"base": Dimensions(5, 1000), "found": Dimensions(4, 800)}
    assert shown.spent["scored"] == Spent(2, 200, 1.0)
    assert sum(spent.candidates for spent in shown.spent.values()) == shown.counts.candidates == 6
    assert (shown.summed, shown.nats, shown.axes, shown.front) == (("kl",), True, (), ())
    assert shown.agreement is not None
    assert shown.agreement.recipes == 1
    assert [(row.objective, row.name) for row in shown.held_out] == [
        ("perplexity", "a"),
        ("perplexity", "b"),
        ("perplexity", TOTAL),
    ]
    assert list(shown.held_out[0].scores) == ["base", "math", "code", "found"]
    whole = total(shown)
    assert whole is not None
    assert whole.scores["base"].mean == pytest.approx(0.25 * 1 + 0.75 * 2)
    assert headline(shown) == (
        f"4 of 5 layers and 80% of the parameters: held-out perplexity {math.exp(2.25):.3f}, "
        f"the base’s {math.exp(1.75):.3f}"
    )


def test_an_interval_is_in_the_units_of_the_score(tmp_path: Path) -> None:
    held_out = perplexities(base=1.0, found=1.5)
    held_out["base"]["perplexity"]["a"] = Score(1.0, 50, "perplexity")  # type: ignore[index]
    row = view(write(tmp_path / "run", one_recipe(), held_out=held_out).record()).held_out[0]
    assert row.interval("found") == pytest.approx((math.exp(1.5 - 0.196), math.exp(1.5 + 0.196)))
    assert row.interval("base") is None
    assert not row.higher_is_better


def test_a_search_that_has_just_begun_has_little(tmp_path: Path) -> None:
    shown = view(write(tmp_path / "run", one_recipe()[:1], done=False).record())
    assert (shown.digest, shown.places, shown.loss, shown.agreement, shown.held_out) == (
        None,
        (),
        None,
        None,
        (),
    )
    assert headline(shown) == "No candidate has been scored yet"
    assert (shown.done, shown.counts.candidates, shown.budget) == (False, 1, 6)


def test_the_best_so_far_stands_for_a_search_that_goes_on(tmp_path: Path) -> None:
    shown = view(write(tmp_path / "run", one_recipe()[:3], done=False).record())
    assert (shown.loss, shown.done) == (0.5, False)
    assert headline(shown) == "4 of 5 layers: loss (kl, nats) 0.500 so far"


def of_front(number: int, margin: float, size: float, weight: float) -> Candidate:
    scores = {
        "margin": {"t": Score(-margin, 10, "negated")},
        "gate: perplexity": {"t": Score(1.0, 10, "perplexity")},
        "parameters": {"model": Score(size, 1, "count")},
    }
    return candidate(number, "scored", -margin, weight, scores=scores)


FRONT = [of_front(0, 1.0, 800, 0.1), of_front(1, 2.0, 900, 0.2), of_front(2, 0.5, 850, 0.3)]
AXES = {"axes": ("margin", "parameters")}
OBJECTIVES = [{"kind": "task", "tasks": ["t"], "metric": "margin", "weight": 1.0}, {"kind": "parameters"}]


def test_a_front_is_in_natural_units_with_the_costs_first(tmp_path: Path) -> None:
    run = write(tmp_path / "run", FRONT, done=False, meta=AXES, objectives=OBJECTIVES)
    run.best.write_text(FRONT[1].recipe)
    shown = view(run.record())
    assert shown.axes == ("parameters", "margin")
    assert [dict(point.scores) for point in shown.front] == [
        {"margin": 2.0, "parameters": 900.0},
        {"margin": 1.0, "parameters": 800.0},
    ]
    assert shown.beaten == ({"margin": 0.5, "parameters": 850.0},)
    assert shown.picked == f"04-layers-{FRONT[1].digest[:8]}"
    assert shown.digest == FRONT[1].digest
    assert shown.summed == ("margin",)
    assert not shown.nats
    assert shown.lower_is_better["margin"] is False
    assert shown.agreement is not None
    assert shown.agreement.recipes == 2
    # In the box from 800 to 900 and from -2 to -0.5: a third of it is behind the first.
    assert [trial.best for trial in shown.trials] == pytest.approx([1 / 3, 1 / 3, 1 / 3])


def test_other_runs_stand_beside_it(tmp_path: Path) -> None:
    held_out = perplexities(base=1.0, found=1.5)
    run = write(tmp_path / "run", one_recipe(), held_out=held_out)
    other = write(
        tmp_path / "other",
        [candidate(0, "scored", 0.4, 0.7)],
        meta={"baseline": "sleb"},
        held_out=perplexities(base=1.0, found=1.6),
    )
    elsewhere = write(
        tmp_path / "elsewhere",
        [candidate(0, "scored", 0.6, 0.7)],
        held_out=perplexities(base=1.0, found=1.7),
        seed=4,
    )
    shown = view(run.record(), [other.record(), elsewhere.record()])
    assert [(other.name, other.value) for other in shown.others] == [("sleb", 0.4), ("elsewhere", 0.6)]
    # Drawn by another seed, held-out items may be others.
    assert list(shown.held_out[0].scores) == ["base", "found", "sleb"]


def test_a_run_of_something_else_is_no_baseline(tmp_path: Path) -> None:
    run = write(tmp_path / "run", one_recipe())
    other = write(tmp_path / "other", [candidate(0, "scored", 0.4, 0.7, fingerprint="g")])
    with pytest.raises(ConfigError, match="other was scored on something else; expected a run of the same"):
        view(run.record(), [other.record()])
    with pytest.raises(ConfigError, match="new: no candidate has been scored yet"):
        view(run.record(), [write(tmp_path / "new", []).record()])
    with pytest.raises(InputError, match="no such journal"):
        view(run.record(), [Run(tmp_path / "nothing").record()])


def test_no_path_and_no_cause_of_a_failure_is_kept(tmp_path: Path) -> None:
    shown = view(write(tmp_path / "run", one_recipe(), held_out=perplexities(base=1.0, found=1.5)).record())
    assert "alice" not in repr(shown)
    assert "/" not in repr(shown).replace("org/code", "")
    assert CONFIG["family"]["base"] == "/home/alice/models/base"


def test_a_run_of_other_models_or_held_out_data_is_no_baseline(tmp_path: Path) -> None:
    """Old runs have recorded nothing, and are compared by their configs alone."""

    def made_of(name: str, **inputs: str) -> Record:
        found = perplexities(base=1.0, found=1.7)
        words = {key.replace("member_", "member "): value for key, value in inputs.items()}
        return write(tmp_path / name, one_recipe(), held_out=found, meta={"inputs": words or None}).record()

    run = made_of("run", member_math="1", held_out="1")
    with pytest.raises(
        ConfigError, match="other was made of other models: member math differ between the runs"
    ):
        view(run, [made_of("other", member_math="2", held_out="1")])
    elsewhere = made_of("elsewhere", member_math="1", held_out="2")
    assert list(view(run, [elsewhere]).held_out[0].scores) == ["base", "found"]
    old = made_of("old")
    assert list(view(run, [old]).held_out[0].scores) == ["base", "found", "old"]


def test_recipes_of_other_models_than_the_config_names_are_refused(tmp_path: Path) -> None:
    family = {**CONFIG["family"], "variants": {"other": "org/other", "code": "org/code@v1"}}
    run = write(tmp_path / "run", one_recipe(), family=family)
    with pytest.raises(ConfigError, match="take layers of /home/alice/math, which is no member"):
        view(run.record())
