"""Files of each scientific format, from the writer of that field to an exported encoder."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import nibabel
import numpy as np
import pytest
import tifffile
from astropy.io import fits
from numpy.typing import NDArray
from PIL import Image

from tests.data_pipeline.scientific_formats import test_ome_zarr, test_slide
from tests.data_pipeline.scientific_formats.dicoms import write_ct
from tests.distributed.runs import ENVIRONMENT, ROOT, losses, train


def values(seed: int, channels: int = 1, most: int = 4000) -> NDArray[np.uint16]:
    """Return an image (channels, 48, 40) of waves and noise; the waves are finer for odd seeds."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:1:48j, 0:1:40j]
    finer = 1 + 2 * (seed % 2)
    waves = [np.sin(finer * (7 * x + 5 * y) + random.uniform(0, 6)) for _ in range(channels)]
    image = (np.stack(waves) + 1.2 + random.normal(0, 0.05, (channels, 48, 40))) * most / 2.5
    return image.astype(np.uint16)


def dicom(path: Path, seed: int) -> None:
    write_ct(path.with_suffix(".dcm"), seed)


def nifti(path: Path, seed: int) -> None:
    slices = np.stack([values(2 * i + seed % 2)[0].astype(np.int16) for i in range(3)], 2)
    nibabel.save(nibabel.Nifti1Image(slices, np.diag([0.7, 0.8, 2.0, 1.0])), path.with_suffix(".nii.gz"))


def fits_image(path: Path, seed: int) -> None:
    image = values(seed)[0].astype(np.float32)
    image[:2] = np.nan
    fits.writeto(path.with_suffix(".fits"), image)


def ome_tiff(path: Path, seed: int) -> None:
    stack = np.stack([values(2 * i + seed % 2, 3) for i in range(2)])
    names = {"axes": "ZCYX", "Channel": {"Name": ["DAPI", "GFP", "RFP"]}}
    tifffile.imwrite(f"{path}.ome.tif", stack, photometric="minisblack", metadata=names)


def ome_zarr(path: Path, seed: int) -> None:
    test_ome_zarr.write(path.with_suffix(".ome.zarr"), values(seed, 4), "cyx")


def geotiff(path: Path, seed: int) -> None:
    tags = [
        (33550, "d", 3, (10.0, 10.0, 0.0), True),
        (34735, "H", 12, (1, 1, 0, 2, 1024, 0, 1, 1, 3076, 0, 1, 9001), True),
        (42113, "s", 0, "0", True),
    ]
    bands = values(seed, 5).transpose(1, 2, 0)
    tifffile.imwrite(
        path.with_suffix(".tif"), bands, photometric="minisblack", planarconfig="contig", extratags=tags,
        compression="lzw", metadata=None,
    )  # fmt: skip


def slide(path: Path, seed: int) -> None:
    test_slide.write(path.with_suffix(".svs"), test_slide.slide((slice(0, 600), slice(100 + 30 * seed, 900))))


def photo(path: Path, seed: int, ending: str) -> None:
    Image.fromarray(values(seed, 3, 255).astype(np.uint8).transpose(1, 2, 0)).save(path.with_suffix(ending))


def jpeg_of_12_bits(path: Path, seed: int) -> None:
    image = values(seed)[0]
    path.with_suffix(".jpg").write_bytes(imagecodecs.jpeg8_encode(image, bitspersample=12, level=95))


FORMATS: dict[str, tuple[Callable[[Path, int], None], list[str], int]] = {
    "dicom": (dicom, ["--intensity", "window:-1000,400", "--group-field", "SOPInstanceUID"], 1),
    "nifti": (nifti, ["--intensity", "percentile:0.5,99.5"], 1),
    "fits": (fits_image, ["--intensity", "asinh:100"], 1),
    "ome-tiff": (ome_tiff, [], 3),
    "ome-zarr": (ome_zarr, [], 4),
    "geotiff": (geotiff, ["--intensity", "window:0,4095"], 5),
    "slide": (slide, ["--mpp", "0.5", "--tile", "128"], 3),
    "avif": (lambda path, seed: photo(path, seed, ".avif"), [], 3),
    "jpeg-2000": (lambda path, seed: photo(path, seed, ".jp2"), [], 3),
    "jpeg-of-12-bits": (jpeg_of_12_bits, ["--intensity", "window:0,4095"], 1),
}
"""For each format: a function that writes a file, given its path without ending and a seed; the options of
`pack`; and the number of channels."""


def run(*command: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_packed_trained_on_evaluated_and_exported(
    name: str, recipe: Path, tmp_path: Path
) -> None:
    write, options, channels = FORMATS[name]
    for seed in range(16):
        (folder := tmp_path / "files" / "ab"[seed % 2]).mkdir(parents=True, exist_ok=True)
        write(folder / f"{seed:02d}", seed)
    split = ["--val-fraction", "0.4", "--stratify", "--labels", "folder", "--workers", "1", "--strict"]
    split += ["--allow-duplicates"]  # scans that are made look alike
    run("data_pipeline", "pack", tmp_path / "files", tmp_path / "set", *split, *options)
    facts = json.loads(run("data_pipeline", "info", tmp_path / "set", "--json"))
    assert all(facts[side]["channels"] == channels and facts[side]["count"] >= 4 for side in ("train", "val"))
    assert min(facts["train"]["std"]) > 0.02

    data = [f"data.path={tmp_path}/set/train", f"data.channels={channels}", "data.batch_size=4"]
    done = train(1, recipe, *data, "steps=5")
    assert done.returncode == 0, done.stderr
    found = losses(tmp_path / "runs/tiny")
    assert len(found) == 5 and np.isfinite(list(found.values())).all()

    sets = ["--train", tmp_path / "set/train", "--val", tmp_path / "set/val", "--out", tmp_path / "out"]
    how = ["--json", "--metrics", "knn", "--folds", 0, "--initialisations", 1, "--k", 1]
    results = json.loads(run("eval_suite", tmp_path / "runs/tiny", *sets, *how))
    assert "knn" in results["representations"]["pretrained"]
    assert (tmp_path / "out/report.html").is_file()

    run("pretrain", "export", tmp_path / "runs/tiny", "--out", tmp_path / "export", "--format", "torch")
    said = (tmp_path / "export/README.md").read_text()
    assert f"| channels | {channels} " in said
    if "--intensity" in options:
        assert options[options.index("--intensity") + 1] in said
