"""IoU is that of scikit-learn, and masks that are a function of the token are predicted."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, jaccard_score

from data_pipeline.targets.mask_scores import Counts, count, iou, mean_iou, of_constant
from eval_suite.attempts import Unmeasurable
from eval_suite.usefulness.tokens.attentive_probe import Images
from eval_suite.usefulness.tokens.segmentation_probe import Masked, cells_of, fit, segmentation_probe

RANDOM = np.random.default_rng(0)
TRUTH = RANDOM.integers(0, 4, (6, 10, 10))
TRUTH[TRUTH == 3] = 255
PREDICTED = RANDOM.integers(0, 4, (6, 10, 10))


def test_iou_is_that_of_scikit_learn_without_ignored_pixels():
    known = TRUTH < 255
    counts = count(TRUTH, PREDICTED, 4)
    expected = jaccard_score(TRUTH[known], PREDICTED[known], labels=[0, 1, 2], average=None)
    np.testing.assert_allclose(iou(counts)[0], [*expected, np.nan])
    assert mean_iou(counts)[0] == pytest.approx(expected.mean())
    matrix = confusion_matrix(TRUTH[known], PREDICTED[known], labels=range(4))
    np.testing.assert_array_equal(counts.right.sum(0), matrix.diagonal())
    np.testing.assert_array_equal(counts.predicted.sum(0), matrix.sum(0))
    np.testing.assert_array_equal(counts.true.sum(0), matrix.sum(1))
    constant = jaccard_score(TRUTH[known], np.ones(known.sum()), labels=[0, 1, 2], average="macro")
    assert of_constant(counts, 1) == pytest.approx(constant)


def test_a_bootstrap_draw_is_the_score_of_the_images_drawn():
    counts = count(TRUTH, PREDICTED, 4)
    rows = [0, 0, 3, 5, 5, 5]
    drawn = np.bincount(rows, minlength=6)[None]
    known = TRUTH[rows] < 255
    expected = jaccard_score(TRUTH[rows][known], PREDICTED[rows][known], labels=[0, 1, 2], average="macro")
    assert mean_iou(counts, drawn)[0] == pytest.approx(expected)
    nothing = Counts(*(np.zeros_like(of) for of in counts))
    assert np.isnan(mean_iou(nothing)[0])


def test_every_pixel_lies_in_the_cell_around_it():
    np.testing.assert_array_equal(cells_of(4, (2, 2)), [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2)
    rows = cells_of(5, (3, 1))[:, 0]
    np.testing.assert_array_equal(rows, [int((i + 0.5) * 3 / 5) for i in range(5)])
    assert len(np.unique(cells_of(2, (4, 4)))) == 4  # a grid that is finer than the mask


def _masked(n: int, seed: int, ignored: float = 0.1, noise: float = 0.1) -> Masked:
    """Return tokens on a grid of 4 × 4 that say which of three classes their cell of 2 × 2 pixels has."""
    random = np.random.default_rng(seed)
    classes = random.choice([0, 2, 3], (n, 4, 4))
    x = np.eye(4)[classes.reshape(n, 16)] + noise * random.normal(size=(n, 16, 4))
    masks = classes.repeat(2, axis=1).repeat(2, axis=2).astype(np.uint8)
    masks[random.random(masks.shape) < ignored] = 255
    return Masked(Images(x.astype(np.float16), masks), (4, 4))


def test_a_mask_that_is_a_function_of_its_tokens_is_predicted():
    # Bilinear upsampling mixes neighbours, so pixels at a border may go to either side; nothing else may.
    found, estimates = segmentation_probe(
        _masked(40, 0), _masked(20, 1), _masked(20, 2), names=("ground", "sky", "road", "tree")
    )
    assert found["miou"] > 0.9
    assert [row["name"] for row in found["per_class"]] == ["ground", "road", "tree"]
    assert sum(row["share"] for row in found["per_class"]) == pytest.approx(1)
    assert found["miou"] == pytest.approx(np.mean([row["iou"] for row in found["per_class"]]))
    low, high = found["miou_interval"]
    assert low < found["miou"] < high < low + 0.1
    assert found["converged"] and estimates["miou"].value == found["miou"]
    assert found["majority"]["miou"] < 0.15
    again = segmentation_probe(_masked(40, 0), _masked(20, 1), _masked(20, 2))[0]
    assert again["miou"] == found["miou"]


def test_a_class_that_train_lacks_is_never_the_likeliest_of_the_layer():
    """Two classes are fitted as one column of log-odds, and their logits must not equal that of a third."""
    splits = []
    for seed in (0, 1):
        part = _masked(20, seed, noise=0.5)
        two = np.array([1, 0, 2, 2] + [255] * 252, np.uint8)[part.images.y]  # no pixel has the class 0
        splits.append(part._replace(images=part.images._replace(y=two)))
    weight, bias = fit(*splits, 3, [1e-3], 0, "cpu").linear(3)
    logits = splits[1].images.tokens(np.arange(20)).double() @ weight.T + bias
    assert set(logits.argmax(2).unique().tolist()) == {1, 2}


def test_a_mask_that_tokens_know_nothing_of_is_not():
    train, val, test = (_masked(20, seed) for seed in range(3))
    blind = [
        part._replace(images=part.images._replace(x=RANDOM.normal(size=(20, 16, 4))))
        for part in (train, val, test)
    ]
    found, _ = segmentation_probe(*blind)
    assert found["miou"] < 0.35


def test_two_classes_and_shares_of_mixed_cells():
    def halves(n: int, seed: int) -> Masked:
        random = np.random.default_rng(seed)
        masks = np.zeros((n, 8, 8), np.uint8)
        for mask, edge in zip(masks, random.integers(1, 8, n), strict=True):
            mask[:, edge:] = 1
        share = masks.reshape(n, 2, 4, 2, 4).mean((2, 4)).reshape(n, 4, 1)
        return Masked(Images(share.astype(np.float16), masks), (2, 2))

    found, _ = segmentation_probe(halves(40, 0), halves(20, 1), halves(20, 2))
    assert found["miou"] > 0.7


def test_groups_are_drawn_together():
    test = _masked(12, 2, noise=1.0)
    alone = segmentation_probe(_masked(20, 0), _masked(10, 1), test)[0]["miou_interval"]
    doubled = Masked(
        Images(np.repeat(test.images.x, 4, axis=0), np.repeat(test.images.y, 4, axis=0)),
        test.grid,
        np.repeat(np.arange(1, 13, dtype=np.uint64), 4),
    )
    together = segmentation_probe(_masked(20, 0), _masked(10, 1), doubled)[0]["miou_interval"]
    assert together == pytest.approx(alone, abs=0.01)


def test_masks_of_one_class_say_what_to_do():
    only = _masked(4, 0)
    only.images.y[:] = np.where(only.images.y == 255, 255, 0)
    with pytest.raises(Unmeasurable, match="--mask-classes 0=background,255=object"):
        segmentation_probe(only, only, only)
