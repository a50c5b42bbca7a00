"""Exports a plan as configurations that mergekit runs without this package, see export_stages.py.

If a config depends on more than the number of layers, the configurations name a skeleton as their base
model: a directory with the right config.json and the tokenizer, and a placeholder for weights.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from mergekit.architecture import arch_info_for_config
from safetensors.torch import save_file
from transformers import AutoConfig

from gptailor_merge.documents import write_yaml
from gptailor_merge.errors import Problem, RecipeError
from gptailor_merge.host.export_stages import Stage, model_path, stages
from gptailor_merge.methods.arithmetic import name_in_layer
from gptailor_merge.models.architecture import misfits, pruned
from gptailor_merge.models.checkpoint import ModelId
from gptailor_merge.models.chosen_weights import INDEX, SINGLE, choose
from gptailor_merge.models.depth import DEPTH
from gptailor_merge.models.family import Family
from gptailor_merge.models.member import Member
from gptailor_merge.recipe.plan import NORMS, Plan

RECIPE = "recipe.yml"
"""The file that holds the configurations."""


SKELETON = "./skeleton"
"""The skeleton of the last configuration; the others' have a suffix."""


_TOKENIZER = ("tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt", "added_tokens.json")


_TEMPLATES = ("chat_template.*", "generation_config.json")


_GAINS = "the gains of norms are fitted numbers, and no method of mergekit reads a tensor from a file"


_ADAPTER = (
    "an adapter is added to the pruned model, and mergekit adds one to whole members only; write the model "
    "with gptailor merge, or export the recipe without its adapter and load that with peft"
)


_RANDOM = ("dare", "della")
"""Prefixes of methods that draw random numbers, which mergekit draws anew in every run."""


def export(plan: Plan, family: Family, out: Path, *, chat_template: str | None = None) -> bool:
    """Writes `recipe.yml`, and the skeletons that it names, to a directory.

    Returns:
        True if `mergekit-multi` is needed, since there is more than one configuration.

    Raises:
        RecipeError: stock mergekit cannot make the model.
    """
    plan_stages = stages(plan, family.base.config)
    problems = [
        *_plan_problems(plan),
        *_weight_problems(family),
        *_architecture_problems(plan, plan_stages, family.base),
    ]
    if problems:
        raise RecipeError(f"there is no plain mergekit configuration: {'; '.join(problems)}")
    documents = [_document(stage, plan, family, out, chat_template) for stage in plan_stages]
    (out / RECIPE).write_text(write_yaml(*documents), encoding="utf-8")
    return len(documents) > 1


def _document(
    stage: Stage, plan: Plan, family: Family, out: Path, chat_template: str | None
) -> dict[str, Any]:
    document: dict[str, Any] = {} if stage.name is None else {"name": stage.name}
    base = _base_model(stage, plan, family, out)
    if base.startswith(SKELETON) and chat_template == "auto":
        text = "auto would count the skeleton's template as well; name a template"
        raise RecipeError(Problem(("chat_template",), text))
    document |= {"merge_method": stage.method, "base_model": base}
    of_model = {"out_dtype": plan.out_dtype, "chat_template": chat_template} if stage.name is None else {}
    optional = {"dtype": plan.dtype, **of_model}
    document |= {key: value for key, value in optional.items() if value is not None}
    return {**document, "slices": list(stage.slices)}


def _base_model(stage: Stage, plan: Plan, family: Family, out: Path) -> str:
    """Returns the model whose config mergekit adapts: a member, or a skeleton, which is written to `out`."""
    donor = family.by_model(plan.tokenizer)
    base_config = family.base.config
    config = pruned(base_config, stage.kept, donor.config)
    depends = {key for key in config if config[key] != base_config.get(key)} - {DEPTH}
    if not depends and donor is family.base and _definition(family.base) is not None:
        return model_path(plan.base_model)
    name = SKELETON if stage.name is None else f"{SKELETON}-{stage.name}"
    directory = out / name
    directory.mkdir()
    AutoConfig.for_model(**config).save_pretrained(directory)
    for pattern in (*_TOKENIZER, *_TEMPLATES):
        for file in donor.directory.glob(pattern):
            shutil.copy(file, directory / file.name)
    # mergekit opens the weights of every model that a configuration names.
    save_file({"skeleton": torch.zeros(1)}, directory / "model.safetensors")
    return name


