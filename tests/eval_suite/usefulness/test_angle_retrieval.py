"""Retrieval by the angles of a torus head."""

import numpy as np
import pytest

from eval_suite.usefulness import angle_retrieval
from pretrain.geometry.memory import WindingMemory


def on_circles(angles: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angles), np.sin(angles)], axis=2).reshape(len(angles), -1)


def test_classes_that_lie_apart_are_retrieved():
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 600)
    angles = labels[:, None] * np.pi / 2 + 0.3 * random.standard_normal((600, 3))
    x = on_circles(angles)
    assert angle_retrieval.angles_of(x) == pytest.approx(np.angle(np.exp(1j * angles)))
    found = angle_retrieval.retrieval(x[:400], labels[:400], x[400:], labels[400:])
    assert found["recall_at_1"] > 0.97 and found["found_at_10"] > 0.9
    shuffled = angle_retrieval.retrieval(x[:400], random.permutation(labels[:400]), x[400:], labels[400:])
    assert shuffled["recall_at_1"] == pytest.approx(0.25, abs=0.12)


@pytest.mark.parametrize(("items", "angles"), [(0, 1), (10, 2), (10**9, 1), (10**6, 16), (10**12, 8)])
def test_bins_can_always_be_had(items: int, angles: int):
    WindingMemory(angles, angle_retrieval.bins_for(items, angles))
