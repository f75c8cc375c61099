"""Paths of augmented images: angles in closed form, and through an encoder."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from eval_suite.layers import bending
from eval_suite.layers.blocks import Block

MEAN, STD = (0.4, 0.5, 0.6), (0.25, 0.25, 0.25)


class Linear(nn.Module):
    """An encoder of one linear block and one that takes squares."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = nn.Linear(3 * 16 * 16, 20), nn.Identity()
        self.first.weight.data = torch.randn(20, 3 * 16 * 16, generator=generator) / 10
        self.second.register_forward_hook(lambda *call: call[2].square())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(images.flatten(1)))


@pytest.fixture(scope="module")
def found() -> bending.Bends:
    encoder = Linear()
    blocks = [Block("first", encoder.first), Block("second", encoder.second)]
    images = torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return bending.bends(encoder, blocks, images, MEAN, STD, lambda x: x.split(16))


def test_angles_of_points_on_a_circle_on_a_line_and_of_no_path():
    turn = math.radians(20)
    around = [np.array([[math.cos(k * turn), math.sin(k * turn), 3.0]] * 5) for k in range(3)]
    around[1][0] += 1e-9  # images must differ for a speed
    assert bending._bend(*around)["angle"] == pytest.approx(20, abs=1e-3)
    random = np.random.default_rng(0)
    start, along = random.normal(size=(2, 30, 6))
    line = bending._bend(start, start + along, start + 2 * along)
    assert line["angle"] == pytest.approx(0, abs=1e-5)
    steps = np.linalg.norm(along, axis=1)
    spread = np.sqrt(np.square(start + along - (start + along).mean(0)).sum(1).mean())
    assert line["speed"] == pytest.approx(np.median(steps) / spread)
    unrelated = bending._bend(*random.normal(size=(3, 400, 500)))
    assert unrelated["low"] < unrelated["angle"] < unrelated["high"]
    assert unrelated["angle"] == pytest.approx(120, abs=1)
    still = bending._bend(start, start, start)
    assert math.isnan(still["angle"]) and still["speed"] == 0


def test_straight_paths_of_pixels_stay_straight_in_a_linear_block(found: bending.Bends):
    for name in ("brightness", "contrast", "saturation"):
        pixels, linear, squares = found[name]
        assert pixels["angle"] == pytest.approx(0, abs=0.1) and linear["angle"] < 0.2, name
        assert squares["angle"] > linear["angle"]
    # A turn of the hue moves every pixel on a circle of chroma, which is an ellipse of red, green and blue.
    assert found["hue, 10°"][0]["angle"] == pytest.approx(10, abs=2.5)
    for name in ("rotation, 5°", "shift, 1 pixel"):  # noise has nothing in common with itself one pixel on
        assert found[name][0]["angle"] > 60, name
    assert bending.mean_angle(found, 0) == pytest.approx(
        np.mean([of[1]["angle"] for of in found.values()]), rel=1e-12
    )


def test_grey_images_have_no_paths_of_colour():
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    images = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    of_grey = bending.bends(encoder, [Block("1", encoder[1])], images, (0.5,), (0.2,), lambda x: [x])
    assert list(of_grey) == ["brightness", "contrast", "rotation, 5°", "shift, 1 pixel"]


def test_the_sentence_counts_what_is_beyond_both_intervals():
    def at(angle: float) -> dict[str, float]:
        return {"angle": angle, "low": angle - 5, "high": angle + 5}

    pairs = ((20, 60), (50, 55), (90, 60))
    rows = [{"path": "p", "trained": [at(0), at(a)], "untrained": [at(0), at(b)]} for a, b in pairs]
    assert bending.reading(rows).startswith("At the last block, 1 of 3 paths bend less")
    assert "and 1 bend more" in bending.reading(rows)
