"""Loads dense members, tells them apart by their weights, and runs them as teachers."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping

import torch
from transformers import PreTrainedModel

from gptailor_merge.calibration.batches import Batch
from gptailor_merge.errors import FamilyError, ScoringError
from gptailor_merge.models.family import Family
from gptailor_merge.models.loading import load_model, member_digest
from gptailor_merge.models.vocabulary import token_differences
from gptailor_merge.objectives.protocols import Prediction, TeacherForward, Watch
from gptailor_merge.scoring.passes import predictions_alone

LARGE = 2**26
"""Bytes from which on a model that nobody needs is not left to Python's collector, which takes its time."""


class Teachers:
    """Dense members, loaded when first asked for; one at a time is in memory.

    Attributes:
        family: the members.
        device: they run on it.
    """

    def __init__(
        self, family: Family, device: torch.device, dtype: torch.dtype, *, in_8bit: bool = False
    ) -> None:
        """
        Args:
            in_8bit: see loading.load_model.
        """
        self.family, self.device, self._dtype = family, device, dtype
        self._in_8bit = in_8bit
        self._loaded: tuple[str, PreTrainedModel] | None = None

    def get(self, name: str) -> tuple[str, TeacherForward]:
        """Returns a member's (digest of the weights, forward pass); logits have the base's vocabulary."""
        member = self.family.by_name(name)
        assert member is not None
        vocabulary = self.family.base.vocabulary_size

        def run(batch: Batch, watch: Watch | None = None) -> Iterator[Prediction]:
            refuse_other_tokens(self.family.base.tokens, member.tokens, name, batch.ids)
            for prediction in predictions_alone(self.model(name), batch, vocabulary=vocabulary, watch=watch):
                yield finite(name, prediction)

        kind = " in 8 bits" if self._in_8bit else ""
        return f"{member.model} {member_digest(member.directory)}{kind}", run

    def model(self, name: str) -> PreTrainedModel:
        """Returns the member's model."""
        if self._loaded is None or self._loaded[0] != name:
            member = self.family.by_name(name)
            assert member is not None
            self.release()
            model = load_model(member.directory, self._dtype, self.device, in_8bit=self._in_8bit)
            self._loaded = (name, model)
        return self._loaded[1]

    def release(self) -> None:
        """Frees the memory."""
        if self._loaded is None:
            return
        size = sum(parameter.nbytes for parameter in self._loaded[1].parameters())
        self._loaded = None
        if size >= LARGE:
            gc.collect()


def refuse_other_tokens(
    tokens: Mapping[int, str] | None, theirs: Mapping[int, str] | None, teacher: str, ids: torch.Tensor
) -> None:
    """Checks that every token of a text is the same one to a teacher; None stands for an unknown tokenizer.

    Args:
        tokens: id -> token of the tokenizer that read the text.
        theirs: id -> token of the teacher's tokenizer.
        ids: of the text, of any shape.

    Raises:
        FamilyError: a token is another one, or none; names it.
    """
    differences = None if tokens is None or theirs is None else token_differences(tokens, theirs)
    if tokens is None or differences is None or not differences.ids:
        return
    strange = torch.isin(ids, torch.tensor(sorted(differences.ids), device=ids.device))
    if strange.any():
        token = tokens[int(ids[strange][0])]
        raise FamilyError(
            f"{teacher} cannot be compared with on these texts, which hold {token!a}; it has other tokens "
            f"than the model whose tokenizer reads them: {differences}"
        )


def finite(name: str, prediction: Prediction) -> Prediction:
    """Returns a teacher's prediction.

    Raises:
        ScoringError: it holds NaN or infinities.
    """
    if not bool(torch.isfinite(prediction.log_probabilities.amax(-1)).all()):
        raise ScoringError(
            f"{name} predicts NaN or infinite values, so that nothing can be compared with it; its weights "
            "may be too large for the dtype that it runs in"
        )
    return prediction
