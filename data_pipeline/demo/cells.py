"""`python -m data_pipeline.demo.cells LABELS.csv`: prepare the solar-cell images of the quickstart.

The package elpv-dataset (Buerhop-Lutz et al. 2018, Deitsch et al. 2019) contains 2,624 electroluminescence
images of solar cells, 300×300 pixels, grey, each with the probability of a defect. Its licence is
CC-BY-NC-SA-4.0.
"""

import csv
import importlib.util
import sys
from pathlib import Path

from isotorus.errors import UserError, exit_code

# A probability of 1/3 means that the expert was not sure, so these images get no label.
CLASSES = {"0.0": "intact", "0.3333333333333333": "", "0.6666666666666666": "defective", "1.0": "defective"}


def main() -> int:
    """Write a CSV with the columns image, defect, probability and cell; print the folder of the images."""
    if len(sys.argv) != 2:
        raise UserError(
            "expected one argument, the CSV to write; e.g. python -m data_pipeline.demo.cells data/cells.csv"
        )
    package = importlib.util.find_spec("elpv_dataset")
    if package is None or package.origin is None:
        raise UserError("the package elpv-dataset is not installed; pip install 'isotorus[demo]'")
    folder = Path(package.origin).parent / "data"
    rows = [line.split() for line in (folder / "labels.csv").read_text().splitlines()]

    labels = Path(sys.argv[1])
    labels.parent.mkdir(parents=True, exist_ok=True)
    with labels.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "defect", "probability", "cell"])
        writer.writerows(
            [image, CLASSES[probability], probability, cell] for image, probability, cell in rows
        )
    print(
        f"{len(rows)} solar cells from elpv-dataset, licence CC-BY-NC-SA-4.0 (non-commercial)",
        file=sys.stderr,
    )
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
