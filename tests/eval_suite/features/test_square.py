"""Encoders that see squares of a physical size see the same part of an object, however fine its image is."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from accelerate import PartialState
from torch import nn

from data_pipeline.dataset.index import Dataset
from data_pipeline.packing.pack import Options, pack
from data_pipeline.transforms.physical import Square
from eval_suite.features import embed
from eval_suite.features.feature_sets import FeatureSets
from eval_suite.features.representation import Representation
from isotorus.errors import UserError
from pretrain.models.description import DESCRIPTION, describe

SQUARE = Square(20, "um", "refuse")
PIXELS = Representation(
    "pixels", lambda: FeatureSets(nn.Flatten()), {}, "none", 256, None, 16, 1, (0.0,), (1.0,), SQUARE
)


def write(folder: Path, name: str, step: float | None) -> None:
    """Write a picture of one object, 60 wide and 48 high, with pixels that are `step` µm apart."""
    y, x = ((np.arange(round(side / (step or 1))) + 0.5) * (step or 1) for side in (48, 60))
    values = np.rint(30_000 + 10_000 * np.sin(x / 4)[None] + 10_000 * np.cos((y[:, None] + x) / 5))
    metadata = {"axes": "YX"}
    if step:
        metadata |= {"PhysicalSizeX": step, "PhysicalSizeY": step}
    folder.mkdir(exist_ok=True)
    tifffile.imwrite(folder / f"{name}.ome.tif", values.astype(np.uint16), ome=True, metadata=metadata)


def test_features_of_one_object_are_alike_at_two_spacings(tmp_path: Path) -> None:
    for name, step in (("fine", 0.25), ("coarse", 0.5)):
        write(tmp_path / "in", name, step)
    pack(tmp_path / "in", tmp_path / "set", Options())
    data, state = Dataset(tmp_path / "set"), PartialState(cpu=True)
    whole = dataclasses.replace(PIXELS, name="whole", square=None)
    found = embed.extract([PIXELS, whole], data, tmp_path / "kept", state)
    fine, coarse = found["pixels"]["embedding"]
    assert np.abs(fine - coarse).max() < 0.004
    assert np.abs(found["whole"]["embedding"][0] - fine).max() > 0.1
    x = 30 - 10 + (np.arange(16) + 0.5) * 20 / 16
    y = 24 - 10 + (np.arange(16) + 0.5) * 20 / 16
    expected = 30_000 + 10_000 * np.sin(x / 4)[None] + 10_000 * np.cos((y[:, None] + x) / 5)
    np.testing.assert_allclose(fine.reshape(16, 16), expected / 65_535, atol=0.008)

    write(tmp_path / "more", "unknown", None)
    pack(tmp_path / "more", tmp_path / "other", Options())
    with pytest.raises(UserError, match="state no spacing as length, first unknown"):
        embed.extract([PIXELS], Dataset(tmp_path / "other"), tmp_path / "kept", state)


def test_a_description_keeps_the_square(checkpoint: Path, tmp_path: Path) -> None:
    written = json.loads((checkpoint / DESCRIPTION).read_text())
    plain = describe(checkpoint / DESCRIPTION)
    assert plain.square is None and "square" not in plain.inputs()
    file = tmp_path / DESCRIPTION
    file.write_text(json.dumps(written | {"square": SQUARE._asdict()}))
    described = describe(file)
    assert described.square == SQUARE and described.inputs()["square"] == SQUARE
    assert described.seen == "centred square of 20 um"
    file.write_text(json.dumps(written | {"square": SQUARE._asdict() | {"side": -1}}))
    with pytest.raises(UserError, match=r"square.*side"):
        describe(file)
