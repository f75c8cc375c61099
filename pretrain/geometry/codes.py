"""Discrete codes of vectors, and what can be said for them: how many are in use, how often two share one.

A code is a row of digits, int64 (…, m); `bases` says how many values each digit has.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from isotorus.errors import UserError

WINDING_BASES = (10, 10)
"""Of `published_winding_code`, counted from 1."""


def published_winding_code(x: Tensor) -> Tensor:
    """p = ⌊1000 Σx⌋ mod 10 + 1 and q = ⌊10⁴ Σx⌋ mod 10 + 1 of `x` (…, d): (…, 2), each in 1 … 10.

    The winding assignment of the published winding memory, kept to compare with. Two decimals of a sum: 100
    addresses, the same for every order of the features, and no gradient anywhere.
    """
    total = x.double().sum(-1)
    return torch.stack([(total * 10**power).floor().remainder(10).long() + 1 for power in (3, 4)], -1)


def angular_bins(angles: Tensor, bins: int) -> Tensor:
    """The bin, 0 … `bins` - 1, of each angle (…, m) in radians of any turn; bin 0 begins at 0."""
    if bins < 1:
        raise UserError(f"{bins} bins: a circle has 1 or more")
    # An angle just below 0 is rounded up to a whole turn, and then belongs to the last bin.
    turns = torch.remainder(angles / (2 * math.pi), 1)
    return (turns * bins).floor().long().clamp(max=bins - 1)


def fsq(z: Tensor, levels: Sequence[int]) -> Tensor:
    """Finite scalar quantisation of `z` (…, d) to digits 0 … levels_i - 1, one level count for each of d.

    Bounded by tanh and rounded, even counts shifted by a half (Mentzer et al. 2023, arXiv:2309.15505).
    Raises UserError for counts below 2, ValueError where their number is not d.
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
    """One number (…) for each code (…, m), the last digit counting ones.

    Raises ValueError for digits outside 0 … base - 1 and for more than 2⁶³ addresses.
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
    """Of the addresses that n codes use."""

    used: int
    expected: float
    """How many n uniform draws would use on average, cells (1 - (1 - 1/cells)^n)."""
    entropy: float
    """Of the observed frequencies in bits, at most log2 of the smaller of cells and n."""
    fullest: float
    """Share of the codes at the address that has most."""


class Collisions(NamedTuple):
    """Shares of the pairs of codes that are equal."""

    pairs: float
    expected: float
    """1 / cells, where addresses are uniform and independent; what is not uniform collides more."""
    any: float
    """The birthday probability that n uniform draws collide at all."""
    between: float | None = None
    """Of pairs of different classes."""
    within: float | None = None
    """Of pairs of one class, which a useful code lets collide."""


def occupancy(codes: Tensor, cells: int) -> Occupancy:
    """Of `codes` (n, m) where `cells` are possible. Raises ValueError for none."""
    counts = _counts(codes, torch.zeros(len(codes), dtype=torch.long, device=codes.device)).sum(1)
    share = counts.double() / counts.sum()
    n = len(codes)
    # So many that no more of them make a difference, and a float still holds the number.
    many = min(cells, 2**200)
    expected = -many * math.expm1(n * math.log1p(-1 / many)) if many > 1 else 1.0
    entropy = float(-(share * share.log2()).sum())
    return Occupancy(len(counts), expected, max(0.0, entropy), float(share.max()))


def collisions(codes: Tensor, cells: int, labels: Tensor | None = None) -> Collisions:
    """Of `codes` (n, m) where `cells` are possible; `labels` (n,) int64, below 0 for none.

    Raises ValueError for fewer than two codes.
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
    """The probability 1 - Π_{i<n} (1 - i/cells) that n uniform draws from `cells` are not all different."""
    if n > cells:
        return 1.0
    # Of very many draws the first term of the sum's expansion in 1/cells; the next is n³/6 cells².
    if n < 1_000_000:
        log_free = math.fsum(math.log1p(-i / cells) for i in range(n))
    else:
        log_free = -n * (n - 1) / (2 * cells)
    return -math.expm1(log_free)


def stability(code: Callable[[Tensor], Tensor], x: Tensor, noise: float, seed: int) -> float:
    """Share of the rows of `x` (n, d) whose code stays when each feature gets Gaussian noise.

    Its standard deviation is `noise` times the feature's own. `code` maps (n, d) to (n, m).
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
    moved = x + noise * x.std(0) * drawn
    return float((code(moved) == code(x)).all(-1).double().mean())


def _counts(codes: Tensor, labels: Tensor) -> Tensor:
    """How often each code that occurs has each label, (used, classes)."""
    if codes.ndim != 2 or not len(codes):
        raise ValueError(f"codes are (n, digits) with n ≥ 1, not {tuple(codes.shape)}")
    _, place = torch.unique(codes, dim=0, return_inverse=True)
    classes = int(labels.max()) + 1
    table = torch.bincount(place * classes + labels, minlength=(int(place.max()) + 1) * classes)
    return table.unflatten(0, (-1, classes))


def _pairs(counts: Tensor) -> float:
    """How many pairs lie together, of counts of any shape."""
    return float((counts.double() * (counts.double() - 1) / 2).sum())
