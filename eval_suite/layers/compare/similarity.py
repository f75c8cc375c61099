"""Three measures of how alike two clouds of features of the same images are, with intervals over the images.

None of them sees a shift, a rotation or a common scale of a cloud, and the clouds may have different widths.
The interval is the value ± 1.96 standard errors, from the influence of every image on the value: for CKA and
neighbours what changes without the image (jackknife), for the Procrustes distance the derivative (delta
method; Efron & Tibshirani 1993, An Introduction to the Bootstrap, §11 and §21). The jackknife of a measure of
neighbours is wide rather than narrow. The bootstrap would draw images twice, and so put pairs of equal images
into the sums from which the debiased CKA leaves them out.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eval_suite.geometry import centring, nearest
from eval_suite.usefulness.resampling import Groups, units

Array = NDArray[np.float64]

Z = 1.96
"""Standard errors on either side of a value in an interval of 95 %."""


class Estimate(NamedTuple):
    """A value with its interval of 95 % over images."""

    value: float
    low: float
    high: float


class _Hsic(NamedTuple):
    """An unbiased HSIC, and what it would be without each image (n,)."""

    value: float
    without: Array


@dataclass(frozen=True)
class Cloud:
    """The features of one layer for n images, prepared for comparisons."""

    x: Array
    """Features (n, d), with mean 0 and a sum of squares of 1."""
    neighbours: NDArray[np.int64]
    """Indices (n, k + 1) of the images nearest to each image, nearest first, by Euclidean distance."""

    @cached_property
    def own(self) -> _Hsic:
        """HSIC of the cloud with itself."""
        return _hsic(self.x, self.x)

    def reordered(self, order: NDArray[np.int64]) -> "Cloud":
        """Return the cloud with image `order[i]` at place i."""
        place = np.argsort(order)
        return Cloud(self.x[order], place[self.neighbours[order]])


def prepared(x: NDArray[np.floating], k: int) -> Cloud:
    """Prepare features (n, d) for comparisons of `k` neighbours.

    Raises UserError for features that are not finite or have collapsed, and for k outside 0 … n - 2.
    """
    centred = centring.centred(x)
    return Cloud(centred / np.linalg.norm(centred), nearest.neighbours(x, k + 1, recall=1).ids)


def cka(a: Cloud, b: Cloud, groups: Groups = None) -> Estimate:
    """Return the debiased linear CKA of two clouds: 1 if they are equal, 0 on average if independent.

    It is HSIC(a, b) / √(HSIC(a, a) HSIC(b, b)) (Kornblith et al. 2019, arXiv:1905.00414) with the unbiased
    estimator HSIC₁ (Song et al. 2012, JMLR 13, eq. 5) in each place, as Nguyen et al. 2021 (arXiv:2010.15327)
    have it. With the usual biased one, independent clouds of more features than images have a CKA near 1. No
    matrix of images by images is made. The value may be slightly below 0.
    """
    both = _hsic(a.x, b.x)
    with np.errstate(invalid="ignore"):
        value = both.value / np.sqrt(a.own.value * b.own.value)
        without = both.without / np.sqrt(a.own.without * b.own.without)
    return _estimate(float(value), (len(a.x) - 1) * (without.mean() - without), groups, low=-1.0, high=1.0)


def procrustes(a: Cloud, b: Cloud, groups: Groups = None) -> Estimate:
    """Return the distance min ‖a − b Q‖ over orthogonal Q: 0 if one rotates into the other, at most √2.

    Both clouds have mean 0 and Frobenius norm 1, and the narrower one is filled up with zeros, so that it is
    √(2 − 2 ‖aᵀb‖_*) with the nuclear norm (Schönemann 1966). Clouds of many features and few images always
    rotate into each other to a large part, so it is read beside the distance of shuffled images.
    """
    left, singular, right = np.linalg.svd(a.x.T @ b.x, full_matrices=False)
    matched = float(singular.sum())
    # ‖aᵀb‖_* is a sum over images; it is divided by the norms of the clouds, which are sums over images too.
    share = np.einsum("nk,nk->n", a.x @ left, b.x @ right.T)
    sizes = (np.square(a.x).sum(1) + np.square(b.x).sum(1)) / 2
    found = _estimate(matched, len(a.x) * (share - matched * sizes), groups, low=0.0, high=1.0)
    near, middle, far = (float(np.sqrt(max(0.0, 2 - 2 * x))) for x in (found.high, found.value, found.low))
    return Estimate(middle, near, far)


def overlap(a: Cloud, b: Cloud, groups: Groups = None) -> Estimate:
    """Return the share of an image's k nearest images that both clouds have in common, mean over images.

    It is k / (n - 1) by chance. An image also counts as the neighbour of others: without it, they have their
    next neighbour in its place.
    """
    n, k = len(a.x), a.neighbours.shape[1] - 1
    of_a, next_a = a.neighbours[:, :k], a.neighbours[:, k:]
    of_b, next_b = b.neighbours[:, :k], b.neighbours[:, k:]
    shared = (of_a[:, :, None] == of_b[:, None, :]).any(2)
    common = shared.sum(1)
    from_a, from_b = (next_a == of_b).any(1), (next_b == of_a).any(1)
    change = np.zeros(n)
    gained = -1 + from_a + from_b + (next_a == next_b)[:, 0]
    np.add.at(change, of_a, np.where(shared, gained[:, None], from_a[:, None]))
    only_b = ~(of_b[:, :, None] == of_a[:, None, :]).any(2)
    np.add.at(change, of_b, only_b * from_b[:, None])
    without = (common.sum() - common + change) / (k * (n - 1))
    value = float(common.mean()) / k
    return _estimate(value, (n - 1) * (without.mean() - without), groups, low=0.0, high=1.0)


def _estimate(value: float, influence: Array, groups: Groups, *, low: float, high: float) -> Estimate:
    """Return a value with its interval, cut at the ends `low` and `high` of what it can be.

    Images of one group are not independent: their influences are added before they are squared.
    """
    n = len(influence)
    by_unit = influence if groups is None else np.bincount(units(groups), weights=influence)
    count = len(by_unit)
    error = float(np.sqrt(np.square(by_unit).sum() * count / (count - 1))) / n if count > 1 else np.nan
    return Estimate(value, max(low, value - Z * error), min(high, value + Z * error))


def _hsic(x: Array, y: Array) -> _Hsic:
    """Return HSIC₁ of the linear kernels of centred `x` and `y` (n, d), also without each image in turn.

    Song et al. 2012, eq. 5: the kernels' diagonals are set to 0, which removes the bias. All sums are formed
    from products of features; those without an image follow from the sums over all.
    """
    n = len(x)
    of_x, of_y = -np.square(x).sum(1), -np.square(y).sum(1)  # row sums of the kernels without diagonal
    cross = x.T @ y
    rows = np.einsum("nk,nk->n", x @ cross, y) - of_x * of_y  # row sums of their product
    mixed = (x @ (x.T @ of_y) + of_x * of_y) + (y @ (y.T @ of_x) + of_x * of_y)

    def value(count: int, product: Array, total_x: Array, total_y: Array, sums: Array) -> Array:
        independent = total_x * total_y / ((count - 1) * (count - 2)) - 2 / (count - 2) * sums
        result: Array = (product + independent) / (count * (count - 3))
        return result

    sums = (of_x * of_y).sum()
    whole = value(n, rows.sum(), of_x.sum(), of_y.sum(), sums)
    without = value(
        n - 1,
        rows.sum() - 2 * rows,
        of_x.sum() - 2 * of_x,
        of_y.sum() - 2 * of_y,
        sums - of_x * of_y - mixed + rows,
    )
    return _Hsic(float(whole), without)
