"""A recipe becomes one whose cuts are repaired, from calibration texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from gptailor_merge.composing.bank import Bank, Precision
from gptailor_merge.composing.compose import Composer
from gptailor_merge.editing import MLP, Edit, digest_of, save_map
from gptailor_merge.errors import DataError, FamilyError, RecipeError
from gptailor_merge.recipe.blocks import placed
from gptailor_merge.recipe.check import check_with_family
from gptailor_merge.recipe.operations import Plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.recipe.writing import rewritten
from gptailor_merge.scoring.batching import Batch, layout
from gptailor_merge.scoring.calibration import TokenSet, load_tokenizer
from gptailor_merge.scoring.objectives import Perplexity, Score
from gptailor_merge.scoring.passes import Passes
from gptailor_merge.scoring.repairing import Cut, Moments, cuts, moments, with_edit
from gptailor_merge.search.measuring import token_sets
from gptailor_merge.search.session import compute_dtype, stored_dtype

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
    found = cuts(plan, family.depth, everywhere=everywhere)
    if not found:
        raise RecipeError("no layer is missing behind another; there is nothing to repair", file=file)
    if any(edit.digest is not None for slot in plan.slots for edit in slot.edits):
        raise RecipeError("is repaired already; repair the recipe that it was made of", file=file)
    dtype = compute_dtype(device, recipe.out_dtype or recipe.dtype or stored_dtype(family.base))
    composer = Composer(Bank(family, Precision.of(recipe.dtype, recipe.out_dtype, dtype), device=device))
    tokenizer = load_tokenizer(family.by_model(plan.tokenizer).directory)
    sets = token_sets(data, tokenizer, tokens, sequence_length)
    fit = _Fit(composer, family.depth, *_split(sets), directory=staged or out)
    made = []
    for cut in found:
        missing = f"{len(cut.removed)} layers are" if len(cut.removed) != 1 else "1 layer is"
        progress(f"repairing behind slot {cut.slot}, where {missing} missing")
        plan, one = fit.at(plan, cut, family.base.config)
        made.append(one)
    slots = [replace(slot, edits=tuple(_moved(edit, out) for edit in slot.edits)) for slot in plan.slots]
    return Result(
        rewritten(recipe, slots), tuple(made), sum(ids.numel() for s in sets for ids in s.sequences)
    )


@dataclass(frozen=True)
class _Fit:
    """What maps are fitted to, and chosen on."""

    composer: Composer
    depth: int
    fitted: Sequence[TokenSet]
    chosen_on: Sequence[TokenSet]
    directory: Path

    def at(self, plan: Plan, cut: Cut, config: Mapping[str, Any]) -> tuple[Plan, Repaired]:
        """The plan with the best map at a cut, or as it is where none makes it better."""
        none = Repaired(cut.slot, (cut.removed.start, cut.removed.stop))
        if Edit(MLP) in plan.slots[cut.slot].edits:
            return plan, replace(none, note="the layer before it is without its MLP")
        try:
            placed([Edit(MLP, "any")], config, plan.kept[cut.slot])
        except FamilyError as error:
            return plan, replace(none, note=str(error))
        mine, others = (self._moments(plan, cut, sets) for sets in (self.fitted, self.chosen_on))
        before = self._loss(plan)
        losses = {ridge: self._loss(self._with(plan, cut, mine.solve(ridge))) for ridge in RIDGES}
        best = min(RIDGES, key=losses.__getitem__)
        none = replace(none, before=before, after=before)
        if not losses[best] < before:
            return plan, none
        # With the strength that was chosen, fitted to everything.
        whole = self._with(plan, cut, (mine + others).solve(best))
        return whole, replace(none, ridge=best, after=losses[best])

    def _moments(self, plan: Plan, cut: Cut, sets: Sequence[TokenSet]) -> Moments:
        return moments(self.composer, plan, cut, self._batches(sets), self.depth)

    def _batches(self, sets: Sequence[TokenSet]) -> list[Batch]:
        rungs = layout(sets, BATCH_TOKENS, device=self.composer.device)
        return [batch for rung in rungs for batch in rung]

    def _with(self, plan: Plan, cut: Cut, matrix: torch.Tensor) -> Plan:
        file, digest = save_map(matrix, self.directory, f"repair-{cut.slot}.safetensors")
        return with_edit(plan, cut.slot, Edit(MLP, digest, str(file)))

    @cached_property
    def _passes(self) -> Passes:
        """What the ridge is chosen on."""
        rungs = layout(self.chosen_on, BATCH_TOKENS, device=self.composer.device)
        return Passes([Perplexity("nll", tuple(self.chosen_on))], rungs)

    def _loss(self, plan: Plan) -> float:
        """Nats per token on that."""
        (by_set,) = self._passes.score(self.composer.compose(plan)).values()
        return Score.total(list(by_set.values())).mean


def _split(sets: Sequence[TokenSet]) -> tuple[list[TokenSet], list[TokenSet]]:
    """What is fitted to, and what the ridge is chosen on."""
    chosen_on = [_part(s, s.sequences[EVERY - 1 :: EVERY]) for s in sets if len(s.sequences) >= EVERY]
    if not chosen_on:
        raise DataError(
            f"no file has {EVERY} sequences, every {EVERY}th of which chooses the ridge; "
            "give more --tokens or a shorter --sequence-length"
        )
    keep = [[ids for i, ids in enumerate(s.sequences) if i % EVERY != EVERY - 1] for s in sets]
    return [_part(s, ids) for s, ids in zip(sets, keep, strict=True)], chosen_on


def _part(whole: TokenSet, sequences: Sequence[torch.Tensor]) -> TokenSet:
    content = torch.stack(list(sequences)).numpy().tobytes()
    return replace(whole, sequences=tuple(sequences), digest=digest_of(content))


def _moved(edit: Edit, out: Path) -> Edit:
    return replace(edit, file=str(out / Path(edit.file).name)) if edit.digest is not None else edit
