"""The photographs of `make torus`: they are in the installed packages, and no pixel is in two sets."""

import itertools

import numpy as np
import pytest

from data_pipeline.demo.photographs import PHOTOGRAPHS, SETS, SIDE, corners, patches


@pytest.mark.parametrize(("height", "width"), [(300, 451), (640, 640), (213, 320)])
def test_no_pixel_is_in_two_sets(height: int, width: int) -> None:
    seen = {name: np.zeros((height, width), bool) for name in SETS}
    for name, top, left in corners(height, width):
        assert top + SIDE <= height and left + SIDE <= width
        seen[name][top : top + SIDE, left : left + SIDE] = True
    assert all(mask.any() for mask in seen.values())
    for a, b in itertools.combinations(seen.values(), 2):
        assert not (a & b).any()


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_each_photograph_gives_patches_with_detail_and_colour(name: str) -> None:
    found = [(place, patch) for place, _, patch in patches(name)]
    counts = {place: sum(other == place for other, _ in found) for place in SETS}
    assert counts["train"] > 500 and counts["test"] > 20
    for _, patch in found[::50]:
        assert patch.shape == (SIDE, SIDE, 3) and patch.dtype == np.uint8
        assert patch.std() > 5 and np.ptp(patch.astype(int), axis=2).mean() > 3