def _plan_problems(plan: Plan) -> Iterator[str]:
    """Yields parts of a plan that no plain configuration can express."""
    if plan.adapter is not None:
        yield _ADAPTER
        return
    if plan.gains is not None:
        yield _GAINS
        return
    for slot in plan.slots:
        method = slot.operation.method
        if any(edit.is_repair for edit in slot.edits):
            yield "a repair is a matrix product, which no method of mergekit computes"
            return
        if any(edit.part == NORMS for edit in slot.edits):
            yield _GAINS
            return
        if method.startswith(_RANDOM):
            yield f"{method} draws random numbers, and mergekit draws others in every run"
            return
    models = {model for slot in plan.slots for model, _ in slot.layers}
    outer = {plan.base_model, plan.tokenizer, *plan.embeddings.models, *plan.head.models}
    for model in sorted(outer | models):
        if ModelId.parse(model).is_local and set(model_path(model)) & set("@+"):
            yield f"mergekit misreads {model!r}, which has an @ or a + in it; rename the directory"


def _weight_problems(family: Family) -> Iterator[str]:
    """Yields members of which mergekit would read other weights than transformers."""
    for member in family.members:
        chosen = choose(member.directory)
        if chosen.index is None and ((member.directory / INDEX).exists() or chosen.files != (SINGLE,)):
            yield f"of {member.model}, mergekit would not read {chosen.files[0]}, as transformers does"


def _architecture_problems(plan: Plan, plan_stages: Sequence[Stage], base: Member) -> Iterator[str]:
    """Yields differences between mergekit's definition of the architecture and the model."""
    if base.architecture.rest:
        yield f"mergekit divides {base.config['model_type']} into modules, and a recipe has only its layers"
        return
    for stage in plan_stages:
        if misfits(base.config, stage.kept):
            yield f"the config cannot describe the layers that are merged by {stage.method} alone"
    architecture = base.architecture
    names = {
        *architecture.before,
        *architecture.after,
        *(f"{architecture.prefix}{i}.{n}" for i, layer in enumerate(architecture.layers) for n in layer),
    }
    converted = [name for name in sorted(names) if name not in base.headers]
    if converted:
        yield f"stock mergekit cannot make {converted[0]} of this checkpoint"
        return
    definition = _definition(base)
    if definition is not None:
        weights = {w.name: w.optional for w in definition.all_weights(_config(base))}
        if missing := sorted(names - set(weights)):
            yield f"stock mergekit's definition of this architecture leaves out {missing[0]}"
        if odd := sorted(n for n, optional in weights.items() if not optional and n not in names):
            yield f"stock mergekit's definition of this architecture demands {odd[0]}, which is not there"
    elif plan.embeddings != plan.head:
        yield "mergekit has no definition of this architecture; embeddings and head must come from one model"
    yield from _filter_problems(plan, base)


def _filter_problems(plan: Plan, base: Member) -> Iterator[str]:
    """Yields the first filter that matches a whole name and not the name inside the layer, or vice versa."""
    architecture = base.architecture
    for slot in plan.slots:
        inputs = slot.operation.inputs
        settings = [*slot.operation.shared, *(pair for of_input in inputs for pair in of_input)]
        filters = {f for _, value in settings if isinstance(value, tuple) for f, _ in value if f}
        for name in architecture.layers[slot.layers[0][1]]:
            full = f"{architecture.prefix}0.{name}"
            for text in filters:
                if (text in full) != (text in name_in_layer(full)):
                    yield f"mergekit applies the filter {text!r} to whole names, such as {full}"
                    return


def _definition(base: Member) -> Any:
    """Returns mergekit's definition of an architecture, or None."""
    return arch_info_for_config(_config(base))


def _config(base: Member) -> Any:
    return AutoConfig.for_model(**base.config)
