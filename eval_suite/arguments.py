"""The command line of the evaluation, and the arguments that its sub-commands share."""

import argparse
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from data_pipeline.packing.share import read_share
from data_pipeline.tables.cells import MISSING, cell_list
from eval_suite.metrics import (
    BASELINES,
    BY_DEFAULT,
    FEATURE_SETS,
    FEW_LABELS,
    GEOMETRY,
    IMPLIED,
    LEAST_FOLDS,
    METRICS,
    USEFULNESS,
    USUAL_FOLDS,
)
from isotorus.errors import ArgumentParser, UserError
from isotorus.mlflow_store import address
from isotorus.nearest_name import nearest
from isotorus.processes import usable_cores

if TYPE_CHECKING:
    from eval_suite.options import Options

EPILOG = """examples:
  isotorus eval runs/elpv --train data/elpv/train --val data/elpv/val --test data/elpv/test
  isotorus eval runs/elpv --every 1000 --jobs 2 --train … --val …         several checkpoints, compared
  isotorus eval runs/elpv --every 1000 --watch --train … --val …          while the run is training
  isotorus launch slurm --nodes 4 … eval -- runs/elpv --every 1000 …      on four nodes
  torchrun --nproc-per-node 8 -m eval_suite runs/elpv --train … --val …   features in 8 processes
  isotorus eval runs/elpv --against dinov2/ other.npz --train … --val …   compared with others
  isotorus eval features.npz                                              features made elsewhere
  isotorus eval layers --help                     geometry of every block over training
  isotorus eval compare A B --data …              how alike two encoders are, layer by layer
  isotorus eval winding --help                    whether the angles of a torus head follow the image
  isotorus eval certificate --help                whether a torus turns with known actions on images
  isotorus eval codes --help                      discrete codes of the embedding
  isotorus eval duplicates --help                 near-duplicate images

Results go to RUN/eval/<step>/: results.json and report.html. RUN/eval/cache/ may be deleted."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line of an evaluation; raises UserError for values that cannot work."""
    parser = ArgumentParser(
        prog="isotorus eval",
        description="Measure how useful the features of a pretrained encoder are, compared with the same "
        "encoder untrained, raw pixels and handmade descriptors, and which geometry its embedding has.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_checkpoints(parser)
    add = parser.add_argument
    add("--train", metavar="SHARDS", help="packed data set that the probes are fitted on")
    add("--val", metavar="SHARDS", help="packed data set that settings are chosen on")
    add("--test", metavar="SHARDS", help="packed data set that scores are reported on (default: --val)")
    add("--targets", metavar="FILE", help="CSV or Parquet file to predict (default: the packed labels)")
    add("--target-columns", metavar="A,B,…", help="columns of --targets to predict")
    add_key_column(parser)
    kinds = ["multiclass", "multilabel", "regression"]
    add("--target-kind", choices=kinds, help="how to read the targets (default: decided by their values)")
    empty = f"values that mean 'none', besides empty ones (default: {','.join(MISSING)}, and -1 for classes "
    add("--missing", metavar="A,B,…", type=cell_list, help=f"{empty}that are whole numbers)")
    square = "a file of features that is symmetric with zeros on its diagonal is features, not distances"
    add("--not-distances", action="store_true", help=square)
    add("--jobs", type=at_least(1), default=1, help="evaluations at the same time (default %(default)s)")
    part = "evaluate only part I (from 0) of N, so that N nodes share the checkpoints; the part that ends "
    part += "last compares all checkpoints"
    add("--part", type=read_share, metavar="I/N", help=part)
    add("--watch", action="store_true", help="evaluate new checkpoints until the runs have finished")
    wait = "with --watch: time between two looks at the run folders (default %(default)g)"
    add("--poll", type=above_zero, default=30.0, metavar="SECONDS", help=wait)
    add("--out", metavar="DIR", help="folder for the results (default RUN/eval/<step>)")
    kept = "folder that keeps features for later evaluations (default RUN/eval/cache)"
    add("--cache", metavar="DIR", help=kept)
    more = [name for name in METRICS if name not in BY_DEFAULT]
    chosen = f"some of {', '.join(METRICS)} (default: all but {', '.join(more)})"
    add("--metrics", default=",".join(BY_DEFAULT), help=chosen)
    add("--baselines", default=",".join(BASELINES), help=f"some of {', '.join(BASELINES)} (default: all)")
    often = "initialisations of the untrained encoder, a baseline each (default %(default)s)"
    add("--initialisations", type=at_least(1), default=3, metavar="N", help=often)
    others = "more encoders (runs, checkpoints, timm model folders) and files of features to compare with"
    add("--against", nargs="+", action="extend", default=[], metavar="PATH", help=others)
    add("--features", metavar="NAMES", help=f"feature sets: {', '.join(FEATURE_SETS)} (default: all)")
    add("--k", metavar="10,20,100", help="numbers of neighbours to choose from (default 10,20,100,200)")
    strengths = (
        "L2 strengths to choose from (default: eleven from 0.0001 to 10; for numbers 15 from 1e-5 to 100)"
    )
    add("--l2", metavar="1e-6,0.1,…", help=strengths)
    few = f"{USUAL_FOLDS} below {FEW_LABELS:,} labels, else 0"
    folds = f"folds of train and val for probe and k-NN; 0: a single split (default: {few})"
    add("--folds", type=number_of_folds, help=folds)
    add("--repeats", type=at_least(1), default=1, help="divisions into folds (default %(default)s)")
    add("--samples", type=at_least(1), default=10_000, help="samples for the geometry (default %(default)s)")
    tenth = "points for homology (default: a tenth of the samples, 100 to 300)"
    add("--landmarks", type=at_least(1), help=tenth)
    add("--draws", type=at_least(1), default=20, help="null samples for homology (default %(default)s)")
    add_seed(parser)
    add_mlflow(parser)
    add("--json", action="store_true", help="print the results as JSON instead of a table")
    add("--force", action="store_true", help="compute again even if results exist")
    add_batches(parser, workers=min(8, usable_cores()))
    given = parser.parse_args(arguments)
    if (given.targets is None) != (given.target_columns is None):
        raise UserError("--targets and --target-columns belong together: name the file and its columns")
    if given.jobs > 1 and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("--jobs starts its own processes; use either torchrun or --jobs, not both")
    if given.part and given.watch:
        raise UserError(
            "--part divides the checkpoints that are there, and --watch waits for more; use one of them"
        )
    return given


def add_checkpoints(parser: argparse.ArgumentParser) -> None:
    """Add the positional argument `names` and the option --every, which `inputs.find.find` takes."""
    parser.add_argument(
        "names",
        nargs="+",
        metavar="RUN_OR_CHECKPOINT",
        help="a run folder (its newest checkpoint), a folder of runs, a checkpoint folder or its weights, a "
        "timm model folder, a pattern that matches some of these, or the address of a run or checkpoint in "
        "its mirror (s3://…); isotorus eval without a sub-command also takes a file of features (.npy, .npz, "
        ".parquet)",
    )
    steps = "also take each checkpoint whose step is a multiple of STEPS"
    parser.add_argument("--every", type=at_least(1), metavar="STEPS", help=steps)


def add_data(parser: argparse.ArgumentParser, *, required: bool = True, several: bool = False) -> None:
    """Add the option --data: one packed data set, or a list of them if `several`."""
    images = "packed data sets with the images" if several else "packed data set with the images"
    count = "+" if several else None
    parser.add_argument("--data", required=required, nargs=count, metavar="SHARDS", help=images)


def add_batches(parser: argparse.ArgumentParser, *, workers: int | None = 0) -> None:
    """Add --batch-size and, unless `workers` is None, --workers with this default."""
    size = "images in a batch of one process (default %(default)s)"
    parser.add_argument("--batch-size", type=at_least(1), default=64, help=size)
    if workers is not None:
        decoders = "processes that decode images; 0 decodes in the main process (default %(default)s)"
        parser.add_argument("--workers", type=at_least(0), default=workers, help=decoders)


def add_key_column(parser: argparse.ArgumentParser) -> None:
    """Add --key-column, which belongs to --targets."""
    parser.add_argument("--key-column", default="key", help="column of --targets with the samples' keys")


def add_mlflow(parser: argparse.ArgumentParser) -> None:
    """Add --mlflow: results are sent to a run's MLflow run only if it lies in this store."""
    store = "MLflow store of the runs (default $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db)"
    parser.add_argument("--mlflow", metavar="URI", type=address, help=store)


def add_seed(parser: argparse.ArgumentParser) -> None:
    """Add --seed."""
    parser.add_argument(
        "--seed", type=_seed, default=0, help="seed of all random choices (default %(default)s)"
    )


def _seed(text: str) -> int:
    """Convert the argument of --seed to a number of 64 bits; for argparse's `type`."""
    value = int(text)
    if not -(2**63) <= value < 2**64:
        raise argparse.ArgumentTypeError(f"{text[:40]}: expected a number of at most 64 bits")
    return value


def at_least(least: int) -> Callable[[str], int]:
    """Return an argparse type for whole numbers that are not below `least`."""

    def whole(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text}: expected a whole number, {least} or more")
        return value

    return whole


def number_of_folds(text: str) -> int:
    """Convert the argument of --folds to a number; for argparse's `type`."""
    value = at_least(0)(text)
    if 0 < value < LEAST_FOLDS:
        raise argparse.ArgumentTypeError(
            f"{text}: expected 0 for a single split, or {LEAST_FOLDS} or more: one is scored, another one "
            "chooses the settings, the others are fitted"
        )
    return value


def above_zero(text: str) -> float:
    """Convert an argument to a positive float; for argparse's `type`."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: expected a number above 0")
    return value


def options(given: argparse.Namespace) -> "Options":
    """Turn parsed arguments into the options of an evaluation; raises UserError for an unknown name."""
    metrics = names(given.metrics, METRICS, "--metrics")
    metrics = tuple(name for name in METRICS if name in metrics or name in map(IMPLIED.get, metrics))
    baselines = names(given.baselines, BASELINES, "--baselines")
    features = None if given.features is None else names(given.features, FEATURE_SETS, "--features")
    useful: dict[str, Any] = {
        "metrics": tuple(name for name in metrics if name in USEFULNESS),
        "seed": given.seed,
        "folds": given.folds,
        "repeats": given.repeats,
    }
    if given.k:
        useful["k"] = numbers(given.k, "--k", 1, "10,20,100")
    if given.l2:
        useful["l2"] = _strengths(given.l2)
    # Imported here because they import torch, which takes seconds; a mistyped name is refused before that.
    from eval_suite import geometry, usefulness
    from eval_suite.options import Options

    return Options(
        useful=usefulness.Options(**useful),
        geometry=geometry.Options(
            metrics=tuple(name for name in metrics if name in GEOMETRY),
            samples=given.samples,
            landmarks=given.landmarks,
            draws=given.draws,
            seed=given.seed,
        ),
        baselines=baselines,
        initialisations=given.initialisations,
        features=features,
    )


def target_options(given: argparse.Namespace) -> list[str]:
    """Return those options of the command line that name the targets, as the user gave them."""
    of_table = ("targets", "target_columns", "key_column") if given.targets else ()
    values = {name: getattr(given, name) for name in (*of_table, "target_kind")}
    values["missing"] = None if given.missing is None else ",".join(given.missing)
    return [f"--{name.replace('_', '-')}={value}" for name, value in values.items() if value is not None]


def pass_on(given: argparse.Namespace) -> list[str]:
    """Return the arguments for a process that evaluates one of the checkpoints."""
    passed = "train val test targets target_columns key_column target_kind metrics baselines features k l2"
    passed += " initialisations samples landmarks draws folds repeats seed batch_size workers mlflow"
    values = {name: getattr(given, name) for name in passed.split()}
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in values.items() if value is not None]
    if given.missing is not None:
        arguments.append(f"--missing={','.join(given.missing)}")
    arguments += [f"--against={name}" for name in given.against]
    flags = [f"--{name.replace('_', '-')}" for name in ("force", "not_distances") if getattr(given, name)]
    return [*arguments, "--json", *flags]


def names(text: str, known: Sequence[str], option: str) -> tuple[str, ...]:
    """Split a list at its commas and return its names in the order of `known`.

    Raises UserError for a name that is not known, and for an empty list of metrics.
    """
    wanted = [name.strip() for name in text.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            near = nearest(name, known)
            hint = f"did you mean {near}?" if near else f"one of {', '.join(known)}"
            raise UserError(f"{option}: unknown name '{name}'; {hint}")
    if not wanted and option == "--metrics":
        raise UserError(f"--metrics is empty; give some of {', '.join(known)}")
    return tuple(name for name in known if name in wanted)


def numbers(text: str, option: str, least: int, example: str) -> tuple[int, ...]:
    """Split whole numbers at the commas; raises UserError for anything else and for one below `least`."""
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        values = (least - 1,)
    if min(values) < least:
        raise UserError(
            f"{option} {text}: expected whole numbers of {least} or more, e.g. {option} {example}"
        )
    return values


def _strengths(text: str) -> tuple[float, ...]:
    """Split the argument of --l2 at the commas; raises UserError for anything but numbers above 0."""
    try:
        return tuple(map(above_zero, text.split(",")))
    except argparse.ArgumentTypeError:
        raise UserError(f"--l2 {text}: expected numbers above 0, e.g. --l2 1e-6,1e-5,1e-4") from None
