"""MLPs between embedding and loss: projector, predictor and angle head."""

import torch
from torch import Tensor, nn

from pretrain.models.batch_norm import GlobalBatchNorm
from pretrain.models.config import MLPConfig, Norm


class FirstNumbers(nn.Module):
    """Maps (…, D) to the first `width` of the D numbers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return x[..., : self.width]


def build_mlp(
    width_in: int, config: MLPConfig, width_out: int, seed: int, norm: Norm = "batch"
) -> nn.Sequential:
    """Build an MLP (…, width_in) → (…, width_out) with weights drawn from `seed` alone.

    Between linear layers it has global batch norm or layer norm, and GELU.
    """
    normalize = GlobalBatchNorm if norm == "batch" else nn.LayerNorm
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for _ in range(config.layers - 1):
            layers += [
                nn.Linear(width_in, config.hidden, bias=False),
                normalize(config.hidden),
                nn.GELU(),
            ]
            width_in = config.hidden
        return nn.Sequential(*layers, nn.Linear(width_in, width_out))
