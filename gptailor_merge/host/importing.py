"""Imports plain mergekit configurations, and those of the paper (paper_configs.py), as recipes.

A key that a recipe cannot express, or that mergekit itself would silently ignore, is an error.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from gptailor_merge.documents import read_yaml, suggest
from gptailor_merge.errors import FamilyError, KeyPath, Problem, RecipeError, errors_in
from gptailor_merge.host.imported_recipe import Document, Imported, complete
from gptailor_merge.host.outer_origins import outer_origins
from gptailor_merge.host.paper_configs import from_paper_config, is_paper_config
from gptailor_merge.methods.specs import ParameterScope, method_names, method_spec
from gptailor_merge.models.checkpoint import ModelId, config_on_disk, depth_of
from gptailor_merge.models.stranger_files import read_object
from gptailor_merge.recipe.plan import SELECT
from gptailor_merge.recipe.recipe import BASE, TAILOR

_COPIED = ("dtype", "out_dtype", "chat_template")


_KEYS = {
    *(
        "merge_method",
        "base_model",
        "parameters",
        "slices",
        "models",
        "tokenizer_source",
        "tokenizer",
        "name",
    ),
    *_COPIED,
}


RANDOM = ("dare", "della")
"""Prefixes of methods that draw random numbers, which mergekit draws anew in every run."""


def load(
    file: Path,
    *,
    base: str | None = None,
    candidates: Sequence[str] = (),
    embeddings: str | None = None,
    head: str | None = None,
) -> Imported:
    """Imports a file: a mergekit configuration, or one that the paper's authors published.

    Args:
        base: the base model; overrides the file's.
        candidates: the models that the paper's configurations call candidates 0, 1, …
        embeddings, head: members to take these from, instead of what mergekit takes.

    Raises:
        RecipeError: a key cannot be imported.
    """
    document = read_yaml(file, RecipeError)  # JSON is YAML
    if not isinstance(document, Mapping):
        raise RecipeError(f"expected a mapping, found {type(document).__name__}", file=file)
    with errors_in(file):
        if is_paper_config(document) and not (embeddings or head):
            return from_paper_config(document, base=base, candidates=candidates)
        if candidates:
            raise RecipeError("candidates are for the paper's configurations, whose keys are remove_idx_*")
        return from_mergekit(document, base=base, embeddings=embeddings, head=head)


def from_mergekit(
    document: Mapping[str, Any],
    *,
    base: str | None = None,
    embeddings: str | None = None,
    head: str | None = None,
) -> Imported:
    """Imports a mergekit configuration: models that are merged whole, or a stack of layers.

    The recipe states where embeddings and head come from, see outer_origins.
    """
    options = {"embeddings": embeddings, "head": head}
    chosen = {name: model for name, model in options.items() if model is not None}
    method = _method(document)
    notes = ["name is left out; a recipe has none"] if "name" in document else []
    slices = _slices(document)
    models = [source["model"] for part in slices for source in part["sources"]]
    base = base or document.get("base_model")
    spec = method_spec(method)
    assert spec is not None
    if base is None:
        if spec.takes_base:
            raise RecipeError(Problem(("base_model",), f"is missing; {method} calculates with a base"))
        base = models[0]
        notes.append(f"base_model is missing; {base} gives config and tokenizer")
    tokenizer = _tokenizer(document, notes)
    known = {parameter.name: parameter.scope for parameter in spec.parameters}
    defaults = _heeded(document, (), method, known, notes)
    of_inputs = [name for name, scope in known.items() if scope is not ParameterScope.SHARED]
    for index, part in enumerate(slices):
        path: KeyPath = ("slices", index) if "slices" in document else ()
        part["parameters"] = _heeded(part, path, method, known, notes)
        list_path = (*path, "sources") if path else ("models",)
        part["sources"] = [
            {**source, "parameters": _heeded(source, (*list_path, place), method, of_inputs, notes)}
            for place, source in enumerate(part["sources"])
        ]
    notes += [f"{name} comes from {model}, as --{name} says" for name, model in chosen.items()]
    if method.startswith(RANDOM):
        notes.append(
            f"{method} draws random numbers; a recipe draws the same ones every time, mergekit others"
        )
    layers = [part for part in slices if _length(part)]
    if not layers:
        raise RecipeError(Problem(("slices",), "hold no layers"))
    recipe: Document = {"merge_method": TAILOR, "base_model": base}
    recipe |= {key: document[key] for key in _COPIED if document.get(key) is not None}
    ends = outer_origins(slices, method, base, defaults, chosen)
    _check_tied(base, ends)
    origins = {name: origin for name, origin in ends.items() if origin not in (base, BASE)}
    if tokenizer not in (base, BASE):
        origins["tokenizer"] = tokenizer
    if defaults | origins:
        recipe["parameters"] = {**origins, **defaults}
    return complete({**recipe, "slices": [_slice(part, method) for part in layers]}, notes)


def _method(document: Mapping[str, Any]) -> str:
    """Returns the method of a configuration whose top-level keys are all known."""
    unknown = [str(key) for key in document if key not in _KEYS]
    if unknown:
        raise RecipeError([Problem((key,), "cannot be imported" + suggest(key, _KEYS)) for key in unknown])
    method = document.get("merge_method")
    if method == TAILOR:
        raise RecipeError(Problem(("merge_method",), "is tailor already; use the file as it is"))
    if method not in method_names():
        raise RecipeError(
            Problem(
                ("merge_method",),
                f"expected a method of mergekit, found {method!r}{suggest(str(method), method_names())}",
            )
        )
    return str(method)


def _slices(document: Mapping[str, Any]) -> list[Document]:
    """Returns the slices; `models` count as one slice of all layers."""
    if ("slices" in document) == ("models" in document):
        raise RecipeError("expected either slices or models")
    if "slices" in document:
        slices = document["slices"]
        if not isinstance(slices, list) or not slices:
            raise RecipeError(Problem(("slices",), "expected a list of slices"))
        return [_checked(part, ("slices", index)) for index, part in enumerate(slices)]
    sources = []
    for index, entry in enumerate(document["models"] or []):
        model = entry.get("model") if isinstance(entry, Mapping) else None
        depth = depth_of(model) if isinstance(model, str) else None
        if depth is None:
            text = (
                f"the number of layers of {model!r} is not known: neither this machine nor the "
                "Hub has its config; write slices with layer_range instead"
            )
            raise RecipeError(Problem(("models", index, "model"), text))
        sources.append({**entry, "layer_range": [0, depth]})
    base = document.get("base_model")
    if base is not None and base not in [source["model"] for source in sources]:
        sources.append({"model": base, "layer_range": sources[0]["layer_range"]})  # as mergekit does
    return [_checked({"sources": sources}, ("models",))]


def _checked(part: Any, path: KeyPath) -> Document:
    """Returns a slice whose keys and types are right."""
    if not isinstance(part, Mapping) or not isinstance(part.get("sources"), list) or not part["sources"]:
        raise RecipeError(Problem(path, "expected a mapping with sources"))
    for key in part:
        if key not in ("sources", "base_model", "parameters"):
            raise RecipeError(
                Problem((*path, str(key)), "mergekit ignores it or does what a recipe cannot; take it away")
            )
    for position, source in enumerate(part["sources"]):
        place = (*path, "sources", position)
        if not isinstance(source, Mapping) or not isinstance(source.get("model"), str):
            raise RecipeError(
                Problem(place, f"expected a mapping with the name of a model, found {source!r}")
            )
        bounds = source.get("layer_range")
        if not (isinstance(bounds, list) and len(bounds) == 2 and all(type(b) is int for b in bounds)):
            raise RecipeError(
                Problem((*place, "layer_range"), f"expected [first, past the last], found {bounds!r}")
            )
    return dict(part)


def _length(part: Document) -> int:
    first, last = part["sources"][0]["layer_range"]
    return int(last - first)


def _slice(part: Document, method: str) -> Document:
    parameters = dict(part.get("parameters") or {})
    if method == SELECT:
        return {**part, "parameters": {"op": "select", **parameters}}
    return {**part, "parameters": {"op": "merge", "method": method, **parameters}}


def _heeded(
    scope: Mapping[str, Any], path: KeyPath, method: str, known: Collection[str], notes: list[str]
) -> Document:
    """Returns the parameters of a scope that mergekit heeds, and notes those that it ignores.

    Args:
        known: the parameters that the method takes there.
    """
    parameters = scope.get("parameters")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise RecipeError(Problem((*path, "parameters"), f"expected a mapping, found {parameters!r}"))
    heeded: Document = {}
    for name, value in (parameters or {}).items():
        if name in known:
            heeded[name] = value
            continue
        if close := get_close_matches(str(name), known, n=1):
            text = f"is no parameter, and mergekit ignores it; did you mean '{close[0]}'?"
            raise RecipeError(Problem((*path, "parameters", str(name)), text))
        note = f"{name} is left out: {method} does not take it there, and mergekit ignores it"
        if note not in notes:
            notes.append(note)
    return heeded


def _tokenizer(document: Mapping[str, Any], notes: list[str]) -> str:
    """Returns the model that gives the tokenizer, or "base".

    Raises:
        RecipeError: the configuration makes a new vocabulary.
    """
    source, key = document.get("tokenizer_source"), "tokenizer_source"
    section = document.get("tokenizer")
    if section is not None:
        key = "tokenizer"
        if not isinstance(section, Mapping):
            raise RecipeError(Problem((key,), f"expected a mapping, found {section!r}"))
        changes = [name for name, value in section.items() if name != "source" and value]
        if changes:
            text = "changes the embeddings, which a recipe cannot; take it away, and add tokens afterwards"
            raise RecipeError(Problem((key, str(changes[0])), text))
        source = section.get("source", "union")
    if source is None:
        return BASE
    if source == "union" or not isinstance(source, str):
        text = (
            f"{source!r} makes a vocabulary of its own, which a recipe cannot; expected base or one of the "
            "models, whose tokenizer and vocabulary the model then has"
        )
        raise RecipeError(Problem((key,), text))
    notes.append(
        f"the tokenizer is that of {source}; rows of the embeddings that it has no tokens for are kept, "
        "where mergekit drops them"
    )
    return source


def _check_tied(base: str, ends: Mapping[str, Any]) -> None:
    """Refuses ends that differ where the head is the embedding matrix, but the final norm is not."""
    if ends["embeddings"] == ends["head"]:
        return
    config = config_on_disk(ModelId.parse(base))
    try:
        document = read_object(config) if config is not None else {}
    except (FamilyError, FileNotFoundError):
        return
    if document.get("tie_word_embeddings"):
        raise RecipeError(
            f"the head of {base} is its embedding matrix (tie_word_embeddings), which mergekit takes from "
            "the first slice, and the final norm from the last; a recipe takes both from one place: say from "
            "which with --embeddings MODEL --head MODEL"
        )
