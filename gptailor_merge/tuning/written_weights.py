"""Fitted merge weights as a recipe writes them."""

from __future__ import annotations

import torch

from gptailor_merge.recipe.plan import Operation
from gptailor_merge.tuning.groups import Groups

METHOD = "task_arithmetic"
"""The merge method of what is tuned."""


DECIMALS = 5
"""Merge weights are rounded to this many decimals, so that recipes can be read."""


def merge_operation(weights: torch.Tensor, groups: Groups) -> Operation:
    """Returns the merge of a base, the first source, and of members by weights [groups, members]."""
    rounded = weights.detach().cpu().double().round(decimals=DECIMALS)
    inputs = [(("weight", groups.setting(values)),) for values in rounded.T.tolist()]
    return Operation(METHOD, ((), *inputs), base=0)
