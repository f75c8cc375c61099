"""JEPA with a predictor and a target network; VICReg, SIGReg or a grid torus prevents collapse.

As in EB-JEPA, the prediction from each view is compared with the target network's output for every other
global view. The target network is an exponential moving average of encoder and projector and has no gradient.
"""

import torch
from torch import Tensor, nn

from pretrain.methods.base import HeadOutput, build_sigreg
from pretrain.methods.config import JEPAConfig
from pretrain.methods.dual_ascent import dual_ascent
from pretrain.models.projector import build_mlp
from pretrain.objectives.batch import covariance_and_sums
from pretrain.objectives.toroidal import covariance_energy, covariance_energy_null
from pretrain.objectives.vicreg import covariance_penalty, smooth_l1_error, squared_error, variance_hinge

ERRORS = {"squared_error": squared_error, "smooth_l1": smooth_l1_error}


class JEPAHead(nn.Module):
    """Projector, predictor and loss: VICReg (arXiv:2105.04906), or another term for its covariance."""

    def __init__(self, embedding_width: int, config: JEPAConfig, seed: int) -> None:
        super().__init__()
        width = config.projector.width
        self.projector = build_mlp(embedding_width, config.projector, width, seed)
        self.predictor = build_mlp(width, config.predictor, width, (seed + 1) % 2**64)
        self.sigreg = build_sigreg(config.sigreg, seed)
        self.config = config
        if config.auto_weight.enabled:  # only then, as checkpoints of earlier runs have no such buffer
            self.register_buffer("dual_weight", torch.tensor(config.weight))

    def forward(self, embeddings: Tensor, step: int, target: Tensor) -> HeadOutput:
        """Return the loss for embeddings (V, N, D) and the target network's projections (G, N, K).

        The G projections are those of the global views.
        """
        z = self.projector(embeddings).float()
        predicted = self.predictor(z).float()
        pairs = [(v, g) for v in range(len(z)) for g in range(len(target)) if v != g]
        if not pairs:
            raise ValueError("a view is predicted from another one, so at least 2 views are needed")
        # Indices in a list would be copied to the device, and the host would wait for it.
        error_of = ERRORS[self.config.prediction]
        error = torch.stack([error_of(predicted[v], target[g].float()) for v, g in pairs]).sum()
        regularizers, count, error = self._regularizers(z, step, error)
        prediction = error / (count * len(pairs) * z.shape[2])
        parts = {"prediction": prediction, **regularizers}
        weighed, beside = self._weight(z, regularizers, count)
        weights = {"prediction": 1.0, "variance": self.config.variance_weight} | weighed
        loss = torch.stack([weights[name] * x for name, x in parts.items()]).sum()
        return HeadOutput({"loss": loss, **parts, **beside}, z.detach())

    def _weight(
        self, z: Tensor, regularizers: dict[str, Tensor], count: Tensor
    ) -> tuple[dict[str, Tensor | float], dict[str, Tensor]]:
        """Return the weight of the regularizing term that has λ, by its name, and what to log about it.

        A covariance is the larger the fewer the `count` images are, so (count - 1) times it is compared with
        its null, which does not depend on their number.
        """
        config, name = self.config, list(regularizers)[-1]
        if not config.auto_weight.enabled:
            return {name: config.weight}, {}
        if name == "sigreg":
            weight = dual_ascent(self, regularizers[name], self.sigreg.null(z), config.auto_weight)
            return {name: weight}, {"weight": weight}
        null: Tensor | float = 1.0
        if name == "toroidal":
            grid = (config.grid_size, config.weighting, config.time)
            null = covariance_energy_null(z.shape[2], *grid, like=z)
        statistic = (count - 1) * regularizers[name].detach()
        weight = dual_ascent(self, statistic, null, config.auto_weight)
        return {name: weight}, {"weight": weight, f"{name}_over_null": statistic / null}

    def _regularizers(self, z: Tensor, step: int, error: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Return the regularizing terms, the one with λ last: means over views of the view's own statistic.

        Views of the same images are not independent samples, so they are not put together. Two sums over
        ranks come with them: the number of images, and `error`.
        """
        if self.config.regularizer == "sigreg":
            statistic, count, error = self.sigreg.and_sums(z, step, error)
            return {"sigreg": statistic}, count, error
        matrices, count, error = covariance_and_sums(z, error)
        hinge = torch.stack([variance_hinge(matrix) for matrix in matrices]).mean()
        if self.config.regularizer == "vicreg":
            penalties = [covariance_penalty(matrix) for matrix in matrices]
            return {"variance": hinge, "covariance": torch.stack(penalties).mean()}, count, error
        grid = (self.config.grid_size, self.config.weighting, self.config.time)
        energies = [covariance_energy(matrix, *grid) for matrix in matrices]
        return {"variance": hinge, "toroidal": torch.stack(energies).mean()}, count, error
