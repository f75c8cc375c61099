"""Handmade descriptors have the values of their closed forms, for any number of channels and both depths."""

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import PartialState

from data_pipeline.dataset.index import Dataset
from data_pipeline.transforms.views import center_view
from eval_suite.features import embed
from eval_suite.features.handmade import BINS, SIZE, Handmade, ranges
from eval_suite.features.representation import handmade, untrained
from eval_suite.inputs import find

WHOLE = (0.0, 1.0)


def noise(channels: int, largest: int, kind: type = np.uint8) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, largest + 1, (channels, SIZE, SIZE))
    return values.astype(kind)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize(("kind", "largest"), [(np.uint8, 255), (np.uint16, 65_535)])
def test_histograms_are_roots_of_shares(channels: int, kind: type, largest: int):
    image = noise(channels, largest, kind)
    found = Handmade((WHOLE,) * channels)(torch.from_numpy(image))
    counts = [np.histogram(x, bins=BINS, range=(0, largest + 1))[0] for x in image]
    np.testing.assert_allclose(
        found["histograms"][: BINS * channels] ** 2 * SIZE**2, np.ravel(counts), rtol=1e-5
    )
    assert found["histograms"].shape == (BINS * channels + 10,)
    assert found["hog"].shape == (7 * 7 * 2 * 2 * 9,)
    np.testing.assert_array_equal(found["all"], np.concatenate([found["hog"], found["histograms"]]))
    assert all(x.dtype == np.float32 for x in found.values())


def test_a_camera_of_12_bits_fills_the_bins():
    image = noise(1, 4095, np.uint16)
    mean, std = (float(f(image)) / 65_535 for f in (np.mean, np.std))
    filled = {}
    for depth in (8, 16):
        describe = Handmade(ranges(depth, (mean,), (std,)))
        filled[depth] = int((describe(torch.from_numpy(image))["histograms"][:BINS] > 0).sum())
    # The bins reach from 0 to the mean and three deviations: 1.366 of the camera's range.
    assert filled == {8: 2, 16: 24}
    assert ranges(16, (0.5,), (0.0,)) == (WHOLE,), "a constant channel"


def test_values_outside_of_the_range_count_in_the_outermost_bins():
    image = np.array([0, 255] * (SIZE**2 // 2), np.uint8).reshape(1, SIZE, SIZE)
    found = Handmade(((0.25, 0.75),))(torch.from_numpy(image))["histograms"][:BINS]
    assert found[0] ** 2 == found[-1] ** 2 == pytest.approx(0.5)


def test_gradients_of_a_ramp_have_one_direction_and_those_of_stripes_another():
    ramp = np.broadcast_to(np.arange(SIZE, dtype=np.uint8), (1, SIZE, SIZE)).copy()
    for image, direction in ((ramp, 0), (ramp.transpose(0, 2, 1).copy(), 4)):
        found = Handmade((WHOLE,))(torch.from_numpy(image))["hog"].reshape(-1, 9)
        assert (found.argmax(axis=1) == direction).all()
        assert np.delete(found, direction, axis=1).max() == 0
    # Of two channels the one with the larger gradient decides.
    both = np.concatenate([ramp // 4, ramp.transpose(0, 2, 1)])
    assert (Handmade((WHOLE,) * 2)(torch.from_numpy(both))["hog"].reshape(-1, 9).argmax(axis=1) == 4).all()


def test_patterns_of_a_flat_image_are_all_of_one_kind():
    flat = torch.full((3, SIZE, SIZE), 90, dtype=torch.uint8)
    found = Handmade((WHOLE,) * 3)(flat)["histograms"][-10:]
    # All eight neighbours are as bright; at the border three or five of them lie outside, where it is dark.
    shares = {3: 4, 5: 4 * (SIZE - 2), 8: (SIZE - 2) ** 2}
    np.testing.assert_allclose(found**2 * SIZE**2, [shares.get(i, 0) for i in range(10)], rtol=1e-5)


def test_grey_images_that_an_encoder_takes_thrice_are_described_once():
    image = torch.from_numpy(noise(1, 255))
    once, thrice = (Handmade((WHOLE,))(x) for x in (image, image.repeat(3, 1, 1)))
    np.testing.assert_array_equal(once["all"], thrice["all"])


@pytest.mark.parametrize("workers", [0, 2])
def test_decoding_processes_describe_every_image(
    checkpoint: Path, splits: dict[str, Path], tmp_path: Path, workers: int
):
    (opened,), data = find.find([str(checkpoint)]), Dataset(splits["val"])
    baseline = handmade(opened, data, grey=False)
    both = [baseline, untrained(opened, ())]
    options = {"batch_size": 7, "workers": workers}
    found = embed.extract(both, data, tmp_path / "kept", PartialState(cpu=True), **options)
    describe = Handmade((WHOLE,) * 3)
    expected = [describe(center_view(data.pixels(i, 3, 8), SIZE))["all"] for i in range(len(data))]
    np.testing.assert_array_equal(found["handmade"]["all"], expected)
    assert list(found["handmade"]) == ["all", "hog", "histograms"]
    assert found["untrained"]["embedding"].shape == (20, 24)
    again = embed.extract([baseline], data, tmp_path / "kept", PartialState(cpu=True))
    np.testing.assert_array_equal(again["handmade"]["all"], expected)


def test_further_initialisations_differ_and_depend_on_the_runs_seed(checkpoint: Path, tmp_path: Path):
    (opened,) = find.find([str(checkpoint)])
    drawn = [untrained(opened, (), number) for number in (1, 2, 3)]
    assert [r.name for r in drawn] == ["untrained", "untrained-2", "untrained-3"]
    weights = [r.model.encoder.blocks[0].mlp.fc1.weight for r in drawn]
    torch.testing.assert_close(weights[0], opened.untrained().blocks[0].mlp.fc1.weight, rtol=0, atol=0)
    assert not any(torch.equal(a, b) for a, b in ((weights[0], weights[1]), (weights[1], weights[2])))
    description = checkpoint / "encoder.json"
    description.write_text(description.read_text().replace('"seed": 0', '"seed": 1'))
    (other,) = find.find([str(checkpoint)])
    seeds = {r.weights for r in drawn} | {untrained(other, (), number).weights for number in (1, 2, 3)}
    assert len(seeds) == 6
