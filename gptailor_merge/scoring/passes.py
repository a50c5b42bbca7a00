"""How models run on batches: only what is scored is computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from gptailor_merge.composing.prefixes import State, advance, head
from gptailor_merge.scoring.batching import Batch
from gptailor_merge.scoring.objectives import Objective, Prediction, Score, Scores, Weights
from gptailor_merge.scoring.racing import Totals, Units

LOGITS_BYTES = {"cpu": 8 * 1024**2}
"""About so large are the logits, in float32, that exist at once: on a CPU what its cache holds."""
DEFAULT_LOGITS_BYTES = 1024**3

Values = dict[tuple[str, str], list[torch.Tensor]]
"""(objective, set name) -> a value per predicted token, float32, in the order of the batches."""


def predictions(
    model: PreTrainedModel, batch: Batch, state: State, *, vocabulary: int | None = None
) -> Iterator[Prediction]:
    """What a model predicts, some rows at a time, on positions whose next token is known.

    Args:
        state: what the model's last layer gave for the batch.
        vocabulary: so many tokens can be predicted; default the model's.
    """
    positions = batch.ids.shape[1] - 1
    row_bytes = positions * int(model.config.get_text_config().vocab_size) * 4
    size = max(1, LOGITS_BYTES.get(batch.ids.device.type, DEFAULT_LOGITS_BYTES) // row_bytes)
    for start in range(0, len(batch.ids), size):
        part = batch.rows(start, start + size)
        logits = head(model, part.ids[:, :-1], state[start : start + size, :-1])[..., :vocabulary]
        together = logits.float()
        log_normalizer = together.logsumexp(-1)
        for segment in part.segments:
            at = slice(segment.at.start, segment.at.stop)
            yield Prediction(segment, part.ids[at, 1:], together[at], log_normalizer[at])


def predictions_alone(
    model: PreTrainedModel, batch: Batch, *, vocabulary: int | None = None
) -> Iterator[Prediction]:
    """What a model predicts that shares no work with others."""
    depth = len(model.base_model.layers)
    (state,) = advance(model, batch.ids, None, range(depth), {depth - 1})
    return predictions(model, batch, state, vocabulary=vocabulary)


class Passes:
    """Objectives and the batches that they are measured on.

    Attributes:
        rungs: the batches that each rung adds.
        totals: digest of a set -> predicted tokens in it.
    """

    def __init__(self, objectives: Sequence[Objective], rungs: Sequence[Sequence[Batch]]) -> None:
        self.objectives = objectives
        self.rungs = rungs
        self.totals: Totals = {s.digest: s.scored_tokens for o in objectives for s in o.sets}

    @property
    def batches(self) -> list[Batch]:
        """The batches of all rungs."""
        return [batch for rung in self.rungs for batch in rung]

    @property
    def tokens(self) -> int:
        """Tokens that go through a model to score it once."""
        return sum(batch.ids.numel() for batch in self.batches)

    def no_values(self) -> Values:
        """Nothing measured yet, in the order of the objectives and their sets."""
        return {(o.name, token_set.name): [] for o in self.objectives for token_set in o.sets}

    def measure(self, found: Iterable[Prediction]) -> Values:
        """What the objectives make of predictions."""
        values: Values = {}
        with torch.inference_mode():
            for prediction in found:
                for objective in self.objectives:
                    for token_set in objective.sets:
                        if token_set.digest == prediction.segment.digest:
                            made = objective.values(token_set.name, prediction)
                            values.setdefault((objective.name, token_set.name), []).append(made.flatten())
        return values

    def score(self, model: PreTrainedModel) -> Scores:
        """Score a single model, composed or loaded, that has the family's vocabulary."""
        values = self.no_values()
        for batch in self.batches:
            extend(values, self.measure(predictions_alone(model, batch)))
        return scores(values)

    def units(self, values: Values, weights: Weights) -> Units:
        """What each predicted token adds to the loss."""
        units: dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]] = {}
        for objective in self.objectives:
            tokens = sum(token_set.scored_tokens for token_set in objective.sets)
            for token_set in objective.sets:
                made = _on_host(values[objective.name, token_set.name]).numpy()
                part = made * (weights[objective.name] / tokens)
                known = units.get(token_set.digest)
                units[token_set.digest] = part if known is None else known + part
        return units


def _on_host(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """In double precision, which MPS does not have."""
    return torch.cat(list(parts)).cpu().double()


def extend(values: Values, by: Values) -> None:
    """Add the values of a further batch."""
    for key, parts in by.items():
        values.setdefault(key, []).extend(parts)


def scores(values: Values) -> Scores:
    """The means of the values."""
    means: dict[str, dict[str, Score]] = {}
    for (objective, name), parts in values.items():
        made = _on_host(parts)
        means.setdefault(objective, {})[name] = Score(float(made.mean()), len(made))
    return means
