"""Cut a real image of nuclei and its mask into squares, for `isotorus pack --masks`.

The image, of fluorescence microscopy, has 512 × 512 pixels and a mask of its nuclei. It is from the Data
Science Bowl 2018 (Caicedo et al. 2019, Nature Methods 16) and lies in the package stardist, whose code is not
run. The upper half becomes train, the next quarter val and the last one test. RESULTS.md has the commands.
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 64
ROWS = {"train": range(4), "val": range(4, 6), "test": range(6, 8)}


def main(dest: Path) -> None:
    """Write images and masks of 64 × 64 pixels to `dest`."""
    found = importlib.util.find_spec("stardist")
    if found is None or found.origin is None:
        sys.exit("stardist is not installed: pip install --no-deps stardist==0.9.2")
    folder = Path(found.origin).parent / "data/images"
    image, mask = (np.array(Image.open(folder / name)) for name in ("img2d.tif", "mask2d.tif"))
    low, high = np.percentile(image, [0.5, 99.5])
    brightness = (np.clip((image - low) / (high - low), 0, 1) * 255).round().astype(np.uint8)
    for part, rows in ROWS.items():
        for kind, pixels in (("images", brightness), ("masks", (mask > 0).astype(np.uint8))):
            (dest / part / kind).mkdir(parents=True, exist_ok=True)
            for row in rows:
                for column in range(image.shape[1] // SIDE):
                    square = pixels[row * SIDE :, column * SIDE :][:SIDE, :SIDE]
                    Image.fromarray(square).save(dest / part / kind / f"{row}-{column}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
