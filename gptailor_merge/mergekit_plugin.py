"""The `tailor` merge method: how mergekit executes one slot, and all we know of its method API.

Lowering (recipe/lowering.py) turns every slot into a mergekit slice of one layer that carries its
`Operation` as JSON in the parameter `slot`. mergekit hands the sources' tensors to `TailorMethod`,
which calls `apply`; composing in memory calls the same `apply`. So both paths are one.
"""

from __future__ import annotations

import importlib.resources
import json
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from mergekit._data import chat_templates
from mergekit.architecture.conversion import can_convert_checkpoint_keys, convert_checkpoint_tensors
from mergekit.common import ModelPath, ModelReference
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import (
    BasePolicy,
    GroupMergeMethod,
    InputContract,
    MergeMethod,
    MergeMethodSpec,
    ParameterScope,
    ParameterSpec,
    TensorEntry,
    TensorGroup,
)

from gptailor_merge.editing import edited, from_json

TAILOR = "tailor"
SLOT = "slot"
"""The parameter of the lowered method: an `Operation` as JSON."""
EDITS = "edits"
"""What is done to the layer then, as JSON; slots without edits have none."""
CONFIG = "config"
"""The one parameter of a lowered configuration as a whole: the model whose config it takes."""
SELECT = "passthrough"
"""The mergekit method that a selected layer goes through."""

Scalar = bool | int | float | str
Filtered = tuple[tuple[str | None, Scalar], ...]
"""Values by tensor name: the first whose filter is None, "*" or part of the name is taken."""
Settings = tuple[tuple[str, Scalar | Filtered], ...]


@dataclass(frozen=True)
class Operation:
    """How the tensors of a slot's sources become one: a mergekit method, fully parametrised.

    Attributes:
        method: name of a registered mergekit method; "passthrough" selects.
        shared: settings of the method as a whole.
        inputs: settings of each source, in the order of the sources.
        base: position of the source that is the method's base, if there is one.
    """

    method: str
    inputs: tuple[Settings, ...]
    shared: Settings = ()
    base: int | None = None

    def to_json(self) -> str:
        """A canonical text: equal operations have equal texts."""
        return json.dumps(
            [self.method, self.base, _sorted(self.shared), [_sorted(s) for s in self.inputs]],
            separators=(",", ":"),
        )

    @staticmethod
    @lru_cache(maxsize=4096)
    def from_json(text: str) -> Operation:
        """The inverse of `to_json`."""
        method, base, shared, inputs = json.loads(text)
        return Operation(method, tuple(_settings(i) for i in inputs), _settings(shared), base)


def _sorted(settings: Settings) -> list[tuple[str, Scalar | Filtered]]:
    return sorted(settings, key=lambda item: item[0])


def _settings(pairs: Sequence[Sequence[Any]]) -> Settings:
    return tuple(
        (name, tuple((f, v) for f, v in value) if isinstance(value, list) else value) for name, value in pairs
    )


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


def name_in_layer(tensor_name: str) -> str:
    """`model.layers.7.self_attn.q_proj.weight` -> `self_attn.q_proj.weight`; other names as they are.

    Filters and random seeds use this name, so that a merge does not depend on its slot.
    """
    return re.sub(r"^.*?\.\d+\.", "", tensor_name)


def apply(operation: Operation, tensors: Sequence[torch.Tensor], name: str) -> torch.Tensor:
    """Merge the sources' tensors into one by mergekit's own arithmetic.

    Methods that draw random numbers (DARE, DELLA) draw them from a seed made of the operation and
    the tensor's name: the same recipe gives the same weights everywhere.

    Args:
        tensors: one per source, of one shape and device, dtypes as mergekit would promote them.
        name: name of the output tensor.

    Returns:
        The merged tensor; for a selection the source's own tensor, not a copy.
    """
    if operation.method == SELECT and not any(operation.inputs):
        return tensors[0]
    method = registry.get(operation.method)
    group = TensorGroup.from_tensors(tensors, base_index=operation.base, name=name)
    group.validate_tensors()
    parameters, seed = _bound(operation, name_in_layer(name))
    generator = _generator(tensors[0].device)
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        with torch.no_grad():
            (result,) = method._execute_resolved((group,), [parameters])
    finally:
        generator.set_state(state)
    return result  # type: ignore[no-any-return]


