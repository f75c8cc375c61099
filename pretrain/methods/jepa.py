"""JEPA with a predictor and an EMA target, kept from collapse by VICReg, SIGReg or a grid torus.

The form of EB-JEPA: each view's prediction meets the target network's output for every other global
view. The target is an exponential moving average of encoder and projector and gets no gradient.
"""

from typing import Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor, nn

from isotorus.section import Section
from pretrain.methods.base import HeadOutput, SIGRegConfig
from pretrain.models.projector import MLPConfig, ProjectorConfig, build_mlp
from pretrain.objectives.batch import covariance
from pretrain.objectives.toroidal import Weighting, toroidal_covariance
from pretrain.objectives.vicreg import covariance_penalty, mean_squared_error, variance_hinge


class JEPAProjectorConfig(ProjectorConfig):
    width: PositiveInt = 256
    """Width of the projection; the toroidal regulariser needs grid_size² of them at least."""


class PredictorConfig(MLPConfig):
    hidden: PositiveInt = 1024
    """Width of the hidden layers."""
    layers: PositiveInt = 2
    """Number of linear layers."""


class JEPAConfig(Section):
    kind: Literal["jepa"]
    """jepa: a predictor meets an EMA target's output, and a regulariser prevents collapse."""
    regularizer: Literal["vicreg", "sigreg", "toroidal"] = "vicreg"
    """vicreg: variance and covariance; sigreg: SIGReg; toroidal: variance and toroidal covariance."""
    weight: NonNegativeFloat = 1.0
    """Weight of covariance, SIGReg or toroidal covariance beside the prediction error."""
    variance_weight: NonNegativeFloat = 25.0
    """Weight of the variance hinge, in vicreg and toroidal."""
    grid_size: int = Field(8, ge=2)
    """N of the N × N torus that the projection's dimensions are laid out on (toroidal)."""
    weighting: Weighting = "distance"
    """How the grid weighs covariances: distance (published), laplacian, or heat (target e^{−time·L})."""
    time: float = Field(1.0, gt=0)
    """Diffusion time of the heat weighting."""
    momentum: float = Field(0.996, ge=0, le=1)
    """The target's initial momentum; it rises to 1 at the last step by a cosine."""
    sigreg: SIGRegConfig = SIGRegConfig()
    projector: JEPAProjectorConfig = JEPAProjectorConfig()
    predictor: PredictorConfig = PredictorConfig()

    @model_validator(mode="after")
    def _grid_fits(self) -> "JEPAConfig":
        if self.regularizer == "toroidal" and self.grid_size**2 > self.projector.width:
            raise ValueError(
                f"grid_size={self.grid_size} has {self.grid_size**2} sites for {self.projector.width} "
                f"dimensions; use at most {int(self.projector.width**0.5)}, or a larger projector.width"
            )
        return self


class JEPAHead(nn.Module):
    """Projector, predictor and loss: VICReg (arXiv:2105.04906) or a replacement of its covariance."""

    def __init__(self, embedding_width: int, config: JEPAConfig, seed: int) -> None:
        super().__init__()
        width = config.projector.width
        self.projector = build_mlp(embedding_width, config.projector, width, seed)
        self.predictor = build_mlp(width, config.predictor, width, seed + 1)
        self.sigreg = config.sigreg.build(seed)
        self.config = config

    def forward(self, embeddings: Tensor, step: int, target: Tensor) -> HeadOutput:
        """Embeddings (V, N, D) and the target's projections of the global views (G, N, K) to the loss."""
        z = self.projector(embeddings).float()
        predicted = self.predictor(z).float()
        pairs = [(v, g) for v in range(len(z)) for g in range(len(target)) if v != g]
        views, goals = zip(*pairs, strict=True)
        prediction = mean_squared_error(
            predicted[list(views)].flatten(0, 1), target[list(goals)].float().flatten(0, 1)
        )
        parts = {"prediction": prediction, **self._regularizers(z, step)}
        weights = {"variance": self.config.variance_weight, "prediction": 1.0}
        loss = torch.stack([weights.get(name, self.config.weight) * x for name, x in parts.items()]).sum()
        return HeadOutput({"loss": loss, **parts}, z.detach())

    def _regularizers(self, z: Tensor, step: int) -> dict[str, Tensor]:
        """Each a mean over views of the view's own statistic, as views are not one sample."""
        if self.config.regularizer == "sigreg":
            return {"sigreg": self.sigreg(z, step)}
        matrices = [covariance(view) for view in z]
        hinge = torch.stack([variance_hinge(matrix) for matrix in matrices]).mean()
        if self.config.regularizer == "vicreg":
            penalties = [covariance_penalty(matrix) for matrix in matrices]
            return {"variance": hinge, "covariance": torch.stack(penalties).mean()}
        grid = (self.config.grid_size, self.config.weighting, self.config.time)
        energies = [toroidal_covariance(view, *grid) for view in z]
        return {"variance": hinge, "toroidal": torch.stack(energies).mean()}
