"""`python -m eval_suite duplicates RUN --data SHARDS…`: images that a torus head puts in the same place.

Also across data sets, such as a test image that is in train as well. The images' angles are kept in a winding
memory, so that each is compared with those in nearby cells only.
"""

import argparse
import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isotorus.errors import ArgumentParser, UserError

if TYPE_CHECKING:
    from data_pipeline.dataset.index import Dataset
    from pretrain.geometry.memory import Found

NEAREST = 9
"""Neighbours looked at for each image, itself among them."""


class Pair(NamedTuple):
    """Rows of the two images, the first below the second, and how far apart they are."""

    first: int
    second: int
    degrees: float
    """Root mean square over the angles."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m eval_suite duplicates",
        description="Near-duplicate images, by the angles of a torus head, within and across data sets.",
    )
    parser.add_argument(
        "name", metavar="RUN_OR_CHECKPOINT", help="with a torus head, as of objective.kind=torus"
    )
    parser.add_argument("--data", required=True, nargs="+", metavar="SHARDS", help="packed data sets")
    parser.add_argument(
        "--within",
        type=float,
        default=2.0,
        metavar="DEGREES",
        help="how near, a mean over angles (default 2)",
    )
    parser.add_argument(
        "--bins", type=int, help="of each angle in the memory (default: by the number of images)"
    )
    parser.add_argument("--out", metavar="DIR", help="where duplicates.csv goes; default RUN/eval/<step>")
    parser.add_argument("--save", metavar="FILE", help="keep the memory as safetensors")
    parser.add_argument("--batch-size", type=int, default=64, help="images at a time (default 64)")
    parser.add_argument("--workers", type=int, default=0, help="decoders (default 0)")
    given = parser.parse_args(arguments)
    if not (math.isfinite(given.within) and 0 < given.within <= 180):
        raise UserError(f"--within {given.within}: expected degrees above 0, at most 180")
    if given.bins is not None and given.bins < 1:
        raise UserError(f"--bins {given.bins}: expected 1 or more")
    return given


def main(arguments: Sequence[str]) -> int:
    """Write duplicates.csv; exit code 0, whether there are some or not."""
    given = parse(arguments)
    import torch
    from accelerate import PartialState

    from data_pipeline.dataset.index import Dataset
    from eval_suite import results, terminal
    from eval_suite.features import embed
    from eval_suite.inputs import find
    from eval_suite.usefulness import angle_retrieval
    from pretrain.geometry.memory import WindingMemory

    checkpoint, *others = find.find([given.name])
    if others:
        raise UserError(f"{given.name} means {1 + len(others)} checkpoints; angles of one head are compared")
    if not checkpoint.angles:
        raise UserError(
            f"{given.name} has no angles: its head is no torus; name a run of objective.kind=torus, or see "
            "python -m data_pipeline preview for copies by their pixels"
        )
    if given.bins is not None:
        WindingMemory(checkpoint.angles, given.bins)  # refuses what cannot be before the images are read
    datasets = [Dataset(path) for path in given.data]
    home = checkpoint.run / "eval" / str(checkpoint.encoder.step) if checkpoint.run else checkpoint.folder
    out = Path(given.out) if given.out else home
    results.make_folder(out)
    state = PartialState(cpu=not torch.cuda.is_available())
    representation = embed.pretrained(checkpoint, ("angles",))
    options = {"batch_size": given.batch_size, "workers": given.workers}
    parts = [
        embed.extract([representation], data, out / "features", state, **options)["pretrained"]["angles"]
        for data in datasets
    ]
    angles = angle_retrieval.angles_of(np.concatenate(parts))
    memory = angle_retrieval.remember(angles, given.bins)
    found = pairs(angles, memory.query(angles, min(NEAREST, len(angles))), given.within)
    results.write(out / "duplicates.csv", as_csv(found, datasets))
    if given.save:
        memory.save(given.save)
    images = len({row for pair in found for row in pair[:2]})
    ends = np.cumsum([len(data) for data in datasets])
    across = sum(
        int(np.searchsorted(ends, p.first, "right") != np.searchsorted(ends, p.second, "right"))
        for p in found
    )
    terminal.tell(
        f"{len(found)} pairs of {images} of {len(angles):,} images lie within {given.within:g}°"
        + (f", {across} of them across data sets" if len(datasets) > 1 else ""),
        quiet=False,
    )
    terminal.tell(f"{out / 'duplicates.csv'}, the nearest pair first", quiet=False)
    return 0


def pairs(angles: NDArray[np.float64], found: "Found", within: float) -> list[Pair]:
    """Of every row's nearest (n, m), those within so many degrees, each pair once, the nearest first.

    Each row has `NEAREST` neighbours at most: of many copies of one image not all pairs are listed, but each
    copy is.
    """
    # The memory's own distances are rounded to the steps of a bin.
    away = np.angle(np.exp(1j * (angles[found.ids] - angles[:, None])))
    degrees = np.rad2deg(np.sqrt(np.square(away).mean(axis=2)))
    first, place = np.nonzero((degrees <= within) & (found.ids != np.arange(len(angles))[:, None]))
    listed = {
        (min(a, b), max(a, b)): d
        for a, b, d in zip(
            first.tolist(), found.ids[first, place].tolist(), degrees[first, place].tolist(), strict=True
        )
        if b >= 0
    }
    return sorted((Pair(a, b, d) for (a, b), d in listed.items()), key=lambda pair: (pair.degrees, pair[:2]))


def as_csv(found: Sequence[Pair], datasets: "Sequence[Dataset]") -> str:
    """Data set, number and key of both images, and the distance."""
    starts = np.cumsum([0, *(len(data) for data in datasets)])
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["data_1", "sample_1", "key_1", "data_2", "sample_2", "key_2", "degrees"])
    for pair in found:
        row: list[object] = []
        for number in pair[:2]:
            which = int(np.searchsorted(starts, number, side="right")) - 1
            sample = int(number - starts[which])
            row += [datasets[which].path, sample, datasets[which].key(sample)]
        writer.writerow([*row, f"{pair.degrees:.4g}"])
    return stream.getvalue()
