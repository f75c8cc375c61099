"""What is measured against targets, and how."""

from typing import Annotated, Literal

from pydantic import Field

from eval_suite.metrics import BY_DEFAULT, LEAST_FOLDS, USEFULNESS
from eval_suite.usefulness import neighbors
from eval_suite.usefulness.minibatch_probe import Protocol
from eval_suite.usefulness.probe import L2_GRID
from isotorus.section import Section


class Options(Section):
    """What is measured against targets, and how."""

    metrics: tuple[str, ...] = tuple(name for name in USEFULNESS if name in BY_DEFAULT)
    """Names from `metrics.USEFULNESS`."""
    l2: tuple[float, ...] = L2_GRID
    """L2 strengths of the linear probe. Other methods use their own strengths unless these are changed."""
    protocol: Protocol = Protocol()
    """Training of the minibatch probe."""
    k: tuple[int, ...] = neighbors.K_GRID
    """Numbers of neighbours to choose from; those above the number of train samples are skipped."""
    temperature: float = Field(0.07, gt=0)
    """Temperature of the neighbours' votes."""
    shots: tuple[int, ...] = (1, 10)
    """Labelled samples per class in few-shot classification."""
    draws: int = Field(20, ge=2)
    """Random choices of those samples."""
    resamples: int = Field(1000, ge=1)
    """Bootstrap test sets for each interval."""
    folds: Literal[0] | Annotated[int, Field(ge=LEAST_FOLDS)] | None = None
    """Number of folds that probe and k-NN are cross-validated over; 0 for a single split; None for
    `USUAL_FOLDS` if train and val have fewer than `FEW_LABELS` labelled samples together, else for 0."""
    repeats: int = Field(1, ge=1)
    """Number of divisions into folds, over which scores are averaged."""
    seed: int = 0
    """Seed of draws, queries, folds and bootstrap; minibatches have their own in `protocol`."""

    def given_l2(self, own: tuple[float, ...]) -> tuple[float, ...]:
        """Return the L2 strengths that were asked for; without any, a method's `own`."""
        return own if self.l2 == L2_GRID else self.l2
