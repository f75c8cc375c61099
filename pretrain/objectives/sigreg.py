"""SIGReg: project the embedding onto random directions and test each projection against N(0, 1).

LeJEPA, Balestriero & LeCun 2025, arXiv:2511.08544. The test is the one of Epps and Pulley,

    T = N ∫ |φ̂(t) - e^{-t²/2}|² e^{-t²/2} dt,    φ̂(t) = mean_j e^{i t x_j},

by the trapezoid rule on [-t_max, t_max]. By symmetry only the knots t ≥ 0 are computed. The mean of T under
N(0, 1) does not depend on N (`null_mean`). At total collapse, where all embeddings are equal to 0, the
gradient is zero: a run that starts there stays there.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from isotorus.device import constant, to_device
from isotorus.errors import UserError
from pretrain.distributed import sum_over_ranks, sum_together
from pretrain.objectives import draws, univariate
from pretrain.objectives.batch import in_float32, own_count
from pretrain.objectives.characteristic_sums import Implementation, characteristic_sums

# Elements of the projections that are computed at once, 256 MiB in float32.
CHUNK_ELEMENTS = 2**26


@in_float32
def epps_pulley(
    x: Tensor, t_max: float = 3.0, knots: int = 17, implementation: Implementation = "auto"
) -> Tensor:
    """Return the Epps-Pulley statistic of each column of `x` (N, S) against N(0, 1), as (S,).

    N counts the samples of all ranks. Each rank passes its own rows, any number of them. The result is
    differentiable and computed in float32, or in float64 for float64 input. NaN gives NaN. Raises `UserError`
    for an impossible grid (see `check_grid`) and `ValueError` for a wrong shape or no sample.
    """
    check_grid(t_max, knots)
    if x.ndim != 2:
        raise ValueError(f"x must be (samples, slices), not {tuple(x.shape)}")
    sums = characteristic_sums(x.T, t_max / (knots - 1), knots, implementation)
    sums, count = sum_together(sums, own_count(x))
    return statistic_from_sums(sums, count, t_max, knots)


class SIGReg(nn.Module):
    """Computes the mean of the Epps-Pulley statistic T over random directions, for each view by itself.

    `num_slices` directions are drawn anew for every step from (seed, step), the same on all ranks. `chunk` is
    the number of slices projected at once: a smaller one needs less memory and one more forward pass. None
    means all of them, or chunks of 256 MiB where the projections are larger. For `implementation` see
    `characteristic_sums`. `test` names a test of `univariate.TESTS` to use instead of Epps-Pulley; it takes
    all slices at once. Raises `UserError` for an unknown test and for numbers out of range.
    """

    def __init__(
        self,
        num_slices: int = 1024,
        t_max: float = 3.0,
        knots: int = 17,
        seed: int = 0,
        chunk: int | None = None,
        implementation: Implementation = "auto",
        test: str = "epps_pulley",
    ) -> None:
        super().__init__()
        check_grid(t_max, knots)
        if test != "epps_pulley" and test not in univariate.TESTS:
            raise UserError(f"test = {test!r}: must be 'epps_pulley' or one of {', '.join(univariate.TESTS)}")
        if num_slices < 1 or (chunk is not None and chunk < 1):
            raise UserError(f"num_slices = {num_slices}, chunk = {chunk}: both must be at least 1")
        self.num_slices = num_slices
        self.t_max = t_max
        self.knots = knots
        self.seed = seed
        self.chunk = chunk
        self.implementation: Implementation = implementation
        self.test = test

    @in_float32
    def forward(self, z: Tensor, step: int, directions: Tensor | None = None) -> Tensor:
        """Return the statistic of `z` (V views, N images, K dimensions) as a scalar, the same on all ranks.

        `directions` (K, M) with columns of length 1 replace those of (seed, step). Raises `ValueError` for
        shapes that do not fit and for an empty batch.
        """
        return self.and_sums(z, step, directions=directions)[0]

    @in_float32
    def and_sums(
        self, z: Tensor, step: int, *others: Tensor, directions: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Return the statistic, the number of images on all ranks, and the sums of `others` over ranks.

        With Epps-Pulley, one collective call adds them all; other tests need more calls.
        """
        if z.ndim != 3:
            raise ValueError(f"z must be (views, images, dimensions), not {tuple(z.shape)}")
        if directions is None:
            directions = self.directions(z.shape[2], step)
        elif directions.ndim != 2 or len(directions) != z.shape[2]:
            raise ValueError(f"directions must be ({z.shape[2]}, slices), not {tuple(directions.shape)}")
        # In bfloat16 the statistic of a slice is wrong by up to 2.4 %.
        directions = to_device(directions, z.device).to(z.dtype)
        if self.test == "epps_pulley":
            sums, count, *totals = sum_together(self._sums(z, directions), own_count(z, 1), *others)
            return statistic_from_sums(sums, count, self.t_max, self.knots).mean(), count, *totals
        # Side by side, the projections of all views are gathered in one call.
        projections = (z @ directions).transpose(0, 1).flatten(1)
        return univariate.TESTS[self.test](projections).mean(), *sum_together(own_count(z, 1), *others)

    def directions(self, width: int, step: int) -> Tensor:
        """Return the directions of a step, (width, num_slices), on the CPU."""
        return draws.directions(width, self.num_slices, self.seed, step)

    @torch.no_grad()
    def null(self, z: Tensor) -> Tensor | float:
        """Return the mean of the statistic for Gaussian samples of the size of `z` (V, N, K) on all ranks.

        Tests other than Epps-Pulley take one more collective call, and the result is on the device.
        """
        if self.test == "epps_pulley":
            return null_mean(self.t_max, self.knots)
        return univariate.null_mean(self.test, sum_over_ranks(own_count(z, 1)))

    def _sums(self, z: Tensor, directions: Tensor) -> Tensor:
        """Return the characteristic sums (2, knots - 1, V · slices) of this rank's images."""
        views, samples, _ = z.shape
        chunk = self.chunk or max(1, CHUNK_ELEMENTS // max(1, views * samples))

        def project(z: Tensor, part: Tensor) -> Tensor:
            # The product is (views, slices, samples), so that samples are contiguous without a copy.
            x = torch.bmm(part.T.expand(views, -1, -1), z.transpose(1, 2))
            return characteristic_sums(
                x.flatten(0, 1), self.t_max / (self.knots - 1), self.knots, self.implementation
            )

        if chunk >= directions.shape[1]:
            return project(z, directions)
        parts = directions.split(chunk, dim=1)
        sums = [checkpoint(project, z, part, use_reentrant=False, preserve_rng_state=False) for part in parts]
        return torch.cat(sums, dim=-1)


def statistic_from_sums(sums: Tensor, count: Tensor | int, t_max: float, knots: int) -> Tensor:
    """Return T as (R,) from the characteristic sums (2, knots - 1, R) of `count` samples."""
    t, weights = _quadrature_on(sums.device, sums.dtype, t_max, knots)[..., None]
    cos, sin = sums / count
    error = (cos - torch.exp(-(t**2) / 2)) ** 2 + sin**2
    return count * (weights * error).sum(0)


def null_mean(t_max: float = 3.0, knots: int = 17) -> float:
    """Return E[T] on this grid for samples of N(0, 1), which does not depend on their number.

    The exact integral is √(2π)(1 - 1/√3) ≈ 1.0594.
    """
    check_grid(t_max, knots)
    # In NumPy, because `plan` runs this where torch's tensors have no values.
    t = np.linspace(0, t_max, knots)
    integrand = np.exp(-(t**2) / 2) * (1 - np.exp(-(t**2)))
    return 2 * float(t[1] * (integrand.sum() - integrand[-1] / 2))


def aliased_share(x: Tensor, t_max: float = 3.0, knots: int = 17) -> Tensor:
    """Return the share of the projections `x` (any shape), on all ranks, that are too large for the grid.

    The knots have the spacing dt, so a value and the same value plus 2π/dt give the same statistic. Values
    beyond π/dt therefore look like values near 0. With a share above 0, statistic and gradient are not to be
    trusted.
    """
    check_grid(t_max, knots)
    beyond = (x.detach().abs() > math.pi * (knots - 1) / t_max).sum()
    beyond, total = sum_over_ranks(torch.stack([beyond, torch.full_like(beyond, x.numel())]))
    return beyond / total


def quadrature(t_max: float, knots: int) -> tuple[Tensor, Tensor]:
    """Return knots t > 0 and weights of ∫ · e^{-t²/2} dt over [-t_max, t_max], float64 (knots - 1,) each."""
    spacing = t_max / (knots - 1)
    t = spacing * torch.arange(1, knots, dtype=torch.float64)
    weights = torch.full_like(t, 2 * spacing)
    weights[-1] = spacing
    return t, weights * torch.exp(-(t**2) / 2)


@constant
def _quadrature_on(device: torch.device, dtype: torch.dtype, t_max: float, knots: int) -> Tensor:
    """Return `quadrature` as (2, knots - 1) on a device."""
    return torch.stack(quadrature(t_max, knots)).to(device, dtype)


def check_grid(t_max: float, knots: int) -> None:
    """Raise `UserError` unless `t_max` is positive and `knots` is odd and at least 3."""
    if knots < 3 or knots % 2 == 0:
        raise UserError(f"knots = {knots}: must be odd and at least 3; 17 is the usual number")
    if not (math.isfinite(t_max) and t_max > 0):
        raise UserError(f"t_max = {t_max}: must be positive; 3 is the usual bound")
