"""The chat templates that mergekit brings along."""

from __future__ import annotations

import importlib.resources

from mergekit._data import chat_templates

from gptailor_merge.documents import suggest

_SHORTEST = 20
"""mergekit takes a text of fewer characters for a name."""


def chat_template_names() -> tuple[str, ...]:
    """Returns the names of mergekit's chat templates, sorted."""
    files = importlib.resources.files(chat_templates).iterdir()
    return tuple(sorted(f.name.removesuffix(".jinja") for f in files if f.name.endswith(".jinja")))


def chat_template_problem(template: str) -> str | None:
    """Returns what is wrong with a recipe's chat_template, or None.

    mergekit logs a bad template as an error, goes on, and leaves the model without a tokenizer.
    """
    names = chat_template_names()
    if template in ("auto", *names) or (len(template) >= _SHORTEST and "{" in template):
        return None
    text = f"expected auto, the name of a template of mergekit or a Jinja template, found {template!r}"
    return text + suggest(template, names)
