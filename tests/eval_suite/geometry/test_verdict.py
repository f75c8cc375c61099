"""Verdicts on samples of known spaces are right, and each criterion of a verdict is necessary."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from benchmarks import calibration
from eval_suite.geometry import error_rates, graph, known_spaces, landmarks, verdict
from isotorus.errors import UserError

ROOT = Path(__file__).parents[3]

TORUS = verdict.Measured(
    samples=1500,
    width=64,
    landmarks=150,
    null_draws=20,
    betti={"2": [1, 2, 1], "3": [1, 2, 1]},
    components=1,
    eigenvalues=[1.0, 1.0, 1.1, 1.1, 1.9, 2.0, 2.1, 2.2, 3.7, 3.8],
    dimension=1.8,
    two_nn=5.0,
    isotropy=0.2,
    radial=0.5,
    normality=5.0,
)


@pytest.mark.parametrize(
    ("name", "width", "expected", "topology"),
    [
        ("flat torus", 768, "flat torus T²", "torus"),
        ("circle", 16, "circle", "circle"),
        ("sphere", 64, "sphere", "sphere"),
        ("Gaussian", 64, "isotropic Gaussian", "no holes"),
        ("donut", 8, "none of these", "torus"),
        ("S¹∨S¹∨S²", 64, "none of these", "torus, or"),
        ("Klein bottle", 64, "none of these", ""),
        ("uniform cube", 64, "none of these", "no holes"),
    ],
)
def test_verdicts_on_known_spaces(name, width, expected, topology):
    x = known_spaces.sample(name, 1500, width, 0.05, seed=6)
    evidence = verdict.measure(x)
    found = verdict.decide(evidence.measured)
    assert found.name == expected
    assert found.topology.startswith(topology)
    assert json.loads(json.dumps(found.to_json()))["name"] == expected
    torus_that_is_none = expected == "none of these" and topology.startswith("torus")
    assert found.nearest.startswith("a torus's homology") == torus_that_is_none
    json.dumps([asdict(evidence.measured), evidence.homology.to_json()])


@pytest.mark.parametrize("space", ["circle", "Möbius strip"])
@pytest.mark.parametrize("width", [4, 64])
def test_a_moebius_strip_is_no_circle_by_its_spectrum(space, width):
    """Both have a circle's Betti numbers and first two bands; seeds are not those of the rule."""
    x = known_spaces.sample(space, 600, width, 0.1, seed=8)
    neighbours = graph.knn_graph(landmarks.reduce(x), verdict.NEIGHBOURS)
    eigenvalues = graph.laplacian_spectrum(neighbours, verdict.EIGENVALUES).eigenvalues.tolist()
    betti = {field: [1, 1, 0] for field in ("2", "3")}
    found = verdict.decide(replace(TORUS, samples=600, betti=betti, eigenvalues=eigenvalues, dimension=1.3))
    unmet = [row.quantity for row in found.evidence["circle"] if not row.met]
    if space == "circle":
        assert found.name == "circle" and not unmet
    else:
        assert found.name == "none of these" and unmet == ["error of λ₁…λ8 against a circle's"]
        assert found.nearest.startswith("circle by its homology, but error of")


def test_a_rectangular_torus_is_found_with_its_ratio():
    x = known_spaces.sample("flat torus 3:1", 1000, 64, 0.1, seed=6)
    measured = verdict.measure(x).measured
    assert measured.shortened == pytest.approx(3, rel=0.1)
    found = verdict.decide(measured)
    assert found.name == "rectangular flat torus T²" and not found.nearest
    assert found.to_json()["flat_torus"]["ratio"] == pytest.approx(3, rel=0.1)


def test_a_verdict_of_none_names_what_is_nearest():
    donut, hexagonal = (
        verdict.decide(verdict.measure(known_spaces.sample(name, 1500, 8, 0.02, seed=7)).measured)
        for name in ("donut", "hexagonal torus")
    )
    assert donut.name == hexagonal.name == "none of these"
    assert donut.nearest.startswith(
        "a torus's homology, not a flat one's spectrum: error of the fitted spectrum"
    )
    assert (
        hexagonal.nearest.startswith("a flat torus that is not rectangular")
        and "angle 6" in hexagonal.nearest
    )


