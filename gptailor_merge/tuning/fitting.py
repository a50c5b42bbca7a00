"""Fits the numbers of a tunable model by Adam, and stops where texts that are not fitted to gain no more."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from gptailor_merge.calibration.batches import Batch
from gptailor_merge.objectives.protocols import (
    ModelObjective,
    Prediction,
    PredictionObjective,
    SlopedObjective,
)
from gptailor_merge.objectives.scores import Weights
from gptailor_merge.scoring.passes import Passes, Values, rows_of
from gptailor_merge.search.outcomes import loss
from gptailor_merge.time_left import StepClock
from gptailor_merge.tuning.checkpoint import Checkpoint
from gptailor_merge.tuning.tunable_model import TunableModel

BETAS = (0.9, 0.99)
"""Adam's decay rates; the second is below its default, since there are tens of steps and not thousands."""


GAIN_SHARE = 0.3
"""The rate of a norm's gain, as a share of the rate of merge weights and of the gain's root mean square."""


CHECKS = 10
"""The texts that are not fitted to are looked at this often, spread evenly over the steps."""


PATIENCE = 3
"""Fitting ends when this many looks in a row have found nothing better."""


@dataclass(frozen=True)
class Fit:
    """Tells how a fit went.

    Attributes:
        steps: the number of steps after which the model was best; 0 if it was best as it began.
        before, after: the loss on the texts that were not fitted to, at the beginning and at its best.
        tokens: tokens that went through the model; those that were differentiated count three times.
    """

    steps: int
    before: float
    after: float
    tokens: int


