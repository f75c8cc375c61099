"""What can be measured of a block, what it says, and what it costs."""

from typing import Literal, NamedTuple

from eval_suite.layers import cost

Theme = Literal[
    "the cloud of features", "the block as a map", "its units", "its weights", "the loss around it"
]


class Quantity(NamedTuple):
    name: str
    theme: Theme
    title: str
    says: str
    """For a reader of the page, with the value that is known for a simple case."""
    reference: float | None = None
    """That value, where it is one to compare with."""
    default: bool = True


QUANTITIES = (
    Quantity(
        "dimension",
        "the cloud of features",
        "intrinsic dimension",
        "TwoNN. Of how many numbers the features of an image are made, near by.",
    ),
    Quantity(
        "rank",
        "the cloud of features",
        "effective rank",
        "exp of the entropy of the covariance's spectrum: how many directions carry the variance.",
    ),
    Quantity(
        "sigreg",
        "the cloud of features",
        "SIGReg over its null",
        "Distance from an isotropic Gaussian, after one common scale. 1: as Gaussian draws; grows with "
        "the number of "
        "images.",
        1.0,
    ),
    Quantity(
        "hyperbolicity",
        "the cloud of features",
        "hyperbolicity",
        "Gromov δ, twice over the diameter. 0: distances as in a tree.",
    ),
    Quantity(
        "separability",
        "the cloud of features",
        "ring: separability",
        "Bits that one coordinate of the most ring-like plane says of the other, however turned. 0: two "
        "independent "
        "features.",
    ),
    Quantity(
        "mixture",
        "the cloud of features",
        "ring: mixture index",
        "Largest share of images on a thin line in that plane. 0.1 in a Gaussian cloud, 0.2 on a circle, "
        "towards 1 for a feature that is mostly absent.",
    ),
    Quantity(
        "angle",
        "the cloud of features",
        "angle read off, degrees",
        "Mean error of the periodic label by linear regression on half of the images. 90: chance.",
        90.0,
    ),
    Quantity(
        "residual",
        "the block as a map",
        "fixed-point residual",
        "‖f(x) − x‖ / ‖x‖. 0: the block changes nothing. A collapsed encoder has it small too.",
    ),
    Quantity(
        "contraction",
        "the block as a map",
        "local stretch",
        "Largest singular value of the block's Jacobian, by power iteration. Below 1: it contracts.",
        1.0,
    ),
    Quantity(
        "stability",
        "the block as a map",
        "response to noise",
        "E ‖f(x+δ) − f(x)‖ / ‖δ‖ over random directions. 1 for a rotation; ‖A‖/√d for a matrix A.",
        1.0,
    ),
    Quantity(
        "holonomy",
        "the block as a map",
        "holonomy",
        "‖H − I‖/√d around triangles of patch tokens, H of the polar factors of Jacobian blocks. 0 where "
        "vectors come back as they were, √2 for unrelated turns.",
        default=False,
    ),
    Quantity(
        "dormant",
        "its units",
        "dormant units",
        "Share of units behind the nonlinearity whose mean |h| is under 2.5 % of the block's mean.",
    ),
    Quantity(
        "patterns",
        "its units",
        "activation patterns",
        "Distinct sign patterns of the images on ten units, over those of fair coins. 1: images spread "
        "evenly over the "
        "cells.",
        1.0,
    ),
    Quantity(
        "drift",
        "its units",
        "drift of the patterns",
        "Share of signs that changed since the checkpoint before, same images. ½: chance.",
    ),
    Quantity(
        "rotation",
        "its weights",
        "rotation since the last",
        "Mean angle in degrees that a neuron's weights turned since the checkpoint before. 90: unrelated.",
    ),
    Quantity(
        "heavy_tail",
        "its weights",
        "tail exponent of the weights",
        "α of a power law fitted to the largest eigenvalues of WᵀW, median over matrices. Small: heavy.",
    ),
    Quantity(
        "curvature",
        "the loss around it",
        "smallest curvature",
        "Smallest Ritz value of the Hessian of LeJEPA's loss over the block's weights. Negative: a way down.",
        0.0,
        default=False,
    ),
)
NAMES = tuple(quantity.name for quantity in QUANTITIES)
DEFAULT = tuple(quantity.name for quantity in QUANTITIES if quantity.default)
NEEDS_BEFORE = ("drift", "rotation")
"""Compare with the checkpoint before; the first of a run has none."""


def seconds(name: str, work: cost.Work) -> float:
    """About how long a quantity takes for one checkpoint, beyond the forward pass that most of them share."""
    return cost.forwards(name, work) * work.seconds_an_image + cost.statistics(name, work)
