"""Cross-validation agrees with scikit-learn's, nothing of a fold reaches its fit, and test is beside."""

import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data_pipeline.targets.targets import Targets
from eval_suite import usefulness
from eval_suite.usefulness import probe
from eval_suite.usefulness.folds.cross_validation import Method, cross_validate
from eval_suite.usefulness.folds.division import Division, divide

QUICK = usefulness.Options(metrics=("probe", "knn"), k=(3, 10), resamples=200)
SIZES = {"train": 160, "val": 60, "test": 80}
Features = dict[str, dict[str, np.ndarray]]


def samples(seed: int = 0, signal: float = 0.8, size: int = 1) -> tuple[Features, dict[str, Targets]]:
    """Make two classes in 12 dimensions of set `good` and none in `noise`; groups of `size` samples."""
    random = np.random.default_rng(seed)
    features: Features = {"noise": {}, "good": {}}
    targets = {}
    for number, (split, n) in enumerate(SIZES.items()):
        y = np.repeat(random.integers(2, size=n // size), size)
        groups = 1000 * number + np.repeat(np.arange(1, n // size + 1), size).astype(np.uint64)
        x = random.normal(size=(n, 12)) + 3
        x[:, :3] += signal * y[:, None]
        features["good"][split], features["noise"][split] = x, random.normal(size=(n, 5))
        targets[split] = Targets("multiclass", ["a", "b"], y, np.ones(n, bool), groups=groups)
    return features, targets


def measured(features: Features, targets: dict[str, Targets], copies: Any = (), **changes: Any) -> Any:
    options = QUICK.model_copy(update=changes)
    division = divide(targets, 5, options.repeats, options.seed, copies)
    return usefulness.measure(features, targets, options, division=division), division


def test_scores_are_those_of_scikit_learn_within_folds():
    features, targets = samples(size=2)
    made = divide(targets, 5, 1, seed=0)
    x, y = made.features(features["good"]), made.targets.values
    fold, areas, fitted_areas = np.empty((1, len(y)), np.int64), [], []
    for number, (fitted, held) in enumerate(StratifiedGroupKFold(5).split(x, y, made.unit)):
        fold[0, held] = number
        fit = make_pipeline(
            StandardScaler(), LogisticRegression(C=10 / len(fitted), class_weight="balanced", tol=1e-8)
        )
        fit.fit(x[fitted], y[fitted])
        areas.append(roc_auc_score(y[held], fit.predict_proba(x[held])[:, 1]))
        fitted_areas.append(roc_auc_score(y[fitted], fit.predict_proba(x[fitted])[:, 1]))
    division = Division(made.rows, made.targets, made.unit, fold, made.about)
    options = QUICK.model_copy(update={"metrics": ("probe",), "l2": (0.1,)})
    found = usefulness.measure({"x": features["good"]}, targets, options, division=division)
    assert found["probe"]["auroc"] == pytest.approx(np.mean(areas), abs=1e-4)
    assert found["probe"]["train"]["auroc"] == pytest.approx(np.mean(fitted_areas), abs=1e-4)
    low, high = found["probe"]["auroc_interval"]
    assert low < found["probe"]["auroc"] < high
    assert found["intervals"] == {"drawn": "groups", "groups": 110}
    assert np.array(found["probe"]["confusion"]).sum() == len(y)


def recording(seen: list[tuple[np.ndarray, np.ndarray]]) -> Method:
    """Return a method whose predictions are the mean of the labels fitted, and that records what it sees."""

    def predict(name: str, x: Any, y: Any, held: Any, grid: Any) -> tuple[list[np.ndarray], bool]:
        seen.append((x[:, 0], held[:, 0]))
        return [np.stack([1 - g * held[:, 0], g * held[:, 0]], axis=1) for g in grid], True

    return Method("g", (1.0, -1.0), predict)


@pytest.mark.parametrize("folds", [3, 4, 5])
def test_no_fit_sees_the_fold_that_it_predicts(folds: int):
    _, targets = samples()
    division = divide(targets, folds, 1, seed=0)
    y = division.targets.values
    number = np.arange(float(len(y)))[:, None]  # each sample's only feature is its place
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    cross_validate({"x": number}, y, "multiclass", division, recording(seen))
    assert len(seen) == folds + (folds + 1) // 2
    last = set()
    for fitted, held in seen:
        inside = set(division.fold[0][held.astype(int)])
        assert not inside & set(division.fold[0][fitted.astype(int)])
        assert len(fitted) + len(held) == len(y)
        if len(inside) == 1:
            last |= inside
    assert last == set(range(folds))


def test_labels_of_a_fold_change_neither_its_settings_nor_its_predictions():
    features, targets = samples(signal=0.4)
    _, division = measured(features, targets, metrics=())
    x = {key: division.features(of) for key, of in features.items()}

    def fit(name: str, of: Any, y: Any, held: Any, l2: Any) -> Any:
        return probe.predictions(of, y, held, l2, classes=2)

    method = Method("l2", (1e-3, 1e-1, 10.0), fit)
    y = division.targets.values
    for number in range(5):
        held = division.fold[0] == number
        flipped = np.where(held, 1 - y, y)
        before = cross_validate(x, y, "multiclass", division, method)
        after = cross_validate(x, flipped, "multiclass", division, method)
        assert after.chosen[number] == before.chosen[number]
        np.testing.assert_array_equal(after.predicted[0][held], before.predicted[0][held])
        if number == 0:  # a sample of the fold moves neither mean nor deviation of the others' features
            far = {key: of.copy() for key, of in x.items()}
            first = int(np.flatnonzero(held)[0])
            for of in far.values():
                of[first] = 1e6
            moved = cross_validate(far, y, "multiclass", division, method)
            rest = held & (np.arange(len(y)) != first)
            np.testing.assert_array_equal(moved.predicted[0][rest], before.predicted[0][rest])


def test_near_copies_teach_nothing_when_they_are_a_group():
    """Features tell the pairs of copies apart and nothing else, as labels are drawn for each pair."""
    random = np.random.default_rng(4)
    pair = np.repeat(np.arange(120), 2)
    y = random.integers(2, size=120)[pair]
    x = random.normal(size=(120, 60))[pair] + 0.01 * random.normal(size=(240, 60))
    targets = {"train": Targets("multiclass", ["a", "b"], y, np.ones(240, bool))}
    copies = [{"train": (pair + 1).astype(np.uint64)}]
    leaking, _ = measured({"x": {"train": x}}, targets)
    honest, division = measured({"x": {"train": x}}, targets, copies=copies)
    assert division.about["copies"] == 240
    assert leaking["knn"]["auroc"] > 0.9
    for method in ("probe", "knn"):
        low, high = honest[method]["auroc_interval"]
        assert low < 0.5 < high


def test_labels_without_meaning_give_one_half():
    features, targets = samples(seed=5, signal=0)
    found, _ = measured(features, targets, repeats=2)
    for method in ("probe", "knn"):
        low, high = found[method]["auroc_interval"]
        assert low < 0.5 < high
        assert high - low < 0.4


def test_test_is_in_no_fold_and_is_scored_beside():
    features, targets = samples()
    found, _ = measured(features, targets)
    assert found["reported_on"] == "folds" and found["left_out"] == []
    for method in ("probe", "knn"):
        of = found[method]
        assert of["feature_set"] == "good" and len(of["chosen"]) == 5
        assert of["test"]["auroc_interval"][0] < of["test"]["auroc"] < of["test"]["auroc_interval"][1]
        assert np.array(of["test"]["confusion"]).sum() == SIZES["test"]
    of = targets["test"]
    targets["test"] = Targets("multiclass", of.names, 1 - of.values, of.known, groups=of.groups)
    flipped, _ = measured(features, targets)
    for method in ("probe", "knn"):
        assert flipped[method]["test"]["auroc"] == pytest.approx(1 - found[method]["test"]["auroc"])
        rest = ({key: value for key, value in of[method].items() if key != "test"} for of in (found, flipped))
        assert next(rest) == next(rest)


def test_differences_are_paired_and_intervals_widen_with_what_training_changes():
    features, targets = samples(signal=0.5)
    division = divide(targets, 5, 1, seed=0)
    options = QUICK.model_copy(update={"metrics": ("probe",)})
    estimates = {
        name: usefulness.measure_paired({"x": features[key]}, targets, options, division=division)[1]
        for name, key in (("pretrained", "good"), ("same", "good"), ("other", "noise"))
    }
    found = usefulness.differences(estimates)
    assert found["same"]["probe"]["auroc"] == {"value": 0, "interval": [0, 0]}
    assert found["other"]["probe"]["test"]["auroc"]["value"] > 0
    ours, theirs = (estimates[name]["probe"]["auroc"] for name in ("pretrained", "other"))
    low, high = found["other"]["probe"]["auroc"]["interval"]
    assert (low + high) / 2 == pytest.approx(ours.value - theirs.value)
    spread = (ours.resampled - theirs.resampled).std()
    changed = (ours.changes[0] - theirs.changes[0]).std(ddof=1)
    assert (high - low) / 2 == pytest.approx(1.97 * np.hypot(spread, changed), rel=0.02)


def test_a_class_that_some_folds_lack_is_scored_where_it_is():
    features, targets = samples()
    for of in targets.values():
        of.values[:2] = 2
    targets = {s: Targets("multiclass", ["a", "b", "rare"], t.values, t.known) for s, t in targets.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, division = measured(features, targets)
    assert division.folds == 5 and division.about["classes_left_out"] == []
    rare = found["probe"]["per_class"][2]
    assert rare["support"] == 4 and 0 <= rare["auroc"] <= 1
    assert 0.4 < found["probe"]["auroc"] < 1


def test_numbers_and_labels_that_occur_together():
    features, targets = samples()
    numbers, labels = {}, {}
    for split, of in targets.items():
        values = features["good"][split][:, :2] * 3
        numbers[split] = Targets("regression", ["age", "mass"], values, of.known)
        flags = np.stack([of.values, features["good"][split][:, 5] > 3], axis=1).astype(np.int64)
        labels[split] = Targets("multilabel", ["a", "b"], flags, of.known)
    found, _ = measured(features, numbers)
    assert found["probe"]["r2"] > 0.99 and found["probe"]["test"]["r2"] > 0.99
    assert found["probe"]["r2_interval"][1] <= 1
    assert [entry["metric"] for entry in found["left_out"]] == ["knn"]
    found, _ = measured(features, labels)
    assert found["probe"]["auroc"] > 0.8
    assert [row["name"] for row in found["probe"]["per_class"]] == ["a", "b"]


def test_a_feature_set_that_is_not_finite_is_left_out_and_the_other_is_measured():
    features, targets = samples()
    features["good"]["val"][3, 2] = np.nan
    found, _ = measured(features, targets)
    assert {"metric": "feature set good", "reason": "it holds NaN or infinite features"} in found["left_out"]
    assert found["probe"]["feature_set"] == "noise"
    del features["noise"]
    found, _ = measured(features, targets)
    assert {"metric": "probe", "reason": "there are no finite features"} in found["left_out"]


def test_other_methods_stay_on_the_single_split():
    features, targets = samples()
    found, _ = measured(features, targets, metrics=("knn", "few_shot", "retrieval"), draws=4)
    assert found["reported_on"] == found["knn"]["reported_on"] == "folds"
    assert found["few_shot"]["reported_on"] == found["retrieval"]["reported_on"] == "test"
