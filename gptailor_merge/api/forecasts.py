"""Says what a search will take, before it begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gptailor_merge.api.arguments import AnyPath, ignore, path_of, read_config
from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import errors_in
from gptailor_merge.forecast.forecast import Forecast
from gptailor_merge.forecast.forecast import forecast as forecast_of
from gptailor_merge.forecast.forecast import in_bytes as in_bytes
from gptailor_merge.models.devices import pick_device
from gptailor_merge.report.formatting import duration as duration
from gptailor_merge.runs.preparation import prepare
from gptailor_merge.scoring.workplace import BankMode


def forecast(
    config: AnyPath | SearchConfig,
    *,
    budget: int | None = None,
    seed: int | None = None,
    device: str = "auto",
    bank: BankMode = "auto",
    racing: bool | None = None,
    start: Sequence[AnyPath] = (),
    pick: str | None = None,
    allow_test_split: bool = False,
    repair: bool = True,
    tune: bool = True,
    measure: bool = True,
    on_step: Callable[[str], None] = ignore,
) -> Forecast:
    """Returns what a search will take: memory, tokens, and time where the base is on this machine.

        expected = forecast("recipes/demo/search.yml", device="cpu")
        print(expected.tokens, expected.seconds, expected.peak.host)

    Configs and headers of the family are read, and for the time the base's weights. Nothing is written.

    Args:
        config: the search config, or its file.
        measure: False loads no weights and says no time.
        on_step: called with a sentence on what is being done.

    The other arguments are those of `search`.

    Raises:
        InputError: the config, an option or a model is wrong.
    """
    whole, file = read_config(config)
    settings = whole.override(
        budget=budget,
        seed=seed,
        racing=racing,
        start=[path_of(recipe) for recipe in start],
        pick=pick,
        allow_test_split=allow_test_split,
        repair=repair,
        tune=tune,
    )
    torch_device = pick_device(device)
    with errors_in(file):
        prepared = prepare(settings)
        family, space = prepared.family, prepared.space
        return forecast_of(settings, family, space, torch_device, bank=bank, measure=measure, on_step=on_step)
