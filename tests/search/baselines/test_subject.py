"""The models of full depth that baselines prune."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gptailor_merge.composing.bank import Bank, Precision
from gptailor_merge.composing.compose import Composer
from gptailor_merge.errors import ConfigError
from gptailor_merge.models.family import Family
from gptailor_merge.planning.check import check
from gptailor_merge.planning.writing import recipe_of
from gptailor_merge.search.baselines.subject import MERGES, base_of, subject_of
from gptailor_merge.space.space import Space
from tests.conftest import MakeFamily, write_member

UP = "model.layers.2.mlp.up_proj.weight"
EMBEDDINGS = "model.embed_tokens.weight"


def parts(family: dict[str, str]) -> tuple[Family, Space]:
    loaded = Family.load(family["base"], {n: family[n] for n in ("math", "code")})
    models = tuple(member.model for member in loaded.members)
    return loaded, Space(models, 5, (3,), (1, 2, 3), ("linear",), "float32", "float32")


def weights(family: dict[str, str], name: str) -> list[torch.Tensor]:
    return [load_file(Path(family[m]) / "model.safetensors")[name].float() for m in ("base", "math", "code")]


def test_the_base_is_what_the_space_selects(family: dict[str, str]) -> None:
    _, space = parts(family)
    for removed in ({1}, {1, 3}, {1, 2, 3}):
        ours, theirs = base_of(space).without(removed), space.select(0, removed)
        assert ours.digest == theirs.digest
        assert ours == theirs


def test_a_member_has_its_own_embeddings_and_head(family: dict[str, str]) -> None:
    loaded, space = parts(family)
    given = subject_of(loaded, space, member="math", merge=None)
    assert given is not None
    assert given.member == family["math"]
    made = check(recipe_of(given.without({2}), 5))
    assert made.embeddings[0] == made.head[0] == (family["math"],)
    assert {model for slot in made.slots for model, _ in slot.layers} == {family["math"]}
    dense = Composer(Bank(loaded, Precision.of("float32", "float32"))).compose(
        check(recipe_of(given.without(()), 5))
    )
    for name, tensor in load_file(Path(family["math"]) / "model.safetensors").items():
        assert torch.equal(dense.state_dict()[name], tensor.float()), name


@pytest.mark.parametrize("method", MERGES)
def test_a_merge_is_of_all_members_embeddings_and_head_included(method: str, family: dict[str, str]) -> None:
    loaded, space = parts(family)
    given = subject_of(loaded, space, member=None, merge=method)
    assert given is not None
    assert given.member is None
    made = Composer(Bank(loaded, Precision.of("float32", "float32"))).compose(
        check(recipe_of(given.without({1}), 5))
    )
    place = {UP: "model.layers.1.mlp.up_proj.weight"}
    for name in (UP, EMBEDDINGS):
        found = made.state_dict()[place.get(name, name)]
        base, *others = weights(family, name)
        if method == "linear":
            torch.testing.assert_close(found, sum([base, *others]) / 3)
        elif method == "task_arithmetic":
            torch.testing.assert_close(found, base + 0.4 * sum(other - base for other in others))
        else:
            kept = [torch.where(_largest(o - base), o - base, 0.0) for o in others]
            sign = torch.sign(sum(kept))
            agree = [(torch.sign(one) == sign) & (one != 0) for one in kept]
            count = sum(a.float() for a in agree).clamp(min=1)
            expected = (
                base + sum(torch.where(a, one, 0.0) for a, one in zip(agree, kept, strict=True)) / count
            )
            assert (torch.isclose(found, expected, atol=1e-5)).float().mean() > 0.99


def _largest(delta: torch.Tensor) -> torch.Tensor:
    count = int(0.2 * delta.numel())
    return delta.abs() >= delta.abs().flatten().topk(count).values[-1]


def test_of_tied_embeddings_and_other_vocabularies(make_family: MakeFamily, tmp_path: Path) -> None:
    """A member whose vocabulary has another size keeps its layers and gets the base's embeddings."""
    tied = make_family(tied=True)
    for options in ({"member": "code", "merge": None}, {"member": None, "merge": "ties"}):
        given = subject_of(*parts(tied), **options)  # type: ignore[arg-type]
        assert given is not None
        check(recipe_of(given.without({2}), 5))
    odd = {**make_family(), "math": str(write_member(tmp_path / "math", 1, vocabulary=80))}
    for options in ({"member": "math", "merge": None}, {"member": None, "merge": "linear"}):
        given = subject_of(*parts(odd), **options)  # type: ignore[arg-type]
        assert given is not None
        assert check(recipe_of(given.without({2}), 5)).embeddings[0] == (odd["base"],)


def test_what_is_no_subject_is_told(family: dict[str, str]) -> None:
    loaded, space = parts(family)
    assert subject_of(loaded, space, member=None, merge=None) is None
    with pytest.raises(ConfigError, match=r"--member: no such member, found 'maths'; did you mean 'math'\?"):
        subject_of(loaded, space, member="maths", merge=None)
    with pytest.raises(
        ConfigError, match="--merge: expected one of linear, task_arithmetic, ties, found 'slerp'"
    ):
        subject_of(loaded, space, member=None, merge="slerp")
    with pytest.raises(ConfigError, match="--member prunes one member and --merge a merge of all"):
        subject_of(loaded, space, member="math", merge="ties")
    alone = Family.load(family["base"], {})
    with pytest.raises(ConfigError, match="a merge takes two models or more, the family has one"):
        subject_of(alone, space, member=None, merge="ties")
