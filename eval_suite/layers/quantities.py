"""The quantities that can be measured for each block: names and texts for the page, and rough costs for the
time estimate.

`measure.measure` computes the quantities.
"""

from typing import Literal, NamedTuple

POWER_ITERATIONS = 15
"""Number of power iterations of `derivatives.spectral_norm`."""
NOISE_DRAWS = 4
"""Number of random directions of `derivatives.stability`."""
TRIANGLES = 2
"""Number of triangles of tokens in each image that holonomy is averaged over."""
HOLONOMY_IMAGES = 2
"""Number of images that holonomy is measured on."""
MAPPED_PLACES = 25
"""Number of patches in the holonomy map of an image."""
BENDING_IMAGES = 64
"""Largest number of images whose paths under augmentations are followed."""
LANCZOS_ITERATIONS = 12
"""Number of Lanczos steps of `derivatives.curvatures`."""
LANCZOS_IMAGES = 16
"""Number of images in the loss whose curvature is measured."""
LANCZOS_VIEWS = 2
"""Number of augmented views of each of these images."""

Theme = Literal[
    "the cloud of features", "the block as a map", "its units", "its weights", "the loss around it"
]


class Quantity(NamedTuple):
    """One quantity of a block, with its texts for the page."""

    name: str
    """Name for --metrics and layers.json."""
    theme: Theme
    """Section of the page."""
    title: str
    """Title of its heat map."""
    says: str
    """Meaning and known values, in a sentence or two for readers of the page."""
    reference: float | None = None
    """Value at the middle of the heat map's colours, such as 1 for a null; None if there is no such value."""
    default: bool = True
    """Whether it is measured without being named in --metrics."""


