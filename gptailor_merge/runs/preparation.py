"""A search config becomes a family and a space, before any weight is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import ConfigError, InputError, Problem
from gptailor_merge.models.architecture import pattern
from gptailor_merge.models.checkpoint import ModelId
from gptailor_merge.models.depth import choose
from gptailor_merge.models.devices import stored_dtype
from gptailor_merge.models.family import Family
from gptailor_merge.models.loading import load_tokenizer
from gptailor_merge.models.parts import mlp_filters
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.recipe import GlobalParameters, Recipe
from gptailor_merge.search.baselines.protocol import Baseline
from gptailor_merge.search.baselines.registry import warm_starts
from gptailor_merge.search.optimizers import registry as optimizers
from gptailor_merge.space import outer
from gptailor_merge.space.sizes import removable_layers, target_sizes
from gptailor_merge.space.space import Space


@dataclass(frozen=True)
class Preparation:
    """A run before any weight is loaded.

    Attributes:
        start: recipes that the search starts from.
        warm: methods that the search starts from, if the config names any.
    """

    config: SearchConfig
    family: Family
    space: Space
    start: tuple[Recipe, ...] = ()
    warm: tuple[Baseline, ...] | None = None


def prepare(config: SearchConfig, family: Family | None = None) -> Preparation:
    """Reads configs and headers of the family and lays out the space.

    Args:
        family: the family, where it has been read.

    Raises:
        ConfigError: a target or operations that the family does not allow.
        FamilyError: models that do not fit together, or a base without a tokenizer.
    """
    optimizers.check(config.search.optimizer, racing=config.search.racing)
    family = family or Family.load(config.family.base, config.family.variants)
    if ModelId.parse(config.family.base).is_local:
        load_tokenizer(Path(ModelId.parse(config.family.base).path))
    target = config.target.model_dump()
    sizes = target_sizes(target, family.outer_parameters, family.layer_sizes)
    protect = config.operations.protect
    removable = removable_layers(family.depth, protect.first, protect.last, config.operations.removable)
    kinds_by_size = {size: pattern(family.base.config, size) for size in sizes if 0 < size < family.depth}
    patterns = {size: kinds for size, kinds in kinds_by_size.items() if kinds is not None}
    if len(sizes) > 1:  # a range keeps the sizes that the architecture allows
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
    return Preparation(config, family, space, _start_recipes(config, space), _warm_start(config, space))


def _warm_start(config: SearchConfig, space: Space) -> tuple[Baseline, ...] | None:
    names, search = config.search.warm_start, config.search
    if names is None:
        return None
    return tuple(warm_starts(names, space, budget=search.budget, population=search.population))


def _outer(config: SearchConfig, family: Family) -> outer.Outer | None:
    """Returns the choices for embeddings and head; None if they stay the base's."""
    chosen = config.operations.outer
    if chosen == "base":
        return None
    reasons = {m.model: family.outer_problem(m, family.base) for m in family.members[1:]}
    # A recipe takes the name of a model without a slash for a misspelling, unless it gives a layer.
    fitting = [model for model, reason in reasons.items() if reason is None and "/" in model]
    if not fitting:
        why = "; ".join(reason for reason in reasons.values() if reason) or "the family has none"
        message = f"no variant can give embeddings and head, found {chosen!r}: {why}"
        raise ConfigError(Problem(("operations", "outer"), message))
    models = (family.base.model, *fitting)
    return outer.Outer(models, outer.METHODS if chosen == "merge" else (), family.tied)


def _parts(config: SearchConfig, family: Family) -> tuple[str, ...]:
    """Returns what the names of the MLPs' tensors contain; empty if parts may not be mixed."""
    if not config.operations.parts:
        return ()
    filters = mlp_filters(family.base.architecture.layers)
    if not filters:
        message = f"layers of {family.base.config['model_type']} have no MLP beside their attention"
        raise ConfigError(Problem(("operations", "parts"), message))
    return filters


def _start_recipes(config: SearchConfig, space: Space) -> tuple[Recipe, ...]:
    """Returns the recipes that the config starts from, as far as the space has them."""
    starts = [start for start in config.search.start if not isinstance(start, str)]
    if len(starts) > config.search.population:
        message = f"{len(starts)} recipes are more than a generation of {config.search.population} holds"
        raise ConfigError(Problem(("search", "start"), message))
    recipes = []
    for start in starts:
        whole = Recipe.from_mapping(start.recipe, file=start.file)
        whole = whole.model_copy(update={"dtype": space.dtype, "out_dtype": space.out_dtype})
        try:
            recipes.append(_in_space(whole, space))
        except InputError as error:
            message = f"{start.file} cannot be searched from: {error}"
            raise ConfigError(Problem(("search", "start"), message)) from None
    return tuple(recipes)


def _in_space(recipe: Recipe, space: Space) -> Recipe:
    """Keeps the embeddings and head of a recipe if the space has them, and else takes the base's.

    Raises:
        ConfigError, RecipeError: the space does not have its layers.
    """
    parameters = recipe.parameters
    for kept in (("embeddings", "head"), ("embeddings",), ("head",), ()):
        components = {name: getattr(parameters, name) for name in kept}
        reduced = GlobalParameters(defaults=parameters.defaults, **components)
        candidate = recipe.model_copy(update={"parameters": reduced})
        try:
            space.encode(plan(candidate), nearest=True)
        except InputError:
            if not kept:
                raise
        else:
            return candidate
    raise AssertionError("the last of these returns or raises")
