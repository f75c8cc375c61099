"""Three angles of a torus head are judged by pairs: two that are independent are a flat torus."""

import json

import numpy as np

from eval_suite import geometry


def test_pairs_of_independent_angles_are_flat_tori_and_copies_are_not():
    random = np.random.default_rng(4)
    first, second = random.uniform(0, 2 * np.pi, (2, 1_000))
    angles = np.stack([first, second, first + 0.02 * random.normal(size=1_000)], axis=1)
    x = np.stack([np.cos(angles), np.sin(angles)], axis=2).reshape(1_000, 6)
    found = json.loads(json.dumps(geometry.measure_pairs(x, geometry.Options())))
    assert found["of"] == 3 and not found["left_out"]
    names = {tuple(pair["angles"]): pair["name"] for pair in found["pairs"]}
    assert names == {(0, 1): "flat torus T²", (0, 2): "circle", (1, 2): "flat torus T²"}


def test_only_the_first_pairs_of_many_angles_are_judged():
    x = np.random.default_rng(0).normal(size=(100, 20))  # too few samples for a verdict
    found = geometry.measure_pairs(x, geometry.Options())
    assert found["of"] == 45 and not found["pairs"] and len(found["left_out"]) == 6
    assert "angles 3 and 4" in found["left_out"] and "200 or more" in found["left_out"]["angles 1 and 2"]
