"""LeJEPA: views predict their centre while SIGReg keeps each view's projections Gaussian."""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from pretrain.methods.base import HeadOutput, SIGRegConfig
from pretrain.models.projector import ProjectorConfig, build_projector
from pretrain.objectives.lejepa import prediction_error
from pretrain.objectives.sigreg import null_mean


class AutoWeightConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)

    enabled: bool = False
    """Choose λ by dual ascent: minimise the prediction error subject to SIGReg ≤ multiple · null."""
    multiple: PositiveFloat = 1.5
    """How far from Gaussian the projections may be, in multiples of the statistic's mean under N(0, 1)."""
    rate: PositiveFloat = 1e-3
    """Step ρ of λ ← [λ + ρ (SIGReg − multiple · null)]₊."""


class LeJEPAConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)

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
        self.projector = build_projector(embedding_width, config.projector, seed)
        self.sigreg = config.sigreg.build(seed)
        self.config, self.n_global = config, n_global
        self.register_buffer("dual_weight", torch.tensor(config.weight))

    def forward(self, embeddings: Tensor, step: int) -> HeadOutput:
        """Embeddings (V, N, D) of this rank to the global batch's loss, its parts and projections."""
        z = self.projector(embeddings).float()
        prediction = prediction_error(z, self.n_global, self.config.center)
        gaussian = self.sigreg(z, step)
        parts = {"prediction": prediction, "sigreg": gaussian}
        if self.config.auto_weight.enabled:
            loss = prediction + self._dual_ascent(gaussian) * gaussian
            parts["weight"] = self.dual_weight.clone()
        else:
            loss = (1 - self.config.weight) * prediction + self.config.weight * gaussian
        if self.config.encoder_weight:
            parts["sigreg_encoder"] = self.sigreg(embeddings, step)
            loss = loss + self.config.encoder_weight * parts["sigreg_encoder"]
        return HeadOutput({"loss": loss, **parts}, z.detach())

    @torch.no_grad()
    def _dual_ascent(self, gaussian: Tensor) -> Tensor:
        """This step's λ; the next one's follows from how far SIGReg is from where it may be."""
        weight = self.dual_weight.clone()
        auto, grid = self.config.auto_weight, self.config.sigreg
        allowed = auto.multiple * null_mean(grid.t_max, grid.knots)
        if self.training:
            # A step that is not finite is refused, and must not leave its trace here.
            excess = torch.where(gaussian.isfinite(), gaussian - allowed, 0.0)
            self.dual_weight.add_(auto.rate * excess).clamp_(min=0)
        return weight
