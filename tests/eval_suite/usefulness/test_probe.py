"""The linear probe against scikit-learn's logistic regression, and the choice of its strength."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from eval_suite.usefulness import logistic, probe, scores

STRENGTHS = (1e-3, 1e-1, 10.0)


def mixture(classes: int, n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Make correlated features on different scales, and classes of different sizes."""
    random = np.random.default_rng(classes)
    y = np.minimum(random.integers(classes + 1, size=n), classes - 1)
    x = (
        0.5 * random.normal(size=(classes, d))[y]
        + random.normal(size=(n, d)) @ random.normal(size=(d, d)) / d**0.5
    )
    return x * random.uniform(0.1, 20, d) + 4, y


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize(("classes", "n", "d"), [(2, 300, 20), (4, 400, 15), (3, 60, 90)])
def test_probabilities_agree_with_sklearn(classes: int, n: int, d: int, balanced: bool):
    x, y = mixture(classes, 2 * n, d)
    ours = x[n:], y[n:]
    for l2 in STRENGTHS:
        reference = LogisticRegression(
            C=1 / (l2 * n), class_weight="balanced" if balanced else None, tol=1e-9, max_iter=20_000
        )
        scaler = StandardScaler().fit(x[:n])
        reference.fit(scaler.transform(x[:n]), y[:n])
        found = probe.linear_probe(x[:n], y[:n], *ours, *ours, l2=(l2,), balanced=balanced)
        expected = reference.predict_proba(scaler.transform(x[n:]))
        assert found["converged"]
        np.testing.assert_allclose(found["test_scores"], expected, atol=2e-3)


