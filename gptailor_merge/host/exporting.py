"""A plan as configurations that mergekit runs without this package.

A mergekit configuration has one method. What is merged is therefore written first, by one
configuration per method, and the last one stacks layers of the members and of these. Where a config
depends on more than the number of layers, the configurations name a skeleton as their base model: a
directory with the right config.json, the tokenizer, and no weights to speak of.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mergekit.architecture import arch_info_for_config
from safetensors.torch import save_file
from transformers import AutoConfig

from gptailor_merge.composing.exits import placed
from gptailor_merge.documents import write_yaml
from gptailor_merge.errors import Problem, RecipeError
from gptailor_merge.methods.arithmetic import name_in_layer
from gptailor_merge.models.architecture import misfits, pruned
from gptailor_merge.models.checkpoint import ModelId
from gptailor_merge.models.depth import DEPTH
from gptailor_merge.models.family import Family
from gptailor_merge.models.member import Member
from gptailor_merge.recipe.plan import SELECT, Filtered, Operation, Plan, Scalar, Settings, Slot

RECIPE = "recipe.yml"


Layer = tuple[str, int, Settings]
"""A model, a layer of it, and what passthrough takes for it."""


SKELETON = "./skeleton"
"""Where the configurations look for the last one's, and with a suffix for the others'."""


_TOKENIZER = ("tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt", "added_tokens.json")


_TEMPLATES = ("chat_template.*", "generation_config.json")


_RANDOM = ("dare", "della")
"""Methods that draw random numbers, which mergekit draws anew in every run."""


@dataclass(frozen=True)
class Stage:
    """One configuration: layers that are made by one method.

    Attributes:
        name: of the intermediate model; None is the model itself.
        kept: of each layer the layer of the base whose kind it is of.
        slices: as in the configuration.
    """

    name: str | None
    method: str
    kept: tuple[int, ...]
    slices: tuple[Mapping[str, Any], ...]


def export(plan: Plan, family: Family, out: Path, *, chat_template: str | None = None) -> bool:
    """Write `recipe.yml`, and the skeletons that it names, to a directory.

    Returns:
        Whether it takes `mergekit-multi`, having more than one configuration.

    Raises:
        RecipeError: what stock mergekit cannot do.
    """
    found = stages(plan, family.base.config)
    problems = [*_problems(plan), *_architecture_problems(plan, found, family.base)]
    if problems:
        raise RecipeError(f"there is no plain mergekit configuration: {'; '.join(problems)}")
    documents = []
    for stage in found:
        document: dict[str, Any] = {} if stage.name is None else {"name": stage.name}
        base = _base(stage, plan, family, out)
        if base.startswith(SKELETON) and chat_template == "auto":
            raise RecipeError(
                Problem(
                    ("chat_template",), "auto would count the skeleton's template as well; name a template"
                )
            )
        document |= {"merge_method": stage.method, "base_model": base}
        dtypes = {"dtype": plan.dtype, "out_dtype": plan.out_dtype if stage.name is None else None}
        last = {"chat_template": chat_template if stage.name is None else None}
        document |= {key: value for key, value in {**dtypes, **last}.items() if value is not None}
        documents.append({**document, "slices": list(stage.slices)})
    (out / RECIPE).write_text(write_yaml(*documents), encoding="utf-8")
    return len(documents) > 1


def stages(plan: Plan, config: Mapping[str, Any]) -> list[Stage]:
    """The configurations of a plan, the last of which makes the model.

    Args:
        config: of the base.
    """
    methods = dict.fromkeys(s.operation.method for s in plan.slots if s.operation.method != SELECT)
    again = _repeated(plan.slots)
    made = [
        Stage(
            name,
            SELECT,
            tuple(layer for _, layer in layers),
            tuple(_part(_model(m), i, i + 1) for m, i in layers),
        )
        for name, layers in again.items()
    ]
    places: dict[Slot, tuple[str, int]] = {}
    for method in methods:
        slots = list(dict.fromkeys(slot for slot in plan.slots if slot.operation.method == method))
        name = f"merged-by-{method}"
        places |= {slot: (name, place) for place, slot in enumerate(slots)}
        slices = [_slice(_sources(slot, again), slot.operation) for slot in slots]
        made.append(Stage(name, method, tuple(slot.layers[0][1] for slot in slots), tuple(slices)))
    ends: dict[str, str] = {}
    for end, (models, operation) in (("embeddings", plan.embeddings), ("head", plan.head)):
        ends[end] = _model(models[0])
        if operation.method != SELECT:
            ends[end] = f"merged-{end}"
            # One layer, since mergekit writes no model without; embeddings and head come with it.
            made.append(
                Stage(
                    ends[end],
                    operation.method,
                    (0,),
                    (_slice([(_model(m), 0, 1) for m in models], operation),),
                )
            )
    layers: list[Layer] = []
    for slot in plan.slots:
        model, place = places.get(slot) or (_model(slot.layers[0][0]), slot.layers[0][1])
        scale = slot.operation.inputs[0] if slot.operation.method == SELECT else ()
        layers.append((model, place, _without(slot, config, scale)))
    stacked = [_part(ends["embeddings"], 0, 0), *_runs(layers), _part(ends["head"], 0, 0)]
    return [*made, Stage(None, SELECT, plan.kept, tuple(stacked))]


def _without(slot: Slot, config: Mapping[str, Any], scale: Settings) -> Settings:
    """passthrough's setting for a slot: what is left out is scaled to nothing, the rest as before."""
    left_out = placed([e for e in slot.edits if e.digest is None], config, slot.layers[0][1])
    zeros: list[tuple[str | None, Scalar]] = [(name, 0.0) for one in left_out for name in one.names]
    if not zeros:
        return scale
    given = dict(scale).get("scale", 1.0)
    return (("scale", (*zeros, *(given if isinstance(given, tuple) else ((None, given),)))),)


