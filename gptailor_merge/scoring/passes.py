"""How models run on batches: only what is scored is computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from gptailor_merge.calibration.batches import RUNGS, Batch
from gptailor_merge.composing.prefixes import State, advance, head
from gptailor_merge.objectives.protocols import ModelObjective, Objective, Prediction
from gptailor_merge.objectives.scores import Scores, Weights
from gptailor_merge.scoring.racing import Totals, Units

LOGITS_BYTES = {"cpu": 8 * 1024**2}
"""About so large are the logits, in float32, that exist at once: on a CPU what its cache holds."""


DEFAULT_LOGITS_BYTES = 1024**3


Values = dict[tuple[str, str], list[torch.Tensor]]
"""(objective, set name) -> what is kept of predictions, in the order of the batches of a rung."""


Measured = dict[tuple[str, str], list[NDArray[np.float64]]]
"""(objective, set name) -> one number per unit (a predicted token, an item), rung by rung."""


def predictions(
    model: PreTrainedModel, batch: Batch, state: State, *, vocabulary: int | None = None
) -> Iterator[Prediction]:
    """What a model predicts, some rows at a time, on positions whose next token is known.

    Args:
        state: what the model's last layer gave for the batch.
        vocabulary: so many tokens can be predicted; default the model's.
    """
    positions = batch.ids.shape[1] - 1
    if batch.rows:
        positions = max(len(row.places) for row in batch.rows)
    row_bytes = positions * int(model.config.get_text_config().vocab_size) * 4
    size = max(1, LOGITS_BYTES.get(batch.ids.device.type, DEFAULT_LOGITS_BYTES) // row_bytes)
    start = 0
    for part in batch.cut(size):
        of_part = state[start : start + len(part.ids)]
        start += len(part.ids)
        if part.rows:
            yield from _asked(model, part, of_part, vocabulary)
            continue
        together = head(model, part.ids[:, :-1], of_part[:, :-1])[..., :vocabulary].float()
        log_normalizer = together.logsumexp(-1)
        for segment in part.segments:
            at = slice(segment.at.start, segment.at.stop)
            yield Prediction(segment, part.ids[at, 1:], together[at], log_normalizer[at])


def _asked(
    model: PreTrainedModel, batch: Batch, state: State, vocabulary: int | None
) -> Iterator[Prediction]:
    """What is predicted where items ask for it."""
    places = batch.places
    logits = head(model, batch.ids[places][None], state[places][None])[0, :, :vocabulary].float()
    log_normalizer = logits.logsumexp(-1)
    for segment, at, asked in batch.questions:
        yield Prediction(segment, asked, logits, log_normalizer, at)


def predictions_alone(
    model: PreTrainedModel, batch: Batch, *, vocabulary: int | None = None
) -> Iterator[Prediction]:
    """What a model predicts that shares no work with others."""
    depth = len(model.base_model.layers)
    (state,) = advance(model, batch.ids, None, range(depth), {depth - 1}, batch.branches)
    return predictions(model, batch, state, vocabulary=vocabulary)


class Passes:
    """Objectives and what they are measured on, rung by rung.

    Attributes:
        rungs: the batches that each rung adds.
        totals: digest of a set -> its units.
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        rungs: Sequence[Sequence[Batch]],
        shares: Sequence[float] = RUNGS,
    ) -> None:
        """
        Args:
            rungs: one for each of the shares; see batching.layout.
            shares: of every set's units that is scored at the end of each rung.
        """
        if len(rungs) != len(shares):
            raise ValueError(f"{len(rungs)} rungs for {len(shares)} shares; layout makes one for each")
        self.objectives = objectives
        self.rungs = rungs
        self.totals: Totals = {s.digest: s.units for o in objectives for s in o.sets}
        self._of_predictions = [o for o in objectives if not isinstance(o, ModelObjective)]
        self._of_models = [o for o in objectives if isinstance(o, ModelObjective)]
        self._rows = [_rows_of(rung) for rung in rungs]
        self._parts = [(0.0, *shares)[number : number + 2] for number in range(len(shares))]

    @property
    def batches(self) -> list[Batch]:
        """The batches of all rungs."""
        return [batch for rung in self.rungs for batch in rung]

    @property
    def tokens(self) -> int:
        """Tokens that go through a model to score it once."""
        return sum(batch.ids.numel() for batch in self.batches)

    def nothing_measured(self) -> Measured:
        """In the order of the objectives and their sets."""
        return {(o.name, token_set.name): [] for o in self.objectives for token_set in o.sets}

    def measure(self, found: Iterable[Prediction]) -> Values:
        """What the objectives make of predictions."""
        values: Values = {}
        with torch.inference_mode():
            for prediction in found:
                for objective in self._of_predictions:
                    for token_set in objective.sets:
                        if token_set.digest == prediction.segment.digest:
                            made = objective.values(token_set.name, prediction)
                            values.setdefault((objective.name, token_set.name), []).append(made.flatten())
        return values

    def finish(self, rung: int, values: Values, measured: Measured) -> None:
        """Add what the batches of a whole rung came to."""
        for objective in self._of_predictions:
            for token_set in objective.sets:
                parts = values.get((objective.name, token_set.name))
                if parts:
                    made = _on_host(parts).numpy()
                    rows = self._rows[rung][token_set.digest]
                    units = objective.units(token_set.name, made, rows)
                    measured[objective.name, token_set.name].append(units)

    def takes_models(self, rung: int) -> bool:
        """Whether a rung measures anything that takes the whole model."""
        begun, done = self._parts[rung]
        sets = [one for objective in self._of_models for one in objective.sets]
        return any(one.units_until(begun) < one.units_until(done) for one in sets)

    def measure_model(self, rung: int, model: PreTrainedModel, measured: Measured) -> None:
        """Add what a rung measures on a whole model."""
        begun, done = self._parts[rung]
        with torch.inference_mode():
            for objective in self._of_models:
                for one in objective.sets:
                    first, stop = one.units_until(begun), one.units_until(done)
                    if first < stop:
                        units = objective.measure(one.name, model, first, stop)
                        measured[objective.name, one.name].append(units)

    def score(self, model: PreTrainedModel) -> Scores:
        """Score a single model, composed or loaded, that has the family's vocabulary."""
        return self.scores(self.measure_alone(model))

    def measure_alone(self, model: PreTrainedModel) -> Measured:
        """The units behind the scores of a single model."""
        measured = self.nothing_measured()
        for number, rung in enumerate(self.rungs):
            values: Values = {}
            for batch in rung:
                extend(values, self.measure(predictions_alone(model, batch)))
            self.finish(number, values, measured)
            self.measure_model(number, model, measured)
        return measured

    def scores(self, measured: Measured) -> Scores:
        """Of what was measured so far."""
        return {
            o.name: {s.name: o.score(s.name, np.concatenate(measured[o.name, s.name])) for s in o.sets}
            for o in self.objectives
        }

    def units(self, measured: Measured, weights: Weights) -> Units:
        """What each unit adds to the loss; objectives without a weight add nothing."""
        units: dict[str, NDArray[np.float64]] = {}
        for objective in self.objectives:
            if objective.name not in weights:
                continue
            size = sum(objective.size(token_set.name, token_set.units) for token_set in objective.sets)
            for token_set in objective.sets:
                made = np.concatenate(measured[objective.name, token_set.name])
                part = made * (weights[objective.name] / size)
                known = units.get(token_set.digest)
                units[token_set.digest] = part if known is None else known + part
        return units


def extend(values: Values, by: Values) -> None:
    """Add the values of a further batch."""
    for key, parts in by.items():
        values.setdefault(key, []).extend(parts)


def _on_host(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """In double precision, which MPS does not have."""
    return torch.cat(list(parts)).cpu().double()


def _rows_of(rung: Sequence[Batch]) -> dict[str, list[int]]:
    """Digest of a set -> its rows, in the order in which a rung scores them."""
    rows: dict[str, list[int]] = {}
    for batch in rung:
        for segment in batch.segments:
            rows.setdefault(segment.digest, []).extend(segment.rows)
    return rows
