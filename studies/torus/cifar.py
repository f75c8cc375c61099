"""`python -m studies.torus.cifar ARCHIVE FOLDER`: unpack CIFAR-10 and pack the images of the study.

15,000 training images, and 2,000 each for val and test, all drawn by seed. Train and val are from the
archive's training part, test is from its test part.
"""

import csv
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np

from isotorus.errors import UserError, exit_code

SEED = 20
SIZES = {"train": 15_000, "val": 2_000, "test": 2_000}


def main() -> int:
    """Write FOLDER/images, FOLDER/sets.csv and FOLDER/shards."""
    if len(sys.argv) != 3:
        raise UserError("expected the archive cifar10.tar.xz and a folder to write")
    archive, folder = map(Path, sys.argv[1:])
    images = folder / "images"
    with tarfile.open(archive) as stream:
        stream.extractall(images, filter="data")
    rng = np.random.default_rng(SEED)
    parts = {name: sorted((images / name).glob("*/*.jpg")) for name in ("train", "test")}
    train, test = (list(rng.permutation(np.array(part, dtype=object))) for part in parts.values())
    sets = {
        "train": train[: SIZES["train"]],
        "val": train[SIZES["train"] :][: SIZES["val"]],
        "test": test[: SIZES["test"]],
    }
    with (folder / "sets.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label", "set"])
        for name, chosen in sets.items():
            writer.writerows((path.relative_to(images), path.parent.name, name) for path in sorted(chosen))
    columns = ["--image-column", "image", "--label-column", "label", "--split-column", "set"]
    columns += ["--allow-duplicates"]  # the published split, as others use it
    pack = [sys.executable, "-m", "data_pipeline", "pack", str(images), str(folder / "shards")]
    return subprocess.run([*pack, "--labels", folder / "sets.csv", *columns], check=False).returncode


if __name__ == "__main__":
    sys.exit(exit_code(main))
