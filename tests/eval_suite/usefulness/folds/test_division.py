"""Dividing labelled samples into folds: groups and copies stay whole, classes are shared out evenly."""

import numpy as np
import pytest

from data_pipeline.targets.targets import Targets
from eval_suite.attempts import Unmeasurable
from eval_suite.usefulness.folds.division import divide, sentence, together, wanted


def classes(y: np.ndarray, groups: np.ndarray | None = None, unlabelled: int = 0) -> Targets:
    """Return the targets of a split whose first samples have no label."""
    known = np.arange(len(y)) >= unlabelled
    names = [f"class {i}" for i in range(4)]
    return Targets("multiclass", names, np.where(known, y, -1), known, groups=groups)


def two_splits(y: np.ndarray, groups: np.ndarray | None = None) -> dict[str, Targets]:
    """Return the same samples as train, the first two thirds, and val."""
    cut = 2 * len(y) // 3
    parts = [(y[:cut], None if groups is None else groups[:cut])]
    parts += [(y[cut:], None if groups is None else groups[cut:])]
    return {split: classes(*part) for split, part in zip(("train", "val"), parts, strict=True)}


def test_each_fold_has_its_share_of_each_class_and_repeats_differ():
    y = np.repeat([0, 1], [200, 40])
    division = divide(two_splits(y[np.random.default_rng(0).permutation(240)]), 5, 3, seed=0)
    assert division.fold.shape == (3, 240)
    for fold in division.fold:
        for number in range(5):
            held = division.targets.values[fold == number]
            assert np.bincount(held).tolist() == [40, 8]
    assert (division.fold[0] != division.fold[1]).any()
    assert division.about["groups"] == 240 and sentence(division.about) is None


def test_groups_and_copies_stay_whole_also_across_splits_and_unlabelled_samples_are_left_out():
    random = np.random.default_rng(1)
    groups = random.integers(0, 40, size=300).astype(np.uint64)  # 0: a group of its own
    y = random.integers(2, size=300)
    targets = two_splits(y, groups)
    of = targets["train"]
    targets["train"] = classes(of.values, of.groups, unlabelled=20)
    copies = {"train": np.zeros(200, np.uint64), "val": np.zeros(100, np.uint64)}
    copies["train"][50], copies["val"][7] = 1, 1  # joins two groups, one from each split
    division = divide(targets, 5, 2, seed=3, copies=[copies])
    assert len(division.unit) == 280 and division.about["copies"] == 2
    code = groups[20:]
    for fold in division.fold:
        for group in np.unique(code[code > 0]):
            assert len(np.unique(fold[code == group])) == 1
        assert fold[30] == fold[187]
        assert len(np.unique(fold[code == 0])) > 1
    features = {"train": np.arange(200.0)[:, None], "val": 200 + np.arange(100.0)[:, None]}
    assert division.features(features)[:, 0].tolist() == list(range(20, 300))


def test_groupings_are_joined_by_their_connected_components():
    first = np.array([1, 1, 0, 2, 2, 0], np.uint64)
    second = np.array([0, 9, 9, 0, 0, 0], np.uint64)
    unit = together(first, second)
    assert unit.tolist() == [0, 0, 0, 1, 1, 2]


def test_fewer_folds_than_asked_for_and_a_class_of_one_group_are_said():
    y = np.array([0] * 50 + [1] * 4 + [2])
    division = divide(two_splits(y), 5, 1, seed=0)
    assert division.about["folds"] == 4
    assert division.about["classes_left_out"] == ["class 2"]
    assert len(division.targets.values) == 54 and (division.targets.values < 2).all()
    said = sentence(division.about)
    assert said is not None and "4 folds instead of 5" in said and "class 2 left out" in said


@pytest.mark.parametrize(
    ("y", "groups", "reason"),
    [
        ([0, 1] * 30, [5] * 60, "all images of class class 0 are of one group"),
        ([0] * 30 + [1] * 30, [1] * 30 + [2] * 30, "of one group or copies of one image"),
        ([0] * 30 + [1] * 2, None, "cannot be split into 3 folds that all have two classes"),
        ([2] * 30, None, "all labelled samples of train and val are of one class, class 2"),
    ],
)
def test_what_cannot_be_divided_has_a_reason(y: list[int], groups: list[int] | None, reason: str):
    codes = None if groups is None else np.array(groups, np.uint64)
    with pytest.raises(Unmeasurable, match=reason):
        divide(two_splits(np.array(y), codes), 5, 1, seed=0)


def test_labels_in_one_split_alone_are_divided():
    y = np.arange(60) % 2
    empty = classes(np.zeros(20, np.int64), unlabelled=20)
    division = divide({"train": classes(y), "val": empty}, 5, 1, seed=0)
    assert list(division.rows) == ["train"] and division.folds == 5
    only_val = divide({"train": empty, "val": classes(y)}, 5, 1, seed=0)
    assert list(only_val.rows) == ["val"]


def test_numbers_and_labels_that_occur_together_are_shared_out():
    numbers = np.arange(100.0)[:, None]
    known = np.ones(100, bool)
    division = divide({"train": Targets("regression", ["age"], numbers, known)}, 5, 1, seed=0)
    means = [numbers[division.fold[0] == number].mean() for number in range(5)]
    assert max(means) - min(means) < 8
    labels = np.zeros((100, 2), np.int64)
    labels[:, 0], labels[:10, 1] = 1, 1
    division = divide({"train": Targets("multilabel", ["common", "rare"], labels, known)}, 5, 1, seed=0)
    assert [labels[division.fold[0] == number, 1].sum() for number in range(5)] == [2] * 5


def test_folds_are_the_default_for_few_labels():
    few, many = classes(np.arange(60) % 2), classes(np.arange(5000) % 2)
    assert wanted({"train": few, "val": few}, None) == 5
    assert wanted({"train": many, "val": few}, None) == 0
    assert wanted({"train": many}, 7) == 7
    assert wanted({"train": few}, 0) == 0
    assert wanted({"train": classes(np.zeros(20, np.int64), unlabelled=20)}, None) == 0
