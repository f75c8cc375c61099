"""LeJEPA's trainable head: embeddings to projections to the loss and its parts."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from pretrain.models.projector import ProjectorConfig, build_projector
from pretrain.objectives.lejepa import lejepa_loss
from pretrain.objectives.sigreg import SIGReg


class LeJEPAConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)

    kind: Literal["lejepa"] = "lejepa"
    """The objective; lejepa: views predict their centre, SIGReg keeps the embedding Gaussian."""
    weight: float = Field(0.05, ge=0, le=1)
    """λ of (1 − λ)·prediction + λ·SIGReg."""
    num_slices: PositiveInt = 1024
    """Random directions of SIGReg, fresh every step."""
    t_max: PositiveFloat = 3.0
    """Largest frequency of the Epps-Pulley quadrature."""
    knots: int = Field(17, ge=3)
    """Knots of the quadrature on [0, t_max], an odd number."""
    center: Literal["global", "all"] = "global"
    """The views whose mean every view predicts: the global ones (published), or all."""
    projector: ProjectorConfig = ProjectorConfig()
    """The MLP between the embedding and the loss."""


class LeJEPAHead(nn.Module):
    """Projector and LeJEPA loss (Balestriero & LeCun 2025, arXiv:2511.08544)."""

    def __init__(self, embedding_width: int, config: LeJEPAConfig, n_global: int, seed: int) -> None:
        super().__init__()
        self.projector = build_projector(embedding_width, config.projector, seed)
        self.sigreg = SIGReg(config.num_slices, config.t_max, config.knots, seed)
        self.config, self.n_global = config, n_global

    def forward(self, embeddings: Tensor, step: int) -> dict[str, Tensor]:
        """Embeddings (V, N, D) of this rank to the global batch's loss and its parts, scalars."""
        z = self.projector(embeddings).float()
        return lejepa_loss(z, self.n_global, self.config.weight, self.sigreg, step, center=self.config.center)
