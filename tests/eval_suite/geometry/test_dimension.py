"""Intrinsic dimension agrees with scikit-dimension and with spaces of known dimension."""

import json

import numpy as np
import pytest
import skdim

from eval_suite.geometry import dimension
from isotorus.errors import UserError


def embedded(kind: str, n: int = 1500, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    angles = random.uniform(0, 2 * np.pi, (n, 2))
    x = {
        "torus": np.concatenate([np.cos(angles), np.sin(angles)], axis=1),
        "cube": random.uniform(size=(n, 6)),
        "normal": random.normal(size=(n, 12)),
    }[kind]
    frame, _ = np.linalg.qr(random.normal(size=(40, x.shape[1])))
    return x @ frame.T + 30.0


@pytest.mark.parametrize("kind", ["torus", "cube", "normal"])
def test_two_nn_is_scikit_dimensions(kind):
    x = embedded(kind)
    assert dimension.two_nn(x) == pytest.approx(skdim.id.TwoNN().fit_transform(x), rel=1e-6)


@pytest.mark.parametrize("kind", ["torus", "cube", "normal"])
@pytest.mark.parametrize("k", [5, 20])
def test_mle_is_scikit_dimensions(kind, k):
    x = embedded(kind)
    reference = skdim.id.MLE(unbiased=False).fit_transform(x, n_neighbors=k, comb="mle")
    assert dimension.mle(x, k) == pytest.approx(reference, rel=1e-6)


@pytest.mark.parametrize(("kind", "true"), [("torus", 2), ("cube", 6)])
def test_known_dimensions(kind, true):
    x = embedded(kind, 3000)
    assert dimension.two_nn(x) == pytest.approx(true, rel=0.1)
    assert dimension.mle(x) == pytest.approx(true, rel=0.15)  # the cube's faces cost it some
    assert np.median(dimension.local(x)) == pytest.approx(true, rel=0.2)


def test_pooled_mle_is_free_of_bias_at_few_neighbours():
    line = np.random.default_rng(0).uniform(size=(20_000, 1))
    assert dimension.mle(line, k=3) == pytest.approx(1, abs=0.02)


def test_local_dimension_sees_a_mixture():
    random = np.random.default_rng(0)
    line = np.zeros((1000, 5))
    line[:, 0] = random.uniform(0, 100, 1000)
    ball = random.normal(size=(1000, 5)) + 500
    around = dimension.local(np.concatenate([line, ball]))
    assert (around < 2).mean() == pytest.approx(0.5, abs=0.05)
    assert (around > 2.5).mean() == pytest.approx(0.5, abs=0.1)


def test_copies_count_once():
    x = embedded("cube", 800)
    doubled = np.concatenate([x, x, x[:100]])
    assert dimension.summary(doubled)["distinct"] == 800
    assert dimension.two_nn(doubled) == pytest.approx(dimension.two_nn(x), rel=1e-12)
    assert dimension.mle(doubled) == pytest.approx(dimension.mle(x), rel=1e-12)


def test_samples_within_rounding_of_another_are_counted():
    x = embedded("cube", 500)
    assert dimension.summary(x)["within_rounding"] == 0
    near = np.concatenate([x, x[:30] * (1 + 2e-16)])
    found = dimension.summary(near)
    assert found["distinct"] == 530 and found["within_rounding"] == 60
    single = np.concatenate([x, x[:30] * (1 + 1e-7)]).astype(np.float32)
    assert dimension.summary(single)["within_rounding"] > 20


def test_float32_features_far_from_the_origin():
    x = embedded("torus", 1000)
    far = (x + 200).astype(np.float32)
    assert dimension.mle(far) == pytest.approx(dimension.mle(x), rel=0.01)


def test_summary_is_json():
    x = embedded("torus", 500)
    found = dimension.summary(x)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["two_nn"] == dimension.two_nn(x) and found["mle"] == dimension.mle(x)
    assert list(found["local"].values()) == sorted(found["local"].values())


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (np.ones((50, 3)), "same features"),
        (np.repeat(np.eye(8), 10, axis=0), "8 distinct samples"),
        (np.full((50, 3), np.nan), "50 of 50 samples have NaN"),
        (np.eye(15), "15 distinct samples"),
        (np.eye(40), "equally far"),
    ],
)
def test_what_has_no_dimension_is_refused_in_one_line(x, said):
    with pytest.raises(UserError) as refused:
        dimension.mle(x)
    assert said in str(refused.value) and "\n" not in str(refused.value)