def test_the_grid_solved_together_equals_each_solved_alone():
    x, y = mixture(3, 200, 30)
    x, y = torch.tensor((x - x.mean(0)) / x.std(0)), torch.tensor(y)
    weight = torch.ones(200, dtype=torch.float64)
    together = logistic.solve(x, y, STRENGTHS, weight, 3, tolerance=1e-14)
    for member, l2 in enumerate(STRENGTHS):
        alone = logistic.solve(x, y, (l2,), weight, 3, tolerance=1e-14)
        torch.testing.assert_close(together.weight[member], alone.weight[0], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(together.bias[member], alone.bias[0], rtol=1e-5, atol=1e-7)


def test_gradient_vanishes_at_the_solution():
    x, y = mixture(4, 300, 10)
    x, y = torch.tensor((x - x.mean(0)) / x.std(0)), torch.tensor(y)
    solution = logistic.solve(x, y, (0.01,), torch.ones(300, dtype=torch.float64), 4, tolerance=1e-16)
    w, b = solution.weight[0].requires_grad_(), solution.bias[0].requires_grad_()
    loss = torch.nn.functional.cross_entropy(x @ w + b, y) + 0.005 * w.square().sum()
    loss.backward()
    assert w.grad.abs().max() < 1e-6
    assert b.grad.abs().max() < 1e-6


def test_the_strength_is_chosen_on_val_not_on_test():
    x, y = mixture(2, 900, 200)
    train, val = (x[:150], y[:150]), (x[150:500], y[150:500])
    honest = probe.linear_probe(*train, *val, x[500:], y[500:])
    best = max(honest["val"], key=lambda row: (row["balanced_accuracy"], row["auroc"], row["l2"]))
    assert honest["l2"] == best["l2"]
    # The choice does not depend on the test labels.
    flipped = probe.linear_probe(*train, *val, x[500:], 1 - y[500:])
    assert flipped["l2"] == honest["l2"]
    assert flipped["test_accuracy"] == pytest.approx(1 - honest["test_accuracy"])


def test_same_input_gives_the_same_bits():
    x, y = mixture(3, 120, 10)
    one, two = (probe.linear_probe(x, y, x, y, x, y)["test_scores"] for _ in range(2))
    assert np.array_equal(one, two)


def test_constant_features_and_a_class_absent_from_train():
    x, y = mixture(3, 200, 8)
    x[:, 0] = 5.0
    known = y < 2
    found = probe.linear_probe(x[known], y[known], x, y, x, y)
    assert found["test_scores"].shape == (200, 3)
    assert (found["test_scores"][:, 2] == 0).all()
    assert np.isfinite(found["test_scores"]).all()
    assert found["test_balanced_accuracy"] == pytest.approx(scores.balanced_accuracy(y, found["test_scores"]))
    with pytest.raises(ValueError, match="two classes"):
        probe.linear_probe(x, 0 * y, x, y, x, y)


def test_large_problems_in_single_precision_agree_with_double(monkeypatch: pytest.MonkeyPatch):
    x, y = mixture(3, 400, 30)
    x[:, :10] *= np.logspace(0, -3, 10)  # no scale that standardising does not undo
    double = probe.linear_probe(x, y, x, y, x, y, l2=STRENGTHS)
    monkeypatch.setattr(probe, "DOUBLE", 0)
    single = probe.linear_probe(x, y, x, y, x, y, l2=STRENGTHS)
    assert single["converged"]
    np.testing.assert_allclose(single["test_scores"], double["test_scores"], atol=3e-3)


def test_val_chooses_the_feature_set_together_with_the_strength():
    x, y = mixture(3, 600, 15)
    sets = {"a": x, "noise": np.random.default_rng(0).normal(size=(600, 7)), "part": x[:, :4]}
    parts = [
        value
        for rows in (slice(0, 200), slice(200, 400), slice(400, 600))
        for value in ({name: f[rows] for name, f in sets.items()}, y[rows])
    ]
    found = probe.linear_probe(*parts)
    best = max(found["val"], key=lambda row: (row["balanced_accuracy"], row["auroc"], row["l2"]))
    assert (found["feature_set"], found["l2"]) == (best["feature_set"], best["l2"])
    assert len(found["val"]) == 3 * len(probe.L2_GRID)
    alone = probe.linear_probe(x[:200], y[:200], x[200:400], y[200:400], x[400:], y[400:], l2=(found["l2"],))
    assert found["feature_set"] == "a"
    assert found["test_accuracy"] == alone["test_accuracy"]


@pytest.mark.parametrize("width", [5, 40])
def test_the_basis_of_other_samples_changes_no_prediction(width: int):
    random = np.random.default_rng(0)
    x = random.normal(size=(300, width)) * np.logspace(0, -3, width)
    x[:, -1] = 0  # a direction without variance, which the other samples have
    y = (x[:, 0] + random.normal(size=300) > 0).astype(int)
    own, _ = probe.predictions(x[:200], y[:200], x[200:], (1e-3, 1.0), classes=2)
    of_others = probe.basis(random.normal(size=(50, width)))
    other, converged = probe.predictions(x[:200], y[:200], x[200:], (1e-3, 1.0), classes=2, basis=of_others)
    assert converged
    np.testing.assert_allclose(other, own, atol=5e-4)


def test_a_probe_that_memorises_is_seen_on_train_alone():
    random = np.random.default_rng(6)
    x, y = random.normal(size=(300, 90)), random.integers(2, size=300)
    train, val, test = slice(0, 60), slice(60, 180), slice(180, 300)
    found = probe.linear_probe(x[train], y[train], x[val], y[val], x[test], y[test], l2=(1e-3,))
    assert found["train"]["balanced_accuracy"] == found["train"]["auroc"] == 1
    assert abs(found["test_balanced_accuracy"] - 0.5) < 0.15
    (predicted,), _ = probe.predictions(x[train], y[train], x[train], [1e1], classes=2)
    weak = probe.linear_probe(x[train], y[train], x[val], y[val], x[test], y[test], l2=(1e1,))
    assert weak["train"]["auroc"] == pytest.approx(scores.auroc(y[train], predicted))
