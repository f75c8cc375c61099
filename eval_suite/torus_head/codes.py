"""`python -m eval_suite codes RUN_OR_CHECKPOINT… --data SHARDS --out DIR`: embeddings as addresses.

Discrete codes of the same embeddings side by side: the published winding assignment, bins of a torus head's
angles, and finite scalar quantisation; how many addresses each uses, how often two images share one, whether
that is by class, and whether a little noise moves them.
"""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sklearn.decomposition import PCA
from torch import Tensor

from data_pipeline.dataset.index import Dataset
from eval_suite import results
from eval_suite.arguments import numbers
from eval_suite.features import embed
from eval_suite.inputs import find
from eval_suite.inputs.checkpoints import Checkpoint
from eval_suite.report.pages import template
from isotorus.errors import ArgumentParser, UserError
from pretrain.geometry import codes
from pretrain.objectives.toroidal import angles_from_pairs

NOISE = (0.01, 0.1)
"""Standard deviations of the noise on each feature, in units of the feature's own."""


class Code(NamedTuple):
    name: str
    cells: int
    of: Callable[[Tensor], Tensor]
    """Embeddings (n, d) to digits (n, m)."""


def main(arguments: Sequence[str]) -> int:
    """Measure all that is named; exit code 0, 2 for what the user can mend."""
    given = parse(arguments)
    bins, levels = numbers(given.bins, "--bins", 2, "4,8,16"), numbers(given.levels, "--levels", 2, "8,5,5,5")
    checkpoints = find.find(given.names, given.every)
    data, out = Dataset(given.data), Path(given.out)
    if len(data) < 2:
        raise UserError(f"{data.path} has {len(data)} images; pairs are compared, so give two or more")
    results.make_folder(out)
    state = PartialState(cpu=not torch.cuda.is_available())
    measured = []
    for checkpoint in checkpoints:
        r = embed.pretrained(checkpoint, ())
        x = embed.extract(
            [r], data, out / "features", state, batch_size=given.batch_size, workers=given.workers
        )["pretrained"]["embedding"]
        described = {
            "name": checkpoint.name,
            "step": checkpoint.encoder.step,
            "folder": str(checkpoint.folder),
        }
        table = measure(
            known_codes(checkpoint, x, bins, levels), torch.from_numpy(x), data.labels, given.seed
        )
        measured.append(described | {"images": len(x), "classes": len(data.classes), "codes": table})
    found = results.json_safe({"format": 1, "data": given.data, "noise": NOISE, "checkpoints": measured})
    results.write(out / "codes.html", template("codes").render(found=found, reading=reading, size=_size))
    results.write(out / "codes.json", results.as_json(found))
    say(found, out)
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m eval_suite codes",
        description="Discrete codes of embeddings side by side: occupancy, collisions within and between "
        "classes against chance, and stability under noise.",
    )
    parser.add_argument("names", nargs="+", metavar="RUN_OR_CHECKPOINT", help="as for the evaluation")
    parser.add_argument("--data", required=True, metavar="SHARDS", help="packed data set, labelled or not")
    parser.add_argument("--out", required=True, metavar="DIR", help="where codes.html and codes.json go")
    parser.add_argument(
        "--bins", default="4,8,16", help="of each angle of a torus head (default %(default)s)"
    )
    parser.add_argument("--levels", default="8,5,5,5", help="of FSQ, one count a digit (default %(default)s)")
    parser.add_argument(
        "--every", type=int, metavar="STEPS", help="also checkpoints of multiples of these steps"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    parser.add_argument("--batch-size", type=int, default=64, help="images at a time (default 64)")
    parser.add_argument("--workers", type=int, default=0, help="decoders (default 0: this process)")
    given = parser.parse_args(arguments)
    if given.workers < 0 or given.batch_size < 1:
        raise UserError("--workers takes 0 or more and --batch-size 1 or more")
    if given.every is not None and given.every < 1:
        raise UserError(f"--every {given.every}: expected a number above 0")
    return given


def known_codes(
    checkpoint: Checkpoint, x: np.ndarray, bins: Sequence[int], levels: Sequence[int]
) -> list[Code]:
    """The published code, FSQ, and of a torus head the bins of its angles.

    FSQ takes as many standardised principal components of `x` (n, d) as it has levels: no projection was
    trained for it. Raises UserError where there are fewer.
    """
    if len(levels) > min(x.shape):
        raise UserError(
            f"--levels {','.join(map(str, levels))}: {len(levels)} digits, but {len(x)} embeddings of "
            f"{x.shape[1]} features have at most {min(x.shape)} components; give fewer"
        )
    pca = PCA(len(levels), svd_solver="full").fit(x.astype(np.float64))
    components = torch.from_numpy(pca.components_.T / np.sqrt(np.maximum(pca.explained_variance_, 1e-12)))
    mean = torch.from_numpy(pca.mean_)

    def scalars(rows: Tensor) -> Tensor:
        return codes.fsq((rows.double() - mean) @ components, levels)

    found = [
        Code("published winding code", 100, codes.published_winding_code),
        Code(f"FSQ {'×'.join(map(str, levels))}", math.prod(levels), scalars),
    ]
    projector, described = checkpoint.projector(), checkpoint.encoder.projector
    if projector is None or described is None or not described.angles:
        return found
    head, m = projector.eval(), described.angles

    def angles(rows: Tensor) -> Tensor:
        with torch.inference_mode():
            return angles_from_pairs(head(rows.float()).unflatten(-1, (m, 2)))

    def binned(count: int) -> Code:
        return Code(f"{count} bins of {m} angles", count**m, lambda x: codes.angular_bins(angles(x), count))

    return [*found, *map(binned, bins)]


def measure(known: Sequence[Code], x: Tensor, labels: np.ndarray, seed: int) -> list[dict[str, Any]]:
    """Of embeddings (n, d) and labels (n,), below 0 for none: a row a code, ready for JSON."""
    rows = []
    classes = torch.from_numpy(np.array(labels, dtype=np.int64))
    for code in known:
        digits = code.of(x)
        rows.append(
            {
                "name": code.name,
                "cells": code.cells,
                "occupancy": codes.occupancy(digits, code.cells)._asdict(),
                "collisions": codes.collisions(digits, code.cells, classes)._asdict(),
                "stable": [codes.stability(code.of, x, noise, seed) for noise in NOISE],
            }
        )
    return rows


def reading(row: Mapping[str, Any], images: int) -> str:
    """Which claims hold for a code, in a sentence."""
    used, shared = row["occupancy"]["used"], row["collisions"]
    if used == images:
        first = "no two images share an address"
    else:
        first = f"{images:,} images share {used:,} addresses, so it collides"
    if used == 1:
        return "All images have one address: the code says nothing."
    if shared["within"] is None or shared["between"] is None:
        return f"{first[0].upper()}{first[1:]}."
    within, between = shared["within"], shared["between"]
    if within == between == 0:
        second = "and it groups nothing"
    elif between == 0:
        second = "pairs of one class share one, pairs of two never"
    elif within > 2 * between:
        second = f"pairs of one class share one {within / between:.1f} times as often as pairs of two"
    else:
        second = "pairs of two classes share one about as often as pairs of one: it does not see classes"
    return f"{first[0].upper()}{first[1:]}; {second}."


def say(found: Mapping[str, Any], out: Path) -> None:
    console = Console()
    for checkpoint in found["checkpoints"]:
        title = Text(f"{checkpoint['name']}, step {checkpoint['step']}, {checkpoint['images']} images")
        table = Table(title=title, box=SIMPLE, pad_edge=False, collapse_padding=True)
        table.add_column("", no_wrap=True)
        for column in "used", "of", "bits", "equal", "chance", "in\nclass", "across", "kept":
            table.add_column(column, justify="right", no_wrap=True)
        for row in checkpoint["codes"]:
            occupied, shared = row["occupancy"], row["collisions"]
            table.add_row(
                row["name"],
                str(occupied["used"]),
                _size(row["cells"]),
                f"{occupied['entropy']:.1f}",
                *(_percent(shared[key]) for key in ("pairs", "expected", "within", "between")),
                _percent(row["stable"][0]),
            )
        console.print(table)
    console.print(
        "In percent: pairs with one address, by chance, in a class, across classes; codes kept at 1 % noise.",
        soft_wrap=True,
    )
    console.print(
        f"page: {out / 'codes.html'} (open it in a browser)", markup=False, highlight=False, soft_wrap=True
    )


def _size(cells: int) -> str:
    """Of many angles the number of cells is past what a float can hold."""
    return f"{cells:,}" if cells < 10**6 else f"10^{len(str(cells)) - 1}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2g}" if 0 < value < 0.1 else f"{100 * value:.0f}"
