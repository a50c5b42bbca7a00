"""Everything in recipes/ is sound."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml

from gptailor_merge.config import FamilyConfig, SearchConfig
from gptailor_merge.objectives.tasks.harness import load_tasks
from gptailor_merge.objectives.tasks.metric import SMOOTH
from gptailor_merge.objectives.tasks.questions import text_of
from gptailor_merge.objectives.tasks.task import TaskConfig
from gptailor_merge.planning.check import check
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.runs.preparation import prepare
from gptailor_merge.target_config import Target
from gptailor_merge.testing.tiny_models import write_tokenizer

RECIPES = Path(__file__).parent.parent / "recipes"
DEMO = RECIPES / "demo"
TASKS = DEMO / "tasks"
TEXTS = {"validation": DEMO / "calibration", "test": DEMO / "held-out"}
"""Which of the demo's texts the items of a split are made of."""

DOMAINS = ("stories", "encyclopedia", "maths", "code")
PAIRS = ("drop_argument", "left_branch_island_echo_question", "superlative_quantifiers_2")


def is_recipe(file: Path) -> bool:
    return "merge_method" in yaml.safe_load(file.read_text())


HUB = sorted(file for file in RECIPES.glob("*.yml") if not is_recipe(file))
CONFIGS = [*HUB, *sorted(DEMO.glob("*.yml"))]

of_each_config = pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
of_each_domain = pytest.mark.parametrize("domain", DOMAINS)
of_each_split = pytest.mark.parametrize("split", TEXTS)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_papers_recipes(number: int) -> None:
    """Offline: lints; 30 of 40 layers, 25 % of the layers gone, sources at the slot's own layer."""
    file = RECIPES / f"llama-2-13b-gptailor-{number}.yml"
    recipe = Recipe.load(file)
    plan = check(recipe, file=file)
    assert len(plan.slots) == 30
    assert all(len({index for _, index in slot.layers}) == 1 for slot in plan.slots)
    removed = {
        layer
        for part in recipe.slices
        if part.parameter("op") == "remove"
        for layer in range(*part.sources[0].layer_range)
    }
    assert removed | {slot.layers[0][1] for slot in plan.slots} == set(range(40))
    text = file.read_text()
    assert "Known fault of the published code" in text


def test_the_readme_names_every_file() -> None:
    """And no other: its first column is what is there."""
    named = re.findall(r"^\| \[?`([^`]+\.yml)`", (RECIPES / "README.md").read_text(), flags=re.MULTILINE)
    assert sorted(named) == sorted(str(f.relative_to(RECIPES)) for f in RECIPES.rglob("*.yml"))


@of_each_config
def test_search_configs_load(file: Path) -> None:
    """Offline; what a run records of it is read back as the same."""
    config = SearchConfig.load(file)
    assert SearchConfig.model_validate(yaml.safe_load(config.to_yaml().split("environment:")[0])) == config


@pytest.mark.parametrize("file", HUB, ids=lambda file: file.stem)
def test_the_memory_in_a_header_is_that_of_the_family(file: Path) -> None:
    """Members x parameters x 2 bytes."""
    found = re.search(
        r"# Memory: (\d+) members x ([\d,]+) parameters x 2 bytes = ([\d.]+) GB", file.read_text()
    )
    assert found is not None
    members, parameters, gigabytes = int(found[1]), int(found[2].replace(",", "")), float(found[3])
    assert members == 1 + len(SearchConfig.load(file).family.variants)
    assert round(2 * members * parameters / 1e9, 1) == gigabytes


TINY = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
FAMILIES: dict[str, tuple[str, int]] = {
    "gemma-3-4b": ("Gemma3", 34),
    "llama-3.1-8b": ("Llama", 32),
    "mistral-small-24b": ("Mistral", 40),
    "qwen3-4b": ("Qwen3", 36),
    "smollm3-3b": ("SmolLM3", 36),
}
"""Search config -> transformers' name of the family's classes, and its depth."""


def write_base(directory: Path, classes: str, depth: int) -> Path:
    """Writes a model of the class and the depth, and of tiny widths."""
    settings = {**TINY, "num_hidden_layers": depth}
    with torch.device("meta"):  # no weight is looked at
        if classes == "Gemma3":  # beside a vision tower
            config = transformers.Gemma3Config(
                text_config=settings, vision_config=VISION, mm_tokens_per_image=4
            )
            model = transformers.Gemma3ForConditionalGeneration(config)
        else:
            config = getattr(transformers, f"{classes}Config")(**settings)
            model = getattr(transformers, f"{classes}ForCausalLM")(config)
    model.bfloat16().to_empty(device="cpu").save_pretrained(directory)
    write_tokenizer(directory)
    return directory


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_of_that_class_and_depth_can_be_searched_so(name: str, tmp_path: Path) -> None:
    """Its smallest size is in the space, and has a sound recipe; to lay out each size would take a second."""
    config, (classes, depth) = SearchConfig.load(RECIPES / f"{name}.yml"), FAMILIES[name]
    target = config.target.layers
    assert target is not None
    smallest, largest = (target, target) if isinstance(target, int) else target
    assert largest < depth
    base = write_base(tmp_path / "base", classes, depth)
    variants = {variant: str(shutil.copytree(base, tmp_path / variant)) for variant in config.family.variants}
    family = FamilyConfig(base=str(base), variants=variants)
    tiny = config.model_copy(update={"family": family, "target": Target(layers=smallest)})
    space = prepare(tiny).space
    recipe = space.recipe(space.decode(space.random(np.random.RandomState(0))))
    assert len(check(recipe, on_warning=lambda sentence: None).slots) == smallest


