"""How stock mergekit finds the `tailor` method: a pydantic plugin, named in pyproject.toml.

mergekit looks for no entry points, but it validates every configuration by pydantic, and pydantic
does. The handler sees the raw dictionary of a MergeConfiguration before validation; where it is a
recipe of ours, it registers the method and lowers the recipe in place. Everyone else's models and
configurations pass untouched. pydantic loads this module into every process that uses pydantic, so
it imports nothing. PYDANTIC_DISABLE_PLUGINS=gptailor switches it off.
"""

from __future__ import annotations

from typing import Any


class _Handler:
    def on_enter(self, input: Any, **_: Any) -> None:
        if isinstance(input, dict) and input.get("merge_method") == "tailor":
            _lower_in_place(input)

    def on_success(self, result: Any) -> None:
        """Nothing to do."""

    def on_error(self, error: Exception) -> None:
        """Nothing to do: mergekit reports it."""

    def on_exception(self, exception: Exception) -> None:
        """Nothing to do: mergekit reports it."""


class _Plugin:
    def new_schema_validator(
        self, schema: Any, schema_type: Any, schema_type_path: Any, *_: Any, **__: Any
    ) -> tuple[Any, None, None]:
        module, name = getattr(schema_type_path, "module", None), getattr(schema_type_path, "name", None)
        ours = module == "mergekit.config" and name == "MergeConfiguration"
        return (_Handler() if ours else None), None, None


def _lower_in_place(document: dict[str, Any]) -> None:
    import click

    from gptailor_merge.errors import InputError
    from gptailor_merge.host.lowering import is_lowered, lower
    from gptailor_merge.host.registration import refuse, register
    from gptailor_merge.planning.check import check
    from gptailor_merge.recipe.recipe import Recipe

    register()
    if is_lowered(document):
        return
    context = click.get_current_context(silent=True)
    file = context.params.get("config_file") if context else None
    try:
        recipe = Recipe.from_mapping(document, file=file)
        lowered = lower(check(recipe, file=file), chat_template=recipe.chat_template)
    except InputError as error:
        refuse(error)
    document.clear()
    document.update(lowered)


plugin = _Plugin()
