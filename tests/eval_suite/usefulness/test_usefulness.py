"""`usefulness.measure`: its results for each kind of targets, and the reasons for what it leaves out."""

import json
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix

from data_pipeline.targets.targets import Targets
from eval_suite import usefulness
from eval_suite.metrics import METHODS, USEFULNESS
from eval_suite.usefulness.folds.measure_folds import ONLY
from eval_suite.usefulness.minibatch_probe import Protocol

ON_A_SPLIT = {name for name in USEFULNESS if not METHODS[name].of_tokens and not METHODS[name].trains} - set(
    ONLY
)
SIZES = {"train": 150, "val": 60, "test": 70}
NAMES = ["<b>cat</b>", "dog", "10"]
QUICK = usefulness.Options(
    protocol=Protocol(learning_rates=(1e-2, 0.1), min_steps=60, epochs=1), resamples=100, draws=10
)
Features = dict[str, dict[str, np.ndarray]]


def classes() -> tuple[Features, dict[str, Targets]]:
    """Make two feature sets of different widths; only `good` separates the three classes."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(3, 8))
    features: Features = {"noise": {}, "good": {}}
    targets = {}
    for split, n in SIZES.items():
        y = random.integers(3, size=n)
        known = random.random(n) < 0.95
        features["noise"][split] = random.normal(size=(n, 5)).astype(np.float32)
        features["good"][split] = (1.2 * centres[y] + random.normal(size=(n, 8))).astype(np.float32)
        values = np.where(known, y, -1)
        targets[split] = Targets("multiclass", NAMES, values, known, without_value=int((~known).sum()))
    return features, targets


def measured(features: Features, targets: dict[str, Targets], **changes: Any) -> dict[str, Any]:
    found = usefulness.measure(features, targets, QUICK.model_copy(update=changes))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


def reasons(found: dict[str, Any]) -> dict[str, str]:
    return {entry["metric"]: entry["reason"] for entry in found["left_out"]}


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return measured(*classes())


def test_every_method_reports_test_with_the_feature_set_that_val_chose(found):
    assert found["left_out"] == []
    assert found["reported_on"] == "test"
    assert found["names"] == NAMES
    for method in ("probe", "minibatch_probe", "knn"):
        of = found[method]
        assert of["feature_set"] == "good"
        assert {row["feature_set"] for row in of["val"]} == {"noise", "good"}
        for score in ("balanced_accuracy", "auroc"):
            low, high = of[f"{score}_interval"]
            assert 0.5 < low <= of[score] <= high
        assert [row["name"] for row in of["per_class"]] == NAMES
        matrix = np.array(of["confusion"])
        assert matrix.sum() == found["targets"]["test"]["used"]
        assert of["accuracy"] == pytest.approx(matrix.trace() / matrix.sum())
        assert of["balanced_accuracy"] == pytest.approx(np.mean([row["recall"] for row in of["per_class"]]))
    for shots in ("1", "10"):
        assert found["few_shot"][shots]["feature_set"] == "good"
    assert found["few_shot"]["10"]["balanced_accuracy"] > found["few_shot"]["1"]["balanced_accuracy"]
    assert found["retrieval"]["feature_set"] == "good"
    assert found["retrieval"]["map"] > 0.5


def test_the_same_input_gives_the_same_results_and_paired_samples(found):
    features, targets = classes()
    again, samples = usefulness.measure_paired(features, targets, QUICK)
    assert again == found
    assert set(samples) == {"probe", "minibatch_probe", "knn"}
    low, high = np.percentile(samples["knn"]["auroc"].resampled, [2.5, 97.5])
    assert found["knn"]["auroc_interval"] == pytest.approx([low, high])


def test_test_decides_nothing(found):
    features, targets = classes()
    of = targets["test"]
    targets["test"] = Targets("multiclass", NAMES, np.where(of.known, (of.values + 1) % 3, -1), of.known)
    flipped = measured(features, targets)
    for method, setting in (("probe", "l2"), ("minibatch_probe", "learning_rate"), ("knn", "k")):
        assert flipped[method]["val"] == found[method]["val"]
        assert flipped[method][setting] == found[method][setting]
        assert flipped[method]["accuracy"] < 0.4 < found[method]["accuracy"]
    assert flipped["retrieval"]["val"] == found["retrieval"]["val"]


def test_without_test_val_is_reported():
    features, targets = classes()
    del targets["test"]
    found = measured(features, targets, metrics=("knn",))
    assert found["reported_on"] == "val"
    best = max(row["balanced_accuracy"] for row in found["knn"]["val"])
    assert found["knn"]["balanced_accuracy"] == best


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_no_labels_or_one_class_leave_everything_out_with_a_reason(split: str):
    features, targets = classes()
    of = targets[split]
    targets[split] = Targets("multiclass", NAMES, of.values, np.zeros_like(of.known))
    assert set(reasons(measured(features, targets)).items()) == {
        (metric, f"{split} has no labels") for metric in ON_A_SPLIT
    }
    targets[split] = Targets("multiclass", NAMES, np.ones_like(of.values), of.known)
    assert reasons(measured(features, targets))["knn"] == (
        f"all labelled samples of {split} are of one class, dog"
    )


def test_a_class_that_only_test_has_counts_as_missed():
    features, targets = classes()
    for split in ("train", "val"):
        of = targets[split]
        targets[split] = Targets("multiclass", NAMES[:2], of.values, of.known & (of.values < 2))
    found = measured(features, targets)
    assert found["left_out"] == []
    for method in ("probe", "minibatch_probe", "knn"):
        rows = found[method]["per_class"]
        assert rows[2]["recall"] == 0
        assert rows[0]["recall"] > 0.7
        assert found[method]["balanced_accuracy"] < 0.7
    assert found["retrieval"]["without_relevant"] == rows[2]["support"]


def test_too_few_samples_for_shots_and_neighbours():
    features, targets = classes()
    of = targets["train"]
    few = np.zeros_like(of.known)
    for label in range(3):
        few[np.flatnonzero(of.known & (of.values == label))[:3]] = True
    targets["train"] = Targets("multiclass", NAMES, of.values, few)
    found = measured(features, targets, metrics=("knn", "few_shot"))
    assert reasons(found) == {"knn": "train has 9 samples, fewer than 10 neighbours"}
    assert found["few_shot"]["left_out"] == {"10": "a class of train has 3 samples, fewer than 10 shots"}
    assert found["few_shot"]["1"]["draws"] == 10


def test_constant_features_guess_and_infinite_ones_are_left_out():
    features, targets = classes()
    features["good"] = {split: np.ones((n, 8), np.float32) for split, n in SIZES.items()}
    features["noise"]["val"][targets["val"].known.argmax()] = np.inf
    found = measured(features, targets)
    assert reasons(found) == {"feature set noise": "it holds NaN or infinite features"}
    for method in ("probe", "minibatch_probe", "knn"):
        assert found[method]["balanced_accuracy"] == pytest.approx(1 / 3)
        assert found[method]["auroc"] == pytest.approx(0.5)
    del features["good"]
    assert reasons(measured(features, targets))["probe"] == "there are no finite features"


def test_labels_that_occur_together():
    features, targets = classes()
    labels = {}
    for split, of in targets.items():
        values = np.stack([of.values == 0, of.values != 1, np.zeros(len(of.values))], axis=1).astype(np.int64)
        labels[split] = Targets("multilabel", ["a", "b", "never"], values, of.known)
    found = measured(features, labels)
    assert set(reasons(found)) == {"knn", "few_shot", "retrieval"}
    for method in ("probe", "minibatch_probe"):
        assert found[method]["feature_set"] == "good"
        assert found[method]["auroc"] > 0.8
        assert found[method]["average_precision_interval"][0] > 0.5
        assert found[method]["per_class"][2] == {
            "name": "never",
            "support": 0,
            "auroc": None,
            "average_precision": None,
        }


def test_numbers():
    features, targets = classes()
    numbers = {}
    for split, of in targets.items():
        values = features["good"][split][:, :2].astype(np.float64) * 3 + 40
        numbers[split] = Targets("regression", ["age", "mass"], values, of.known)
    found = measured(features, numbers)
    assert set(reasons(found)) == {"minibatch_probe", "knn", "few_shot", "retrieval"}
    assert found["probe"]["feature_set"] == "good"
    assert found["probe"]["r2"] > 0.999
    assert found["probe"]["spearman_interval"][0] > 0.99
    assert [row["name"] for row in found["probe"]["per_class"]] == ["age", "mass"]


def test_splits_of_different_kinds_are_left_out():
    features, targets = classes()
    targets["val"] = Targets("regression", ["age"], np.arange(60.0)[:, None], targets["val"].known)
    assert "train are multiclass, of val regression" in reasons(measured(features, targets))["probe"]


def test_many_classes_have_no_confusion_matrix():
    random = np.random.default_rng(0)
    names = [str(i) for i in range(120)]
    features: Features = {"x": {}}
    targets = {}
    for split in SIZES:
        y = np.arange(240) % 120
        features["x"][split] = random.normal(size=(120, 16))[y] + random.normal(size=(240, 16))
        targets[split] = Targets("multiclass", names, y, np.ones(240, dtype=bool))
    found = measured(features, targets, metrics=("knn",))
    assert reasons(found) == {"knn.confusion": "more than 100 classes"}
    assert len(found["knn"]["per_class"]) == 120
    assert "confusion" not in found["knn"]


def test_the_confusion_matrix_is_that_of_the_predictions():
    features, targets = classes()
    _, samples = usefulness.measure_paired(features, targets, QUICK.model_copy(update={"metrics": ("knn",)}))
    from eval_suite.usefulness import neighbors

    rows = [
        value
        for split in ("train", "test")
        for value in (
            features["good"][split][targets[split].known],
            targets[split].values[targets[split].known],
        )
    ]
    found = measured(features, targets, metrics=("knn",), k=(5,))
    predicted = neighbors.knn_classify(rows[0], rows[1], rows[2], k=5)
    assert found["knn"]["confusion"] == confusion_matrix(rows[3], predicted).tolist()
    assert found["knn"]["accuracy"] == accuracy_score(rows[3], predicted)
    assert len(samples["knn"]["auroc"].resampled) == 100


def test_a_method_that_fails_does_not_lose_the_others(found):
    broken = measured(*classes(), l2=())
    (entry,) = broken["left_out"]
    assert entry["metric"] == "probe" and entry["reason"].startswith("ZeroDivisionError: ")
    assert "probe" not in broken
    assert all(broken[method] == found[method] for method in ON_A_SPLIT - {"probe"})


@pytest.mark.parametrize("scale", [1e-60, 1e39, 1e120])
def test_the_size_of_features_changes_nothing(found, scale: float):
    features, targets = classes()
    scaled = {name: {s: scale * x.astype(np.float64) for s, x in of.items()} for name, of in features.items()}
    other = measured(scaled, targets)
    for method in ("probe", "minibatch_probe", "knn"):
        assert other[method]["auroc"] == pytest.approx(found[method]["auroc"], abs=0.01)
    assert other["few_shot"]["10"]["accuracy"] == pytest.approx(found["few_shot"]["10"]["accuracy"], abs=0.01)
    assert other["retrieval"]["map"] == pytest.approx(found["retrieval"]["map"], abs=0.01)


def test_an_offset_changes_nothing_or_is_named(found):
    features, targets = classes()
    moved = {name: {s: 4.2e6 + x.astype(np.float64) for s, x in of.items()} for name, of in features.items()}
    other = measured(moved, targets)
    for method in ("probe", "minibatch_probe"):
        assert other[method]["auroc"] == pytest.approx(found[method]["auroc"], abs=0.01)
    assert other["few_shot"]["10"]["accuracy"] == pytest.approx(found["few_shot"]["10"]["accuracy"], abs=0.01)
    # Cosine depends on the origin.
    assert set(reasons(other)) == {"knn", "retrieval"}
    assert all("times their spread away from the origin" in reason for reason in reasons(other).values())
