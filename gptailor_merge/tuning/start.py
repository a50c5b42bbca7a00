"""Finds the merge weights that come closest to a layer as a recipe has it: where tuning starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from gptailor_merge.tuning.groups import Groups

_LEAST = 1e-9
"""Directions of the members' differences below this share of the largest count as none."""


def closest_weights(
    target: Mapping[str, torch.Tensor],
    base: Mapping[str, torch.Tensor],
    members: Sequence[Mapping[str, torch.Tensor]],
    groups: Groups,
) -> torch.Tensor:
    """Returns the merge weights [groups, members], float32, by least squares over the tensors of a group.

    w = argmin |W - W_base - Σ_k w_k (W_k - W_base)|², which gives the weights of a linear merge back, and
    for another method those that make the most similar layer.
    """
    weights = torch.zeros(len(groups), len(members))
    for group in range(len(groups)):
        names = [name for name, of in groups.of_tensor.items() if of == group]
        gram = torch.zeros(len(members), len(members), dtype=torch.float64)
        cross = torch.zeros(len(members), dtype=torch.float64)
        for name in names:
            start = base[name].double().flatten()
            wanted = target[name].double().flatten() - start
            differences = torch.stack([member[name].double().flatten() - start for member in members])
            gram += (differences @ differences.T).cpu()
            cross += (differences @ wanted).cpu()
        weights[group] = (torch.linalg.pinv(gram, rtol=_LEAST, hermitian=True) @ cross).float()
    return weights
