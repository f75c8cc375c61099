"""The output of every method's head, and the settings of SIGReg, which methods share."""

from typing import Literal, NamedTuple, Self, TypeAlias

from pydantic import Field, PositiveFloat, PositiveInt, field_validator
from torch import Tensor

from data_pipeline.transforms.actions import Action
from data_pipeline.transforms.views import ViewsConfig
from isotorus.section import Section
from pretrain.objectives import univariate
from pretrain.objectives.sigreg import SIGReg

# Made from the table of tests, so that there is one list of them; type checkers cannot read it.
Test: TypeAlias = Literal["epps_pulley", *univariate.TESTS]  # type: ignore[valid-type]


class HeadOutput(NamedTuple):
    """The loss of a step, and the projections that it was computed from."""

    parts: dict[str, Tensor]
    """`loss` and its parts: scalars of the global batch, equal on all ranks."""
    projections: Tensor
    """The projector's output (V, N, K) for this rank's images, detached."""


class Turned(NamedTuple):
    """Which views of an image are turned, and by which actions; a step's views do not change that."""

    first: int
    """Place of the first turned view among all views; all views behind it are turned too."""
    actions: tuple[Action, ...]

    @classmethod
    def of(cls, views: ViewsConfig) -> Self | None:
        """Return which of the configured views are turned; None if no view is."""
        if not views.actions:
            return None
        return cls(sum(r.views for r in views.resolutions() if not r.turned), tuple(views.actions))


class SIGRegConfig(Section):
    """Settings of SIGReg."""

    num_slices: PositiveInt = 1024
    """Random directions of SIGReg, drawn anew in every step."""
    t_max: PositiveFloat = 3.0
    """Largest frequency t at which Epps-Pulley compares characteristic functions."""
    knots: int = Field(17, ge=3)
    """Number of frequencies in [0, t_max], odd."""
    chunk: PositiveInt | None = None
    """Directions computed at once; fewer need less memory. Default: as many as fit into 256 MiB."""
    test: Test = "epps_pulley"
    """Univariate test of normality that is applied along each direction."""

    @field_validator("knots")
    @classmethod
    def _odd(cls, knots: int) -> int:
        if knots % 2 == 0:
            raise ValueError(f"knots must be odd, e.g. {knots + 1}")
        return knots

    def build(self, seed: int) -> SIGReg:
        """Build the SIGReg module, whose directions depend on `seed` and the step."""
        return SIGReg(self.num_slices, self.t_max, self.knots, seed, self.chunk, test=self.test)