def _again(slot: Slot) -> Iterator[str | None]:
    """For each source the intermediate model that gives its layer, where its own is in the slot already.

    mergekit wants the layers of a slice to be of different models.
    """
    seen: set[str] = set()
    repeated = 0
    for model, _ in slot.layers:
        if model in seen:
            repeated += 1
            yield f"again-{repeated}"
        else:
            yield None
        seen.add(model)


def _repeated(slots: Sequence[Slot]) -> dict[str, list[tuple[str, int]]]:
    """name of such an intermediate model -> the layers that it is a stack of."""
    found: dict[str, list[tuple[str, int]]] = {}
    for slot in slots:
        for layer, name in zip(slot.layers, _again(slot), strict=True):
            if name is not None and layer not in found.setdefault(name, []):
                found[name].append(layer)
    return found


def _sources(slot: Slot, again: Mapping[str, Sequence[tuple[str, int]]]) -> list[tuple[str, int, int]]:
    """What a slot is made of, as (model, first layer, past the last) of its own or of `again`."""
    sources = []
    for (model, layer), name in zip(slot.layers, _again(slot), strict=True):
        first = layer if name is None else again[name].index((model, layer))
        sources.append((name or _model(model), first, first + 1))
    return sources


def _runs(layers: Sequence[Layer]) -> Iterator[dict[str, Any]]:
    """One slice for layers that follow each other in one model."""
    begun = 0
    for place in range(1, len(layers) + 1):
        model, first, scale = layers[begun]
        if place == len(layers) or layers[place] != (model, first + place - begun, scale):
            yield _part(model, first, first + place - begun, scale)
            begun = place


def _part(model: str, first: int, last: int, settings: Settings = ()) -> dict[str, Any]:
    parameters = {"parameters": _parameters(settings)} if settings else {}
    return {"sources": [{"model": model, "layer_range": [first, last], **parameters}]}


