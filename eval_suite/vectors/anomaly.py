"""How far images are from those of a reference set: the distance to the k-th nearest vector, and its rank.

The distance to the k-th neighbour among normalised features tells images from elsewhere (Sun et al. 2022,
"Out-of-distribution detection with deep nearest neighbors", arXiv:2204.06507). PatchCore (Roth et al. 2022,
arXiv:2106.08265) finds defects by distances to the features of sound images; it compares patches, whereas
here an image has one vector. A distance has no scale of its own. Its rank among the distances of the
reference images to each other is the percentage of these distances that it exceeds. For an image of the same
distribution the rank is nearly uniform from 0 to 100.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eval_suite.attempts import Unmeasurable
from eval_suite.usefulness import neighbors
from eval_suite.vectors.about import About, Anomaly
from eval_suite.vectors.vectors_file import VectorsFile
from isotorus.errors import UserError


class Scores(NamedTuple):
    """The anomaly of n images."""

    distance: NDArray[np.float32]
    """1 − cosine to the k-th nearest reference vector (n,)."""
    percentile: NDArray[np.float32]
    """Percentage (n,) of the reference images that lie nearer to the other reference images."""
    about: Anomaly


def check(reference: VectorsFile, about: About, k: int) -> None:
    """Raise UserError unless the vectors of the reference are comparable with those of `about`."""
    other = reference.about
    for name, ours, theirs in (
        ("weights", about.weights_sha256, other.weights_sha256),
        ("feature set", about.feature_set, other.feature_set),
        ("image size", about.image_size, other.image_size),
        ("width", about.width, other.width),
    ):
        if ours != theirs:
            shown = "are others" if name == "weights" else f"is {theirs}, here it is {ours}"
            source = f"{other.encoder}, step {other.step}, {other.feature_set}"
            raise UserError(
                f"--anomaly-against {reference.path}: its vectors are of another encoder or set ({source}), "
                f"its {name} {shown}; embed both data sets with the same checkpoint and --features"
            )
    if other.rows <= k:
        raise UserError(
            f"--anomaly-against {reference.path}: {other.rows} rows, and distances to the {k}-th neighbour "
            f"need {k + 1} or more; lower --anomaly-k"
        )


def scores(
    unit: NDArray[np.float32], samples: NDArray[np.int64], fingerprint: str, reference: VectorsFile, k: int
) -> Scores:
    """Score the rows of `unit` (n, d), of length 1, against a reference file.

    `samples` (n,) are their numbers in the data set `fingerprint`. If that is the data set of the reference,
    an image is no neighbour of itself. The search is exact. Raises UserError if cosines cannot tell the
    reference vectors apart.
    """
    pieces = list(reference.pieces())
    other = np.concatenate([piece.vectors for piece in pieces])
    numbers = np.concatenate([piece.samples for piece in pieces])
    try:
        neighbors.require_directions(other)
    except Unmeasurable as error:
        raise UserError(f"--anomaly-against {reference.path}: {error}") from None
    other = neighbors.normalised(other)
    own = _distances(other, numbers, other, numbers, k)
    if fingerprint != reference.about.set_fingerprint:
        samples = np.full(len(unit), -1)
    distance = _distances(unit, samples, other, numbers, k)
    below = np.searchsorted(np.sort(own), distance, side="left")
    about = Anomaly(
        k=k,
        against=str(reference.path),
        identity=reference.about.identity,
        rows=len(other),
    )
    return Scores(distance, (100 * below / len(own)).astype(np.float32), about)


def _distances(
    queries: NDArray[np.float32],
    samples: NDArray[np.int64],
    reference: NDArray[np.float32],
    numbers: NDArray[np.int64],
    k: int,
) -> NDArray[np.float32]:
    """Return 1 − cosine (n,) to the k-th nearest reference row whose number is not that of the query."""
    similarities, ids = neighbors.nearest(reference, queries, k + 1)
    similarities = np.where(numbers[ids] == samples[:, None], -np.inf, similarities)
    kth = -np.sort(-similarities, axis=1)[:, k - 1]
    distance: NDArray[np.float32] = np.maximum(1 - kth, 0).astype(np.float32)
    return distance
