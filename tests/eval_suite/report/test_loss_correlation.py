"""Loss and score are correlated within one objective, rescaled over λ, and losses are interpolated."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval_suite.report.loss_correlation import correlations, interval
from eval_suite.report.training.log import at, logged, loss_at
from tests.eval_suite.report.compared import evaluated

LEJEPA = {"kind": "lejepa", "encoder_weight": 0.0}


def run(
    folder: Path, name: str, loss: float, score: float, objective: dict[str, Any] | None
) -> dict[str, Any]:
    config = None if objective is None else {"objective": objective}
    seed = None if objective is None else 0
    one = evaluated(
        folder, name, seed=seed, step=10, losses={10: loss}, config=config, ours=score, baselines={}
    )
    return one.results


def of_auroc(results: list[dict[str, Any]]) -> list[tuple[str, str, float, float, int]]:
    return [
        (found.group, found.objective, found.alpha, pytest.approx(found.rho), found.checkpoints)
        for found in correlations(results)
        if found.score == "linear probe, AUROC"
    ]


def test_steps_of_one_run(tmp_path: Path):
    losses = {1: 0.9, 2: 0.5, 3: 0.4, 4: 0.3}
    results = [
        evaluated(tmp_path, "a", seed=None, step=step, losses=losses, ours=score, baselines={}).results
        for step, score in ((1, 0.5), (2, 0.6), (3, 0.8), (4, 0.7))
    ]
    # Ranks 4 3 2 1 and 1 2 4 3: 1 − 6 · (9 + 1 + 4 + 4) / 60.
    assert of_auroc(results) == [("steps of a", "unknown", 0.0, -0.8, 4)]
    assert correlations(results[:3]) == []


def test_runs_of_two_objectives_are_never_one_group(tmp_path: Path):
    better = [run(tmp_path, f"a{i}", 1.0 - i / 10, 0.5 + i / 10, LEJEPA | {"weight": 0.1}) for i in range(4)]
    toroidal = [run(tmp_path, f"b{i}", 100.0 + i, 0.1 + i / 10, {"kind": "toroidal"}) for i in range(5)]
    unknown = [run(tmp_path, f"c{i}", i, i / 10, None) for i in range(4)]
    assert of_auroc([*better, *toroidal, *unknown]) == [
        ("newest of each run", "lejepa, λ = 0.1", 0.0, -1, 4),
        ("newest of each run", "toroidal", 0.0, 1, 5),
    ]


def test_over_a_sweep_of_lambda_the_loss_is_also_divided_by_its_power(tmp_path: Path):
    # The loss is λ^0.4 times what a better encoder lowers, so only the rescaled loss has the order.
    weights, quality = (0.01, 0.02, 0.05, 0.1, 0.2), (0.5, 0.55, 0.6, 0.65, 0.7)
    results = [
        run(tmp_path, f"a{i}", weight**0.4 * (1 - good), good, LEJEPA | {"weight": weight})
        for i, (weight, good) in enumerate(zip(weights, quality, strict=True))
    ]
    name = "lejepa, λ from 0.01 to 0.2"
    raw, rescaled = of_auroc(results)
    assert raw == ("newest of each run", name, 0.0, 1, 5)
    assert rescaled == ("newest of each run", name, 0.4, -1, 5)
    automatic = LEJEPA | {"auto_weight": {"enabled": True}}
    others = [run(tmp_path, f"b{i}", i, i / 10, automatic | {"weight": i / 10}) for i in range(1, 5)]
    assert correlations(others) == []  # λ is not what these runs were trained with


def test_the_interval_is_fishers_with_the_variance_of_bonett_and_wright():
    half = 1.959964 * math.sqrt((1 + 0.6**2 / 2) / 17)
    expected = math.tanh(math.atanh(0.6) - half), math.tanh(math.atanh(0.6) + half)
    assert interval(0.6, 20) == pytest.approx(expected, abs=1e-6)
    assert interval(-0.6, 20) == pytest.approx((-expected[1], -expected[0]), abs=1e-6)
    low, high = interval(1.0, 4)
    assert high == 1 and low < 0  # four points in order are no proof
    assert interval(-1.0, 4) == pytest.approx((-1, -low))


def test_the_interval_covers_the_correlation():
    """About 95 % of 400 draws of 30 normal pairs cover Spearman's ρ, which is 6/π · asin(0.7/2)."""
    from scipy.stats import spearmanr

    true, random = 6 / math.pi * math.asin(0.35), np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        x, y = random.multivariate_normal([0, 0], [[1, 0.7], [0.7, 1]], size=30).T
        low, high = interval(float(spearmanr(x, y).statistic), 30)
        covered += low <= true <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_a_checkpoint_between_two_logged_rows_has_its_loss_by_interpolation(tmp_path: Path):
    rows = [{"step": step, "loss": loss} for step, loss in ((10, 4.0), (20, 2.0), (40, 1.0))]
    assert at(rows, "loss", 20, 1) == 2.0
    assert at(rows, "loss", 15, 1) == pytest.approx(3.0)
    assert at(rows, "loss", 35, 1) == pytest.approx(1.25)
    assert at(rows, "loss", 15, 15) == pytest.approx(3.5)  # between 4 at 10, and the mean 3 at 20
    assert at(rows, "loss", 5, 1) is None and at(rows, "loss", 41, 1) is None
    assert at([*rows, {"step": 30, "loss": None}], "loss", 30, 1) == pytest.approx(1.5)
    odd = ['{"step": 2, "loss": 3.0}', "[]", '{"step": null}', '{"step": 4, "loss": 1.0}', '{"step": 6, "lo']
    (tmp_path / "metrics.jsonl").write_text("\n".join(odd))
    assert [row["step"] for row in logged(tmp_path)] == [2, 4]
    assert loss_at(tmp_path, 3) == pytest.approx(2.0)
    assert json.dumps(logged(tmp_path / "none")) == "[]" and loss_at(tmp_path / "none", 3) is None