def _slice(sources: Sequence[tuple[str, int, int]], operation: Operation) -> dict[str, Any]:
    written: dict[str, Any] = {"sources": []}
    for (model, first, last), settings in zip(sources, operation.inputs, strict=True):
        written["sources"] += _part(model, first, last, settings)["sources"]
    if operation.base is not None:
        written["base_model"] = sources[operation.base][0]
    if operation.shared:
        written["parameters"] = _parameters(operation.shared)
    return written


def _parameters(settings: Settings) -> dict[str, Any]:
    def written(value: Scalar | Filtered) -> Any:
        if not isinstance(value, tuple):
            return value
        return [{"value": v} if f is None else {"filter": f, "value": v} for f, v in value]

    return {name: written(value) for name, value in settings}


def _model(model: str) -> str:
    """Directories get their full path: the configuration is run from where the skeletons are."""
    parsed = ModelId.parse(model)
    parts = [p for p in (parsed.model, parsed.adapter) if p is not None]
    return "+".join(str(Path(p.path).resolve()) if p.is_local else p.path for p in parts)


def _base(stage: Stage, plan: Plan, family: Family, out: Path) -> str:
    """The model whose config mergekit adapts: a member, or a skeleton that is written here."""
    donor = family.by_model(plan.tokenizer)
    own = family.base.config
    config = pruned(own, stage.kept, donor.config)
    depends = {key for key in config if config[key] != own.get(key)} - {DEPTH}
    if not depends and donor is family.base and _definition(family.base) is not None:
        return _model(plan.base_model)
    name = SKELETON if stage.name is None else f"{SKELETON}-{stage.name}"
    directory = out / name
    directory.mkdir()
    AutoConfig.for_model(**config).save_pretrained(directory)
    for pattern in (*_TOKENIZER, *_TEMPLATES):
        for file in donor.directory.glob(pattern):
            shutil.copy(file, directory / file.name)
    # mergekit opens the weights of every model that it is told of.
    save_file({"skeleton": torch.zeros(1)}, directory / "model.safetensors")
    return name


def _problems(plan: Plan) -> Iterator[str]:
    for slot in plan.slots:
        method = slot.operation.method
        if any(edit.digest is not None for edit in slot.edits):
            yield "a repair is a matrix product, which no method of mergekit computes"
            return
        if method.startswith(_RANDOM):
            yield f"{method} draws random numbers, and mergekit draws others in every run"
            return
    layers = {model for slot in plan.slots for model, _ in slot.layers}
    for model in sorted({plan.base_model, plan.tokenizer, *plan.embeddings[0], *plan.head[0], *layers}):
        if ModelId.parse(model).is_local and set(_model(model)) & set("@+"):
            yield f"mergekit misreads {model!r}, which has an @ or a + in it; rename the directory"


def _architecture_problems(plan: Plan, found: Sequence[Stage], base: Member) -> Iterator[str]:
    """Where mergekit's own definition of the architecture is not the model's."""
    for stage in found:
        if misfits(base.config, stage.kept):
            yield f"the config cannot describe the layers that are merged by {stage.method} alone"
    own = base.architecture
    names = {
        *own.before,
        *own.after,
        *(f"{own.prefix}{i}.{n}" for i, layer in enumerate(own.layers) for n in layer),
    }
    apart = [name for name in sorted(names) if name not in base.headers]
    if apart:
        yield f"stock mergekit cannot make {apart[0]} of this checkpoint"
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
    for slot in plan.slots:
        settings = [*slot.operation.shared, *(s for own_ in slot.operation.inputs for s in own_)]
        filters = {f for _, value in settings if isinstance(value, tuple) for f, _ in value if f}
        for name in own.layers[slot.layers[0][1]]:
            full = f"{own.prefix}0.{name}"
            for text in filters:
                if (text in full) != (text in name_in_layer(full)):
                    yield f"mergekit applies the filter {text!r} to whole names, such as {full}"
                    return


def _definition(base: Member) -> Any:
    """What mergekit knows of an architecture, or None."""
    return arch_info_for_config(_config(base))


def _config(base: Member) -> Any:
    return AutoConfig.for_model(**base.config)
