"""Verdicts on samples of known spaces are right, and each criterion of a verdict is necessary."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from eval_suite.geometry import known_spaces, verdict
from isotorus.errors import UserError

TORUS = verdict.Measured(
    samples=1500,
    width=64,
    landmarks=120,
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
    evidence = verdict.measure(x, count=120)
    found = verdict.decide(evidence.measured)
    assert found.name == expected
    assert found.topology.startswith(topology)
    assert json.loads(json.dumps(found.to_json()))["name"] == expected
    json.dumps([asdict(evidence.measured), evidence.homology.to_json()])


@pytest.mark.parametrize(
    "changed",
    [
        {"betti": {"2": [1, 2, 1], "3": [1, 1, 0]}},
        {"betti": {"2": [1, 2, 0], "3": [1, 2, 0]}},
        {"components": 2},
        {"dimension": 2.9},
        {"dimension": 1.2},
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


def test_error_rates_are_those_of_the_published_table():
    page = (Path(__file__).parents[3] / "docs" / "verdict.md").read_text()
    lines = page.split("<!-- calibration -->")[1].split("<!-- end -->")[0].splitlines()
    header, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|")
    own = {"flat torus T²": "flat torus", "isotropic Gaussian": "Gaussian"}
    for name, rate in verdict.CALIBRATION.items():
        column = header.index(name)
        called = {True: [0, 0], False: [0, 0]}
        for row in rows:
            mine = row[0].startswith(own.get(name, name))
            called[mine][0] += int(row[column] or 0)
            called[mine][1] += int(row[1])
        assert (*called[True], *called[False]) == rate


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
