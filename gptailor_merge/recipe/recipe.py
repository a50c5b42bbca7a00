"""The recipe: a frozen value that is read from mergekit YAML and written back without loss.

Only the document's shape is checked here (keys and types); planning checks what it means.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, ValidationError

from gptailor_merge.documents import Frozen, excess, explain, read_yaml, write_yaml
from gptailor_merge.errors import Problem, RecipeError
from gptailor_merge.recipe.fields import (
    ModelName,
    Origin,
    OriginField,
    ParametersField,
    TextField,
    as_tuple,
)
from gptailor_merge.visible_text import shortened

TAILOR = "tailor"
"""The merge method of every recipe."""


WITHOUT, REPAIR, REPAIR_DIGEST = "without", "repair", "repair_digest"
"""Keys of a slice's parameters that edit its layers, see edits.py."""


GAINS, GAINS_DIGEST = "gains", "gains_digest"
"""Keys that set the gains of norms: of a slice's layers, or in the top-level `parameters` of the others."""


ADAPTER, ADAPTER_DIGEST = "adapter", "adapter_digest"
"""Keys of the top-level `parameters` that add a LoRA adapter to the layers of the pruned model."""


OWN = ("op", "method", WITHOUT, REPAIR, REPAIR_DIGEST, GAINS, GAINS_DIGEST)
"""Keys of a slice's parameters that belong to the recipe, not to the merge method."""


BASE_MARK = "base"
"""The key of a source's parameters that marks it as the method's base."""


BASE = "base"
"""The name that `embeddings`, `head`, `rest` and `tokenizer` use for the recipe's base_model."""


MOST_LAYERS = 4096
"""Layers that a model may have."""


MOST_SOURCES = 4 * MOST_LAYERS
"""Layers that the sources of a recipe may have in all."""


def _read_range(value: Any) -> Any:
    bounds = as_tuple(value)
    if any(isinstance(bound, int) and abs(bound) > MOST_LAYERS for bound in bounds):
        raise ValueError(f"expected numbers of at most {MOST_LAYERS:,}, found {list(bounds)}")
    return bounds


def _bounded(slices: tuple[Slice, ...]) -> tuple[Slice, ...]:
    layers = sum(abs(source.length) for part in slices for source in part.sources)
    if layers > MOST_SOURCES:
        raise ValueError(f"expected sources of at most {MOST_SOURCES:,} layers in all, found {layers:,}")
    return slices


class Source(Frozen):
    """Consecutive layers of one model.

    Attributes:
        model: a directory, a Hub id with an optional @revision, or model+adapter.
        layer_range: the first layer, and the one past the last.
        parameters: this model's parameters of the merge method.
    """

    model: ModelName
    layer_range: Annotated[tuple[int, int], BeforeValidator(_read_range)]
    parameters: ParametersField = ()

    @property
    def length(self) -> int:
        """The number of layers."""
        return self.layer_range[1] - self.layer_range[0]


class Slice(Frozen):
    """Consecutive slots that are filled in the same way, or layers that are removed.

    Attributes:
        sources: the layers that are selected, merged or removed, as many of each model.
        base_model: the merge method's base, where it is not the recipe's.
        parameters: `op`, `method`, edits of the layers, and the method's own parameters.
    """

    sources: Annotated[tuple[Source, ...], BeforeValidator(as_tuple)]
    base_model: ModelName | None = None
    parameters: ParametersField = ()

    def parameter(self, name: str) -> Any:
        """Returns the setting of that name, or None."""
        return dict(self.parameters).get(name)


FROM_BASE = Origin(weights=((BASE, 1.0),))


class GlobalParameters(Frozen):
    """The top-level `parameters`: the recipe's own, and defaults for the methods' parameters.

    Attributes:
        embeddings: the origin of the embeddings; the base by default.
        head: the origin of the final norm and the head; the base by default.
        rest: the origin of what is no part of the language model, vision tower and projector; the base by
            default.
        tokenizer: the member whose tokenizer, chat template and generation config are written.
        gains: a safetensors file with the gains of norms outside the layers.
        gains_digest: the digest of that file.
        adapter: a directory with a LoRA adapter for the pruned model's layers, as peft writes it.
        adapter_digest: the digest of its weights and settings.
        defaults: parameters of merge methods, for slices that do not set them.
    """

    embeddings: OriginField = FROM_BASE
    head: OriginField = FROM_BASE
    rest: OriginField = FROM_BASE
    tokenizer: ModelName = BASE
    gains: TextField = None
    gains_digest: TextField = None
    adapter: TextField = None
    adapter_digest: TextField = None
    defaults: ParametersField = ()


