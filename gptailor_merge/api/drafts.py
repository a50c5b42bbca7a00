"""Writes a search config for a family, from configs and headers only."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptailor_merge.api.arguments import AnyPath, path_of
from gptailor_merge.api.tunings import pairs
from gptailor_merge.composing.bank import belongs_on_host
from gptailor_merge.config import SearchConfig
from gptailor_merge.drafting.config_text import SearchDraft
from gptailor_merge.drafting.member_names import variants_of
from gptailor_merge.drafting.texts import teachers_of, texts_in
from gptailor_merge.errors import ConfigError
from gptailor_merge.files import creating
from gptailor_merge.forecast.forecast import Forecast
from gptailor_merge.forecast.forecast import forecast as forecast_of
from gptailor_merge.models.devices import compute_dtype, pick_device, stored_dtype
from gptailor_merge.models.family import Family
from gptailor_merge.runs.preparation import prepare
from gptailor_merge.scoring.workplace import BankMode
from gptailor_merge.space.sizes import target_sizes

_WHERE: Mapping[BankMode, str] = {
    "auto": "They stay on the device that models run on.",
    "device": "They stay on the device that models run on.",
    "host": "They stay in the host's memory, from where layers are sent to the device.",
}
"""Says where the weights of the family stay."""


@dataclass(frozen=True)
class DraftedSearch:
    """A search config that was written.

    Attributes:
        file: the config's.
        config: its content.
        expected: what the search will take, without the time.
        command: runs the search.
    """

    file: Path
    config: SearchConfig
    expected: Forecast
    command: str


def draft(
    base: str,
    variants: Sequence[str] | Mapping[str, str] = (),
    *,
    out: AnyPath = "search.yml",
    target: float = 0.75,
    data: AnyPath | Sequence[AnyPath] = (),
    teachers: Mapping[str, str] | Iterable[str] = (),
    device: str = "auto",
    bank: BankMode = "auto",
) -> DraftedSearch:
    """Writes a search config for a family with a comment on each choice; no weights are loaded.

        drafted = draft("family/base", ["family/maths", "family/code"], data="texts", out="search.yml")
        print(drafted.command, drafted.expected.peak)

    Args:
        base: directory or Hub id.
        variants: directories, Hub ids or adapters, each also NAME=MODEL; or name -> model.
        out: the file to write, which must not exist.
        target: share of the base's parameters that the pruned model keeps at most, or a number of layers.
        data: files or directories of texts, see drafting.texts; a data set of the Hub by default.
        teachers: name of a text -> member that teaches it, or texts NAME=MEMBER; by default the member that
            has its name, or else the base.
        device: where models will run: auto, cpu, cuda, cuda:N or mps.
        bank: where the family's weights are to live.

    Raises:
        InputError: a model, a text or an option is wrong, or `out` exists; nothing was written.
    """
    file, torch_device = path_of(out), pick_device(device)
    if file.exists():
        raise ConfigError(f"{file} exists; choose another --out or remove it")
    given = [f"{n}={m}" for n, m in variants.items()] if isinstance(variants, Mapping) else list(variants)
    models = variants_of(base, given)
    texts = texts_in([str(path_of(path)) for path in ([data] if isinstance(data, (str, Path)) else data)])
    taught = teachers_of(texts, list(models), pairs("--teacher", "MEMBER", teachers))
    family = Family.load(base, models)
    size = _layers(target, family)
    run = file.with_suffix("").name
    out_dtype = stored_dtype(family.base)
    if bank == "auto" and belongs_on_host(family, compute_dtype(torch_device, out_dtype), torch_device):
        bank = "host"
    options = {"--bank": bank, "--device": device}
    command = ["gptailor-evolve", str(file), "--out", f"runs/{run}"]
    command += [word for option in options.items() if option[1] != "auto" for word in option]
    draft = SearchDraft(
        family=family,
        base=base,
        variants=models,
        size=size,
        texts=texts,
        teachers=taught,
        out_dtype=out_dtype,
        command=shlex.join(command),
        bank=_WHERE[bank],
        directory=file.parent,
    )
    with creating(file, draft.text()) as staged:
        config = _loaded(staged)
        space = prepare(config, family).space
        expected = forecast_of(config, family, space, torch_device, bank=bank, measure=False)
    return DraftedSearch(file, config, expected, draft.command)


def _layers(target: float, family: Family) -> int:
    """Returns the number of layers that stay.

    Raises:
        ConfigError: the target is no share, and no number of layers that the family has.
    """
    if 0 < target < 1:
        (size,) = target_sizes({"parameters": target}, family.outer_parameters, family.layer_sizes)
        if size >= 1:
            return size
        least = family.parameters([min(range(family.depth), key=family.layer_sizes.__getitem__)])
        share = least / family.parameters(range(family.depth))
        raise ConfigError(
            f"--target: embeddings, head and one layer have {share:.2f} of the parameters, found {target:g}"
        )
    if target != int(target) or not 1 <= target <= family.depth:
        raise ConfigError(
            f"--target: expected a share below 1, or 1 to {family.depth} layers, found {target:g}"
        )
    return int(target)


def _loaded(file: Path) -> SearchConfig:
    """Reads the config; what is wrong with it is said without the file, which nobody has seen yet."""
    try:
        return SearchConfig.load(file)
    except ConfigError as error:
        raise ConfigError(error.problems) from None
