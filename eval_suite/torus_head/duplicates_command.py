"""The sub-command `isotorus eval duplicates`: images with nearly the same angles in a torus head.

It also finds them across data sets, such as a test image that is in the training set. A few angles cannot
tell many images apart, so the same search is made in shuffled angles, whose pairs are chance.
"""

import argparse
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from eval_suite import arguments
from isotorus.errors import ArgumentParser, UserError


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of the sub-command; raises UserError for values that cannot work."""
    parser = ArgumentParser(
        prog="isotorus eval duplicates",
        description="Find images that are nearly the same, by the angles of a torus head, within one data "
        "set and across several.",
    )
    parser.add_argument(
        "name",
        metavar="RUN_OR_CHECKPOINT",
        help="a run folder (its newest checkpoint) or a checkpoint; its head must be a torus, as with "
        "objective.kind=torus",
    )
    arguments.add_data(parser, several=True)
    parser.add_argument(
        "--within",
        type=float,
        default=2.0,
        metavar="DEGREES",
        help="largest root mean square difference of the angles of a pair (default %(default)g)",
    )
    parser.add_argument(
        "--bins",
        type=arguments.at_least(1),
        help="bins for each angle in the search (default: chosen by the number of images)",
    )
    folder = "folder for duplicates.csv and duplicates.html (default RUN/eval/<step>)"
    parser.add_argument("--out", metavar="DIR", help=folder)
    parser.add_argument(
        "--save", metavar="FILE", help="also save the angles, as a winding memory in a safetensors file"
    )
    arguments.add_seed(parser)
    arguments.add_batches(parser)
    args = parser.parse_args(argv)
    if not (math.isfinite(args.within) and 0 < args.within <= 180):
        raise UserError(f"--within {args.within}: expected degrees above 0, at most 180")
    return args


def main(argv: Sequence[str]) -> int:
    """Write duplicates.csv and duplicates.html and return exit code 0, with or without duplicates.

    Raises UserError for arguments that cannot work.
    """
    args = parse(argv)
    import torch
    from accelerate import PartialState

    from data_pipeline.dataset.index import Dataset
    from eval_suite import results, terminal
    from eval_suite.features import embed
    from eval_suite.features.representation import pretrained
    from eval_suite.inputs import find
    from eval_suite.torus_head import chance_pairs, duplicates_page
    from eval_suite.torus_head.duplicates import as_csv, search
    from eval_suite.usefulness import angle_retrieval
    from isotorus import foreign_files
    from pretrain.geometry.memory import WindingMemory

    checkpoint, *others = find.find([args.name])
    if others:
        raise UserError(f"{args.name} means {1 + len(others)} checkpoints; angles of one head are compared")
    if not checkpoint.angles:
        raise UserError(
            f"{args.name} has no angles: its head is no torus; name a run of objective.kind=torus, or see "
            "isotorus preview for copies by their pixels"
        )
    if args.bins is not None:
        WindingMemory(checkpoint.angles, args.bins)  # refuses impossible numbers before images are read
    datasets = [Dataset(path) for path in args.data]
    checkpoint = checkpoint.for_images_of(*datasets)
    home = checkpoint.run / "eval" / checkpoint.results_name if checkpoint.run else checkpoint.folder
    out = Path(args.out) if args.out else home
    state = PartialState(cpu=not torch.cuda.is_available())
    embed.one_process(state, "eval duplicates")
    representation = pretrained(checkpoint, ("angles",))
    options = {"batch_size": args.batch_size, "workers": args.workers}
    with results.folder(out, checkpoint.root):
        foreign_files.inside(out / "features", out)
        parts = [
            embed.extract([representation], data, out / "features", state, **options)["pretrained"]["angles"]
            for data in datasets
        ]
    angles = angle_retrieval.angles_of(np.concatenate(parts))
    memory = angle_retrieval.remember(angles, args.bins)
    duplicates = search(angles, memory, args.within)
    shuffled = chance_pairs.shuffled(angles, args.seed)
    by_chance = len(search(shuffled, angle_retrieval.remember(shuffled, args.bins), args.within))
    results.write(out / "duplicates.csv", as_csv(duplicates, datasets))
    if args.save:
        memory.save(args.save)
    images = len({row for pair in duplicates for row in pair[:2]})
    dataset_of = np.repeat(np.arange(len(datasets)), [len(data) for data in datasets])
    across = sum(int(dataset_of[p.first] != dataset_of[p.second]) for p in duplicates)
    sentence = (
        f"{len(duplicates):,} pairs of {images:,} of {len(angles):,} images lie within {args.within:g}°"
        + (f", {across:,} of them across data sets" if len(datasets) > 1 else "")
        + f"; {by_chance:,} would by chance (angles shuffled over the images)."
    )
    n, m = angles.shape
    warning = chance_pairs.warning(len(duplicates), by_chance, n, m, args.within)
    title = {"name": checkpoint.name, "step": checkpoint.encoder.step}
    found = {**title, "sentence": sentence, "warning": warning}
    draw = partial(duplicates_page.render, found, duplicates, datasets, checkpoint.encoder.channels)
    results.write_page(out / "duplicates.html", draw)
    terminal.tell(sentence, quiet=False)
    if warning:
        terminal.tell(f"warning: {warning}", quiet=False)
    terminal.tell(f"{out / 'duplicates.csv'}, the nearest pair first", quiet=False)
    terminal.tell(f"page: {out / 'duplicates.html'} (open it in a browser)", quiet=False)
    return 0
