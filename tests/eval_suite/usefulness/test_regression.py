"""Ridge regression and its scores against scikit-learn and scipy."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_absolute_error, r2_score
from sklearn.preprocessing import StandardScaler

from eval_suite.usefulness import number_scores, regression


def numbers(n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(d)
    x = random.normal(size=(n, d)) * random.uniform(0.1, 20, d) + 3
    return x, x @ random.normal(size=(d, 2)) / 10 + random.normal(size=(n, 2)) + [100, -5]


@pytest.mark.parametrize(("n", "d"), [(120, 15), (40, 70)])
def test_predictions_agree_with_sklearn(n: int, d: int):
    x, y = numbers(2 * n, d)
    scaler = StandardScaler().fit(x[:n])
    for l2 in (1e-3, 0.1, 10.0):
        expected = Ridge(alpha=l2 * n).fit(scaler.transform(x[:n]), y[:n]).predict(scaler.transform(x[n:]))
        found = regression.ridge_probe(x[:n], y[:n], x[n:], y[n:], x[n:], y[n:], l2=(l2,))
        np.testing.assert_allclose(found["test_scores"], expected, rtol=1e-8)
        assert found["test_r2"] == pytest.approx(r2_score(y[n:], expected))
        assert found["test_mae"] == pytest.approx(mean_absolute_error(y[n:], expected))
        ranks = [spearmanr(y[n:, c], expected[:, c]).statistic for c in range(2)]
        assert found["test_spearman"] == pytest.approx(np.mean(ranks))


def test_strength_and_feature_set_are_chosen_on_val():
    x, y = numbers(200, 40)
    sets = {"noise": np.random.default_rng(0).normal(size=(200, 40)), "good": x}
    train, val, test = (
        {name: f[part] for name, f in sets.items()} for part in np.split(np.arange(200), [60, 130])
    )
    found = regression.ridge_probe(train, y[:60], val, y[60:130], test, y[130:])
    best = max(found["val"], key=lambda row: (row["r2"], row["spearman"], row["l2"]))
    assert (found["feature_set"], found["l2"]) == ("good", best["l2"])
    assert len(found["val"]) == 2 * len(regression.L2_GRID)


def test_constant_columns_of_features_and_targets():
    x, y = numbers(100, 5)
    x[:, 0], y[:, 1] = 7.0, 3.0
    found = regression.ridge_probe(x, y, x, y, x, y)
    assert np.isfinite(found["test_scores"]).all()
    rows = number_scores.per_column(y, found["test_scores"])
    assert np.isnan(rows[1]["r2"])
    assert np.isnan(rows[1]["spearman"])
    assert found["test_r2"] == rows[0]["r2"] > 0


def test_a_resample_scores_as_the_samples_that_it_repeats():
    random = np.random.default_rng(3)
    y = random.integers(4, size=(50, 1)).astype(float)  # with ties
    predicted = np.round(y + random.normal(size=(50, 1)), 1)
    counts = random.integers(3, size=(1, 50))
    found = number_scores.by_column(y, predicted, counts)
    rows = np.repeat(np.arange(50), counts[0])
    assert found["r2"][0, 0] == pytest.approx(r2_score(y[rows], predicted[rows]))
    assert found["mae"][0, 0] == pytest.approx(mean_absolute_error(y[rows], predicted[rows]))
    assert found["spearman"][0, 0] == pytest.approx(spearmanr(y[rows, 0], predicted[rows, 0]).statistic)


def test_bootstrap_spread_of_the_mean_error_is_that_of_a_mean():
    y = np.random.default_rng(4).normal(size=(400, 1))
    values = number_scores.bootstrap(y, 0 * y, resamples=2000)["mae"]
    assert values.std() == pytest.approx(np.abs(y).std() / 20, rel=0.07)
