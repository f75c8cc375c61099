"""Choose the integer frequencies k of T^m and their weights in the uniformity statistic Σ_k w_k |φ̂(k)|².

The weights are w_k = e^{-s‖k‖²}, the heat kernel of T^m at time s. The coefficients of k and -k have the same
absolute value, so only frequencies whose first non-zero entry is positive are listed, with twice the weight.
Under uniformity the mean of the statistic is the sum of the weights.
"""

import itertools
import math

import numpy as np
import torch
from torch import Tensor

from isotorus.errors import UserError
from pretrain.objectives import draws

# With more frequencies than this, a random sample of them costs less and serves as well.
MOST_FREQUENCIES = 2**14


def balanced_s(m: int) -> float:
    """Return s = ln 2m: then the 2m lowest frequencies of T^m weigh 1 together, and all of them less than 2.

    With large m and s near 1, nearly all the weight would lie on joint frequencies of many angles, which see
    neither the distribution of a single angle nor that of a pair.
    """
    return math.log(2 * max(m, 2))


def all_frequencies(m: int, cutoff: int, s: float) -> tuple[Tensor, Tensor]:
    """Return all k with 0 < ‖k‖∞ ≤ cutoff, one of each pair ±k: (F, m) int64, and their weights (F,) float32.

    F = ((2·cutoff + 1)^m - 1) / 2. Raises `UserError` for more than 16384 frequencies; use
    `sample_frequencies` then.
    """
    _check(m, s)
    if cutoff < 1:
        raise UserError(f"cutoff = {cutoff}: must be at least 1")
    count = ((2 * cutoff + 1) ** m - 1) // 2
    if count > MOST_FREQUENCIES:
        raise UserError(
            f"cutoff = {cutoff} on T^{m} has {count} frequencies; lower it or sample some instead"
        )
    # In lexicographic order the half behind 0 has one of each pair ±k.
    grid = list(itertools.product(range(-cutoff, cutoff + 1), repeat=m))[count + 1 :]
    frequencies = torch.tensor(grid, dtype=torch.int64)
    return frequencies, 2 * torch.exp(-s * frequencies.square().sum(1).double()).float()


def sample_frequencies(m: int, count: int, s: float, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Draw `count` frequencies (count, m) int64 from (seed, step), with probabilities proportional to w_k.

    Their weights (count,) are all Σ_k w_k / count, so that the expected statistic is the full sum. The draw
    is exact: first the place of the first non-zero entry, then a positive entry there, then the entries
    behind it independently from e^{-s k²}. Raises `UserError` for numbers out of range.
    """
    _check(m, s)
    if count < 1:
        raise UserError(f"count = {count}: must be at least 1")
    # Entries beyond have weights below e^-40, which float64 cannot add to 1.
    largest = math.ceil(math.sqrt(40 / s))
    line = np.arange(-largest, largest + 1)
    weight = np.exp(-s * line.astype(np.float64) ** 2)
    total = weight.sum()
    # P(the first i entries are 0 and entry i is not), times total^m: total^(m-1-i) · (total - 1).
    first_weight = total ** -np.arange(m, dtype=np.float64)
    positive = weight[largest + 1 :]

    random = draws.draws(seed, step, draws.FREQUENCIES)
    first = random.choice(m, size=count, p=first_weight / first_weight.sum())
    frequencies = random.choice(line, size=(count, m), p=weight / total)
    frequencies[np.arange(m) < first[:, None]] = 0
    frequencies[np.arange(count), first] = random.choice(
        line[largest + 1 :], size=count, p=positive / positive.sum()
    )
    # This is Σ_{k≠0} w_k = total^m - 1, without the cancellation where total is close to 1.
    mass = math.expm1(m * math.log1p(2 * positive.sum()))
    return torch.from_numpy(frequencies), torch.full((count,), mass / count)


def _check(m: int, s: float) -> None:
    """Raise `UserError` unless `m` is at least 1 and `s` positive."""
    if m < 1:
        raise UserError(f"m = {m}: a torus needs at least 1 angle")
    if not (math.isfinite(s) and s > 0):
        raise UserError(f"s = {s}: the frequencies' weights e^(-s·k²) need a positive s")
