"""Puts layer ranges, operations, edits and components into words; terminal, page and card show the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gptailor_merge.recipe.plan import NORMS, SELECT, Component, Edit, Filtered, Operation, Scalar, Settings


def range_text(first: int, past: int) -> str:
    """Words the layers from `first` up to, but not including, `past`.

    >>> range_text(3, 4), range_text(3, 6)
    ('3', '3-5')
    """
    return str(first) if past == first + 1 else f"{first}-{past - 1}"


def value_text(value: Scalar | Filtered) -> str:
    """Words the value of a setting; numbers have four significant digits.

    >>> value_text((("mlp.", 0.25), ("norm", 0.25), (None, 1.0)))
    '1 (0.25 in mlp and norm)'
    """
    if isinstance(value, tuple):
        of_value: dict[str, list[str]] = {}
        for name, scalar in value:
            if name is not None:
                of_value.setdefault(value_text(scalar), []).append(name.rstrip("."))
        parts = [f"{text} in {' and '.join(names)}" for text, names in of_value.items()]
        elsewhere = [value_text(scalar) for name, scalar in value if name is None]
        return " ".join([*elsewhere, *([f"({', '.join(parts)})"] if parts else [])])
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def method_text(operation: Operation) -> str:
    """Returns "select", or the name of the merge method."""
    return "select" if operation.method == SELECT else operation.method


def operation_text(operation: Operation, edits: Iterable[Edit] = ()) -> str:
    """Words a method with its shared settings, and the edits that follow it.

    >>> operation_text(Operation("slerp", ((), ()), (("t", 0.5),)), [Edit("mlp")])
    'slerp t=0.5, without mlp'
    """
    method = " ".join([method_text(operation), *_texts(operation.shared)])
    return ", ".join([method, *map(edit_text, edits)])


def edit_text(edit: Edit) -> str:
    """Returns "without attention", "without mlp", "repaired" or "with fitted norms"."""
    if edit.part == NORMS:
        return "with fitted norms"
    return "repaired" if edit.is_repair else f"without {edit.part}"


def source_text(name: str, operation: Operation, position: int) -> str:
    """Words one source of an operation: its name, its own settings, and if it is the method's base.

    >>> merge = Operation("ties", ((), (("weight", 0.6),)), base=0)
    >>> source_text("base 3", merge, 0), source_text("maths 3", merge, 1)
    ('base 3 as base', 'maths 3 × 0.6')
    """
    texts = [name, *_texts(operation.inputs[position])]
    if position == operation.base and operation.method != SELECT:
        texts.append("as base")
    return " ".join(texts)


def component_text(
    component: Component, name_of: Callable[[str], str] = str, edits: Iterable[Edit] = ()
) -> str:
    """Words the origin of embeddings or head, and the edits that follow.

    >>> component_text(Component(("base", "maths"), Operation("linear", ((), (("weight", 0.5),)))))
    'linear of base, maths × 0.5'
    """
    sources = ", ".join(
        source_text(name_of(model), component.operation, position)
        for position, model in enumerate(component.models)
    )
    is_merge = component.operation.method != SELECT
    text = f"{operation_text(component.operation)} of {sources}" if is_merge else sources
    return ", ".join([text, *map(edit_text, edits)])


def _texts(settings: Settings) -> list[str]:
    return [
        f"× {value_text(value)}" if name == "weight" else f"{name}={value_text(value)}"
        for name, value in settings
    ]
