"""mergekit's merge methods by name, and what each takes."""

from __future__ import annotations

import importlib.resources

from mergekit._data import chat_templates
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import (
    MergeMethodSpec,
)

from gptailor_merge.recipe.recipe import TAILOR


def method_names() -> tuple[str, ...]:
    """Every registered method that a recipe may name, sorted."""
    return tuple(sorted(m.spec.name for m in registry.registered_methods() if m.spec.name != TAILOR))


def method_spec(name: str) -> MergeMethodSpec | None:
    """What a method takes, or None where no such method is registered."""
    return registry.get(name).spec if name in method_names() else None


def chat_template_names() -> tuple[str, ...]:
    """The chat templates that mergekit brings along."""
    files = importlib.resources.files(chat_templates).iterdir()
    return tuple(sorted(f.name.removesuffix(".jinja") for f in files if f.name.endswith(".jinja")))
