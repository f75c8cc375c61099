"""MLPs between the embedding and the loss: projector, predictor, angle head."""

import torch
from pydantic import PositiveInt
from torch import nn

from isotorus.section import Section
from pretrain.models.batch_norm import GlobalBatchNorm


class MLPConfig(Section):
    hidden: PositiveInt = 2048
    """Width of the hidden layers."""
    layers: PositiveInt = 3
    """Number of linear layers; 1 is a linear map."""


class ProjectorConfig(MLPConfig):
    width: PositiveInt = 64
    """Width K of the projection; 16 to 128 do better than 1024 in the published ablation."""


def build_mlp(width_in: int, config: MLPConfig, width_out: int, seed: int) -> nn.Sequential:
    """An MLP (..., width_in) → (..., width_out), global batch norm and GELU between layers."""
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
