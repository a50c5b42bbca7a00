"""A search config becomes the live parts of a run: family, space, objectives, evaluators."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from gptailor_merge.composing.bank import Bank, Precision, belongs_on_host, cache_bytes
from gptailor_merge.composing.compose import Composer
from gptailor_merge.config import SearchConfig
from gptailor_merge.digests import digest
from gptailor_merge.errors import ConfigError, InputError, Problem
from gptailor_merge.models.architecture import pattern
from gptailor_merge.models.depth import choose
from gptailor_merge.models.devices import compute_dtype, stored_dtype
from gptailor_merge.models.family import Family
from gptailor_merge.models.loading import load_model, load_tokenizer
from gptailor_merge.models.parts import mlp_filters
from gptailor_merge.objectives.scores import Scores
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.recipe import GlobalParameters, Recipe
from gptailor_merge.scoring.evaluator import Evaluator
from gptailor_merge.scoring.gates import Gates
from gptailor_merge.scoring.hidden import HiddenStates
from gptailor_merge.scoring.measures import Measures, measures
from gptailor_merge.scoring.passes import Measured
from gptailor_merge.scoring.teachers import Teachers
from gptailor_merge.search.baselines.protocol import Baseline
from gptailor_merge.search.baselines.registry import warm_starts
from gptailor_merge.search.optimizers import registry as optimizers
from gptailor_merge.search.settings import SearchSettings
from gptailor_merge.space import outer
from gptailor_merge.space.sizes import removable_layers, target_sizes
from gptailor_merge.space.space import Space

BankMode = Literal["device", "host", "auto"]
"""Where the family's weights live: on the device, in host memory, or where there is room."""


@dataclass(frozen=True)
class Plans:
    """What is known of a run before any weight is loaded.

    Attributes:
        warm: methods that the search starts from, where the config names them.
    """

    config: SearchConfig
    family: Family
    space: Space
    start: tuple[Recipe, ...] = ()
    warm: tuple[Baseline, ...] | None = None


@dataclass(frozen=True)
class Session:
    """The live parts of a run.

    Attributes:
        evaluator: scores on the calibration set.
        held_out: scores on the held-out set, or None where there is none.
        gates: None where the config has none.
        measures: what these score on.
        hidden: of models on the calibration set.
    """

    evaluator: Evaluator
    held_out: Evaluator | None
    gates: Gates | None
    settings: SearchSettings
    measures: Measures
    hidden: HiddenStates


def prepare(config: SearchConfig) -> Plans:
    """Read configs and headers of the family and lay out the space.

    Raises:
        ConfigError: a target or operations that the family does not allow.
        FamilyError: models that do not fit together.
    """
    optimizers.check(config.search.optimizer, racing=config.search.racing)
    family = Family.load(config.family.base, config.family.variants)
    target = config.target.model_dump()
    sizes = target_sizes(target, family.outer_parameters, family.layer_sizes)
    protect = config.operations.protect
    removable = removable_layers(family.depth, protect.first, protect.last, config.operations.removable)
    found = {size: pattern(family.base.config, size) for size in sizes if 0 < size < family.depth}
    patterns = {size: kinds for size, kinds in found.items() if kinds is not None}
    if len(sizes) > 1:  # of a range the sizes that there are
        protected = set(range(family.depth)) - set(removable)
        none = [0.0] * family.depth
        impossible = {n for n, k in patterns.items() if choose(family.kinds, k, none, protected) is None}
        sizes = tuple(size for size in sizes if size not in impossible) or sizes
    space = Space(
        models=tuple(member.model for member in family.members),
        depth=family.depth,
        sizes=sizes,
        removable=removable,
        methods=config.operations.merge,
        dtype=config.dtype,
        out_dtype=config.out_dtype or stored_dtype(family.base),
        layer_kinds=family.kinds,
        patterns=patterns,
        outer=_outer(config, family),
        neighbours=config.operations.neighbours,
        parts=_parts(config, family),
    )
    return Plans(config, family, space, _start(config, space), _warm_start(config, space))


def _warm_start(config: SearchConfig, space: Space) -> tuple[Baseline, ...] | None:
    names, search = config.search.warm_start, config.search
    if names is None:
        return None
    return tuple(warm_starts(names, space, budget=search.budget, population=search.population))


def _outer(config: SearchConfig, family: Family) -> outer.Outer | None:
    """What embeddings and head may be."""
    chosen = config.operations.outer
    if chosen == "base":
        return None
    vocabulary = family.base.config["vocab_size"]
    # A model without a slash in its name must give a layer, or else a recipe takes it for a misspelling.
    fitting = [m.model for m in family.members[1:] if m.config["vocab_size"] == vocabulary and "/" in m.model]
    if not fitting:
        message = f"no variant has a vocabulary of the base's size, {vocabulary}, found {chosen!r}"
        raise ConfigError(Problem(("operations", "outer"), message))
    models = (family.base.model, *fitting)
    return outer.Outer(models, outer.METHODS if chosen == "merge" else (), family.tied)


