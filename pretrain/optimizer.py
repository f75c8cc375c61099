"""AdamW with the usual groups: no weight decay on biases, norms, tokens and position embeddings."""

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat
from timm.optim import param_groups_weight_decay
from torch import nn


class OptimizerConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)

    lr: PositiveFloat = 5e-4
    """Peak learning rate of AdamW."""
    weight_decay: NonNegativeFloat = 5e-2
    """Decoupled weight decay, on matrices only."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of the second moment."""
    warmup_steps: NonNegativeInt = 500
    """Steps of linear warm-up, before the cosine."""
    final_lr_ratio: float = Field(1e-3, ge=0, le=1)
    """Learning rate of the last step over the peak."""
    clip_grad: PositiveFloat = 1.0
    """Gradients are scaled down to at most this global norm."""


def build_optimizer(encoder: nn.Module, head: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the encoder and the head (the timm model is `encoder.encoder`)."""
    tokens: set[str] = getattr(encoder.get_submodule("encoder"), "no_weight_decay", set)()
    spared = {f"encoder.{name}" for name in tokens}
    groups = [
        *param_groups_weight_decay(encoder, config.weight_decay, no_weight_decay_list=spared),
        *param_groups_weight_decay(head, config.weight_decay),
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        fused=True,
    )
