"""The output of every method's head, and its SIGReg, which methods share."""

from typing import NamedTuple

from torch import Tensor

from pretrain.methods.config import SIGRegConfig
from pretrain.objectives.sigreg import SIGReg


class HeadOutput(NamedTuple):
    """The loss of a step, and the projections that it was computed from."""

    parts: dict[str, Tensor]
    """`loss` and its parts: scalars of the global batch, equal on all ranks."""
    projections: Tensor
    """The projector's output (V, N, K) for this rank's images, detached."""


def build_sigreg(config: SIGRegConfig, seed: int) -> SIGReg:
    """Build the SIGReg module, whose directions depend on `seed` and the step."""
    return SIGReg(config.num_slices, config.t_max, config.knots, seed, config.chunk, test=config.test)
