"""The command `isotorus embed`: the vectors of a data set in one file, or its token maps in a store."""

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from eval_suite import arguments
from eval_suite.metrics import FEATURE_SETS, MAP, MAPS_SUFFIX
from isotorus.errors import ArgumentParser, UserError
from isotorus.processes import usable_cores
from isotorus.scheduled_ranks import set_ranks

EPILOG = """examples:
  isotorus embed runs/mine shards/train --out train.parquet
  isotorus embed runs/mine shards/test --out test.parquet --neighbours 5 --anomaly-against train.parquet
  torchrun --nproc-per-node 8 -m eval_suite embed runs/mine shards/train --out train.parquet
  isotorus embed runs/mine shards/train --out tokens.zarr     a vector for each cell of an image

The columns are in docs/vectors.md. A command that was killed goes on where it was, if it is given again."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of the command; raises UserError for values that cannot work."""
    parser = ArgumentParser(
        prog="isotorus embed",
        description="Write the vectors that an encoder gives for the images of a packed data set, with their "
        "keys, labels, groups and other columns, to one file that pandas reads, or its token maps to a Zarr "
        "store.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    a_checkpoint = "a run folder (its newest checkpoint), a checkpoint folder or its weights, a timm model"
    add("name", metavar="CHECKPOINT_OR_RUN", help=f"{a_checkpoint}, or an address in a mirror (s3://…)")
    add("shards", metavar="SHARDS", help="packed data set with the images")
    add("--out", required=True, metavar="FILE", help="what to write: .parquet, .npz, or .zarr (maps)")
    sets = "feature set (default: the one that the linear probe of the checkpoint's evaluation chose, else "
    add("--features", metavar="NAME", help=f"{sets}embedding); one of {', '.join((*FEATURE_SETS, MAP))}")
    near = "also write the keys of the K nearest rows, and their cosine similarities"
    add("--neighbours", type=arguments.at_least(1), metavar="K", help=near)
    against = "also write how far each image is from the images of this file of vectors, such as train's"
    add("--anomaly-against", metavar="VECTORS", help=against)
    kth = "the anomaly is the distance to the K-th nearest of them (default %(default)s)"
    add("--anomaly-k", type=arguments.at_least(1), default=5, metavar="K", help=kth)
    kept = "folder with the features of evaluations, which are not computed again (default RUN/eval/cache)"
    add("--cache", metavar="DIR", help=kept)
    part = "images of a part, which a kill can lose in each process, and of a row group (default 4096; for "
    add("--part-rows", type=arguments.at_least(1), metavar="N", help=f"{part}.zarr, as many as take 128 MiB)")
    arguments.add_batches(parser, workers=min(8, usable_cores()))
    given = parser.parse_args(argv)
    if given.features is not None:
        named = arguments.names(given.features, (*FEATURE_SETS, MAP), "--features")
        if len(named) != 1:
            raise UserError(f"--features {given.features}: a file has the vectors of one set; name one")
        given.features = named[0]
    _check_maps(given)
    return given


def _check_maps(given: argparse.Namespace) -> None:
    """Raise UserError if only one of --out and --features is for maps, and for what maps cannot have."""
    stored = Path(given.out).suffix == MAPS_SUFFIX
    if not stored and given.features == MAP:
        better = Path(given.out).with_suffix(MAPS_SUFFIX).name
        raise UserError(
            f"--features {MAP}: a map is a grid of vectors, which {given.out} has no place for; write a Zarr "
            f"store, --out {better}"
        )
    if not stored:
        return
    if given.features not in (None, MAP):
        better = Path(given.out).with_suffix(".parquet").name
        raise UserError(
            f"--out {given.out} is for maps of tokens, and --features {given.features} is a vector of the "
            f"whole image; leave out --features, or write --out {better}"
        )
    for option in ("neighbours", "anomaly_against", "cache"):
        if getattr(given, option) is not None:
            raise UserError(
                f"--{option.replace('_', '-')} is for vectors of whole images, and {given.out} is for maps; "
                "leave it out, or write the vectors to a .parquet of their own"
            )
    if importlib.util.find_spec("zarr") is None:
        raise UserError(f"--out {given.out} needs the library zarr; install it: pip install 'isotorus[zarr]'")


def main(argv: Sequence[str]) -> int:
    """Write the file of vectors and return exit code 0; raises UserError for what cannot work."""
    args = parse(argv)
    set_ranks()
    # Imported here because it takes seconds; a mistyped option is refused before that.
    from eval_suite.vectors import embed_run

    return embed_run.run(args)