def test_a_spectrum_of_ten_eigenvalues_from_earlier_versions_is_judged():
    squares = sorted(a * a + 4 * b * b for a in range(-5, 6) for b in range(-5, 6))[1:11]
    found = verdict.decide(replace(TORUS, eigenvalues=[0.01 * value for value in squares]))
    assert found.name == "rectangular flat torus T²"
    assert found.flat_torus.ratio == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize(
    "changed",
    [
        {"betti": {"2": [1, 2, 1], "3": [1, 1, 0]}},
        {"betti": {"2": [1, 2, 0], "3": [1, 2, 0]}},
        {"components": 2},
        {"dimension": 2.9},
        {"dimension": 1.1},
        {"eigenvalues": [1.0, 1.0, 3.0, 3.1, 4.0, 4.2, 5.0, 5.1, 6.0, 6.1]},
        {"eigenvalues": [1.0, 1.0, 1.0, 1.0, 1.1, 1.1, 1.2, 1.2, 1.3, 1.3]},
        {"eigenvalues": [0.0] * 10},
    ],
)
def test_each_criterion_of_a_torus_is_needed(changed):
    assert verdict.decide(TORUS).name == "flat torus T²"
    found = verdict.decide(replace(TORUS, **changed))
    assert found.name == "none of these"
    assert sum(not row.met for row in found.evidence["flat torus T²"]) >= 1


def test_the_error_rate_is_that_of_the_nearest_calibrated_setting():
    found = verdict.decide(replace(TORUS, samples=1100, landmarks=110, width=128))
    assert (found.error_rate.samples, found.error_rate.width) == (1000, 64)
    assert found.calibration == "calibrated with 1,000 samples and 64 features"
    rate = found.to_json()["error_rate"]
    low, high = binomtest(rate["found"], rate["draws"]).proportion_ci(method="exact")
    assert rate["found_interval"] == pytest.approx((low, high))
    low, high = binomtest(rate["wrong"], rate["others"]).proportion_ci(method="exact")
    assert rate["wrong_interval"] == pytest.approx((low, high))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"landmarks": 500}, "500 landmarks and 20 null draws; the default of these samples is 150 and 20"),
        ({"null_draws": 99}, "150 landmarks and 99 null draws"),
        ({"samples": 550, "landmarks": 100}, "near 550 samples with 64 features"),
        ({"width": 4096}, "near 1,500 samples with 4096 features"),
    ],
)
def test_settings_without_a_calibration_have_no_error_rate(changed, said):
    found = verdict.decide(replace(TORUS, **changed))
    assert found.name == "flat torus T²" and found.error_rate is None
    assert found.calibration.startswith("not calibrated") and said in found.calibration


def test_error_rates_are_those_of_the_recorded_draws_and_of_the_page():
    draws = calibration.judged(ROOT / "studies" / "verdict" / "calibration.jsonl.xz")
    counts = calibration.count(draws)
    assert list(error_rates.calibrated()) == calibration.rates(counts)
    page = (ROOT / "docs" / "verdict.md").read_text()
    assert calibration.tables(counts) in page and calibration.flat_tori(draws) in page
    tori = [rate for rate in error_rates.calibrated() if rate.name == "flat torus T²" and rate.samples > 300]
    assert sum(rate.found for rate in tori) >= 0.9 * sum(rate.draws for rate in tori) > 0
    assert sum(rate.wrong for rate in tori) == 0


def test_scale_place_and_order_of_an_embedding_do_not_matter():
    x = known_spaces.sample("flat torus", 800, 16, 0.05, seed=6)
    order = np.random.default_rng(0).permutation(800)
    moved = verdict.measure(1e3 * x[order] + 1e4, count=80).measured
    plain = verdict.measure(x, count=80).measured
    assert moved.betti == plain.betti
    assert moved.eigenvalues == pytest.approx(plain.eigenvalues, rel=1e-3)
    assert moved.dimension == pytest.approx(plain.dimension, rel=1e-2)


def test_too_few_samples_for_a_verdict_are_refused():
    with pytest.raises(UserError, match="give 200 or more"):
        verdict.measure(np.tile(known_spaces.sample("circle", 50), (10, 1)))
