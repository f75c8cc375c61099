"""Place and scale of an embedding change no measure of its geometry; a collapsed one is named by each."""

import json
from typing import Any

import numpy as np
import pytest

from eval_suite.geometry import (
    centring,
    circular,
    dimension,
    graph,
    homology,
    known_spaces,
    landmarks,
    measure_geometry,
    nearest,
    normality,
    rank,
    spectral_gap,
    uniformity,
    verdict,
)
from isotorus.errors import UserError

TORUS = known_spaces.sample("flat torus", 240, 6, 0.03, seed=3)
LABELS = np.arange(240) % 3
OPTIONS = measure_geometry.Options(draws=20)
ABOUT_THE_ORIGIN = {"rankme", "uniformity", "sigreg"}
"""Measures that compare with the origin or with a unit length by definition."""
LENGTHS = {"bars", "null_longest", "threshold", "resolution", "joined", "gap_radius", "map", "eigenspectrum"}
"""Measures that are lengths or squares of them."""


def numbers(measured: dict[str, Any], without: set[str]) -> list[float]:
    """All numbers of nested JSON, in order; True, False and texts are left out."""
    flat: list[float] = []
    for key, value in measured.items():
        if key in without:
            continue
        flat += numbers(value, without) if isinstance(value, dict) else []
        if isinstance(value, list | int | float):
            rows = [value] if not isinstance(value, list) else np.array(value, dtype=object).ravel().tolist()
            flat += [float(item) for item in rows if isinstance(item, int | float)]
    return flat


def measure(x: np.ndarray) -> dict[str, Any]:
    return measure_geometry.measure(x, LABELS[: len(x)], OPTIONS)


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    return measure(TORUS)


@pytest.mark.parametrize(
    ("scale", "offset"), [(1, 1e6), (1, -4.2e6), (1e39, 0), (1e-39, 0), (1e39, 1e44)], ids=str
)
def test_place_and_scale_change_no_measure(plain, scale: float, offset: float):
    moved = measure(TORUS * scale + offset)
    assert moved["left_out"] == plain["left_out"] == {}
    # Denoised points can be equal, and rounding decides which of them is the landmark.
    without = ABOUT_THE_ORIGIN | LENGTHS | {"evidence", "samples"}
    if scale == 1:
        without -= LENGTHS
    assert len(numbers(plain, without)) > 300
    assert numbers(moved, without) == pytest.approx(numbers(plain, without), rel=1e-4, abs=1e-5, nan_ok=True)
    assert moved["verdict"]["name"] == plain["verdict"]["name"]


@pytest.mark.parametrize("size", [1e61, 1e300])
def test_features_whose_powers_overflow_are_refused_by_name(size: float):
    left_out = measure(TORUS * size)["left_out"]
    assert set(left_out) == {"rank", "dimension", "shape", "normality", "collisions", "graph", "homology"}
    assert all("divide them by a constant" in reason for reason in left_out.values())
    assert "multiply them by a constant" in measure(TORUS / 1e70)["left_out"]["graph"]


def rounded(value: float, dtype: type) -> np.ndarray:
    """Rows that are equal but for one unit in the last place of some features."""
    x = np.full((240, 5), value, dtype)
    up = np.random.default_rng(0).random(x.shape) < 0.5
    x[up] = np.nextafter(x[up], dtype(np.inf))
    return x


COLLAPSED = {
    "equal": np.full((240, 5), 0.3),
    "zero": np.zeros((240, 5)),
    "float32 rounding": rounded(0.3, np.float32),
    "float64 rounding": rounded(-1e6, np.float64),
    "one feature": np.full((240, 1), 7.0, np.float32),
    "far": rounded(1e20, np.float32),
}


@pytest.mark.parametrize("kind", COLLAPSED)
def test_a_collapsed_embedding_is_named_by_every_measure(kind: str):
    x = COLLAPSED[kind]
    measured = measure(x)
    json.dumps(measured)
    assert measured["rank"]["effective_rank"] == measured["rank"]["participation_ratio"] == 0
    assert measured["normality"]["isotropy"] is None
    for name in ("dimension", "shape", "graph", "homology", "collisions"):
        assert "has collapsed: all 240 samples have the same features" in measured["left_out"][name], name
    assert rank.lidar(np.repeat(x[:40, None], 4, axis=1)) == 0


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: nearest.neighbours(x, 3),
        lambda x: graph.knn_graph(x, 3),
        lambda x: spectral_gap.summary(x),
        dimension.two_nn,
        dimension.local,
        lambda x: uniformity.hubness(x),
        lambda x: uniformity.collisions(x, LABELS),
        landmarks.reduce,
        homology.betti,
        verdict.measure,
        circular.circular_coordinates,
    ],
)
def test_each_function_alone_refuses_what_collapsed(compute: Any):
    for x in COLLAPSED.values():
        with pytest.raises(UserError, match="has collapsed"):
            compute(x)


def test_rounding_is_relative_to_the_precision_of_the_features():
    assert not centring.collapsed(TORUS + 1e9)
    assert not centring.collapsed((TORUS + 1e6).astype(np.float32))
    assert centring.collapsed((TORUS + 1e9).astype(np.float32))
    # One feature varies, the others are large and constant.
    x = np.full((50, 4), 1000.0, np.float32)
    x[:, 1] = np.linspace(0, 1, 50)
    assert not centring.collapsed(x)


@pytest.mark.parametrize(
    "x",
    [
        np.random.default_rng(0).normal(size=(240, 1)),
        np.random.default_rng(0).integers(0, 2, (240, 3)).astype(np.float32),
        np.repeat(np.eye(4, dtype=np.float32), 60, axis=0),
        np.concatenate([np.zeros((239, 3)), np.ones((1, 3))]),
        np.arange(240.0)[:, None] ** 3,
        *(np.random.default_rng(0).normal(size=(n, 3)) for n in (1, 2, 3, 5, 17)),
        np.full((20, 3), np.nan),
        np.where(np.arange(240)[:, None] == 5, np.inf, TORUS),
    ],
    ids=["one feature", "bits", "four", "two", "curve", "1", "2", "3", "5", "17", "nan", "inf"],
)
def test_no_cloud_ends_in_an_error(x: np.ndarray):
    measured = measure(x)
    json.dumps(measured)
    assert all("\n" not in reason for reason in measured["left_out"].values())
    assert {"rank", "dimension", "shape", "normality", "graph"} <= measured.keys() | measured[
        "left_out"
    ].keys()
    assert len(x) == 240 or not any("collapsed" in reason for reason in measured["left_out"].values())
    assert normality.summary(x)["samples"] == len(x) if np.isfinite(x).all() else True
