"""Few-shot classification: the drawn samples, and the classifier against simple implementations."""

import numpy as np
import pytest
from sklearn.neighbors import NearestCentroid

from eval_suite.attempts import Unmeasurable
from eval_suite.usefulness import few_shot


@pytest.fixture(scope="module")
def blobs() -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(0)
    y = np.concatenate([np.arange(5).repeat(10), random.integers(5, size=250)])
    x = random.normal(size=(5, 16))[y] + 1.5 * random.normal(size=(300, 16)) + 3
    return x[:150], y[:150], x[150:], y[150:]


def test_draws_take_that_many_of_each_class_without_repeating(blobs):
    y = blobs[1]
    draws = list(few_shot.draw(y, 10, 6, seed=0))
    for chosen in draws:
        assert np.array_equal(y[chosen], np.arange(5)[:, None].repeat(10, axis=1))
        assert len(np.unique(chosen)) == 50
    assert len({tuple(sorted(chosen.ravel())) for chosen in draws}) == 6
    again = list(few_shot.draw(y, 10, 8, seed=0))[:6]  # more draws begin with the same ones
    assert all(np.array_equal(a, b) for a, b in zip(draws, again, strict=True))


@pytest.mark.parametrize("shots", [1, 5])
def test_means_agree_with_sklearns_nearest_centroid(blobs, shots: int):
    train_x, train_y, test_x, test_y = blobs
    found = few_shot.few_shot(*blobs, shots=shots, draws=12, seed=3)
    centre = train_x.mean(axis=0)
    train, test = (
        (x - centre) / np.linalg.norm(x - centre, axis=1, keepdims=True) for x in (train_x, test_x)
    )
    right = []
    for chosen in few_shot.draw(train_y, shots, 12, seed=3):
        rows = chosen.ravel()
        right.append(np.mean(NearestCentroid().fit(train[rows], train_y[rows]).predict(test) == test_y))
    assert found["accuracy"] == pytest.approx(np.mean(right))
    half = 2.200985 * np.std(right, ddof=1) / 12**0.5  # Student's t at 11 degrees of freedom
    assert found["accuracy_interval"] == pytest.approx([np.mean(right) - half, np.mean(right) + half])


def test_more_shots_help_and_gaps_in_class_numbers_do_not_matter(blobs):
    train_x, train_y, test_x, test_y = blobs
    one, ten = (few_shot.few_shot(*blobs, shots=shots) for shots in (1, 10))
    assert ten["balanced_accuracy"] > one["balanced_accuracy"] > 0.2
    spread = few_shot.few_shot(train_x, 7 * train_y, test_x, 7 * test_y, shots=1)
    assert spread == one


def test_what_cannot_be_drawn_is_refused_and_classes_of_test_alone_are_missed(blobs):
    train_x, train_y, test_x, test_y = blobs
    with pytest.raises(Unmeasurable, match="fewer than 100 shots"):
        few_shot.few_shot(*blobs, shots=100)
    found = few_shot.few_shot(train_x, train_y, test_x, np.full_like(test_y, 9), shots=1)
    assert found["accuracy"] == found["balanced_accuracy"] == 0


def test_constant_features_guess(blobs):
    train_x, train_y, test_x, test_y = blobs
    found = few_shot.few_shot(0 * train_x + 2, train_y, 0 * test_x + 2, test_y, shots=1)
    assert found["balanced_accuracy"] == pytest.approx(0.2)
