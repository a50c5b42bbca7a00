"""A recipe becomes one whose cuts are repaired, from calibration texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gptailor_merge.calibration.batches import Batch, layout
from gptailor_merge.calibration.texts import TokenSet
from gptailor_merge.composing.bank import Bank, Precision
from gptailor_merge.composing.compose import Composer
from gptailor_merge.composing.editing import save_map
from gptailor_merge.composing.exits import placed
from gptailor_merge.digests import digest_of
from gptailor_merge.errors import DataError, FamilyError, RecipeError
from gptailor_merge.models.devices import compute_dtype, stored_dtype
from gptailor_merge.models.family import Family
from gptailor_merge.models.loading import load_tokenizer
from gptailor_merge.objectives.perplexity import Perplexity
from gptailor_merge.objectives.scores import Score
from gptailor_merge.objectives.text_kinds import token_sets
from gptailor_merge.planning.check import check_with_family
from gptailor_merge.planning.rewriting import rewritten
from gptailor_merge.recipe.plan import MLP, Edit, Plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.repair.regression import Climb, Cut, cuts, with_edit
from gptailor_merge.scoring.passes import Passes

RIDGES = (1e-4, 1e-3, 1e-2, 0.1, 0.3, 1.0, 10.0)
"""Strengths of the ridge that are tried, see scoring.repairing."""


EVERY = 4
"""Of every so many sequences one is not fitted to, and chooses the ridge."""


BATCH_TOKENS = 4096


RECIPE = "recipe.yml"


@dataclass(frozen=True)
class Repaired:
    """What became of a cut.

    Attributes:
        slot: the slot before it, whose MLP is repaired.
        removed: [first, past the last) of the layers that are missing.
        ridge: the chosen strength; None where no map made the model better.
        before, after: nats per token on the sequences that were not fitted to.
        note: why it could not be repaired.
    """

    slot: int
    removed: tuple[int, int]
    ridge: float | None = None
    before: float | None = None
    after: float | None = None
    note: str | None = None


@dataclass(frozen=True)
class Result:
    """A repaired recipe.

    Attributes:
        tokens: that the maps were fitted to, in the end all.
    """

    recipe: Recipe
    cuts: tuple[Repaired, ...]
    tokens: int

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"cuts": [asdict(cut) for cut in self.cuts], "tokens": self.tokens}


def repair(
    recipe: Recipe,
    data: Mapping[str, str],
    out: Path,
    *,
    file: Path | None = None,
    staged: Path | None = None,
    everywhere: bool = False,
    tokens: int,
    sequence_length: int,
    device: torch.device,
    progress: Callable[[str], None] = lambda step: None,
) -> Result:
    """Fit a map at each cut, the first one first, and keep those that help.

    Args:
        data: name -> .jsonl or .txt file.
        out: the directory that the maps are in, as the recipe names it.
        file: the recipe's, for messages.
        staged: where they are written, if it is to be renamed to `out`.
        everywhere: also behind slots where no layer is missing.
        tokens: in all, shared evenly by the files.

    Raises:
        RecipeError: there is no cut, or the recipe is repaired already.
        DataError: too few sequences to choose a ridge on.
    """
    plan, family = check_with_family(recipe, file=file)
    if not cuts(plan, family.depth, everywhere=everywhere):
        raise RecipeError("no layer is missing behind another; there is nothing to repair", file=file)
    if plan.repaired:
        raise RecipeError("is repaired already; repair the recipe that it was made of", file=file)
    dtype = compute_dtype(device, recipe.out_dtype or recipe.dtype or stored_dtype(family.base))
    composer = Composer(Bank(family, Precision.of(recipe.dtype, recipe.out_dtype, dtype), device=device))
    tokenizer = load_tokenizer(family.by_model(plan.tokenizer).directory)
    sets = token_sets(data, tokenizer, tokens, sequence_length)
    repairer = Repairer(composer, family, sets, everywhere=everywhere)
    whole, made = repairer.repair(plan, staged or out, progress)
    slots = [replace(slot, edits=tuple(_moved(edit, out) for edit in slot.edits)) for slot in whole.slots]
    return Result(rewritten(recipe, slots), made, repairer.tokens)


class Repairer:
    """Repairs plans of one family with maps that are fitted to the same texts.

    Args:
        sets: the texts; of every fourth sequence the ridge is chosen, and whether a map helps.
        everywhere: also behind slots where no layer is missing.

    Attributes:
        tokens: of the texts.
        spent: tokens that have gone through models, or through a part of one.

    Raises:
        DataError: too few sequences to choose a ridge on.
    """

    def __init__(
        self, composer: Composer, family: Family, sets: Sequence[TokenSet], *, everywhere: bool = False
    ) -> None:
        fitted, chosen_on = _split(sets)
        self.tokens = sum(ids.numel() for one in sets for ids in one.sequences)
        self.spent = 0
        self._composer, self._family, self._everywhere = composer, family, everywhere
        self._fitted, self._chosen_on = self._batches(fitted), self._batches(chosen_on)
        self._passes = Passes([Perplexity("nll", tuple(chosen_on))], [self._chosen_on], (1.0,))
        self._tokens_of_loss = sum(batch.ids.numel() for batch in self._chosen_on)

    def repair(
        self, plan: Plan, directory: Path, progress: Callable[[str], None] = lambda step: None
    ) -> tuple[Plan, tuple[Repaired, ...]]:
        """The plan with a map at each cut where one helps, and what became of each cut.

        Args:
            directory: where the maps are written.
        """
        config, depth = self._family.base.config, self._family.depth
        found = cuts(plan, depth, everywhere=self._everywhere)
        notes = [_why_not(plan, cut, config) for cut in found]
        possible = [cut for cut, note in zip(found, notes, strict=True) if note is None]
        if not possible:
            return plan, tuple(_of(cut, note=note) for cut, note in zip(found, notes, strict=True))
        climbs = [
            Climb(self._composer, plan, possible, batches, depth)
            for batches in (self._fitted, self._chosen_on)
        ]
        self.spent += 2 * self.tokens  # the base, and the layers of the plan
        loss = self._loss(plan)
        made = []
        for cut, note in zip(found, notes, strict=True):
            if note is not None:
                made.append(_of(cut, note=note))
                continue
            missing = f"{len(cut.removed)} layers are" if len(cut.removed) != 1 else "1 layer is"
            progress(f"repairing behind slot {cut.slot}, where {missing} missing")
            mine, others = (climb.moments(plan, cut) for climb in climbs)
            maps = {ridge: mine.solve(ridge) for ridge in RIDGES}
            best = min(RIDGES, key=lambda ridge: others.error(maps[ridge]))
            after = self._loss(_with(plan, cut, maps[best], directory))
            if after < loss:
                # With the strength that was chosen, fitted to everything.
                plan = _with(plan, cut, (mine + others).solve(best), directory)
            helps = after < loss
            made.append(_of(cut, best if helps else None, loss, after if helps else loss))
            loss = min(loss, after)
        return plan, tuple(made)

    def _batches(self, sets: Sequence[TokenSet]) -> list[Batch]:
        rungs = layout(sets, BATCH_TOKENS, device=self._composer.device)
        return [batch for rung in rungs for batch in rung]

    def _loss(self, plan: Plan) -> float:
        """Nats per token on what was not fitted to."""
        self.spent += self._tokens_of_loss
        (by_set,) = self._passes.score(self._composer.compose(plan)).values()
        return Score.total(list(by_set.values())).mean


def enough(sets: Sequence[TokenSet]) -> bool:
    """Whether there are sequences to choose a ridge on."""
    return any(len(one.sequences) >= EVERY for one in sets)


def _why_not(plan: Plan, cut: Cut, config: Mapping[str, Any]) -> str | None:
    """What stands against a map at a cut."""
    if Edit(MLP) in plan.slots[cut.slot].edits:
        return "the layer before it is without its MLP"
    try:
        placed([Edit(MLP, "any")], config, plan.kept[cut.slot])
    except FamilyError as error:
        return str(error)
    return None


def _of(
    cut: Cut,
    ridge: float | None = None,
    before: float | None = None,
    after: float | None = None,
    note: str | None = None,
) -> Repaired:
    return Repaired(cut.slot, (cut.removed.start, cut.removed.stop), ridge, before, after, note)


def _with(plan: Plan, cut: Cut, matrix: torch.Tensor, directory: Path) -> Plan:
    file, digest = save_map(matrix, directory, f"repair-{cut.slot}.safetensors")
    return with_edit(plan, cut.slot, Edit(MLP, digest, str(file)))


def _split(sets: Sequence[TokenSet]) -> tuple[list[TokenSet], list[TokenSet]]:
    """What is fitted to, and what the ridge is chosen on."""
    if not enough(sets):
        raise DataError(
            f"no file has {EVERY} sequences, every {EVERY}th of which chooses the ridge; "
            "give more --tokens or a shorter --sequence-length"
        )
    chosen_on = [_part(s, s.sequences[EVERY - 1 :: EVERY]) for s in sets if len(s.sequences) >= EVERY]
    keep = [[ids for i, ids in enumerate(s.sequences) if i % EVERY != EVERY - 1] for s in sets]
    return [_part(s, ids) for s, ids in zip(sets, keep, strict=True)], chosen_on


def _part(whole: TokenSet, sequences: Sequence[torch.Tensor]) -> TokenSet:
    content = torch.stack(list(sequences)).numpy().tobytes()
    return replace(whole, sequences=tuple(sequences), digest=digest_of(content))


def _moved(edit: Edit, out: Path) -> Edit:
    return replace(edit, file=str(out / Path(edit.file).name)) if edit.digest is not None else edit