QUANTITIES = (
    Quantity(
        "dimension",
        "the cloud of features",
        "intrinsic dimension",
        "Number of dimensions that the features of the images fill locally, by TwoNN.",
    ),
    Quantity(
        "rank",
        "the cloud of features",
        "effective rank",
        "Number of directions that carry the variance: exp of the entropy of the covariance's eigenvalues.",
    ),
    Quantity(
        "sigreg",
        "the cloud of features",
        "SIGReg over its null",
        "Distance from an isotropic Gaussian, after centring and one common scale. 1: like draws from a "
        "Gaussian. Otherwise it grows with the number of images.",
        1.0,
    ),
    Quantity(
        "hyperbolicity",
        "the cloud of features",
        "hyperbolicity",
        "Twice Gromov's δ over the diameter. 0: distances as in a tree.",
    ),
    Quantity(
        "separability",
        "the cloud of features",
        "ring: separability",
        "Mutual information, in bits, of the two coordinates of the most ring-like plane, in the rotation in "
        "which it is smallest. 0: two independent features.",
    ),
    Quantity(
        "mixture",
        "the cloud of features",
        "ring: mixture index",
        "Largest share of images on a thin line in that plane. 0.1 for a Gaussian cloud, 0.2 for a circle, "
        "near 1 for a feature that is absent in most images.",
    ),
    Quantity(
        "angle",
        "the cloud of features",
        "angle read off, degrees",
        "Mean error of a periodic label, predicted by linear regression that was fitted on the other half of "
        "the images. 90: chance.",
        90.0,
    ),
    Quantity(
        "residual",
        "the block as a map",
        "fixed-point residual",
        "‖f(x) − x‖ / ‖x‖. 0: the block changes nothing. It is small for a collapsed encoder too.",
    ),
    Quantity(
        "contraction",
        "the block as a map",
        "local stretch",
        "Largest singular value of the block's Jacobian, by power iteration. Below 1: distances shrink.",
        1.0,
    ),
    Quantity(
        "stability",
        "the block as a map",
        "response to noise",
        "Mean of ‖f(x+δ) − f(x)‖ / ‖δ‖ over random directions δ. 1 for a rotation, ‖A‖/√d for a matrix A.",
        1.0,
    ),
    Quantity(
        "holonomy",
        "the block as a map",
        "holonomy",
        "‖H − I‖/√d, where H carries a vector around a triangle of patch tokens by the polar factors of "
        "Jacobian blocks. 0: vectors come back unchanged. √2: unrelated rotations.",
        default=False,
    ),
    Quantity(
        "bending",
        "the block as a map",
        "bending of paths under augmentation",
        "Angle in degrees between successive differences of the features, while an image is made brighter, "
        "turned and so on; mean over the augmentations. 0: a straight line.",
        default=False,
    ),
    Quantity(
        "dormant",
        "its units",
        "dormant units",
        "Share of units after the nonlinearity whose mean |h| is below 2.5 % of the block's mean.",
    ),
    Quantity(
        "patterns",
        "its units",
        "activation patterns",
        "Number of distinct sign patterns of the images on ten units, over the number for fair coins. 1: the "
        "images are spread evenly over the patterns.",
        1.0,
    ),
    Quantity(
        "drift",
        "its units",
        "drift of the patterns",
        "Share of signs that changed since the previous checkpoint, on the same images. ½: chance.",
    ),
    Quantity(
        "rotation",
        "its weights",
        "rotation since the last",
        "Mean angle, in degrees, by which a neuron's weights turned since the previous checkpoint. 90: "
        "unrelated weights.",
    ),
    Quantity(
        "heavy_tail",
        "its weights",
        "tail exponent of the weights",
        "Exponent α of a power law x^−α for the largest eigenvalues of WᵀW, median over matrices W. Small: "
        "a heavy tail.",
    ),
    Quantity(
        "curvature",
        "the loss around it",
        "smallest curvature",
        "Smallest eigenvalue of the Hessian of LeJEPA's loss by the block's weights, estimated from above. "
        "Negative: the loss is at a saddle.",
        0.0,
        default=False,
    ),
)
"""All quantities, in the order of the page."""
NAMES = tuple(quantity.name for quantity in QUANTITIES)
"""Names of all quantities."""
DEFAULT = tuple(quantity.name for quantity in QUANTITIES if quantity.default)
"""Names of the quantities that are measured without being named."""
NEEDS_BEFORE = ("drift", "rotation")
"""Quantities that compare with the previous checkpoint, so the first checkpoint of a run has no value."""


class Work(NamedTuple):
    """The amount of work for one checkpoint."""

    images: int
    """Number of images."""
    few: int
    """Number of images for quantities that need derivatives."""
    blocks: int
    """Number of blocks."""
    width: int
    """Number of features of a token."""
    weights: int
    """Number of parameters in the blocks."""
    seconds_an_image: float
    """Measured seconds of a forward pass of one image."""


def seconds(name: str, work: Work) -> float:
    """Estimate the seconds that a quantity takes for one checkpoint, without the shared forward passes."""
    return forwards(name, work) * work.seconds_an_image + statistics(name, work)


def forwards(name: str, work: Work) -> float:
    """Estimate the cost of a quantity's derivatives in forward passes of one image through the encoder.

    A backward pass counts as two forward passes, a Jacobian-vector product as three.
    """
    return {
        "angle": float(work.images),
        "contraction": 6.0 * POWER_ITERATIONS * work.few,
        "stability": (NOISE_DRAWS + 1.0) * work.few,
        # The map is made for one block and once for a run.
        "holonomy": 3.0 * HOLONOMY_IMAGES * work.width * (3 * TRIANGLES + 5 * MAPPED_PLACES / work.blocks),
        # Three points of six paths, also for the untrained encoder at the last checkpoint.
        "bending": 18.0 * min(BENDING_IMAGES, work.images),
        "curvature": 8.0 * LANCZOS_ITERATIONS * LANCZOS_IMAGES * LANCZOS_VIEWS * work.blocks,
    }.get(name, 0.0)


def statistics(name: str, work: Work) -> float:
    """Estimate the seconds on one core of what a quantity computes from features and weights."""
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
