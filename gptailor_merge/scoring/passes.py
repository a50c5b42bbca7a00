"""Runs models on batches and measures the objectives; computes nothing that is not scored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from gptailor_merge.calibration.batches import RUNGS, Batch
from gptailor_merge.composing.prefixes import State, advance, head
from gptailor_merge.models.architecture import layers_of
from gptailor_merge.objectives.protocols import Forward, ModelObjective, Objective, Prediction, Watch
from gptailor_merge.objectives.scores import Scores, Weights
from gptailor_merge.scoring.racing import Totals, Units

LOGITS_BYTES = {"cpu": 8 * 1024**2}
"""Device type -> bytes of float32 logits that exist at once, roughly; a CPU's cache holds this many."""


DEFAULT_LOGITS_BYTES = 1024**3


Values = dict[tuple[str, str], list[torch.Tensor]]
"""(objective, set name) -> the values kept of predictions, in the order of the batches of a rung."""


Measured = dict[tuple[str, str], list[NDArray[np.float64]]]
"""(objective, set name) -> one number per unit (a predicted token, an item), rung by rung."""


def predictions(
    model: PreTrainedModel,
    batch: Batch,
    state: State,
    *,
    vocabulary: int | None = None,
    gradients: bool = False,
) -> Iterator[Prediction]:
    """Yields a model's predictions, some rows at a time, at positions whose next token is known.

    Args:
        state: the output of the model's last layer for the batch.
        vocabulary: tokens that can be predicted, counted from the first; default all of the model's.
        gradients: whether the predictions are to be differentiated.
    """
    positions = batch.ids.shape[1] - 1
    if batch.rows:
        positions = max(len(row.places) for row in batch.rows)
    row_bytes = positions * int(model.config.get_text_config().vocab_size) * 4
    size = max(1, LOGITS_BYTES.get(batch.ids.device.type, DEFAULT_LOGITS_BYTES) // row_bytes)
    start = 0
    for part in batch.cut(size):
        part_state = state[start : start + len(part.ids)]
        start += len(part.ids)
        if part.rows:
            yield from _item_predictions(model, part, part_state, vocabulary, gradients)
            continue
        logits = head(model, part.ids[:, :-1], part_state[:, :-1], gradients=gradients)
        known = logits[..., :vocabulary].log_softmax(-1, dtype=torch.float32)
        for segment in part.segments:
            at = slice(segment.at.start, segment.at.stop)
            yield Prediction(segment, part.ids[at, 1:], known[at])


def _item_predictions(
    model: PreTrainedModel, batch: Batch, state: State, vocabulary: int | None, gradients: bool
) -> Iterator[Prediction]:
    """Yields the predictions at the places that items ask for."""
    places = batch.places
    logits = head(model, batch.ids[places][None], state[places][None], gradients=gradients)
    known = logits[0, :, :vocabulary].log_softmax(-1, dtype=torch.float32)
    for segment, at, asked in batch.questions:
        yield Prediction(segment, asked, known, at)


def predictions_alone(
    model: PreTrainedModel, batch: Batch, *, vocabulary: int | None = None, watch: Watch | None = None
) -> Iterator[Prediction]:
    """Yields the predictions of a single model, which shares no work with others.

    Args:
        vocabulary: see predictions.
        watch: told of layers' inputs on the way.
    """
    depth = len(layers_of(model))
    watched = set() if watch is None else {layer - 1 for layer in watch.layers}
    *inputs, state = advance(model, batch.ids, None, range(depth), {*watched, depth - 1}, batch.branches)
    if watch is not None:
        watch.see(batch, inputs)
    return predictions(model, batch, state, vocabulary=vocabulary)


class Passes:
    """Measures models on objectives, rung by rung.

    Attributes:
        objectives: the objectives, in the order of the config.
        rungs: the batches that each rung adds.
        totals: digest of a set -> the number of its units.
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        rungs: Sequence[Sequence[Batch]],
        shares: Sequence[float] = RUNGS,
    ) -> None:
        """
        Args:
            rungs: the batches that each rung adds, one entry for each of the shares; see batches.layout.
            shares: the share of every set's units that has been scored at the end of each rung.
        """
        if len(rungs) != len(shares):
            raise ValueError(f"{len(rungs)} rungs for {len(shares)} shares; layout makes one for each")
        self.objectives = objectives
        self.rungs = rungs
        self.totals: Totals = {s.digest: s.units for o in objectives for s in o.sets}
        self._of_predictions = [o for o in objectives if not isinstance(o, ModelObjective)]
        self._of_models = [o for o in objectives if isinstance(o, ModelObjective)]
        self._rows = [rows_of(rung) for rung in rungs]
        self._parts = [(0.0, *shares)[number : number + 2] for number in range(len(shares))]

    @property
    def batches(self) -> list[Batch]:
        """All batches, rung after rung."""
        return [batch for rung in self.rungs for batch in rung]

    @property
    def tokens(self) -> int:
        """The number of tokens that go through a model to score it once."""
        return sum(batch.ids.numel() for batch in self.batches)

    def nothing_measured(self) -> Measured:
        """Returns an empty entry for each objective and set, in order."""
        return {(o.name, token_set.name): [] for o in self.objectives for token_set in o.sets}

    def measure(self, predicted: Iterable[Prediction]) -> Values:
        """Returns the values that the objectives keep of predictions."""
        values: Values = {}
        with torch.inference_mode():
            for prediction in predicted:
                for objective in self._of_predictions:
                    for token_set in objective.sets:
                        if token_set.digest == prediction.segment.digest:
                            kept = objective.values(token_set.name, prediction)
                            values.setdefault((objective.name, token_set.name), []).append(kept.flatten())
        return values

    def finish(self, rung: int, values: Values, measured: Measured) -> None:
        """Adds the units of a whole rung to `measured`, from the values of all its batches."""
        for objective in self._of_predictions:
            for token_set in objective.sets:
                parts = values.get((objective.name, token_set.name))
                if parts:
                    rows = self._rows[rung][token_set.digest]
                    units = objective.units(token_set.name, _on_host(parts).numpy(), rows)
                    measured[objective.name, token_set.name].append(units)

    def takes_models(self, rung: int) -> bool:
        """Tells whether a rung measures anything that takes the whole model."""
        begun, done = self._parts[rung]
        sets = [unit_set for objective in self._of_models for unit_set in objective.sets]
        return any(unit_set.units_until(begun) < unit_set.units_until(done) for unit_set in sets)

    def measure_model(self, rung: int, model: PreTrainedModel, measured: Measured) -> None:
        """Adds the units that a rung measures on a whole model to `measured`."""
        begun, done = self._parts[rung]
        with torch.inference_mode():
            for objective in self._of_models:
                for unit_set in objective.sets:
                    first, stop = unit_set.units_until(begun), unit_set.units_until(done)
                    if first < stop:
                        units = objective.measure(unit_set.name, model, first, stop)
                        measured[objective.name, unit_set.name].append(units)

    def score(self, model: PreTrainedModel) -> Scores:
        """Scores a single model, composed or loaded, that has the family's vocabulary."""
        return self.scores(self.measure_alone(model))

    def measure_alone(self, model: PreTrainedModel) -> Measured:
        """Measures a single model and returns the units behind its scores."""
        *_, measured = self.measure_by_rungs(model)
        return measured

    def measure_by_rungs(self, model: PreTrainedModel) -> Iterator[Measured]:
        """Measures a single model and yields, after each rung, all that is measured so far."""
        measured = self.nothing_measured()
        for rung in range(len(self.rungs)):
            self._measure_rung(rung, partial(predictions_alone, model), measured)
            self.measure_model(rung, model, measured)
            yield measured

    def measure_with(self, forward: Forward) -> Measured:
        """Measures what a forward pass predicts; objectives that take the whole model stay empty."""
        measured = self.nothing_measured()
        for rung in range(len(self.rungs)):
            self._measure_rung(rung, forward, measured)
        return measured

    def _measure_rung(self, rung: int, forward: Forward, measured: Measured) -> None:
        """Adds the units of a rung that predictions are enough for."""
        values: Values = {}
        for batch in self.rungs[rung]:
            extend(values, self.measure(forward(batch)))
        self.finish(rung, values, measured)

    def scores(self, measured: Measured) -> Scores:
        """Returns the scores over the units measured so far."""
        return {
            o.name: {s.name: o.score(s.name, np.concatenate(measured[o.name, s.name])) for s in o.sets}
            for o in self.objectives
        }

    def units(self, measured: Measured, weights: Weights) -> Units:
        """Returns what each unit adds to the loss; objectives without a weight add nothing."""
        units: dict[str, NDArray[np.float64]] = {}
        for objective in self.objectives:
            if objective.name not in weights:
                continue
            size = sum(objective.size(token_set.name, token_set.units) for token_set in objective.sets)
            for token_set in objective.sets:
                values = np.concatenate(measured[objective.name, token_set.name])
                added = values * (weights[objective.name] / size)
                before = units.get(token_set.digest)
                units[token_set.digest] = added if before is None else before + added
        return units


def extend(values: Values, further: Values) -> None:
    """Adds the values of a further batch."""
    for key, parts in further.items():
        values.setdefault(key, []).extend(parts)


def _on_host(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Joins tensors on the CPU in double precision, which MPS does not have."""
    return torch.cat(list(parts)).cpu().double()


def rows_of(rung: Sequence[Batch]) -> dict[str, list[int]]:
    """Returns digest of a set -> its rows, in the order in which a rung scores them."""
    rows: dict[str, list[int]] = {}
    for batch in rung:
        for segment in batch.segments:
            rows.setdefault(segment.digest, []).extend(segment.rows)
    return rows
