"""LeJEPA: views predict their centre while SIGReg keeps each view's projections Gaussian."""

from typing import Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from isotorus.section import Section
from pretrain.methods.base import HeadOutput, SIGRegConfig
from pretrain.models.projector import ProjectorConfig, build_mlp
from pretrain.objectives.lejepa import lejepa_loss


class AutoWeightConfig(Section):
    enabled: bool = False
    """Choose λ by dual ascent: minimise the prediction error subject to SIGReg ≤ multiple · null."""
    multiple: PositiveFloat = 1.5
    """How far from Gaussian the projections may be, in multiples of the statistic's mean under N(0, 1)."""
    rate: PositiveFloat = 1e-3
    """Step ρ of λ ← [λ + ρ (SIGReg − multiple · null)]₊."""


class LeJEPAConfig(Section):
    kind: Literal["lejepa"] = "lejepa"
    """lejepa: every view predicts the mean of the global views, SIGReg keeps each view Gaussian."""
    weight: float = Field(0.05, ge=0, le=1)
    """λ of (1 − λ)·prediction + λ·SIGReg; with auto_weight the initial λ of prediction + λ·SIGReg."""
    center: Literal["global", "all"] = "global"
    """The views whose mean every view predicts: the global ones (published), or all."""
    encoder_weight: NonNegativeFloat = 0.0
    """Weight of a second SIGReg, on the encoder's output itself; 0 leaves it out."""
    auto_weight: AutoWeightConfig = AutoWeightConfig()
    sigreg: SIGRegConfig = SIGRegConfig()
    projector: ProjectorConfig = ProjectorConfig()


class LeJEPAHead(nn.Module):
    """Projector and loss (Balestriero & LeCun 2025, arXiv:2511.08544)."""

    dual_weight: Tensor

    def __init__(self, embedding_width: int, config: LeJEPAConfig, n_global: int, seed: int) -> None:
        super().__init__()
        self.projector = build_mlp(embedding_width, config.projector, config.projector.width, seed)
        self.sigreg = config.sigreg.build(seed)
        self.config, self.n_global = config, n_global
        self.register_buffer("dual_weight", torch.tensor(config.weight))

    def forward(self, embeddings: Tensor, step: int) -> HeadOutput:
        """Embeddings (V, N, D) of this rank to the global batch's loss, its parts and projections."""
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
    def _dual_ascent(self, gaussian: Tensor, null: float) -> Tensor:
        """This step's λ; the next one's follows from how far SIGReg is from where it may be."""
        weight, auto = self.dual_weight.clone(), self.config.auto_weight
        if self.training:
            # A step that is not finite is refused, and must not leave its trace here.
            excess = torch.where(gaussian.isfinite(), gaussian - auto.multiple * null, 0.0)
            self.dual_weight.add_(auto.rate * excess).clamp_(min=0)
        return weight