OUTER = ("embeddings", "head", "rest", "tokenizer", GAINS, GAINS_DIGEST, ADAPTER, ADAPTER_DIGEST)
"""Keys of the top-level `parameters` that belong to the recipe; all others are defaults of merge methods."""


def _read_globals(document: Any) -> Any:
    if document is None:
        return GlobalParameters()
    if not isinstance(document, (Mapping, GlobalParameters)):
        raise ValueError(f"expected a mapping, found {document!r}")
    if isinstance(document, Mapping):
        outer = {key: value for key, value in document.items() if key in OUTER}
        return {**outer, "defaults": {key: value for key, value in document.items() if key not in OUTER}}
    return document


def _write_globals(parameters: GlobalParameters) -> dict[str, Any]:
    document = parameters.model_dump(exclude_defaults=True)
    defaults = document.pop("defaults", {})
    return {**document, **defaults}


class Recipe(Frozen):
    """The document that describes a tailored model.

    Two recipes are equal if their documents are; documents that make the same model have plans with the
    same digest (see plan.Plan).

    Attributes:
        merge_method: always tailor.
        base_model: the family's base, which gives the config.
        dtype: the precision of merge arithmetic.
        out_dtype: the precision of the written model; default that of the members.
        chat_template: mergekit's key for another chat template.
        parameters: the origin of all that is outside the layers, and defaults for merge methods.
        slices: the layers of the model, from the first to the last.
    """

    merge_method: Literal["tailor"] = "tailor"
    base_model: ModelName
    dtype: str | None = None
    out_dtype: str | None = None
    chat_template: str | None = None
    parameters: Annotated[
        GlobalParameters, BeforeValidator(_read_globals), PlainSerializer(_write_globals)
    ] = GlobalParameters()
    slices: Annotated[tuple[Slice, ...], BeforeValidator(as_tuple), AfterValidator(_bounded)]

    @property
    def models(self) -> tuple[str, ...]:
        """Every model that the recipe names, each once, the base first."""
        origins = (self.parameters.embeddings, self.parameters.head, self.parameters.rest)
        names = [
            self.base_model,
            *(source.model for part in self.slices for source in part.sources),
            *(part.base_model for part in self.slices if part.base_model),
            *(self.resolve(name) for origin in origins for name, _ in origin.weights),
            *(self.resolve(origin.base_model) for origin in origins if origin.base_model),
            self.resolve(self.parameters.tokenizer),
        ]
        return tuple(dict.fromkeys(names))

    def resolve(self, member: str) -> str:
        """Returns the model behind a name in `embeddings`, `head`, `rest` or `tokenizer`."""
        return self.base_model if member == BASE else member

    @classmethod
    def from_mapping(cls, document: Any, *, file: Path | str | None = None) -> Recipe:
        """Reads a loaded YAML document.

        Args:
            file: the file that holds it; errors then name its lines.

        Raises:
            RecipeError: unknown keys or wrong types.
        """
        if not isinstance(document, Mapping):
            raise RecipeError(f"expected a mapping, found {type(document).__name__}", file=file)
        if (text := excess(document)) is not None:
            raise RecipeError(text, file=file)
        if (problem := _other_kind(document)) is not None:
            raise RecipeError([problem], file=file)
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise RecipeError(explain(error, cls), file=file) from None

    @classmethod
    def load(cls, file: Path) -> Recipe:
        """Reads a recipe from a YAML file."""
        return cls.from_mapping(read_yaml(file, RecipeError), file=file)

    def to_mapping(self) -> dict[str, Any]:
        """Returns the document that `from_mapping` reads back to an equal recipe."""
        document = self.model_dump(exclude_defaults=True)
        return {"merge_method": self.merge_method, **document}

    def to_yaml(self) -> str:
        """Returns the recipe as mergekit YAML."""
        return write_yaml(self.to_mapping())


def _other_kind(document: Mapping[str, Any]) -> Problem | None:
    """Returns what is wrong with a document of another kind, of which every key would be a mistake."""
    if "family" in document and "slices" not in document:
        text = "this is a search config, which gptailor-evolve reads; expected a recipe, with slices"
        return Problem(("family",), text)
    method = document.get("merge_method", TAILOR)
    if method != TAILOR and isinstance(method, str):
        shown = shortened(repr(method), 100)
        text = f"expected {TAILOR}, found {shown}; gptailor recipe import makes a recipe of another merge"
        return Problem(("merge_method",), text)
    return None
