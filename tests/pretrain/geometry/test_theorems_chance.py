"""Statements of docs/theorems.md about tests of distributions, codes, collisions, attention and trees."""

import ast
import itertools
import math
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import sympy
import torch
from sympy import exp, oo, pi, sqrt, symbols

from pretrain.geometry import codes
from pretrain.geometry.hyperbolic import gromov_delta

ROOT = Path(__file__).resolve().parents[3]


# --- tests of a distribution ---


def test_sigreg_null_and_collapse_in_closed_form():
    """∫ E|φ̂ - φ|² w over its N, and the value that total collapse has, exactly."""
    t = symbols("t", real=True)
    weight = exp(-(t**2) / 2)
    # For N(0, 1) samples N E|φ̂ - φ|² = 1 - φ², whatever N.
    null = sympy.integrate((1 - exp(-(t**2))) * weight, (t, -oo, oo))
    assert sympy.simplify(null - sqrt(2 * pi) * (1 - 1 / sqrt(3))) == 0
    collapsed = sympy.integrate(sympy.expand((1 - weight) ** 2 * weight), (t, -oo, oo))
    assert sympy.simplify(collapsed - sqrt(2 * pi) * (1 - sqrt(2) + 1 / sqrt(3))) == 0


def test_sigreg_has_no_gradient_at_total_collapse():
    """∂/∂x_j of |φ̂(t) - φ(t)|² is 0 where all x are 0, for every t: such a run stays where it is."""
    t, *x = symbols("t x0:4", real=True)
    cosine = sum(sympy.cos(t * xi) for xi in x) / len(x)
    sine = sum(sympy.sin(t * xi) for xi in x) / len(x)
    integrand = (cosine - exp(-(t**2) / 2)) ** 2 + sine**2
    for xi in x:
        assert sympy.simplify(sympy.diff(integrand, xi).subs(dict.fromkeys(x, 0))) == 0


@pytest.mark.parametrize("count", [1, 2, 3])
def test_torus_uniformity_has_the_weights_sum_as_its_null(count):
    """E|φ̂(k)|² = 1/N for N independent uniform angles, over all of the N angles in sevenths of a turn."""
    bins = 7
    roots = [sympy.Poly(sympy.Symbol("z") ** j, sympy.Symbol("z")) for j in range(bins)]
    cyclotomic = sympy.Poly(sympy.cyclotomic_poly(bins, sympy.Symbol("z")), sympy.Symbol("z"))
    for k in (1, 2, 3):
        total = sympy.Poly(0, sympy.Symbol("z"))
        for angles in itertools.product(range(bins), repeat=count):
            # |Σ_j ζ^{kθ_j}|² is the sum over ordered pairs of ζ^{k(θ_i - θ_j)}.
            for a, b in itertools.product(angles, repeat=2):
                total += roots[k * (a - b) % bins]
        assert total.rem(cyclotomic) == sympy.Poly(count * bins**count, sympy.Symbol("z"))


# --- codes and collisions ---


def test_published_winding_code_collides_at_thirteen_inputs_more_often_than_not():
    """That it never does is false: 100 addresses, where uniform draws collide with 0.4968 at 12 inputs."""

    def free(n):
        return math.prod(Fraction(100 - i, 100) for i in range(n))

    assert Fraction(496, 1000) < 1 - free(12) < Fraction(1, 2) < 1 - free(13)
    assert codes.birthday(12, 100) == pytest.approx(float(1 - free(12)), rel=1e-12)
    assert free(101) == 0
    tens = [Fraction(n, 10_000) for n in range(10_000)]
    found = {(math.floor(1000 * s) % 10 + 1, math.floor(10_000 * s) % 10 + 1) for s in tens}
    assert len(found) == 100


def test_published_winding_code_does_not_see_the_order():
    x = torch.arange(1, 9, dtype=torch.float64) / 1024
    found = {tuple(codes.published_winding_code(x.roll(i)).tolist()) for i in range(8)}
    found |= {tuple(codes.published_winding_code(x.flip(0)).tolist())}
    assert len(found) == 1


def test_published_winding_code_has_no_gradient():
    """It is constant between multiples of 10⁻⁴ of the sum: the derivative is 0 wherever there is one."""
    start = Fraction(12_345, 10_000)
    inside = [start + Fraction(i, 10) * Fraction(1, 10_000) for i in range(10)]
    assert len({(math.floor(1000 * s) % 10, math.floor(10_000 * s) % 10) for s in inside}) == 1


