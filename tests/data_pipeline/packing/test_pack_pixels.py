"""Packing images of every depth and number of channels."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from data_pipeline.__main__ import main
from data_pipeline.dataset.index import Dataset
from data_pipeline.decoders.decode import decode
from data_pipeline.packing.pack import Options, pack
from tests.data_pipeline.encoders import deep_png
from tests.data_pipeline.pictures import picture, save_pictures

Run = Callable[..., str]


def random(seed: int, shape: tuple[int, ...], dtype: type, top: int | None = None) -> NDArray:
    top = np.iinfo(dtype).max + 1 if top is None else top
    return np.random.default_rng(seed).integers(0, top, shape).astype(dtype)


def assert_statistics(dataset: Dataset, arrays: list[NDArray]) -> None:
    """Mean and std against plain numpy on the arrays (H, W, C) that the files were made of."""
    scaled = [array.reshape(-1, array.shape[2]) / np.iinfo(array.dtype).max for array in arrays]
    pixels = np.concatenate([np.broadcast_to(a, (len(a), dataset.channels)) for a in scaled])
    np.testing.assert_allclose(dataset.mean, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(dataset.std, pixels.std(0), rtol=1e-9)


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 13])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_any_number_of_channels_and_either_depth(
    images: Path, tmp_path: Path, channels: int, dtype: type
) -> None:
    arrays = [random(i, (5 + i, 7, channels), dtype) for i in range(6)]
    for i, array in enumerate(arrays):
        if i % 2:
            layout = {"planarconfig": "contig"} if channels > 1 else {}
            tifffile.imwrite(images / f"{i}.tif", array, photometric="minisblack", **layout)
        else:
            np.save(images / f"{i}.npy", array[..., 0] if channels == 1 else array)
    pack(images, tmp_path / "set", Options(shard_size=600))
    dataset = Dataset(tmp_path / "set")
    bits = np.iinfo(dtype).bits
    assert (len(dataset), dataset.channels, dataset.depth) == (6, channels, bits)
    assert_statistics(dataset, arrays)
    for i in range(6):
        array = arrays[int(dataset.key(i))]
        np.testing.assert_array_equal(decode(dataset.read(i), channels, depth=bits), array)
        assert dataset.extension(i) == ("tif" if int(dataset.key(i)) % 2 else "npy")


def test_mixed_depths_are_packed_as_16_bit_and_said(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = [random(i, (4, 6, 1), np.uint16 if i < 3 else np.uint8) for i in range(8)]
    for i, array in enumerate(arrays):
        if i < 3:
            (images / f"{i}.png").write_bytes(deep_png(array))
        else:
            np.save(images / f"{i}.npy", array)
    assert main(["pack", str(images), str(tmp_path / "set")]) == 0
    assert "3 have 16 bits a channel, 5 have 8" in capsys.readouterr().out
    dataset = Dataset(tmp_path / "set")
    assert dataset.depth == 16
    assert_statistics(dataset, arrays)
    assert main(["info", str(tmp_path / "set")]) == 0
    shown = capsys.readouterr().out
    assert "16 bits a channel in 3 images, 8 in 5" in shown and "npy 5, png 3" in shown
    assert main(["info", str(tmp_path / "set"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["depth"], facts["sixteen_bit"], facts["count"]) == (16, 3, 8)
    assert dict(zip(facts["extensions"], facts["extension_counts"], strict=True)) == {"npy": 5, "png": 3}


def test_dark_16_bit_images_keep_their_own_spread(images: Path, tmp_path: Path) -> None:
    arrays = [random(i, (9, 9, 1), np.uint16, top=100) for i in range(3)]
    for i, array in enumerate(arrays):
        np.save(images / f"{i}.npy", array)
    pack(images, tmp_path / "set", Options())
    assert_statistics(Dataset(tmp_path / "set"), arrays)


def test_black_and_tiny_images(images: Path, tmp_path: Path) -> None:
    np.save(images / "black.npy", np.zeros((30, 40), np.uint8))
    np.save(images / "one.npy", np.zeros((1, 1, 1), np.uint8))
    pack(images, tmp_path / "set", Options())
    dataset = Dataset(tmp_path / "set")
    assert dataset.mean == (0,) and dataset.std == (1 / 255,)
    assert (dataset.description.width.min, dataset.description.width.max) == (1, 40)


def test_grey_and_colour_together_are_colour(images: Path, tmp_path: Path) -> None:
    arrays = [random(i, (4, 6, 3 if i % 2 else 1), np.uint16) for i in range(6)]
    for i, array in enumerate(arrays):
        (images / f"{i}.png").write_bytes(deep_png(array))
    pack(images, tmp_path / "set", Options(shard_size=600))
    dataset = Dataset(tmp_path / "set")
    assert dataset.channels == 3
    assert_statistics(dataset, arrays)


@pytest.mark.parametrize("shard_size", ["1", "1MB"])  # the numbers differ between shards, and inside one
def test_different_numbers_of_channels_are_counted_and_one_can_be_chosen(
    images: Path, tmp_path: Path, refused: Run, shard_size: str
) -> None:
    arrays = {f"five{i}": random(i, (4, 4, 5), np.uint8) for i in range(3)} | {
        "two": random(9, (4, 4, 2), np.uint8)
    }
    for name, array in arrays.items():
        np.save(images / f"{name}.npy", array)
    save_pictures(images, ["colour.png"])
    save_pictures(images, ["grey.png"], mode="L")
    line = refused("--shard-size", shard_size)
    assert "channels" in line and "--channels N" in line and not (tmp_path / "set/dataset.json").exists()
    if shard_size == "1MB":
        assert "1 in 1 (first: grey.png), 2 in 1 (first: two.npy), 3 in 1 (first: colour" in line
        assert "5 in 3 (first: five" in line
    staged = {f.stat().st_ino for f in (tmp_path / "set/.packing").glob("*.tar")}

    command = ["pack", str(images), str(tmp_path / "set"), "--workers", "1", "--shard-size", shard_size]
    assert main([*command, "--channels", "5"]) == 0
    dataset = Dataset(tmp_path / "set")
    assert {dataset.key(i) for i in range(len(dataset))} == {"five0", "five1", "five2"}
    assert_statistics(dataset, [arrays[f"five{i}"] for i in range(3)])
    listed = [line.split("\t") for line in (tmp_path / "set/skipped.txt").read_text().splitlines()]
    assert [name for name, _ in listed] == ["colour.png", "grey.png", "two.npy"]
    assert "2 channels" in listed[2][1]
    if shard_size == "1":  # what fits is not written again
        assert staged & {f.stat().st_ino for f in (tmp_path / "set").glob("*.tar")}
    assert "already holds" in refused("--shard-size", shard_size, "--channels", "2")


@pytest.mark.parametrize("channels", [1, 3])
def test_colour_converts_to_the_channels_asked_for(images: Path, tmp_path: Path, channels: int) -> None:
    save_pictures(images, ["colour.png"])
    picture(3, mode="L").save(images / "grey.png")
    np.save(images / "four.npy", random(0, (4, 4, 4), np.uint8))
    pack(images, tmp_path / "set", Options(channels=channels))
    dataset = Dataset(tmp_path / "set")
    pixels = [decode(dataset.read(i), channels) for i in range(len(dataset))]
    assert len(dataset) == 2 and dataset.channels == channels
    assert_statistics(dataset, pixels)


def test_added_images_have_the_channels_of_the_others_and_may_be_deeper(
    images: Path, tmp_path: Path, refused: Run
) -> None:
    arrays = [random(i, (4, 4, 4), np.uint16 if i else np.uint8) for i in range(2)]
    np.save(images / "a.npy", arrays[0])
    pack(images, tmp_path / "set", Options())
    np.save(images / "b.npy", random(1, (4, 4, 2), np.uint16))
    line = refused("--append")
    assert "2 in 1 (first: b.npy), 4 in 1 (first: " in line and str(tmp_path / "set") in line
    assert "use --channels 4" in refused("--append", "--channels", "2")
    assert "1 files skipped" in pack(images, tmp_path / "set", Options(append=True, channels=4))

    np.save(images / "c.npy", arrays[1])
    pack(images, tmp_path / "set", Options(append=True, channels=4))
    old, new = Dataset(tmp_path / "set", generation=1), Dataset(tmp_path / "set")
    assert (old.depth, new.depth, len(new)) == (8, 16, 2)
    assert_statistics(old, arrays[:1])
    assert_statistics(new, arrays)
