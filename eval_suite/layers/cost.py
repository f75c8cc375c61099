"""What each quantity costs, in forward passes of one image and in seconds of statistics; rough on purpose."""

from typing import NamedTuple

POWER_ITERATIONS, NOISE_DRAWS = 15, 4
TRIANGLES = 2
"""An image of the holonomy."""
HOLONOMY_IMAGES = 2
MAPPED_PLACES = 25
"""Patches of an image around which the map of a run's last checkpoint has a value."""
LANCZOS_ITERATIONS, LANCZOS_IMAGES, LANCZOS_VIEWS = 12, 16, 2


class Work(NamedTuple):
    """What there is to do for one checkpoint."""

    images: int
    few: int
    """Images for what needs derivatives."""
    blocks: int
    width: int
    """d of a token."""
    weights: int
    """Parameters in blocks."""
    seconds_an_image: float
    """Of one forward pass, measured."""


def forwards(name: str, work: Work) -> float:
    """Forward passes of one image through the encoder; a backward pass counts as two."""
    return {
        "angle": float(work.images),
        "contraction": 6.0 * POWER_ITERATIONS * work.few,
        "stability": (NOISE_DRAWS + 1.0) * work.few,
        # A Jacobian-vector product costs about three passes; the map, of one block, is made once a run.
        "holonomy": 3.0 * HOLONOMY_IMAGES * work.width * (3 * TRIANGLES + 5 * MAPPED_PLACES / work.blocks),
        "curvature": 8.0 * LANCZOS_ITERATIONS * LANCZOS_IMAGES * LANCZOS_VIEWS * work.blocks,
    }.get(name, 0.0)


def statistics(name: str, work: Work) -> float:
    """Seconds on one core for what is computed of features and weights."""
    pairs, blocks = work.images**2 * 1e-8, work.blocks
    return blocks * {
        "dimension": 0.02 + pairs * work.width / 100,
        "rank": 0.02,
        "sigreg": 0.1 + 2e-4 * work.images,
        "hyperbolicity": 0.6,
        "separability": 0.06,
        "mixture": 0.06,
        "patterns": 0.02,
        "angle": 0.1,
        "heavy_tail": 0.05 + 5e-10 * work.weights * work.width / max(work.blocks, 1),
        "rotation": 1e-8 * work.weights,
    }.get(name, 0.0)
