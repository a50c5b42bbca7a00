"""Finds the merge weights that come closest to a layer as a recipe has it: where tuning starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from gptailor_merge.tuning.groups import Groups

_LEAST = 1e-9
"""Directions of the members' differences below this share of the largest count as none."""


PIECE = 2**22
"""Numbers of a tensor that are looked at together, so that no copy of a whole one is needed."""


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
    for group in range(len(groups) if members else 0):
        names = [name for name, of in groups.of_tensor.items() if of == group]
        gram = torch.zeros(len(members), len(members), dtype=torch.float64)
        cross = torch.zeros(len(members), dtype=torch.float64)
        for name in names:
            device = target[name].device
            tensors = [target[name], base[name], *(member[name] for member in members)]
            for parts in zip(*(torch.split(tensor.flatten(), PIECE) for tensor in tensors), strict=True):
                wanted, start, *of_members = (part.to(device, torch.float64) for part in parts)
                differences = torch.stack([part - start for part in of_members])
                gram += (differences @ differences.T).cpu()
                cross += (differences @ (wanted - start)).cpu()
        weights[group] = (torch.linalg.pinv(gram, rtol=_LEAST, hermitian=True) @ cross).float()
    return weights
