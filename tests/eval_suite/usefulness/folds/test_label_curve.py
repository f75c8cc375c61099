"""The probe's score over the number of labels: which images are drawn, and what the points are."""

import numpy as np

from data_pipeline.targets.targets import Targets
from eval_suite import usefulness
from eval_suite.usefulness.folds.division import divide
from eval_suite.usefulness.folds.label_curve import _counts, _draw


def measured(n: int, classes: int = 2, signal: float = 1.2, **changes):
    random = np.random.default_rng(0)
    y = np.arange(n) % classes
    x = random.normal(size=(n, 10))
    x[:, 0] += signal * y
    names = [f"class {i}" for i in range(classes)]
    targets = {"train": Targets("multiclass", names, y, np.ones(n, bool))}
    options = usefulness.Options(metrics=("probe", "label_curve"), resamples=100, **changes)
    division = divide(targets, 5, 1, 0)
    return usefulness.measure_paired({"x": {"train": x}}, targets, options, division=division)


def test_more_labels_score_better_and_the_last_point_is_the_probe_with_all():
    found, estimates = measured(260)
    curve = found["label_curve"]
    assert list(curve) == ["20", "50", "100", "200", "208"]
    assert [point["draws"] for point in curve.values()] == [4, 2, 2, 1, 1]
    assert curve["208"]["auroc"] == found["probe"]["auroc"]
    assert curve["20"]["auroc"] < curve["208"]["auroc"]
    for point in curve.values():
        low, high = point["auroc_interval"]
        assert low < point["auroc"] < high
    assert {f"label_curve/{labels}" for labels in curve} <= set(estimates)
    again, _ = measured(260)
    assert again["label_curve"] == curve


def test_a_draw_has_the_shares_of_the_classes_and_is_part_of_a_larger_one():
    y = np.repeat([0, 1, 2], [900, 95, 5])
    small, large = _draw(y, 50, 0, fold=1, draw=2), _draw(y, 500, 0, fold=1, draw=2)
    assert np.bincount(y[small]).tolist() == [45, 5, 2]
    assert np.bincount(y[large]).tolist() == [450, 48, 2]
    assert set(small) <= set(large) and len(set(large)) == len(large)
    assert set(small) != set(_draw(y, 50, 0, fold=1, draw=3))
    assert list(_counts(1600)) == [20, 50, 100, 200, 500, 1000]


def test_too_few_labels_and_other_targets_have_a_reason():
    found, _ = measured(24)
    assert "label_curve" not in found
    (entry,) = [entry for entry in found["left_out"] if entry["metric"] == "label_curve"]
    assert "folds leave 19 labelled images" in entry["reason"]
    found, _ = measured(150, classes=12, signal=3)  # 20 labels cannot hold two of each class
    assert next(iter(found["label_curve"])) == "50"


def test_there_is_no_curve_without_folds():
    x, y = np.random.default_rng(0).normal(size=(90, 4)), np.arange(90) % 2
    targets = {s: Targets("multiclass", ["a", "b"], y, np.ones(90, bool)) for s in ("train", "val")}
    found = usefulness.measure(
        {"x": {"train": x, "val": x}}, targets, usefulness.Options(metrics=("label_curve",))
    )
    assert "label_curve" not in found and found["left_out"] == []
