"""Pack the first images of the study's training images, for the data-size curve."""

import csv
from pathlib import Path

import numpy as np

from isotorus.errors import UserError
from studies.running import claim, python

SEED = 21


def pack(folder: Path, images: int) -> None:
    """Write FOLDER/cifar-<images>/train, if it is not there, from the images of FOLDER/cifar.

    They are drawn at random by seed, and the images of a smaller set are in each larger one. Raises UserError
    if they cannot be packed.
    """
    out = folder / f"cifar-{images}"
    with claim(folder / "locks" / out.name) as held:
        if (out / "train" / "dataset.json").exists():
            return
        if held is None:
            raise UserError(f"another process packs {out}; wait a minute, then give the same command again")
        with (folder / "cifar" / "sets.csv").open(newline="") as file:
            train = [row for row in csv.DictReader(file) if row["set"] == "train"]
        chosen = np.random.default_rng(SEED).permutation(len(train))[:images]
        table = folder / f"{out.name}.csv"
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["image", "label", "set"])
            writer.writeheader()
            writer.writerows(train[i] for i in sorted(chosen))
        columns = ["--image-column", "image", "--label-column", "label", "--split-column", "set"]
        columns += ["--allow-duplicates"]
        command = ["-m", "data_pipeline", "pack", str(folder / "cifar" / "images"), str(out)]
        if python(folder, [*command, "--labels", str(table), *columns]):
            raise UserError(f"{out} could not be packed; give the same command again")
