"""The loader crops, mirrors and turns masks as it does their images."""

import io
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipeline.__main__ import main
from data_pipeline.dataset.index import Dataset
from data_pipeline.loader import Batch, Loader
from data_pipeline.sources import Sources
from data_pipeline.transforms.config import AugmentConfig, ViewsConfig
from data_pipeline.transforms.views import cut, cut_masks

ROWS, COLUMNS = np.mgrid[:200, :240]
TURNS = AugmentConfig(horizontal_flip=0.5, vertical_flip=0.5, quarter_turns=0.5)


@pytest.fixture(scope="module")
def ramps(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Images whose red and green say the row and the column of a pixel; a mask says one of the two.

    The fifth image has no mask.
    """
    folder = tmp_path_factory.mktemp("ramps")
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for i in range(5):
        pixels = np.stack([ROWS, COLUMNS, np.full_like(ROWS, i)], axis=2).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"images/{i}.png")
        if i < 4:
            Image.fromarray(pixels[..., i % 2]).save(folder / f"masks/{i}.png")
    arguments = ["pack", folder / "images", folder / "set", "--masks", folder / "masks", "--workers", "1"]
    assert main([*map(str, arguments)]) == 0
    return Dataset(folder / "set")


def take(data: Dataset, steps: int, views: ViewsConfig, augment: AugmentConfig = TURNS) -> list[Batch]:
    loader = Loader(
        Sources([data], [1.0]), batch_size=8, views=views, augment=augment, channels=3, seed=1, masks=True
    )
    return list(islice(loader, steps))


@pytest.mark.parametrize("scale", [(0.1, 0.5), (1.0, 1.0)])
def test_masks_show_what_their_views_show(ramps: Dataset, scale: tuple[float, float]) -> None:
    """A pixel's colour is its place in the image, so what the mask shows has a closed form."""
    views = ViewsConfig(global_views=2, global_size=32, global_scale=scale, local_views=1, local_size=16)
    seen = set()
    for batch in take(ramps, 6, views):
        for pixels, masks in zip(batch.views, batch.masks, strict=True):
            assert masks.shape == (*pixels.shape[:2], *pixels.shape[3:]) and masks.dtype == torch.uint8
            for view, slot in np.ndindex(*masks.shape[:2]):
                number = int(pixels[view, slot, 2].float().mean().round())
                if number == 4:
                    assert (masks[view, slot] == 255).all()
                    continue
                place = pixels[view, slot, number % 2].float()
                off = (masks[view, slot].float() - place).abs()
                # Nearest neighbours are at most half a pixel of the image away, of which bytes round another
                # half. At the edge of a crop, colours are a mean of the pixels on one side.
                assert off[2:-2, 2:-2].max() <= 1
                down, across = (float(place.diff(dim=dim).mean()) for dim in (0, 1))
                seen.add((number % 2, np.sign(round(down, 1)), np.sign(round(across, 1))))
    assert len(seen) == 8  # the rows, and the columns, run in four directions


def test_a_damaged_mask_costs_its_image(ramps: Dataset, tmp_path: Path) -> None:
    shutil.copytree(ramps.path, tmp_path / "set")
    shard = next((tmp_path / "set").glob("*.tar"))
    data = shard.read_bytes()
    first = data.index(b"mask.png")
    at = data.index(b"IHDR", first)
    shard.write_bytes(data[:at] + b"JUNK" + data[at + 4 :])
    views = ViewsConfig(global_views=1, global_size=16, local_views=0)
    replaced = {r.sample: r.reason for b in take(Dataset(tmp_path / "set"), 2, views) for r in b.replaced}
    assert len(replaced) == 1 and "the mask of sample" in next(iter(replaced.values()))


def test_masks_of_crops_of_a_physical_size_show_what_their_views_show() -> None:
    """Boxes are not of whole pixels there, and the pixels are not square."""
    views = ViewsConfig(
        global_views=8, global_size=32, local_views=0, scale_by="spacing", unit="mm", physical_size=(20, 60)
    )
    picture = np.stack([ROWS, COLUMNS, COLUMNS], axis=2).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG")
    spacing = (0.4, 0.5)
    for channel in (0, 1):
        pixels, masks = (
            torch.empty(8, 3, 32, 32, dtype=torch.uint8),
            torch.empty(8, 32, 32, dtype=torch.uint8),
        )
        cut(np.random.default_rng(3), file.getvalue(), views, (0.5, 0.5), [pixels], spacing=spacing)
        cut_masks(np.random.default_rng(3), picture[..., channel], views, (0.5, 0.5), [masks], spacing)
        off = (masks.float() - pixels[:, channel].float()).abs()
        assert off.max() <= 1 and len(masks[:, 16, 16].unique()) > 4