def fit(
    model: TunableModel,
    fitted: Passes,
    held_back: Passes,
    weights: Weights,
    *,
    steps: int,
    rate: float,
    progress: Callable[[str], None] = lambda step: None,
    checkpoint: Checkpoint | None = None,
) -> Fit:
    """Fits a model's merge weights and gains, and leaves it as it was best on the texts held back.

    Args:
        fitted: the objectives on the texts that are fitted to; a rung is the texts of one step.
        held_back: the same objectives on other texts.
        weights: objective -> its weight in the loss.
        steps: most steps; they go through the rungs in turn.
        rate: Adam's rate of merge weights, which falls to zero along half a cosine.
        checkpoint: where the state is kept, and taken from if it is there.
    """
    course = _Course(model, rate)
    if checkpoint is None or not course.resume(checkpoint):
        course.before = course.best = _loss(model, held_back, weights)
        course.tokens = held_back.tokens
    numbers = ", ".join(
        f"{sum(map(torch.Tensor.numel, parameters)):,} {what}"
        for what, parameters in (("merge weights", model.weights), ("gains", model.gains))
        if parameters
    )
    progress(f"tuning {numbers}, at most {steps} steps: loss {course.best:.4f}")
    objectives = [o for o in fitted.objectives if not isinstance(o, ModelObjective)]
    interval = max(1, steps // CHECKS)
    clock = StepClock(course.step, steps)
    while course.step < steps:
        batches = fitted.rungs[course.step % len(fitted.rungs)]
        course.tokens += _differentiate(model, objectives, batches, weights)
        course.advance((1 + math.cos(math.pi * course.step / steps)) / 2)
        if course.step % interval == 0 or course.step == steps:
            now = _loss(model, held_back, weights)
            course.tokens += held_back.tokens
            progress(
                f"tuning, step {course.step} of {steps}{clock.left(course.step)}: "
                f"loss {now:.4f}, before {course.before:.4f}"
            )
            if course.is_over(now):
                break
        if checkpoint is not None and checkpoint.is_due:
            course.save(checkpoint)
    course.end()
    return Fit(course.best_step, course.before, course.best, course.tokens)


class _Course:
    """The state of a fit: the numbers as they are and as they were best, and Adam's memory.

    Attributes:
        step: steps that are done.
        before, best, best_step: the loss held back at the beginning, and where it was lowest.
        tokens: tokens that went through the model.
    """

    def __init__(self, model: TunableModel, rate: float) -> None:
        self._parameters = _parameters(model)
        self._kept = _copies(self._parameters)
        self._optimizer = torch.optim.Adam(_parameter_groups(model, rate), betas=BETAS)
        self._rates = [group["lr"] for group in self._optimizer.param_groups]
        self.step = self.best_step = self._waited = self.tokens = 0
        self.before = self.best = 0.0

    def advance(self, share: float) -> None:
        """Takes a step of a share of the full rates."""
        for group, full in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = full * share
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.step += 1

    def is_over(self, loss: float) -> bool:
        """Takes note of the loss held back, and tells whether to go on is of no use."""
        self._waited += 1
        if loss < self.best:
            self.best, self.best_step, self._waited = loss, self.step, 0
            self._kept = _copies(self._parameters)
            return False
        return self._waited == PATIENCE or not math.isfinite(loss)

    def end(self) -> None:
        """Leaves the model as it was best."""
        with torch.no_grad():
            for parameter, value in zip(self._parameters, self._kept, strict=True):
                parameter.copy_(value)

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes the state."""
        checkpoint.write(self._tensors(), self._numbers())

    def resume(self, checkpoint: Checkpoint) -> bool:
        """Takes the state that was written, and tells whether there is one."""
        state = checkpoint.read(self._tensors(), self._numbers())
        if state is None:
            return False
        tensors, numbers = state
        for name, value in numbers.items():
            setattr(self, name, value)
        with torch.no_grad():
            for place, parameter in enumerate(self._parameters):
                parameter.copy_(tensors[f"{place}.now"])
                self._kept[place].copy_(tensors[f"{place}.best"])
                if tensors[f"{place}.step"]:
                    moments = {name: tensors[f"{place}.{name}"].to(parameter.device) for name in _MOMENTS}
                    self._optimizer.state[parameter] = {"step": tensors[f"{place}.step"], **moments}
        return True

    def _numbers(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in _NUMBERS}

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors = {}
        for place, (parameter, best) in enumerate(zip(self._parameters, self._kept, strict=True)):
            state = self._optimizer.state.get(parameter, {})
            adam = {name: state.get(name, torch.zeros_like(parameter)) for name in _MOMENTS}
            adam["step"] = state.get("step", torch.zeros(()))
            for name, tensor in {"now": parameter, "best": best, **adam}.items():
                tensors[f"{place}.{name}"] = tensor
        return tensors


_MOMENTS = ("exp_avg", "exp_avg_sq")
"""The names of Adam's moments."""


_NUMBERS = ("step", "best_step", "_waited", "tokens", "before", "best")
"""The numbers of a course that a file holds."""


def _parameters(model: TunableModel) -> list[torch.nn.Parameter]:
    return [*model.weights, *model.gains]


def _parameter_groups(model: TunableModel, rate: float) -> Iterator[dict[str, object]]:
    """Yields Adam's groups: a step of Adam is as long as the rate, so that gains get one by their size."""
    yield {"params": model.weights, "lr": rate}
    for gain in model.gains:
        size = float(gain.detach().square().mean().sqrt())
        yield {"params": [gain], "lr": rate * GAIN_SHARE * (size or 1.0)}


def _copies(parameters: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def _loss(model: TunableModel, passes: Passes, weights: Weights) -> float:
    """Returns the weighted loss on texts, as a search would score it."""
    measured = passes.measure_with(model.predictions)
    return loss(passes.scores(measured), weights)


def _differentiate(
    model: TunableModel,
    objectives: Sequence[PredictionObjective],
    batches: Sequence[Batch],
    weights: Weights,
) -> int:
    """Adds to the gradients those of the loss on batches; every token or item of an objective counts alike.

    Returns:
        The number of tokens that went through the model; those that were differentiated count three times.
    """
    of_items = [objective for objective in objectives if isinstance(objective, SlopedObjective)]
    item_batches = [batch for batch in batches if batch.rows]
    slopes = _slopes(model, of_items, item_batches, weights)
    shares = {
        objective.name: weights[objective.name] / max(1, sum(_predicted(b, objective) for b in batches))
        for objective in objectives
        if objective not in of_items
    }
    for batch in batches:
        with model.differentiated(batch) as predictions:
            for objective, set_name, prediction in _of_objectives(predictions, objectives):
                values = objective.values(set_name, prediction)
                if objective.name in shares:
                    added = shares[objective.name] * values.sum()
                else:
                    added = values.flatten() @ next(slopes[objective.name, set_name])
                # Rows of several sets share logits, which go when their predictions do.
                torch.autograd.backward(added, retain_graph=True)
    return sum(batch.ids.numel() for batch in (*batches, *batches, *batches, *item_batches))


def _slopes(
    model: TunableModel, objectives: Sequence[SlopedObjective], batches: Sequence[Batch], weights: Weights
) -> dict[tuple[str, str], Iterator[torch.Tensor]]:
    """Returns how the loss changes with the values that objectives keep of each prediction of batches.

    An item's options may be in several batches, so that all are predicted before any is differentiated.
    """
    kept: Values = {}
    for batch in batches:
        for objective, set_name, prediction in _of_objectives(model.predictions(batch), objectives):
            values = objective.values(set_name, prediction).flatten()
            kept.setdefault((objective.name, set_name), []).append(values)
    rows = rows_of(batches)
    pieces: dict[tuple[str, str], Iterator[torch.Tensor]] = {}
    for objective in objectives:
        slopes, count = {}, 0
        for item_set in objective.sets:
            if parts := kept.get((objective.name, item_set.name)):
                numbers = torch.cat(parts).cpu().double().numpy()
                count += len(objective.units(item_set.name, numbers, rows[item_set.digest]))
                slopes[item_set.name] = objective.slopes(item_set.name, numbers, rows[item_set.digest])
        for set_name, of_set in slopes.items():
            parts = kept[objective.name, set_name]
            whole = torch.from_numpy(of_set * (weights[objective.name] / count)).to(parts[0])
            pieces[objective.name, set_name] = iter(torch.split(whole, [len(part) for part in parts]))
    return pieces


def _of_objectives(
    predictions: Iterable[Prediction], objectives: Sequence[PredictionObjective]
) -> Iterator[tuple[PredictionObjective, str, Prediction]]:
    """Yields each prediction with the objectives that have its set, and the set's name there."""
    for prediction in predictions:
        for objective in objectives:
            for token_set in objective.sets:
                if token_set.digest == prediction.segment.digest:
                    yield objective, token_set.name, prediction


def _predicted(batch: Batch, objective: PredictionObjective) -> int:
    """Counts the tokens that an objective has in a batch of texts."""
    digests = {token_set.digest for token_set in objective.sets}
    rows = sum(len(segment.at) for segment in batch.segments if segment.digest in digests)
    return rows * (batch.ids.shape[1] - 1)
