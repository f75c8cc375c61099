"""LeJEPA's loss: views of an image agree, and the embeddings of each view are an isotropic Gaussian.

Balestriero & LeCun 2025, arXiv:2511.08544.
"""

from typing import Literal

from torch import Tensor

from isotorus.errors import UserError
from pretrain.objectives.batch import in_float32
from pretrain.objectives.sigreg import SIGReg

Center = Literal["global", "all"]


@in_float32
def lejepa_loss(
    z: Tensor,
    n_global: int,
    weight: float,
    sigreg: SIGReg,
    step: int,
    directions: Tensor | None = None,
    center: Center = "global",
) -> dict[str, Tensor]:
    """Return (1 - weight) · prediction + weight · SIGReg(z) and its parts, exact for the batch of all ranks.

    `z` is (V views, N images of this rank, K); its first `n_global` views are the global ones. `prediction`
    is the mean, over views, images and dimensions, of the squared distance to the centre of the image: the
    mean of its global views, or of all its views with `center="all"`. No gradient is stopped. Returns the
    scalars `loss`, `prediction` and `sigreg`, equal on all ranks. Raises `UserError` for an impossible
    `n_global` or `center`.
    """
    error = _squared_error(z, n_global, center)
    statistic, count, error = sigreg.and_sums(z, step, error, directions=directions)
    prediction = error / (count * z.shape[0] * z.shape[2])
    return {
        "loss": (1 - weight) * prediction + weight * statistic,
        "prediction": prediction,
        "sigreg": statistic,
    }


def _squared_error(z: Tensor, n_global: int, center: Center) -> Tensor:
    """Return the sum over this rank of the squared distances of views (V, N, K) to their image's centre."""
    views = len(z)
    if not 1 <= n_global <= views:
        raise UserError(f"n_global = {n_global}: of {views} views between 1 and {views} can be global")
    if center not in ("global", "all"):
        raise UserError(f"center = {center!r}: must be 'global' or 'all'")
    centers = z[: n_global if center == "global" else views].mean(0)
    return (centers - z).square().sum()
