"""Tunes plans: fits their merge weights and the gains of norms, and keeps what helps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from gptailor_merge.calibration.batches import layout
from gptailor_merge.calibration.texts import TokenSet
from gptailor_merge.composing.compose import Composer
from gptailor_merge.digests import digest
from gptailor_merge.errors import ConfigError
from gptailor_merge.objectives.kinds import Context, ObjectiveConfig, PreparedObjective
from gptailor_merge.objectives.protocols import Objective, PerToken, SlopedObjective
from gptailor_merge.objectives.scores import Weights
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.scoring.passes import Passes
from gptailor_merge.search.outcomes import loss
from gptailor_merge.tuning.checkpoint import Checkpoint
from gptailor_merge.tuning.fitting import Fit, fit
from gptailor_merge.tuning.groups import Sharing
from gptailor_merge.tuning.tunable_model import TunableModel
from gptailor_merge.versions import environment

BATCH_TOKENS = {"cuda": 16384}
"""Tokens that are differentiated at once, approximately, by the type of the device. All layers are merged for
each batch, which on a GPU takes longer than a few thousand tokens do."""


DEFAULT_BATCH_TOKENS = 4096


@dataclass(frozen=True)
class TuneOptions:
    """Says how plans are tuned.

    Attributes:
        steps: most steps of Adam.
        sharing: the tensors that share a merge weight.
        norms: whether the gains of norms are fitted, too.
        rate: Adam's rate of merge weights.
        outer: whether embeddings and head are merged as well; None merges them where a plan does not take
            them from the base.
        step_tokens: tokens of a step, approximately.
    """

    steps: int = 60
    sharing: Sharing = "part"
    norms: bool = True
    rate: float = 0.03
    outer: bool | None = None
    step_tokens: int = 4096


@dataclass(frozen=True)
class Tuning:
    """Tells what tuning a plan came to.

    Attributes:
        fit: how the fit went.
        before, after: the loss of the plan as it was and of the tuned one, on texts that were not fitted to.
    """

    fit: Fit
    before: float
    after: float

    @property
    def helps(self) -> bool:
        """True where the tuned plan is better, merged and rounded as it will be written."""
        return self.after < self.before


@dataclass(frozen=True)
class Aim:
    """An objective that plans are tuned to.

    Attributes:
        weight: its factor in the loss.
        sets: the texts that it is measured on, in place of the config's; none where it is measured on items.
    """

    config: ObjectiveConfig
    weight: float
    sets: tuple[TokenSet, ...]


class Tuner:
    """Tunes plans of one family on the same texts. It holds no weights, and can be pickled.

    Args:
        aims: the objectives; their weighted sum is minimised.
        context: runs the teachers.

    Attributes:
        tokens: the number of tokens that plans are fitted to.

    Raises:
        ConfigError: an objective has no gradient.
        DataError: too few sequences or items to hold some back.
    """

    def __init__(
        self,
        aims: Sequence[Aim],
        context: Context,
        options: TuneOptions,
    ) -> None:
        self._options = options
        divided = [aim.config.divided(context, aim.sets) for aim in aims]
        names = [f"{aim.config.kind} {number}" for number, aim in enumerate(aims)]
        self._weights: Weights = {name: aim.weight for name, aim in zip(names, aims, strict=True)}
        fitted, held_back = (dict(zip(names, parts, strict=True)) for parts in zip(*divided, strict=True))
        self.tokens = sum(token_set.tokens for part in fitted.values() for token_set in _sets(part))
        steps = max(1, round(self.tokens / options.step_tokens))
        shares = [(step + 1) / steps for step in range(steps)]
        self._fitted = _passes(fitted, context, shares)
        self._held_back = _passes(held_back, context, (1.0,))

    def tune(
        self,
        composer: Composer,
        plan: Plan,
        directory: Path,
        name: str,
        progress: Callable[[str], None] = lambda step: None,
        state: Path | None = None,
    ) -> tuple[Plan, Tuning]:
        """Returns the tuned plan, or the plan itself where tuning does not help, and what it came to.

        Args:
            composer: has the weights of the family, on the device that the tuner's texts are on.
            directory, name: where the gains of norms are written.
            progress: told of each look at the texts that are held back.
            state: the file in which the fit keeps its state, from which it goes on after it was killed; the
                caller removes it.
        """
        options = self._options
        outer = _has_own_ends(plan) if options.outer is None else options.outer
        model = TunableModel(composer, plan, options.sharing, norms=options.norms, outer=outer)
        fitted = fit(
            model,
            self._fitted,
            self._held_back,
            self._weights,
            steps=options.steps,
            rate=options.rate,
            progress=progress,
            checkpoint=None if state is None else Checkpoint(state, self._key(composer, plan)),
        )
        tuned = model.plan(directory, name)
        tuning = Tuning(fitted, self._loss(composer, plan), self._loss(composer, tuned))
        return (tuned if tuning.helps else plan), tuning

    def _key(self, composer: Composer, plan: Plan) -> str:
        """Returns a digest of all that a fit depends on, besides the members' weights."""
        data = [
            [o.fingerprint, *(s.digest for s in o.sets)]
            for passes in (self._fitted, self._held_back)
            for o in passes.objectives
        ]
        options = [asdict(self._options), self._weights, str(composer.device)]
        return digest([plan.digest, data, options, environment()])

    def _loss(self, composer: Composer, plan: Plan) -> float:
        """Returns the loss of a plan's model, as it will be written, on the texts that are held back."""
        return loss(self._held_back.score(composer.compose(plan)), self._weights)


def _has_own_ends(plan: Plan) -> bool:
    """Tells whether embeddings or head are another's than the base's."""
    return any(component.models != (plan.base_model,) for component in (plan.embeddings, plan.head))


def _sets(prepared: PreparedObjective) -> list[TokenSet]:
    return [token_set for token_set in prepared.sets if isinstance(token_set, TokenSet)]


def _passes(prepared: Mapping[str, PreparedObjective], context: Context, shares: Sequence[float]) -> Passes:
    """Lays out texts and items, and builds their objectives.

    Raises:
        ConfigError: an objective has no gradient.
    """
    together = [token_set for part in prepared.values() for token_set in _sets(part)]
    batch_tokens = BATCH_TOKENS.get(context.device.type, DEFAULT_BATCH_TOKENS)
    rungs = layout(together, batch_tokens, device=context.device, rungs=shares)
    batches = [batch for rung in rungs for batch in rung]
    objectives: list[Objective] = []
    for name, part in prepared.items():
        objective = part.build(name, batches)
        if not isinstance(objective, (PerToken, SlopedObjective)):
            raise ConfigError(
                f"{part.metric} has no gradient; tuning takes means over tokens, and smooth metrics"
            )
        objectives.append(objective)
    return Passes(objectives, rungs, shares)
