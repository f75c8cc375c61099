"""Which actions are refused for which images, and which are warned of."""

import math
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.dataset.index import Dataset
from data_pipeline.packing.pack import Options, pack
from data_pipeline.transforms.action_checks import doubts, refuse_rotations, refuse_unfit
from data_pipeline.transforms.config import AugmentConfig, ViewsConfig
from isotorus.errors import UserError

WHOLE = {"turned_scale": (1, 1)}


def packed(folder: Path, images: list[np.ndarray]) -> Dataset:
    (folder / "images").mkdir(parents=True)
    for number, pixels in enumerate(images):
        np.save(folder / "images" / f"{number}.npy", pixels)
    pack(folder / "images", folder / "set", Options(workers=1))
    return Dataset(folder / "set")


def texture(seed: int, periodic: bool) -> np.ndarray:
    """One wave in each direction over the image, or, if it is not periodic, a quarter of one."""
    rows, columns = np.indices((40, 48)) / np.array([40, 48]).reshape(2, 1, 1)
    waves = 2 * math.pi * (1 if periodic else 0.25)
    return ((np.sin(waves * rows + seed) * np.sin(waves * columns + 2) + 1) * 30_000).astype(np.uint16)


@pytest.fixture(scope="module")
def periodic(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return packed(tmp_path_factory.mktemp("periodic"), [texture(i, True) for i in range(5)])


@pytest.fixture(scope="module")
def open_ended(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return packed(tmp_path_factory.mktemp("open"), [texture(i, False) for i in range(5)])


def test_the_hue_needs_colours(periodic: Dataset) -> None:
    refuse_unfit(["rotation", "shift_x"], 1, [periodic])
    with pytest.raises(UserError, match=r"data.channels=1; leave hue out"):
        refuse_unfit(["hue"], 1, [periodic])
    # Grey images that are converted to three channels have no colours either.
    with pytest.raises(UserError, match=r"are grey \(1 channel, 16 bit\).*leave hue out") as refused:
        refuse_unfit(["rotation", "hue"], 3, [periodic])
    assert "\n" not in str(refused.value)


def test_shifts_of_what_is_not_periodic_are_warned_of(periodic: Dataset, open_ended: Dataset) -> None:
    def said(actions: list[str], dataset: Dataset, **fields: object) -> list[str]:
        return list(doubts(ViewsConfig(actions=actions, **fields), [dataset], seed=0))

    assert said(["shift_x", "shift_y"], periodic, **WHOLE) == []
    (line,) = said(["shift_x"], open_ended, **WHOLE)
    assert "shift_x" in line and "are not periodic" in line and "seam" in line
    (line,) = said(["shift_y"], periodic)
    assert "views.turned_scale=[0.3, 1] crops parts" in line and "seam" in line
    (line,) = said(["shift_x"], periodic, turned="all", global_scale=(1, 1), local_scale=(0.1, 1))
    assert "views.local_scale=[0.1, 1]" in line
    (line,) = said(["rotation", "shift_x"], periodic, **WHOLE)
    assert "do not commute" in line
    assert said(["rotation"], open_ended) == []


@pytest.mark.parametrize("name", ["quarter_turns", "rotation_probability"])
def test_random_rotations_are_refused_beside_known_ones(name: str) -> None:
    augment = AugmentConfig(**{name: 0.5})
    with pytest.raises(UserError, match=rf"augment\.{name}=0\.5 .*set augment\.{name}=0"):
        refuse_rotations(["rotation"], augment)
    refuse_rotations(["hue", "shift_x"], augment)
    refuse_rotations(["rotation"], AugmentConfig())
