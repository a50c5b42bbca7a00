"""The pydantic plugin, named in pyproject.toml, by which stock mergekit finds the `tailor` method.

mergekit looks for no entry points, but it validates every configuration with pydantic, and pydantic does.
The handler gets the dictionary of a MergeConfiguration before validation. If it is a recipe, the handler
registers the method and lowers the recipe in place; all other models and configurations pass untouched.

pydantic loads this module into every process that uses pydantic, so it imports nothing, not even typing.
PYDANTIC_DISABLE_PLUGINS=gptailor switches it off.
"""

from __future__ import annotations


class _ConfigurationHandler:
    """Lowers recipes before pydantic validates them as mergekit configurations."""

    def on_enter(self, input: object, **_: object) -> None:
        if isinstance(input, dict) and input.get("merge_method") == "tailor":
            _lower_in_place(input)

    def on_success(self, result: object) -> None:
        """Does nothing."""

    def on_error(self, error: Exception) -> None:
        """Does nothing; mergekit reports the error."""

    def on_exception(self, exception: Exception) -> None:
        """Does nothing; mergekit reports the exception."""


class _Plugin:
    def new_schema_validator(
        self, schema: object, schema_type: object, schema_type_path: object, *_: object, **__: object
    ) -> tuple[object, None, None]:
        """Returns the handlers of a validator; only mergekit's configurations get one."""
        path = (getattr(schema_type_path, "module", None), getattr(schema_type_path, "name", None))
        is_configuration = path == ("mergekit.config", "MergeConfiguration")
        return (_ConfigurationHandler() if is_configuration else None), None, None


def _lower_in_place(document: dict[str, object]) -> None:
    from contextlib import suppress
    from pathlib import Path

    import click

    from gptailor_merge.documents import refuse_excess
    from gptailor_merge.errors import FamilyError, InputError, RecipeError
    from gptailor_merge.host.lowering import is_lowered, lower
    from gptailor_merge.host.registration import refuse, register
    from gptailor_merge.planning.check import check, check_with_family, is_local
    from gptailor_merge.recipe.recipe import Recipe

    register()
    if is_lowered(document):
        return
    context = click.get_current_context(silent=True)
    file = context.params.get("config_file") if context else None
    try:
        if file:
            refuse_excess(Path(file), RecipeError)
        recipe = Recipe.from_mapping(document, file=file)
        plan = check(recipe, file=file)
        if not is_local(recipe):
            # mergekit downloads these models next; what keeps them from being read, it says itself.
            with suppress(FamilyError):
                plan, _ = check_with_family(recipe, file=file)
        lowered = lower(plan, chat_template=recipe.chat_template)
    except InputError as error:
        refuse(error)
    document.clear()
    document.update(lowered)


plugin = _Plugin()
