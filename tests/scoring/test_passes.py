"""Logits exist for some sequences at a time, as many as a limit holds."""

from __future__ import annotations

import pytest
import torch

from gptailor_merge.calibration.batches import Batch, Segment
from gptailor_merge.models.family import Family
from gptailor_merge.scoring import passes
from gptailor_merge.scoring.passes import predictions_alone
from gptailor_merge.scoring.teachers import Teachers


@pytest.mark.parametrize(("rows", "pieces"), [(1, 6), (4, 2), (99, 1)])
def test_no_tensor_of_all_tokens_times_the_vocabulary(
    family: dict[str, str], rows: int, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Teachers(Family.load(family["base"], {}), torch.device("cpu"), torch.float32).model("base")
    ids = torch.randint(0, 64, (6, 11), generator=torch.Generator().manual_seed(0))
    row_bytes = 10 * int(model.config.vocab_size) * 4
    monkeypatch.setattr(passes, "LOGITS_BYTES", {"cpu": rows * row_bytes})
    with torch.inference_mode():
        expected = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
        batch = Batch(ids, (Segment("s", range(6), range(6)),))
        known = [prediction.log_probabilities for prediction in predictions_alone(model, batch)]
    assert len(known) == pieces
    assert all(len(piece) <= rows for piece in known)
    torch.testing.assert_close(torch.cat(known), expected)