def test_embeddings_in_768_dimensions_never_come_within_a_hundredth():
    """P(|x - y| < ε) ≤ (ε/2σ)^d / Γ(d/2 + 1), d = 768, ε = 0.01, σ = 1: below 10⁻²⁰⁰⁰ for 10⁹ embeddings."""
    # Each of n²/2 pairs; Γ(385) = 384!, all in integers.
    n, halves = 10**9, 384
    assert 10**2000 * n**2 < 2 * 200**768 * math.factorial(halves)
    # The bound is the density's maximum times the ball's volume: (4πσ²)^{-d/2} · π^{d/2} ε^d / Γ(d/2 + 1).
    d, radius, sigma = symbols("d epsilon sigma", positive=True)
    ball = pi ** (d / 2) * radius**d / sympy.gamma(d / 2 + 1)
    bound = (radius / (2 * sigma)) ** d / sympy.gamma(d / 2 + 1)
    ratio = ball * (4 * pi * sigma**2) ** (-d / 2) / bound
    assert sympy.simplify(sympy.expand_log(sympy.log(ratio), force=True)) == 0


def test_attention_within_classes_keeps_a_constant_share_of_the_pairs():
    """Σ n_c² ≥ n²/C: C Σ n_c² - (Σ n_c)² = Σ_{c<d} (n_c - n_d)². Linear in n it is not."""
    for classes in range(1, 8):
        counts = symbols(f"n0:{classes}")
        excess = classes * sum(c**2 for c in counts) - sum(counts) ** 2
        squares = sum((a - b) ** 2 for a, b in itertools.combinations(counts, 2))
        assert sympy.expand(excess - squares) == 0


# --- numbers that are no field, and trees that are none ---


def test_dual_numbers_have_zero_divisors():
    """ε² = 0 with ε ≠ 0 and no inverse: no field, and ordered neither, as 0 < ε would give 0 < ε²."""
    a, b, c, d = symbols("a b c d")
    one, epsilon = sympy.eye(2), sympy.Matrix([[0, 1], [0, 0]])
    assert epsilon**2 == sympy.zeros(2) != epsilon and epsilon.det() == 0
    # The algebra is forward-mode differentiation: products and inverses carry the product and quotient rules.
    assert (a * one + b * epsilon) * (c * one + d * epsilon) == a * c * one + (a * d + b * c) * epsilon
    assert sympy.simplify((a * one + b * epsilon).inv() - one / a + b / a**2 * epsilon) == sympy.zeros(2)


def four_point_delta(distance) -> Fraction:
    """½ (largest minus middle of the three sums of opposite distances), the largest over all four points."""
    worst = Fraction(0)
    for i, j, k, m in itertools.combinations(range(len(distance)), 4):
        sums = sorted(
            (
                distance[i][j] + distance[k][m],
                distance[i][k] + distance[j][m],
                distance[i][m] + distance[j][k],
            )
        )
        worst = max(worst, (sums[2] - sums[1]) / 2)
    return worst


def test_trees_have_delta_zero_circles_have_not_and_equal_distances_have():
    """δ is 0 for path lengths in a tree, a quarter of a circle's length, and 0 for equal distances."""
    random = np.random.default_rng(0)
    n = 12
    tree = [[Fraction(0)] * n for _ in range(n)]
    for new in range(1, n):
        parent, length = int(random.integers(new)), Fraction(int(random.integers(1, 9)), 7)
        for other in range(new):
            tree[new][other] = tree[other][new] = tree[parent][other] + length
    assert four_point_delta(tree) == 0
    circle = [[Fraction(min((i - j) % n, (j - i) % n), n) for j in range(n)] for i in range(n)]
    assert four_point_delta(circle) == Fraction(1, 4)
    equal = [[Fraction(i != j) for j in range(n)] for i in range(n)]
    assert four_point_delta(equal) == 0
    for exact, expected in ((tree, 0), (circle, 1), (equal, 0)):
        assert gromov_delta(np.array(exact, dtype=float), distances=True).relative == pytest.approx(
            expected, abs=1e-12
        )


# --- the table itself ---


def test_the_table_names_tests_that_exist_and_all_of_them():
    table = (ROOT / "docs" / "theorems.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", table))
    defined = {
        node.name: file.name
        for file in sorted((ROOT / "tests").rglob("test_*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    assert len(named) > 20 and named <= defined.keys(), named - defined.keys()
    ours = {name for name, file in defined.items() if file.startswith("test_theorems")}
    assert ours - named <= {"test_the_table_names_tests_that_exist_and_all_of_them"}