LIBRARY = ("arc", "gsm8k", "hellaswag", "mathqa", "piqa", "super_glue/boolq", "winogrande")
"""The folders of lm-eval's tasks that the configs take some of; to read them all takes half a minute."""


@pytest.fixture(scope="module")
def known() -> Mapping[str, Any]:
    """Name -> the YAML of the task or group, from lm-eval and from the demo."""
    import lm_eval.tasks

    library = Path(lm_eval.tasks.__file__).parent
    folders: list[str | Path] = [*(library / folder for folder in LIBRARY), TASKS]
    index = lm_eval.tasks.TaskManager(include_path=folders, include_defaults=False).task_index
    return {name: entry.cfg for name, entry in index.items()}


def tasks_of(section: tuple[Any, ...]) -> list[TaskConfig]:
    return [objective for objective in section if isinstance(objective, TaskConfig)]


def settings_of(name: str, known: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The YAML of a task, or of each of a group's."""
    settings = known[name]
    if "group" not in settings:
        yield settings
    for member in settings["task"] if "group" in settings else ():
        yield from settings_of(member, known)


@of_each_config
def test_tasks_are_known_to_lm_eval_and_searched_on_what_is_no_test_split(
    file: Path, known: Mapping[str, Any]
) -> None:
    """By their YAML; no data are loaded. What is climbed by a smooth metric is multiple choice."""
    config = SearchConfig.load(file)
    for objective in tasks_of((*config.objectives, *config.gates, *config.held_out)):
        for task in (settings for name in objective.tasks for settings in settings_of(name, known)):
            split = objective.split or task.get("validation_split") or task.get("training_split")
            assert objective in config.held_out or (split is not None and split != task.get("test_split"))
            assert objective.metric not in SMOOTH or task["output_type"] == "multiple_choice"


@of_each_config
def test_no_text_is_both_searched_on_and_held_out(file: Path) -> None:
    """Neither a file nor a split of a data set."""
    config = SearchConfig.load(file)
    sections = ((*config.objectives, *config.gates), config.held_out)
    searched, reported = (
        {str(source) for objective in section for source in objective.sources().values()}
        for section in sections
    )
    assert searched
    assert reported
    assert not searched & reported


def items(split: str, name: str) -> list[dict[str, Any]]:
    with (TASKS / split / f"{name}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def documents(split: str, domain: str) -> list[str]:
    with (TEXTS[split] / f"{domain}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def test_the_readme_names_every_task_and_every_file_of_items() -> None:
    readme = (TASKS / "README.md").read_text()
    assert {file.stem for file in TASKS.glob("*.yaml")} <= set(re.findall(r"`(gptailor_\w+)`", readme))
    files = {f"{split}/{name}.jsonl" for split in TEXTS for name in (*DOMAINS, *PAIRS)}
    assert {str(file.relative_to(TASKS)) for file in TASKS.rglob("*.jsonl")} == files
    assert {f"*/{name}.jsonl" for name in (*DOMAINS, *PAIRS)} == set(re.findall(r"`(\*/\w+\.jsonl)`", readme))


def test_tasks_load_from_any_directory_and_share_no_item(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As lm-eval sees them: all items of both files, each once, none in both splits."""
    monkeypatch.chdir(tmp_path)
    tasks = load_tasks(("gptailor_domains", "gptailor_blimp"), TASKS)
    names = {f"gptailor_{d}": d for d in DOMAINS} | {f"gptailor_blimp_{p}": p for p in PAIRS}
    assert set(tasks) == set(names)
    for name, task in tasks.items():
        texts = {split: [text_of(task, item) for item in task.dataset[split]] for split in TEXTS}
        assert {s: len(some) for s, some in texts.items()} == {s: len(items(s, names[name])) for s in TEXTS}
        everything = [text for some in texts.values() for text in some]
        assert len(set(everything)) == len(everything)


@of_each_domain
@of_each_split
def test_the_right_option_follows_its_passage_in_a_text_of_that_split(split: str, domain: str) -> None:
    """And in none of the other split's; the wrong ones stand in other texts, behind the same space."""
    own = documents(split, domain)
    (other,) = (documents(one, domain) for one in TEXTS if one != split)
    for item in items(split, domain):
        right = item["options"][item["label"]]
        whole = item["context"] + right
        sources = [text for text in own if whole in text]
        assert len(sources) == 1
        assert not any(whole in text for text in other)
        assert len(item["options"]) == len(set(item["options"])) == 4
        space = right[: -len(right.lstrip())]
        assert space
        assert space.isspace()
        for option in item["options"]:
            assert option[: -len(option.lstrip())] == space
            if option != right:
                assert any(option.strip() in text for text in own if text != sources[0])


@of_each_domain
@of_each_split
def test_the_right_option_is_as_often_in_each_place(split: str, domain: str) -> None:
    places = Counter(item["label"] for item in items(split, domain))
    assert places == dict.fromkeys(range(4), len(items(split, domain)) // 4)


@pytest.mark.parametrize("paradigm", PAIRS)
def test_pairs_differ_and_none_is_in_both_splits(paradigm: str) -> None:
    """All 500 of the paradigm are there."""
    pairs = {
        split: {(pair["sentence_good"], pair["sentence_bad"]) for pair in items(split, paradigm)}
        for split in TEXTS
    }
    assert all(good != bad for some in pairs.values() for good, bad in some)
    assert not pairs["validation"] & pairs["test"]
    assert len(pairs["validation"] | pairs["test"]) == 500
