"""LeJEPA: every view predicts the centre of its image; SIGReg keeps each view's projections Gaussian."""

import torch
from torch import Tensor, nn

from pretrain.methods.base import HeadOutput, build_sigreg
from pretrain.methods.config import LeJEPAConfig
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
            parts["weight"] = self._dual_ascent(parts["sigreg"], self.sigreg.null(z))
            parts["loss"] = parts["prediction"] + parts["weight"] * parts["sigreg"]
        if config.encoder_weight:
            parts["sigreg_encoder"] = self.sigreg(embeddings, step)
            parts["loss"] = parts["loss"] + config.encoder_weight * parts["sigreg_encoder"]
        return HeadOutput(parts, z.detach())

    @torch.no_grad()
    def _dual_ascent(self, gaussian: Tensor, null: Tensor | float) -> Tensor:
        """Return λ for this step, and update it for the next one by the excess of SIGReg over its limit."""
        weight, auto = self.dual_weight.clone(), self.config.auto_weight
        if self.training:
            # The engine refuses a step that is not finite, so such a step must not change λ either.
            excess = torch.where(gaussian.isfinite(), gaussian - auto.multiple * null, 0.0)
            self.dual_weight.add_(auto.rate * excess).clamp_(min=0)
        return weight
