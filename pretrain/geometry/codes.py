"""Discrete codes of vectors: how many are in use, and how often two vectors share one.

A code is a row of digits, int64 (…, m); `bases` gives the number of values of each digit.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from isotorus.errors import UserError

WINDING_BASES = (10, 10)
"""Number of values of each digit of `published_winding_code`."""


def published_winding_code(x: Tensor, *, truncate: bool = False) -> Tensor:
    """Return p = ⌊1000 Σx⌋ mod 10 + 1 and q = ⌊10⁴ Σx⌋ mod 10 + 1 of `x` (…, d), as (…, 2), each in 1 … 10.

    This is the winding assignment of the published winding memory as its text has it, kept for comparison. If
    `truncate`, it is that of the code published with the text, which rounds toward zero in place of ⌊·⌋: both
    digits are then others for every negative sum that is no multiple of 10⁻⁴. Both are two decimals of a
    sum: there are 100 addresses, the order of the features does not matter, and the gradient is zero.
    """
    total = x.double().sum(-1)
    rounded = torch.trunc if truncate else torch.floor
    return torch.stack([rounded(total * 10**power).remainder(10).long() + 1 for power in (3, 4)], -1)


def angular_bins(angles: Tensor, bins: int) -> Tensor:
    """Return the bin, 0 … `bins` - 1, of each angle (…, m) in radians; bin 0 begins at angle 0.

    Raises `UserError` for less than one bin.
    """
    if bins < 1:
        raise UserError(f"{bins} bins: a circle has 1 or more")
    # An angle just below 0 is rounded up to a whole turn; it belongs to the last bin.
    turns = torch.remainder(angles / (2 * math.pi), 1)
    return (turns * bins).floor().long().clamp(max=bins - 1)


def fsq(z: Tensor, levels: Sequence[int]) -> Tensor:
    """Quantise `z` (…, d) to digits 0 … levels_i - 1, with a number of levels for each of the d features.

    Finite scalar quantisation: bounded by tanh and rounded, with even numbers of levels shifted by a half
    (Mentzer et al. 2023, arXiv:2309.15505). Raises `UserError` for fewer than 2 levels, `ValueError` if there
    are not d.
    """
    if min(levels, default=0) < 2:
        raise UserError(f"levels {', '.join(map(str, levels))}: each digit needs 2 or more, e.g. 8, 5, 5, 5")
    if z.shape[-1] != len(levels):
        raise ValueError(f"{len(levels)} levels for {z.shape[-1]} numbers; they must be as many")
    counts = torch.tensor(levels, dtype=z.dtype, device=z.device)
    half = (counts - 1) * (1 + 1e-3) / 2
    offset = torch.where(counts % 2 == 0, 0.5, 0.0).to(z.dtype)
    bounded = (z + torch.atanh(offset / half)).tanh() * half - offset
    return bounded.round().long() + torch.div(counts, 2, rounding_mode="floor").long()


def address(digits: Tensor, bases: Sequence[int]) -> Tensor:
    """Return one number (…) for each code (…, m); the last digit counts ones.

    Raises `ValueError` for digits outside 0 … base - 1 and for more than 2⁶³ addresses.
    """
    if digits.shape[-1:] != (len(bases),) or math.prod(bases) > 2**63:
        raise ValueError(f"no addresses of digits {tuple(digits.shape)} to the bases {tuple(bases)}")
    limits = torch.tensor(bases, device=digits.device)
    if ((digits < 0) | (digits >= limits)).any():
        worst = digits[((digits < 0) | (digits >= limits)).any(-1)][0].tolist()
        raise ValueError(f"the code {worst} lies outside the bins, {' × '.join(map(str, bases))}")
    result = torch.zeros_like(digits[..., 0])
    for place, base in enumerate(bases):
        result = result * base + digits[..., place]
    return result


class Occupancy(NamedTuple):
    """How well n codes use the possible addresses."""

    used: int
    """Number of addresses in use."""
    expected: float
    """Mean number that n uniform draws would use, cells (1 - (1 - 1/cells)^n)."""
    entropy: float
    """Entropy of the observed frequencies in bits, at most log2 of cells and of n."""
    fullest: float
    """Share of the codes that have the commonest address."""


class Collisions(NamedTuple):
    """Shares of the pairs of codes that are equal."""

    pairs: float
    """Share of all pairs."""
    expected: float
    """1 / cells, the share for uniform independent addresses; any other distribution has a larger one."""
    any: float
    """Probability that n uniform draws collide at all (birthday problem)."""
    between: float | None = None
    """Share of the pairs of different classes."""
    within: float | None = None
    """Share of the pairs within a class; a useful code lets these collide."""


def occupancy(codes: Tensor, cells: int) -> Occupancy:
    """Return how well `codes` (n, m) use the `cells` possible addresses; raise `ValueError` for no codes."""
    counts = _counts(codes, torch.zeros(len(codes), dtype=torch.long, device=codes.device)).sum(1)
    share = counts.double() / counts.sum()
    n = len(codes)
    # With more addresses than this the result no longer changes, and a float can still hold the number.
    many = min(cells, 2**200)
    expected = -many * math.expm1(n * math.log1p(-1 / many)) if many > 1 else 1.0
    entropy = float(-(share * share.log2()).sum())
    return Occupancy(len(counts), expected, max(0.0, entropy), float(share.max()))


def collisions(codes: Tensor, cells: int, labels: Tensor | None = None) -> Collisions:
    """Return how often `codes` (n, m) collide, where `cells` addresses are possible.

    `labels` (n,) are int64, below 0 where unknown. Raises `ValueError` for fewer than two codes.
    """
    if len(codes) < 2:
        raise ValueError(f"{len(codes)} codes make no pair")
    everyone = _counts(codes, torch.zeros(len(codes), dtype=torch.long, device=codes.device))
    equal = _pairs(everyone)
    n = len(codes)
    between = within = None
    if labels is not None and (labels >= 0).any():
        known = labels >= 0
        table = _counts(codes[known], labels[known])
        same, together = _pairs(table), _pairs(table.sum(1))
        all_same = _pairs(table.sum(0))
        all_other = _pairs(table.sum()) - all_same
        between = (together - same) / all_other if all_other else None
        within = same / all_same if all_same else None
    return Collisions(equal / (n * (n - 1) / 2), 1 / cells, birthday(n, cells), between, within)


def birthday(n: int, cells: int) -> float:
    """Return the probability 1 - Π_{i<n} (1 - i/cells) that n uniform draws from `cells` collide."""
    if n > cells:
        return 1.0
    # For very many draws, the first term of the sum's expansion in 1/cells; the next one is n³/6 cells².
    if n < 1_000_000:
        log_free = math.fsum(math.log1p(-i / cells) for i in range(n))
    else:
        log_free = -n * (n - 1) / (2 * cells)
    return -math.expm1(log_free)


def stability(code: Callable[[Tensor], Tensor], x: Tensor, noise: float, seed: int) -> float:
    """Return the share of the rows of `x` (n, d) whose code does not change under Gaussian noise.

    The standard deviation of the noise is `noise` times that of the feature. `code` maps (n, d) to (n, m).
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
    moved = x + noise * x.std(0) * drawn
    return float((code(moved) == code(x)).all(-1).double().mean())


def _counts(codes: Tensor, labels: Tensor) -> Tensor:
    """Return how often each code in use has each label, (used, classes)."""
    if codes.ndim != 2 or not len(codes):
        raise ValueError(f"codes are (n, digits) with n ≥ 1, not {tuple(codes.shape)}")
    _, place = torch.unique(codes, dim=0, return_inverse=True)
    classes = int(labels.max()) + 1
    table = torch.bincount(place * classes + labels, minlength=(int(place.max()) + 1) * classes)
    return table.unflatten(0, (-1, classes))


def _pairs(counts: Tensor) -> float:
    """Return the number of pairs with equal code, for counts of any shape."""
    return float((counts.double() * (counts.double() - 1) / 2).sum())
