"""Runs beside the grid of objectives, at a point that a grid has chosen: fewer images, and ablations."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from studies.geometry.plan import TOROIDAL, Run, run

SIZES = (500, 2_000, 8_000)
"""Images of the data-size curve; all of them are the chosen LeJEPA itself."""
SIZE_SEEDS, ABLATION_SEEDS = 2, 3
VIT = (
    "encoder.name=vit_tiny_patch16_224",
    "encoder.kwargs={img_size: 32, patch_size: 4, depth: 6, class_token: false, global_pool: avg}",
)
"""An encoder with attention: 64 tokens of 4 × 4 pixels, 6 blocks of width 192."""


class Point(NamedTuple):
    """A point of the grid of an objective."""

    objective: str
    learning_rate: float
    weight: float


def _with(point: Point, seed: int, name: str, *overrides: str) -> Run:
    """Return the run at a point with more overrides, under a name of its own."""
    base = run(*point, seed)
    stem = base.name.removeprefix(point.objective)
    return base._replace(name=f"{name}{stem}", objective=name, overrides=(*base.overrides, *overrides))


def _fewer_images(point: Point) -> list[Run]:
    return [
        _with(point, seed, f"lejepa_{n}_images", f"data.path=cifar-{n}/train")._replace(images=n)
        for n in SIZES
        for seed in range(SIZE_SEEDS)
    ]


def _heat(point: Point) -> list[Run]:
    name = f"{point.objective}_heat"
    return [_with(point, seed, name, "objective.weighting=heat") for seed in range(ABLATION_SEEDS)]


def _attention(point: Point) -> list[Run]:
    return [
        _with(point, seed, f"{point.objective}_vit_{kind}", *VIT, f"encoder.attention={kind}")
        for kind in ("softmax", "winding")
        for seed in range(ABLATION_SEEDS)
    ]


class Further(NamedTuple):
    """A family of further runs."""

    objectives: tuple[str, ...]
    """Objectives whose grids must be finished; the best point of all of them is taken."""
    runs: Callable[[Point], list[Run]]


FURTHER: Mapping[str, Further] = {
    "fewer_images": Further(("lejepa",), _fewer_images),
    "heat": Further(TOROIDAL, _heat),
    "winding_attention": Further(TOROIDAL, _attention),
}
"""Families by the names of the command line, the most wanted first. The last two are ablations of the best
toroidal covariance: another weighting, and an encoder whose attention is softmax or winding."""
