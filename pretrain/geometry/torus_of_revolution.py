"""The torus of revolution in R³, a tube of radius r around a circle of radius R > r, and curves on it.

φ runs around the axis and θ around the tube, with θ = 0 on the outside. Normals point outwards. do Carmo
1976, Differential Geometry of Curves and Surfaces, §2-5 and §3-3.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from isotorus.errors import UserError


@dataclass(frozen=True)
class TorusOfRevolution:
    """A torus with the radii R and r.

    Raises `UserError` unless 0 < r < R: at r ≥ R the tube meets itself.
    """

    R: float
    r: float

    def __post_init__(self) -> None:
        if not 0 < self.r < self.R < math.inf:
            raise UserError(
                f"R = {self.R}, r = {self.r}: a torus needs 0 < r < R, or its tube meets itself; give a "
                "larger R"
            )

    def point(self, phi: Tensor, theta: Tensor) -> Tensor:
        """Return ((R + r cos θ) cos φ, (R + r cos θ) sin φ, r sin θ), (…, 3)."""
        rho = self.R + self.r * theta.cos()
        return torch.stack([rho * phi.cos(), rho * phi.sin(), self.r * theta.sin()], -1)

    def gaussian_curvature(self, theta: Tensor) -> Tensor:
        """Return K = cos θ / (r (R + r cos θ)): positive outside, negative inside; its integral is 0."""
        return theta.cos() / (self.r * (self.R + self.r * theta.cos()))

    def mean_curvature(self, theta: Tensor) -> Tensor:
        """Return H = (R + 2r cos θ) / (2r (R + r cos θ)), half the sum of the principal curvatures."""
        return (self.R + 2 * self.r * theta.cos()) / (2 * self.r * (self.R + self.r * theta.cos()))

    def area_element(self, theta: Tensor) -> Tensor:
        """Return the factor r (R + r cos θ) of dA = r (R + r cos θ) dφ dθ."""
        return self.r * (self.R + self.r * theta.cos())

    @property
    def area(self) -> float:
        """Return 4π² R r (Pappus)."""
        return 4 * math.pi**2 * self.R * self.r

    def curve(self, p: int, q: int, t: Tensor) -> Tensor:
        """Return the (p, q) curve at t in radians, φ = pt and θ = qt, as (…, 3).

        It is a knot for |p|, |q| > 1. Raises `UserError` as `winding_angles` does.
        """
        phi, theta = winding_angles(p, q, t).unbind(-1)
        return self.point(phi, theta)


def winding_angles(p: int, q: int, t: Tensor) -> Tensor:
    """Return (pt, qt), (…, 2): the closed curve on T² that winds p and q times while t goes from 0 to 2π.

    Raises `UserError` unless p and q are coprime: otherwise the curve runs gcd(p, q) times over another
    curve.
    """
    common = math.gcd(p, q)
    if common == 0:
        raise UserError("p = q = 0 is a point and no curve; give coprime p and q, such as 2 and 3")
    if common > 1:
        raise UserError(
            f"p = {p}, q = {q} have the common divisor {common}: the curve would run {common} times over "
            f"({p // common}, {q // common}); give that"
        )
    return torch.stack([p * t, q * t], -1)
