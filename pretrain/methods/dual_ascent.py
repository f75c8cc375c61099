"""λ by dual ascent: minimise the prediction error subject to regularizer ≤ multiple · null.

The null is the regularizer's mean for samples of the target distribution. The loss is the Lagrangian
prediction + λ · regularizer, and λ follows its slope: up while the regularizer is larger than allowed, down
while it is smaller, never below 0.
"""

import torch
from torch import Tensor, nn

from pretrain.methods.config import AutoWeightConfig


@torch.no_grad()
def dual_ascent(head: nn.Module, statistic: Tensor, null: Tensor | float, config: AutoWeightConfig) -> Tensor:
    """Return λ for this step, and in training set λ for the next one to [λ + rate · (statistic − limit)]₊.

    λ is the buffer `dual_weight` of the head, so checkpoints have it. `statistic` and `null` are those of the
    global batch, equal on all ranks, and the host does not read them.
    """
    weight = head.get_buffer("dual_weight")
    now = weight.clone()
    if head.training:
        # The engine refuses a step that is not finite, so such a step must not change λ either.
        excess = torch.where(statistic.isfinite(), statistic - config.multiple * null, 0.0)
        weight.add_(config.rate * excess).clamp_(min=0)
    return now
