"""What every method's head returns, and the SIGReg settings that methods share."""

from typing import Literal, NamedTuple, TypeAlias

from pydantic import Field, PositiveFloat, PositiveInt, field_validator
from torch import Tensor

from isotorus.section import Section
from pretrain.objectives import univariate
from pretrain.objectives.sigreg import SIGReg

# Made from the table of tests, which type checkers cannot read.
Test: TypeAlias = Literal["epps_pulley", *univariate.TESTS]  # type: ignore[valid-type]


class HeadOutput(NamedTuple):
    """A step's loss and what it was computed from."""

    parts: dict[str, Tensor]
    """`loss` and its parts, scalars of the global batch, equal on all ranks."""
    projections: Tensor
    """The projector's output (V, N, K) for this rank's images, detached."""


class SIGRegConfig(Section):
    num_slices: PositiveInt = 1024
    """Random directions of SIGReg, fresh every step."""
    t_max: PositiveFloat = 3.0
    """Largest frequency of the Epps-Pulley quadrature."""
    knots: int = Field(17, ge=3)
    """Knots of the quadrature on [0, t_max], an odd number."""
    chunk: PositiveInt | None = None
    """Slices computed at once; fewer need less memory. Default: as many as fit in 256 MiB."""
    test: Test = "epps_pulley"
    """The univariate test of each slice."""

    @field_validator("knots")
    @classmethod
    def _odd(cls, knots: int) -> int:
        if knots % 2 == 0:
            raise ValueError(f"knots must be odd, e.g. {knots + 1}")
        return knots

    def build(self, seed: int) -> SIGReg:
        return SIGReg(self.num_slices, self.t_max, self.knots, seed, self.chunk, test=self.test)
