"""gptailor heal: a recipe and texts in, the recipe with an adapter or a trained model out."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback
from typer.testing import CliRunner

from gptailor_merge.api.healings import heal
from gptailor_merge.calibration.batches import Batch
from gptailor_merge.calibration.texts import TokenSet
from gptailor_merge.cli.app import app
from gptailor_merge.composing.editing import save_gains
from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import ConfigError, DataError, FamilyError, InputError, RecipeError, ScoringError
from gptailor_merge.healing import healed_recipe, healer, training
from gptailor_merge.healing.facts import facts_on
from gptailor_merge.healing.healed_recipe import HealedRecipe, heal_recipe
from gptailor_merge.healing.healer import HealOptions, heal_plan
from gptailor_merge.healing.lessons import lessons
from gptailor_merge.healing.used_texts import UsedTexts
from gptailor_merge.models.loading import load_tokenizer
from gptailor_merge.objectives.protocols import Prediction
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.testing.three_models import assert_three_equal
from tests.conftest import DEMO
from tests.repair.test_repaired_recipe import demo

CPU = torch.device("cpu")
TEXTS = {name: str(DEMO / "calibration" / f"{name}.jsonl") for name in ("stories", "maths")}
MEMBERS = {name: str(DEMO / "family" / name) for name in TEXTS}
OUTER = {"model.norm.weight": torch.full((128,), 1.1)}
FEW = HealOptions(rank=4, tokens=1536, step_tokens=256, sequence_length=64, rate=0.004)


@pytest.fixture(scope="module")
def block() -> Recipe:
    """The base without the layers 4 and 5."""
    slices = (("base", 0, 4, "select"), ("base", 4, 6, "remove"), ("base", 6, 12, "select"))
    return demo(*slices, dtype="float32", out_dtype="bfloat16")


def run(recipe: Recipe, out: Path, options: HealOptions = FEW, **settings: Any) -> HealedRecipe:
    out.mkdir(exist_ok=True)
    standard: dict[str, Any] = {"members": MEMBERS, "teachers": {}, "checkpoints": out.with_suffix(".ckpt")}
    return heal_recipe(recipe, TEXTS, out, options=options, device=CPU, **{**standard, **settings})


def test_a_healed_recipe_is_better_and_one_model_by_every_way(block: Recipe, tmp_path: Path) -> None:
    said: list[str] = []
    healed = run(block, tmp_path / "out", progress=said.append)
    assert healed.healing.after < healed.healing.before - 0.02
    assert healed.healing.facts == facts_on(healed.recipe, tmp_path / "out")
    assert healed.healing.facts is not None
    assert healed.healing.facts.teachers == {"stories": "stories", "maths": "maths"}
    # Of 24 sequences of 64 tokens, one of each text is held apart.
    assert (healed.healing.facts.tokens, healed.healing.facts.rank, healed.healing.steps) == (1408, 4, 6)
    assert said[0] == "running the teachers"
    assert said[-1].startswith("healing, step 6 of 6: loss ")
    assert sorted(file.name for file in (tmp_path / "out" / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert str(tmp_path) not in (tmp_path / "out" / "adapter" / "adapter_config.json").read_text()
    assert_three_equal(healed.recipe, tmp_path / "model")
    with pytest.raises(RecipeError, match="the recipe is healed, which comes last"):
        run(healed.recipe, tmp_path / "again")


def test_all_weights_are_trained_and_the_recipe_stays(block: Recipe, tmp_path: Path) -> None:
    options = HealOptions(rank=None, tokens=512, step_tokens=256, sequence_length=64, rate=0.001)
    healed = run(block, tmp_path, options, teachers={"maths": "base"})
    assert healed.healing.after < healed.healing.before
    assert healed.recipe == block
    assert healed.healing.facts is not None
    assert (healed.healing.facts.method, healed.healing.facts.rank) == ("full", None)
    assert healed.healing.facts.teachers == {"stories": "stories", "maths": "base"}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    assert model.dtype == torch.bfloat16
    assert model.config.num_hidden_layers == 10
    assert healed.healing.parameters == model.num_parameters()
    assert load_tokenizer(tmp_path / "model").get_vocab()


def test_without_a_teacher_the_text_itself_is_the_aim(block: Recipe, tmp_path: Path) -> None:
    options = HealOptions(rank=4, tokens=512, step_tokens=256, sequence_length=64, cross_entropy=1.0)
    said: list[str] = []
    healed = run(block, tmp_path, options, progress=said.append)
    assert "running the teachers" not in said
    assert healed.healing.before > 3  # nats of the text, not of a divergence
    assert healed.healing.facts is not None
    assert healed.healing.facts.teachers == {}


class Killed(TrainerCallback):
    """Kills the process, so to speak, when a step has ended."""

    last = 4

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.last:
            raise KeyboardInterrupt


def test_what_was_killed_goes_on_to_the_same_end(
    block: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = run(block, tmp_path / "one")
    with monkeypatch.context() as patched:
        callbacks = training._Observer
        patched.setattr(training, "_Observer", type("Observer", (Killed, callbacks), {}))
        with pytest.raises(KeyboardInterrupt):
            run(block, tmp_path / "two")
    (whole,) = (tmp_path / "two.ckpt").glob("checkpoint-*")
    torn = shutil.copytree(whole, whole.with_name("checkpoint-4"))  # killed again, while it was written
    (torn / "trainer_state.json").write_text('{"global_step": ')
    said: list[str] = []
    reported: list[int] = []
    healed = run(block, tmp_path / "two", progress=said.append, report=lambda step, _: reported.append(step))
    assert reported == [0, 1, 2, 3, 4, 5, 6]
    assert (healed.healing.tokens, undisturbed.healing.tokens) == (1408, 1408)
    assert [sentence for sentence in said if "step 1 of" in sentence] == []
    assert (healed.healing.before, healed.healing.after, healed.healing.steps) == (
        undisturbed.healing.before,
        undisturbed.healing.after,
        undisturbed.healing.steps,
    )
    one, two = (tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_tokens_that_were_trained_on_are_counted(block: Recipe, tmp_path: Path) -> None:
    """Steps of 6 sequences are of 4; of two texts with 7 sequences for training each, the last step has 2."""
    options = HealOptions(rank=2, tokens=800, step_tokens=300, sequence_length=50, rate=1e-3)
    healed = run(block, tmp_path, options)
    assert (options.course().rows, healed.healing.steps) == (4, 4)
    assert healed.healing.tokens == 50 * (4 + 4 + 4 + 2)
    assert healed.healing.facts is not None
    assert healed.healing.facts.tokens == healed.healing.tokens


def test_checkpoints_of_something_else_are_not_gone_on_from(tmp_path: Path) -> None:
    directory = tmp_path / "ckpt"
    healer._prepare(directory, "one")
    (directory / "checkpoint-1").mkdir()
    healer._prepare(directory, "one")
    assert (directory / "checkpoint-1").is_dir()
    healer._prepare(directory, "two")
    assert not (directory / "checkpoint-1").exists()


def test_where_memory_runs_out_batches_are_halved(
    block: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def train(*_: Any, batch_rows: int, **__: Any) -> None:
        seen.append(batch_rows)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(healer, "train", train)
    with pytest.raises(ScoringError, match="memory does not suffice to train on one sequence of 64 tokens"):
        run(block, tmp_path)
    assert seen == [4, 2, 1]


def test_accumulated_batches_are_one_step(
    block: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(block, tmp_path / "whole")
    monkeypatch.setattr(healer, "LOGITS_BYTES", 1)
    parts = run(block, tmp_path / "parts")
    assert parts.healing.after == pytest.approx(whole.healing.after, abs=2e-4)


def test_what_does_not_help_is_not_kept(block: Recipe, tmp_path: Path) -> None:
    options = HealOptions(rank=4, tokens=256, step_tokens=256, sequence_length=64, rate=1e9)
    healed = run(block, tmp_path, options)
    assert not healed.helps
    assert (healed.recipe, healed.healing.after) == (block, healed.healing.before)
    assert list(tmp_path.iterdir()) == []


def test_members_without_a_text_and_texts_that_are_short_are_told(
    block: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(healer, "lessons", stop)
    options = HealOptions(rank=4, tokens=10**6, sequence_length=256)
    with pytest.raises(KeyboardInterrupt):
        run(block, tmp_path, options, teachers={"maths": "base"}, progress=said.append)
    assert said[0] == "no text is taught by maths; --data MEMBER=FILE gives a member one"
    assert re.fullmatch(r"the texts have \d\d,\d{3} tokens, fewer than 1,000,000: they are repeated", said[1])


def test_a_teacher_with_another_tokenizer_is_named(
    block: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = shutil.copytree(MEMBERS["maths"], tmp_path / "other")
    document = json.loads((other / "tokenizer.json").read_text())
    ids = document["model"]["vocab"]
    ids["Ġthe"], ids["Ġof"] = ids["Ġof"], ids["Ġthe"]
    (other / "tokenizer.json").write_text(json.dumps(document))
    monkeypatch.setattr(healed_recipe, "heal_plan", lambda *_, **__: pytest.fail("weights are loaded"))
    message = "maths cannot be compared with on these texts, which hold '.*(the|of)'; it has other tokens"
    with pytest.raises(FamilyError, match=message):
        run(block, tmp_path / "out", members={**MEMBERS, "maths": str(other)})


def test_another_gpu_is_refused_in_a_sentence(tmp_path: Path) -> None:
    composer: Any = SimpleNamespace(device=torch.device("cuda:1"))
    with pytest.raises(ConfigError, match="expected --device cuda with CUDA_VISIBLE_DEVICES=1, found cuda:1"):
        heal_plan(
            SimpleNamespace(),  # type: ignore[arg-type]
            composer,
            [],
            tmp_path,
            taught={},
            teacher=lambda name: pytest.fail("a teacher runs"),
            checkpoints=tmp_path,
            options=FEW,
            progress=print,
        )


def test_fewer_tokens_than_a_step_has_make_shorter_steps() -> None:
    course = HealOptions(tokens=1000, sequence_length=64).course()
    assert (course.steps, course.rows) == (2, 8)
    course = HealOptions(tokens=16384, step_tokens=8192).course()
    assert (course.steps, course.rows) == (2, 16)
    course = HealOptions(tokens=16384, step_tokens=8192).course(processes=3)
    assert (course.steps, course.rows) == (3, 12)  # four sequences for each process


def test_lessons_are_apart_and_take_turns() -> None:
    def token_set(name: str, count: int) -> TokenSet:
        ids = tuple(torch.full((4,), number) for number in range(count))
        return TokenSet(name, ids, name)

    found = lessons([token_set("a", 40), token_set("b", 3)], {}, top_k=1, device=CPU)
    firsts = [int(lesson["input_ids"][0]) for lesson in found.taught]
    assert firsts[:6] == [0, 0, 1, 1, 2, 3]
    assert [int(lesson["input_ids"][0]) for lesson in found.apart] == [19, 39, 2]
    assert len(found.taught) == 40
    with pytest.raises(DataError, match="b: one sequence of 4 tokens is all there is"):
        lessons([token_set("b", 1)], {}, top_k=1, device=CPU)


def test_a_text_under_two_names_is_taught_under_both() -> None:
    def forward(batch: Batch) -> Iterator[Prediction]:
        for segment in batch.segments:
            ids = batch.ids[segment.at.start : segment.at.stop, 1:]
            yield Prediction.of(segment, ids, torch.eye(50)[ids] * 9)

    ids = tuple(torch.arange(number, number + 4) for number in range(4))
    sets = [TokenSet("a", ids, "equal"), TokenSet("b", ids, "equal")]
    teachers = dict.fromkeys("ab", ("the base", forward))
    found = lessons(sets, teachers, top_k=1, device=CPU)
    assert [lesson["indices"].flatten().tolist() for lesson in found.apart] == [[4, 5, 6]] * 2
    assert [lesson["indices"][0].item() for lesson in found.taught] == [1, 1, 2, 2, 3, 3]


def test_texts_that_a_run_has_used_are_refused() -> None:
    config = SearchConfig.load(DEMO / "search.yml")
    tokenizer = load_tokenizer(DEMO / "family" / "base")
    used = UsedTexts.of(config, tokenizer)

    def sets(names: Sequence[str]) -> list[TokenSet]:
        return [TokenSet("mine", (), "", frozenset(names))]

    known = {purpose: document for document, purpose in used.used_for.items()}
    assert known.keys() == {"is calibrated on", "is measured on"}
    used.refuse(sets(["quite another text"]))
    for purpose, document in known.items():
        with pytest.raises(DataError, match=f"mine: 1 of 2 documents are those that the run {purpose}"):
            used.refuse(sets([document, "quite another text"]))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"teachers": ["maths=nobody"]}, RecipeError, "the teacher 'nobody' is no member"),
        ({"teachers": ["mahts=base"]}, ConfigError, "--teacher: 'mahts' is no text; the texts are maths"),
        ({"report_to": ["bogus"]}, ConfigError, "--report-to: unknown tracker, found 'bogus'"),
        ({"teachers_in_8bit": True}, ConfigError, "8 bits need the package bitsandbytes; pip install 'gptai"),
        ({"rate": 0.0}, ConfigError, "--rate: expected a number above 0, found 0.0"),
        ({"cross_entropy": 2.0}, ConfigError, "--cross-entropy: expected a share from 0 to 1, found 2.0"),
        ({"data": ["maths=none.jsonl"]}, InputError, "none.jsonl"),
    ],
)
def test_bad_input_is_a_sentence(
    settings: dict[str, Any], error: type[Exception], message: str, block: Recipe, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"data": [f"maths={TEXTS['maths']}"], "members": MEMBERS, **settings}
    with pytest.raises(error, match=message):
        heal(block, given.pop("data"), tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_the_command(block: Recipe, tmp_path: Path) -> None:
    file, (gains, digest) = tmp_path / "recipe.yml", save_gains(OUTER, tmp_path, "gains.safetensors")
    parameters = block.parameters.model_copy(update={"gains": "gains.safetensors", "gains_digest": digest})
    file.write_text(block.model_copy(update={"parameters": parameters}).to_yaml())
    arguments = ["heal", str(tmp_path), "--data", f"maths={TEXTS['maths']}", "--lora", "2", "--json"]
    arguments += ["--tokens", "512", "--sequence-length", "64", "--rate", "0.004", "--device", "cpu"]
    arguments += ["--report-to", "tensorboard"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "healed")])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed["helps"]
    assert printed["facts"]["teachers"] == {"maths": "base"}
    healed = Recipe.load(tmp_path / "healed" / "recipe.yml").parameters
    assert healed.adapter is not None
    assert healed.gains == str(gains)  # which the recipe had named by its own place
    assert not list(tmp_path.glob(".healed*"))
    assert list((tmp_path / "healed" / "tensorboard").iterdir())


def test_hidden_states_are_trained_towards_and_not_part_of_what_is_measured(
    block: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[bool] = []
    original = training.distance

    def counted(*arguments: Any) -> torch.Tensor:
        compared.append(torch.is_grad_enabled())
        return original(*arguments)

    monkeypatch.setattr(training, "distance", counted)
    few = HealOptions(rank=2, tokens=512, step_tokens=256, sequence_length=64, rate=0.004)
    with_states = run(block, tmp_path / "with", few)
    assert compared
    assert all(compared)
    count = len(compared)
    without = run(block, tmp_path / "without", replace(few, hidden_states=0.0))
    alone = run(block, tmp_path / "alone", replace(few, cross_entropy=1.0))
    assert len(compared) == count
    assert with_states.healing.before == without.healing.before
    assert with_states.healing.after != without.healing.after
    assert alone.helps


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_named(block: Recipe, tmp_path: Path, weight: float) -> None:
    message = f"--hidden-states: expected a weight of at least 0, found {weight}"
    with pytest.raises(ConfigError, match=re.escape(message)):
        heal(block, [f"maths={TEXTS['maths']}"], tmp_path / "out", hidden_states=weight, device="cpu")