@lru_cache(maxsize=4096)
def _bound(operation: Operation, name: str) -> tuple[dict[str, Any], int]:
    """(parameters checked by mergekit, random seed) for the tensor of that name in any layer.

    Bound once and kept: binding takes as long as merging a small tensor.
    """
    method = registry.get(operation.method)
    nothing = [torch.empty(0) for _ in operation.inputs]
    group = TensorGroup.from_tensors(nothing, base_index=operation.base, name=name)
    parameters = method._bind_parameters((group,), _resolve(method, operation, name))[0]
    return parameters, zlib.crc32(f"{operation.to_json()}\n{name}".encode())


def _generator(device: torch.device) -> torch.Generator:
    """The generator that random numbers on a device come from.

    torch.manual_seed would do for all devices; it takes longer than merging a small tensor.
    """
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]
        return torch.cuda.default_generators[device.index or 0]
    if device.type == "mps":
        return torch.mps._get_default_mps_generator()
    return torch.default_generator


def _resolve(method: MergeMethod, operation: Operation, name: str) -> dict[str, Any]:
    """The parameters for one tensor, as mergekit's method call takes them."""
    shared = dict(operation.shared)
    inputs = [dict(settings) for settings in operation.inputs]
    resolved: dict[str, Any] = {}
    for parameter in method.spec.parameters:
        if parameter.scope is ParameterScope.SHARED:
            value = _pick(shared, parameter, name)
            if value is not _ABSENT:
                resolved[parameter.name] = value
            continue
        values = {}
        for position, settings in enumerate(inputs):
            value = _pick(settings, parameter, name)
            if value is _ABSENT and not parameter.required:
                value = parameter.default
            if value is not _ABSENT:
                values[position] = value
        resolved[parameter.name] = values
    return resolved


_ABSENT = object()


def _pick(settings: Mapping[str, Scalar | Filtered], parameter: ParameterSpec, name: str) -> Any:
    value = settings.get(parameter.name, _ABSENT)
    if not isinstance(value, tuple):
        return value
    matches = (v for f, v in value if f is None or f == "*" or f in name)
    return next(matches, _ABSENT)


class TailorMethod(GroupMergeMethod):  # type: ignore[misc]  # mergekit has no types
    """The method that mergekit looks up by `merge_method: tailor`, after lowering."""

    spec = MergeMethodSpec(
        name=TAILOR,
        pretty_name="GPTailor",
        reference_url="https://arxiv.org/abs/2506.20480",
        parameters=(
            ParameterSpec(SLOT, str, ParameterScope.SHARED),
            ParameterSpec(EDITS, str, ParameterScope.SHARED, default=""),
            ParameterSpec(CONFIG, str, ParameterScope.SHARED, default=""),
        ),
        contract=InputContract(base=BasePolicy.IGNORED),
    )

    def merge_group(self, group: TensorGroup, /, **parameters: Any) -> torch.Tensor:
        """Apply the slot's operation; sources past the operation's own are padding (see lowering)."""
        operation = Operation.from_json(parameters[SLOT])
        wanted = len(operation.inputs)
        if len(group.entries) < wanted:
            raise ValueError(
                f"{group.metadata.name} is missing in {wanted - len(group.entries)} of the "
                f"{wanted} models that the recipe merges it from"
            )
        entries: Sequence[TensorEntry] = [replace(e, is_base=False) for e in group.entries[:wanted]]
        name = group.metadata.name or ""
        result = apply(operation, [e.tensor for e in entries], name)
        result = edited(from_json(parameters[EDITS]), result, name_in_layer(name))
        # A layer may be used twice; safetensors refuses to write one storage under two names.
        return result.clone() if operation.method == SELECT else result


def can_convert(model_type: str, names: Iterable[str], wanted: str) -> bool:
    """Whether transformers' conversions make a model's tensor of a checkpoint's."""
    return bool(can_convert_checkpoint_keys(model_type, set(names), wanted))


def convert(
    model_type: str, tensors: Mapping[str, Callable[[], torch.Tensor]], wanted: str
) -> torch.Tensor | None:
    """A model's tensor made of a checkpoint's, exactly as mergekit's loader makes it."""
    return convert_checkpoint_tensors(model_type, tensors, wanted)  # type: ignore[no-any-return]


def merge_adapter(model: Path, adapter: Path, out: Path) -> Path:
    """Merge a LoRA adapter into a model as mergekit does; returns the new directory below `out`."""
    reference = ModelReference(model=ModelPath(path=str(model)), lora=ModelPath(path=str(adapter)))
    return Path(reference.merged(cache_dir=str(out)).model.path)
