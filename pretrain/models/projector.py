"""MLPs between embedding and loss: projector, predictor and angle head."""

import torch
from pydantic import Field, PositiveInt
from torch import nn

from isotorus.section import Section
from pretrain.models.batch_norm import GlobalBatchNorm


class MLPConfig(Section):
    """Settings of an MLP."""

    hidden: PositiveInt = 2048
    """Width of the hidden layers."""
    layers: int = Field(3, ge=1, le=1000)
    """Number of linear layers; 1 is a linear map."""


class ProjectorConfig(MLPConfig):
    """Settings of the projector."""

    width: PositiveInt = 64
    """Width K of the projection; in the published ablation 16 to 128 do better than 1024."""


def build_mlp(width_in: int, config: MLPConfig, width_out: int, seed: int) -> nn.Sequential:
    """Build an MLP (…, width_in) → (…, width_out) with weights drawn from `seed` alone.

    Between linear layers it has global batch norm and GELU.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for _ in range(config.layers - 1):
            layers += [
                nn.Linear(width_in, config.hidden, bias=False),
                GlobalBatchNorm(config.hidden),
                nn.GELU(),
            ]
            width_in = config.hidden
        return nn.Sequential(*layers, nn.Linear(width_in, width_out))
