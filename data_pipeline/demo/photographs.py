"""`python -m data_pipeline.demo.photographs FOLDER`: cut photographs of installed packages into patches.

scikit-image and scikit-learn contain eight colour photographs whose licences allow this (`PHOTOGRAPHS`). The
patches are squares of 48 pixels at two scales. The left 64 % of a photograph give `train`, the next 16 %
`val` and the right 20 % `test`; a patch lies wholly inside one part, so no pixel is in two sets.
"""

import csv
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from isotorus.errors import UserError, exit_code

# Public domain or CC0, but for the last two: CC BY 2.0, by danielbuechele and vultilion on flickr.com.
PHOTOGRAPHS = {
    "astronaut.png": "skimage",
    "chelsea.png": "skimage",
    "coffee.png": "skimage",
    "ihc.png": "skimage",
    "retina.jpg": "skimage",
    "rocket.jpg": "skimage",
    "china.jpg": "sklearn",
    "flower.jpg": "sklearn",
}
FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}
SETS = {"train": (0.0, 0.64), "val": (0.64, 0.8), "test": (0.8, 1.0)}
"""The part of a photograph's width that each set has."""
SIDE = 48
STRIDE = {"train": 8, "val": 6, "test": 6}
"""Pixels from one patch to the next."""
LONGEST = (640, 320)
"""Longest side in pixels at the two scales; it is limited so that no photograph gives most of the patches."""
LEAST_DETAIL, LEAST_COLOUR = 0.06, 0.03
"""Smallest spread of grey levels in a patch, and smallest mean distance from grey, where white is 1.

A patch of plain sky looks the same however it is turned, and a grey one in every hue."""


def main() -> int:
    """Write the patches and `FOLDER.csv` with the columns image, photograph and set."""
    if len(sys.argv) != 2:
        raise UserError(
            "expected one argument, the folder to write; "
            "e.g. python -m data_pipeline.demo.photographs data/photographs"
        )
    folder = Path(sys.argv[1])
    rows = []
    for name in PHOTOGRAPHS:
        for place, number, patch in patches(name):
            image = Path(place) / f"{Path(name).stem}-{number:05d}.png"
            (folder / image).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(patch).save(folder / image, compress_level=1)
            rows.append((str(image), Path(name).stem, place))
    with folder.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "photograph", "set"])
        writer.writerows(rows)
    print(folder)
    return 0


def patches(name: str) -> Iterator[tuple[str, int, NDArray[np.uint8]]]:
    """Yield the set, a number and the pixels (48, 48, 3) of each patch with detail and colour."""
    package = importlib.util.find_spec(PHOTOGRAPHS[name])
    if package is None or package.origin is None:
        raise UserError(f"the package {PHOTOGRAPHS[name]} is not installed; pip install isotorus")
    file = Path(package.origin).parent / FOLDERS[PHOTOGRAPHS[name]] / name
    if not file.is_file():
        raise UserError(f"{file}: this version of {PHOTOGRAPHS[name]} does not have the photograph {name}")
    number = 0
    for longest in LONGEST:
        photograph = Image.open(file).convert("RGB")
        photograph.thumbnail((longest, longest), Image.Resampling.BOX)
        pixels = np.asarray(photograph)
        for place, top, left in corners(*pixels.shape[:2]):
            patch = pixels[top : top + SIDE, left : left + SIDE]
            if _has_detail_and_colour(patch):
                yield place, number, patch
                number += 1


def corners(height: int, width: int) -> Iterator[tuple[str, int, int]]:
    """Yield the set, the top and the left of each patch of a photograph of this size, in pixels."""
    for place, (start, stop) in SETS.items():
        for top in range(0, height - SIDE + 1, STRIDE[place]):
            for left in range(round(start * width), round(stop * width) - SIDE + 1, STRIDE[place]):
                yield place, top, left


def _has_detail_and_colour(patch: NDArray[np.uint8]) -> bool:
    x = patch / 255
    grey = x.mean(2)
    return bool(grey.std() > LEAST_DETAIL and np.abs(x - grey[..., None]).mean() > LEAST_COLOUR)


if __name__ == "__main__":
    sys.exit(exit_code(main))
