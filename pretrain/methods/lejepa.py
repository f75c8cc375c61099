"""LeJEPA: every view predicts the centre of its image; SIGReg keeps each view's projections Gaussian."""

import torch
from torch import Tensor, nn

from pretrain.methods.base import HeadOutput, build_sigreg
from pretrain.methods.config import LeJEPAConfig
from pretrain.methods.dual_ascent import dual_ascent
from pretrain.models.projector import build_mlp
from pretrain.objectives.lejepa import lejepa_loss


class LeJEPAHead(nn.Module):
    """Projector and loss of LeJEPA (Balestriero & LeCun 2025, arXiv:2511.08544)."""

    dual_weight: Tensor

    def __init__(self, embedding_width: int, config: LeJEPAConfig, n_global: int, seed: int) -> None:
        super().__init__()
        self.projector = build_mlp(embedding_width, config.projector, config.projector.width, seed)
        self.sigreg = build_sigreg(config.sigreg, seed)
        self.config, self.n_global = config, n_global
        self.register_buffer("dual_weight", torch.tensor(config.weight))

    def forward(self, embeddings: Tensor, step: int) -> HeadOutput:
        """Return the loss of the global batch for this rank's embeddings (V, N, D)."""
        z = self.projector(embeddings).float()
        config = self.config
        parts = lejepa_loss(z, self.n_global, config.weight, self.sigreg, step, center=config.center)
        if config.auto_weight.enabled:
            null = self.sigreg.null(z)
            parts["weight"] = dual_ascent(self, parts["sigreg"], null, config.auto_weight)
            parts["loss"] = parts["prediction"] + parts["weight"] * parts["sigreg"]
        if config.encoder_weight:
            parts["sigreg_encoder"] = self.sigreg(embeddings, step)
            parts["loss"] = parts["loss"] + config.encoder_weight * parts["sigreg_encoder"]
        return HeadOutput(parts, z.detach())
