"""Known heads are called what they are: a torus, in another basis, stuck, invariant, or constant."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.dataset.index import Dataset
from eval_suite.inputs import find
from eval_suite.torus_head.certificate import beside, conclusion, notes, unseen
from eval_suite.torus_head.certificate.measure import How, of_angles
from tests.eval_suite.torus_head.certificate.known_heads import HEADS, pack_spots, save_head

HOW = How(images=40, steps=24)
CALLED = {
    "identity": "certified",
    "swapped": "other basis",
    "sheared": "other basis",
    "stuck": "other winding number",
    "invariant": "invariant",
    "constant": "constant",
    "noise": "no common winding",
}


@pytest.fixture(scope="module")
def spots(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset(pack_spots(tmp_path_factory.mktemp("spots") / "packed", 60))


def certify(folder: Path, data: Dataset, *given: Any) -> dict:
    """Measure the angles of a checkpoint on 40 images and conclude; `given` are actions and their orders."""
    (checkpoint,) = find.find([str(folder)])
    torus = beside.actions_of(checkpoint, *given)
    r = beside.trained(checkpoint, torus.size)
    pixels = unseen.read(data, unseen.draw(data, 60, 0), r.channels, r.size)
    images = unseen.Images(pixels, tuple(torus.actions), torus.border)
    numbers = of_angles(r, images, tuple(torus.orders), images.changed()[:40], HOW).numbers
    return numbers | conclusion.conclude(numbers, torus.actions, torus.orders)


@pytest.mark.parametrize("head", HEADS)
def test_a_known_head_is_called_what_it_is(head, tmp_path, spots):
    found = certify(save_head(tmp_path / head, head), spots)
    assert found["name"] == CALLED[head], found["headline"]
    assert found["certified"] == (head == "identity")
    windings = found["windings"]
    expected = {"identity": [[1, 0], [0, 1]], "swapped": [[0, 1], [1, 0]], "sheared": [[1, 1], [0, 1]]}
    expected |= {"stuck": [[2, 0], [0, 1]], "invariant": [[0, 0], [0, 0]]}
    if head in expected:
        assert windings["commonest"] == expected[head] and windings["commonest_share"] == 1
    if head == "identity":
        assert found["angles"]["verdict"] == "flat torus T²"
        # Bicubic interpolation of a smooth spot misses a turn by less than a hundredth of a degree.
        assert max(error["p90"] for error in found["equivariance_error"].values()) < 0.05
        assert found["uniformity_over_null"] < 4
    elif head == "stuck":
        assert found["windings"]["det_share"] == 0
        assert "a full turn of rotation turns the angles by (+2, 0)" in found["headline"]
    elif head in ("swapped", "sheared"):
        assert found["windings"]["det_share"] == 1 and found["windings"]["right_share"] == 0
    elif head == "invariant":
        assert found["equivariance_error"]["rotation"]["median"] == pytest.approx(90, abs=30)
        assert found["uniformity_over_null"] > 10


def test_one_action_and_an_order(tmp_path, spots):
    """An angle that goes round twice is right if the order is 2; the other angle belongs to no action."""
    folder = save_head(tmp_path / "two", "stuck", actions=("rotation",), orders=[2])
    found = certify(folder, spots)
    assert found["name"] == "certified" and found["windings"]["target"] == [[2], [0]]
    assert found["headline"] == "A circle that is there: its angle turns with rotation"
    assert found["angles"]["verdict"] == "circle"
    wrong = certify(save_head(tmp_path / "one", "stuck", actions=("rotation",)), spots)
    assert wrong["name"] == "other winding number"


@pytest.mark.parametrize("head", ["identity", "invariant"])
def test_a_head_without_actions_is_held_against_given_ones(head, tmp_path, spots):
    folder = save_head(tmp_path / head, head, actions=())
    assert certify(folder, spots, ["rotation", "hue"])["name"] == CALLED[head]


def test_given_actions_take_the_place_of_the_learned_ones(tmp_path):
    (checkpoint,) = find.find([str(save_head(tmp_path / "two", "stuck", orders=[2, 1]))])
    own = checkpoint.encoder.torus

    def actions(*given: Any) -> tuple[list[str], list[int]]:
        torus = beside.actions_of(checkpoint, *given)
        assert (torus.border, torus.size, torus.pose_width) == (own.border, own.size, own.pose_width)
        return torus.actions, torus.orders

    assert actions() == (["rotation", "hue"], [2, 1])
    assert actions([], [1, 3]) == (["rotation", "hue"], [1, 3])
    assert actions(["hue", "rotation"], [1, 2]) == (["hue", "rotation"], [1, 2])
    # Other actions have no order that was learned.
    assert actions(["rotation"]) == (["rotation"], [1])
    (note,) = notes.of_actions(own, beside.actions_of(checkpoint, ["rotation"]))
    assert "trained with rotation of order 2 and hue and is held against rotation, as asked for" in note
    assert notes.of_actions(own, beside.actions_of(checkpoint)) == []
    (note,) = notes.of_actions(None, own)
    assert "trained with no actions" in note


def test_grey_images_are_not_changed_by_the_hue(tmp_path):
    data = Dataset(pack_spots(tmp_path / "mixed", 6, grey=4))
    images = unseen.Images(unseen.read(data, np.arange(10), 3, 32), ("rotation", "hue"), "disc")
    changed = images.changed()
    coloured = np.ptp(images.pixels.numpy().astype(int), axis=1).max(axis=(1, 2)) > 10
    assert changed.tolist() == coloured.tolist() and coloured.sum() == 6
    only = unseen.Images(images.pixels, ("rotation",), "disc")
    assert only.changed().all()