def _parts(config: SearchConfig, family: Family) -> tuple[str, ...]:
    """What the names of the MLPs' tensors contain, where parts may be mixed."""
    if not config.operations.parts:
        return ()
    filters = mlp_filters(family.base.architecture.layers)
    if not filters:
        message = f"layers of {family.base.config['model_type']} have no MLP beside their attention"
        raise ConfigError(Problem(("operations", "parts"), message))
    return filters


def _start(config: SearchConfig, space: Space) -> tuple[Recipe, ...]:
    """The recipes that the search starts from: what the space has of them; the rest is the search's own."""
    given = [start for start in config.search.start if not isinstance(start, str)]
    if len(given) > config.search.population:
        message = f"{len(given)} recipes are more than a generation of {config.search.population} holds"
        raise ConfigError(Problem(("search", "start"), message))
    recipes = []
    for start in given:
        whole = Recipe.from_mapping(start.recipe, file=start.file)
        whole = whole.model_copy(update={"dtype": space.dtype, "out_dtype": space.out_dtype})
        try:
            recipes.append(_in_space(whole, space))
        except InputError as error:
            message = f"{start.file} cannot be searched from: {error}"
            raise ConfigError(Problem(("search", "start"), message)) from None
    return tuple(recipes)


def _in_space(recipe: Recipe, space: Space) -> Recipe:
    """The recipe with its own embeddings and head as far as the space has them, else the base's.

    Raises:
        ConfigError, RecipeError: its layers are not in the space.
    """
    given = recipe.parameters
    for kept in (("embeddings", "head"), ("embeddings",), ("head",), ()):
        own = {name: getattr(given, name) for name in kept}
        parameters = GlobalParameters(defaults=given.defaults, **own)
        candidate = recipe.model_copy(update={"parameters": parameters})
        try:
            space.encode(plan(candidate), nearest=True)
        except InputError:
            if not kept:
                raise
        else:
            return candidate
    raise AssertionError("the last of these returns or raises")


def start(
    plans: Plans,
    device: torch.device,
    *,
    bank: BankMode = "auto",
    progress: Callable[[str], None] = lambda step: None,
) -> Session:
    """Load the family, tokenise the texts, run the teachers.

    Args:
        bank: where the family's weights live.
    """
    config, family = plans.config, plans.family
    out_dtype = plans.space.out_dtype
    assert out_dtype is not None
    compute = compute_dtype(device, out_dtype)
    tokenizer = load_tokenizer(family.base.directory)
    progress("building the calibration set")
    teachers = Teachers(family, device, compute)
    measured = measures(config, tokenizer, teachers, getattr(torch, out_dtype))
    of_base: Scores = {}
    if config.gates:
        of_base = measured.gates.score(teachers.model("base"))
    teachers.release()
    progress("loading the family")
    on_host = belongs_on_host(family, compute, device) if bank == "auto" else bank == "host"
    precision = Precision.of(config.dtype, out_dtype, compute)
    weights_of_family = Bank(
        family, precision, device=device, on_host=on_host, cache_bytes=cache_bytes(family, compute, device)
    )
    weights_of_family.preload()
    composer = Composer(weights_of_family)
    return Session(
        Evaluator(composer, measured.searched),
        Evaluator(composer, measured.held_out) if measured.held_out.objectives else None,
        Gates(Evaluator(composer, measured.gates), config.gates, of_base) if config.gates else None,
        _settings(config, measured, of_base, f"{compute} {device.type}"),
        measured,
        HiddenStates(composer, measured.searched.rungs),
    )


def _settings(config: SearchConfig, measured: Measures, of_base: Scores, computed: str) -> SearchSettings:
    """How to search.

    Args:
        computed: in which dtype and on what kind of device.
    """
    objectives = measured.searched.objectives
    given = {o.name: c.weight for o, c in zip(objectives, config.objectives, strict=True)}
    weights = {name: weight for name, weight in given.items() if weight is not None}
    parts: list[object] = [(o.name, o.fingerprint, given[o.name]) for o in objectives]
    gates = zip(measured.gates.objectives, config.gates, strict=True)
    parts += [(o.name, o.fingerprint, c.at_most, c.at_least) for o, c in gates]
    return SearchSettings(
        optimizer=config.search.optimizer,
        budget=config.search.budget,
        population=config.search.population,
        seed=config.seed,
        weights=weights,
        axes=tuple(given) if config.pareto else (),
        fingerprint=digest([parts, *computed.split()]),
        max_failures=config.search.max_failures,
        racing=config.search.racing,
    )


def measure_members(
    evaluator: Evaluator, family: Family, device: torch.device, dtype: torch.dtype
) -> dict[str, Measured]:
    """Of the dense members as they are, each with its own config, embeddings and head."""
    measured = {}
    for member in family.members:
        measured[member.name] = evaluator.passes.measure_alone(load_model(member.directory, dtype, device))
        gc.collect()
    return measured
