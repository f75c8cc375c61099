"""The runs of the study: each objective on a grid of learning rate × weight, then seeds of the best point.

The grid has four points for every objective, so that all are tuned with the same effort. Its second axis is
the weight of what shapes the latent space. `order.py` says which run comes next, `further.py` has runs that
are no objective of their own.
"""

from itertools import product
from typing import NamedTuple

LEARNING_RATES = (1e-3, 3e-3)
IMAGES = 15_000
"""Images that all runs but those of the data-size curve are trained on."""
PROJECTOR = "projector={hidden: 512, layers: 3, width: 64}"
JEPA_PROJECTOR = "objective.projector={hidden: 512, layers: 3, width: 256}"
PREDICTOR = "objective.predictor={hidden: 512, layers: 2}"
SLICES = "sigreg={num_slices: 256}"


class Objective(NamedTuple):
    """An objective, and the part of the grid that is its own."""

    settings: tuple[str, ...]
    """Overrides of base.yaml."""
    weight: str
    """Name of the field that the grid varies beside the learning rate."""
    weights: tuple[float, float]
    seeds: int = 3
    """Seeds of the best point."""


class Run(NamedTuple):
    """One training of the study."""

    name: str
    objective: str
    """Name in the tables."""
    overrides: tuple[str, ...]
    learning_rate: float
    weight: float
    seed: int
    images: int = IMAGES
    """Images that it is trained on."""


def _jepa(*settings: str) -> tuple[str, ...]:
    return ("objective.kind=jepa", JEPA_PROJECTOR, PREDICTOR, *(f"objective.{x}" for x in settings))


def _toroidal(grid: int, *settings: str) -> Objective:
    given = _jepa("regularizer=toroidal", f"grid_size={grid}", *settings)
    return Objective(given, "objective.weight", (0.2, 1.0))


def _torus(angles: int) -> Objective:
    head = ("objective.head={hidden: 512, layers: 2}", "objective.encoder_weight=0.02", f"objective.{SLICES}")
    return Objective(
        ("objective.kind=torus", f"objective.angles={angles}", *head), "objective.weight", (0.02, 0.1)
    )


_LEJEPA = (f"objective.{PROJECTOR}", f"objective.{SLICES}")
_ACTIONS = (
    "views.actions=[rotation, hue]", "views.turned=2", "views.turned_size=32", "views.turned_scale=[1, 1]",
    "objective.kind=torus", "objective.head={hidden: 512, layers: 2}", "objective.content=lejepa",
    "objective.pose_width=128", f"objective.lejepa.{PROJECTOR}", f"objective.lejepa.{SLICES}",
)  # fmt: skip

OBJECTIVES = {
    "lejepa": Objective(_LEJEPA, "objective.weight", (0.02, 0.1), seeds=5),
    "torus_actions": Objective(_ACTIONS, "objective.content_weight", (0.15, 0.5), seeds=5),
    "vicreg": Objective(_jepa("regularizer=vicreg"), "objective.weight", (0.2, 1.0)),
    "toroidal_N8": _toroidal(8),
    "sigreg": Objective(_jepa("regularizer=sigreg", SLICES), "objective.weight", (0.03, 0.3)),
    "torus_m2": _torus(2),
    "lejepa_auto": Objective(
        (*_LEJEPA, "objective.auto_weight.enabled=true"), "objective.auto_weight.multiple", (1.2, 2.0)
    ),
    "toroidal_N12": _toroidal(12),
    "toroidal_N16": _toroidal(16),
    "torus_m16": _torus(16),
}
"""All objectives by the names of the tables, the most wanted first."""
TOROIDAL = ("toroidal_N8", "toroidal_N12", "toroidal_N16")


def grid(objective: str) -> list[Run]:
    """Return the tuning runs of an objective: seed 0 at every point of its grid."""
    points = product(LEARNING_RATES, OBJECTIVES[objective].weights)
    return [run(objective, rate, weight, 0) for rate, weight in points]


def run(objective: str, rate: float, weight: float, seed: int) -> Run:
    """Return the run of an objective at a point of its grid."""
    chosen = OBJECTIVES[objective]
    point = (f"optimizer.lr={rate:g}", f"{chosen.weight}={weight:g}", f"seed={seed}")
    name = f"{objective}-lr{rate:g}-w{weight:g}-s{seed}"
    return Run(name, objective, (*chosen.settings, *point), rate, weight, seed)
