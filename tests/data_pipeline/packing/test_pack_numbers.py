"""Packing numbers that are no brightness: floats, signed and 32-bit images, from file to pixels."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from data_pipeline.__main__ import main
from data_pipeline.dataset.index import Dataset
from data_pipeline.decoders.intensity import NONE, Intensity
from data_pipeline.packing.pack import Options, pack
from isotorus.errors import exit_code
from tests.data_pipeline.encoders import npy
from tests.data_pipeline.pictures import save_pictures
from tests.data_pipeline.tar_index import write

Run = Callable[..., str]
MANY = 300


def run(images: Path, dest: Path, *options: str) -> None:
    assert main(["pack", str(images), str(dest), "--workers", "1", *options]) == 0


def scan(seed: int, height: int = 12, width: int = 15) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(-1024, 3072, (height, width)).astype(np.int16)


def window(x: NDArray, low: float, high: float) -> NDArray[np.uint16]:
    return np.rint(np.clip((x.astype(np.float64) - low) / (high - low), 0, 1) * 65_535).astype(np.uint16)


def save(images: Path, count: int) -> dict[str, NDArray]:
    """Save scans as .npy and TIFF in turns, and return them by key."""
    scans = {f"{i:03d}": scan(i, 12 + i % 3) for i in range(count)}
    for i, (key, x) in enumerate(scans.items()):
        if i % 2:
            tifffile.imwrite(images / f"{key}.tif", x)
        else:
            np.save(images / f"{key}.npy", x)
    return scans


def test_the_bytes_are_kept_and_the_rule_is_applied_wherever_images_are_read(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans, dest = save(images, 6), tmp_path / "set"
    run(images, dest, "--intensity", "window:-160,240", "--shard-size", "1KB")
    dataset = Dataset(dest)
    assert (len(dataset), dataset.depth, dataset.channels) == (6, 16, 1)
    assert dataset.intensity == Intensity(rule="window:-160,240")
    for i in range(6):
        key = dataset.key(i)
        file = images / f"{key}.{dataset.extension(i)}"
        assert dataset.read(i) == file.read_bytes()
        np.testing.assert_array_equal(dataset.pixels(i, None, None)[..., 0], window(scans[key], -160, 240))
    seen = np.concatenate([window(x, -160, 240).ravel() for x in scans.values()]) / 65_535
    assert dataset.mean == pytest.approx([seen.mean()], rel=1e-12)
    assert dataset.std == pytest.approx([seen.std()], rel=1e-9)
    assert main(["verify", str(dest), "--workers", "1"]) == 0
    capsys.readouterr()
    assert main(["info", str(dest)]) == 0
    assert "intensity    window:-160,240\n" in capsys.readouterr().out


def test_the_rule_is_part_of_the_fingerprint_and_verified(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(images, 3)
    rules = ["window:-160,240", "window:-160,241", "percentile:1,99"]
    for i, rule in enumerate(rules):
        run(images, tmp_path / f"{i}", "--intensity", rule)
    assert len({Dataset(tmp_path / f"{i}").fingerprint for i in range(3)}) == 3
    file = tmp_path / "0/dataset.json"
    file.write_text(file.read_text().replace('"window:-160,240"', '"window:-160,250"'))
    assert main(["verify", str(tmp_path / "0"), "--workers", "1"]) == 1
    assert "fingerprint" in capsys.readouterr().out
    file.write_text(file.read_text().replace('"window:-160,250"', '"window:9,9"'))
    assert exit_code(lambda: main(["info", str(tmp_path / "0")])) == 2
    error = capsys.readouterr().err
    assert "is damaged" in error and error.count("\n") == 1


def test_pack_says_how_bright_the_images_are_and_if_the_rule_hardly_fits(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = np.random.default_rng(0).uniform(0, 1, (4, 20, 20)).astype(np.float32)
    for i, array in enumerate(arrays):
        np.save(images / f"{i}.npy", array)
    run(images, tmp_path / "fits", "--intensity", "window:0,1")
    said = f"brightness by window:0,1: mean {arrays.mean():.3f}, standard deviation {arrays.std():.3f}\n"
    assert said in capsys.readouterr().out
    run(images, tmp_path / "not", "--intensity", "window:-160,240")
    assert "mean 0.401, standard deviation 0.001; that is nearly one brightness" in capsys.readouterr().out


def test_what_is_not_valid_counts_for_no_statistics(images: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    arrays = random.uniform(0, 100, (4, 10, 14, 3)).astype(np.float32)
    arrays[0, :3, :, 0], arrays[1, 4], arrays[2, 5, 5] = np.nan, -9999, np.inf
    arrays[3, ..., 2] = np.nan  # no valid value in one channel of one image
    for i, array in enumerate(arrays):
        np.save(images / f"{i}.npy", array)
    np.save(images / "empty.npy", np.full((5, 5, 3), np.nan, np.float32))
    options = ("--nodata", "-9999", "--fill", "0.25")
    run(images, tmp_path / "set", "--intensity", "window:0,100", "--shard-size", "2KB", *options)
    dataset = Dataset(tmp_path / "set")
    assert len(dataset) == 4 and dataset.description.skipped == 1
    assert "empty.npy\tno valid value: all 75" in (tmp_path / "set/skipped.txt").read_text()
    valid = np.isfinite(arrays) & (arrays != -9999)
    for channel in range(3):
        kept = window(arrays[..., channel][valid[..., channel]], 0, 100) / 65_535
        assert dataset.mean[channel] == pytest.approx(kept.mean(), rel=1e-12)
        assert dataset.std[channel] == pytest.approx(kept.std(), rel=1e-9)
    for i in range(4):
        pixels, here = dataset.pixels(i, None, None), valid[int(dataset.key(i))]
        assert (pixels[~here] == 16_384).all()
    assert main(["verify", str(tmp_path / "set"), "--workers", "1"]) == 0


def test_a_channel_without_a_valid_value_has_mean_0_and_one_grey_level(images: Path, tmp_path: Path) -> None:
    x = np.ones((4, 4, 2), np.float32)
    x[..., 1] = np.nan
    np.save(images / "a.npy", x)
    pack(images, tmp_path / "set", Options(intensity=Intensity(rule="window:0,2")))
    dataset = Dataset(tmp_path / "set")
    assert dataset.mean == pytest.approx((0.5, 0), abs=1e-4) and dataset.std == (1 / 65_535, 1 / 65_535)


def test_numbers_without_a_rule_are_counted_and_the_line_says_what_to_give(
    images: Path, tmp_path: Path, refused: Run
) -> None:
    save(images, 3)
    line = refused()
    assert "int16 values from -10" in line and "--intensity window:-10" in line and "3 files" in line
    assert not (tmp_path / "set/.packing").exists(), "nothing was packed, so nothing is kept"
    run(images, tmp_path / "set", "--intensity", "percentile:1,99")  # in the same folder
    assert len(Dataset(tmp_path / "set")) == 3


def test_numbers_beside_pictures_are_left_out_without_a_rule(images: Path, tmp_path: Path) -> None:
    save_pictures(images, ["a.png", "b.jpg"])
    np.save(images / "c.npy", scan(0))
    run(images, tmp_path / "set")
    dataset = Dataset(tmp_path / "set")
    assert len(dataset) == 2 and dataset.intensity == NONE and dataset.description.skipped == 1
    assert "c.npy\tint16 values from " in (tmp_path / "set/skipped.txt").read_text()


def test_types_may_differ_under_a_rule_as_values_do_not(images: Path, tmp_path: Path) -> None:
    for dtype in ("u1", "<u2", "<i2", "<f4"):
        np.save(images / f"{dtype[-2:]}.npy", np.array([[0, 50, 100]], dtype))
    pack(images, tmp_path / "set", Options(intensity=Intensity(rule="window:0,100")))
    dataset = Dataset(tmp_path / "set")
    pixels = {tuple(dataset.pixels(i, None, None).ravel().tolist()) for i in range(4)}
    assert pixels == {(0, 32_768, 65_535)}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--intensity", "window:5,5"), "no width"),
        (("--intensity", "window:9,5"), "no width"),
        (("--intensity", "window:5"), "is no rule"),
        (("--intensity", "window:low,5"), "something else than numbers"),
        (("--intensity", "window:-inf,5"), "something else than numbers"),
        (("--intensity", "percentile:-1,99"), "from 0 to 100"),
        (("--intensity", "percentile:1,101"), "from 0 to 100"),
        (("--intensity", "percentile:60,60"), "from 0 to 100"),
        (("--intensity", "asinh:0"), "greater than 0"),
        (("--intensity", "asinh:1,2,3,4"), "is no rule"),
        (("--intensity", "gamma:2"), "is no rule"),
        (("--intensity", "none:1"), "is no rule"),
        (("--nodata", "5"), "--nodata needs a rule"),
        (("--intensity", "none", "--fill", "0"), "--fill needs a rule"),
        (("--intensity", "window:0,1", "--nodata", "nan"), "never valid"),
        (("--intensity", "window:0,1", "--fill", "2"), "from 0 (black) to 1 (white)"),
    ],
)
@pytest.mark.parametrize("command", ["pack", "index"])
def test_a_rule_that_cannot_be_is_refused(
    refused: Run, tmp_path: Path, command: str, options: tuple[str, ...], said: str
) -> None:
    assert said in refused(*options, command=command)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("nodata", ["-3.4e38", "-1E+03", "-.5", "-9999"])
def test_nodata_is_written_as_any_number(images: Path, tmp_path: Path, nodata: str) -> None:
    save(images, 2)
    run(images, tmp_path / "set", "--intensity", "window:0,1", "--nodata", nodata)
    assert Dataset(tmp_path / "set").intensity.nodata == float(nodata)


def test_a_rule_for_jpeg_is_refused(images: Path, refused: Run) -> None:
    save_pictures(images, ["a.jpg", "b.jpg"])
    assert "leave --intensity out for JPEG" in refused("--intensity", "window:0,100")


def test_added_images_are_read_by_the_rule_of_the_others(images: Path, tmp_path: Path, refused: Run) -> None:
    scans, dest = save(images, 2), tmp_path / "set"
    run(images, dest, "--intensity", "window:-160,240", "--nodata", "-1024")
    assert "was made with --intensity window:-160,240 --nodata=-1024, not none" in refused()
    scans |= save(images, 4)
    assert "not window:0,1" in refused("--intensity", "window:0,1", "--append")
    assert "not none" in refused("--intensity", "none", "--append")
    run(images, dest, "--append")
    dataset = Dataset(dest)
    rules = [generation.intensity for generation in dataset.generations]
    assert rules == 2 * [Intensity(rule="window:-160,240", nodata=-1024)]
    for i in range(4):
        x = scans[dataset.key(i)]
        expected = np.where(x == -1024, 0, window(x, -160, 240))
        np.testing.assert_array_equal(dataset.pixels(i, None, None)[..., 0], expected)
    run(images, dest, "--append", "--intensity", "window:-160,240", "--nodata", "-1024")


def test_a_set_without_the_key_has_no_rule(images: Path, tmp_path: Path) -> None:
    np.save(images / "a.npy", np.arange(12, dtype=np.uint16).reshape(3, 4))
    run(images, tmp_path / "set")
    file = tmp_path / "set/dataset.json"
    content = json.loads(file.read_text())
    del content["generations"][0]["intensity"]
    file.write_text(json.dumps(content))
    dataset = Dataset(tmp_path / "set")
    assert dataset.intensity == NONE and dataset.pixels(0, None, None).max() == 11
    assert main(["verify", str(tmp_path / "set"), "--workers", "1"]) == 0


def test_a_killed_packing_continues_and_ends_in_the_same_bytes(images: Path, tmp_path: Path) -> None:
    save(images, MANY)
    rule = ["--intensity", "percentile:1,99", "--nodata", "-1024"]
    command = ["pack", str(images), str(tmp_path / "set"), "--shard-size", "20KB", "--workers", "1", *rule]
    process = subprocess.Popen([sys.executable, "-m", "data_pipeline", *command])
    while len(list((tmp_path / "set").glob(".packing/shard-*.json"))) < 3:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "set/dataset.json").exists()
    assert main(command) == 0
    given = Intensity(rule="percentile:1,99", nodata=-1024)
    pack(images, tmp_path / "other", Options(shard_size=20_000, intensity=given))

    def contents(folder: Path) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in folder.iterdir()}

    assert contents(tmp_path / "set") == contents(tmp_path / "other")


def test_tars_are_indexed_by_a_rule(images: Path, tmp_path: Path, refused: Run) -> None:
    scans = [scan(i) for i in range(3)]
    write(images / "a.tar", {f"{i}.npy": npy(x) for i, x in enumerate(scans)})
    assert "int16 values from " in refused(command="index")
    command = ["index", str(images), str(tmp_path / "set"), "--workers", "1"]
    assert main([*command, "--intensity", "window:-160,240"]) == 0
    assert "not none" in refused(command="index")
    write(images / "b.tar", {"9.npy": npy(scan(9))})
    assert "not window:0,1" in refused("--append", "--intensity", "window:0,1", command="index")
    assert main([*command, "--append"]) == 0
    dataset = Dataset(tmp_path / "set")
    for i, x in enumerate([*scans, scan(9)]):
        np.testing.assert_array_equal(dataset.pixels(i, None, None)[..., 0], window(x, -160, 240))
