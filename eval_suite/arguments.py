"""The command line of the evaluation: what may be said, and what is refused."""

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from eval_suite.names import BASELINES, FEATURE_SETS, GEOMETRY, METRICS, USEFULNESS
from isotorus.errors import ArgumentParser, UserError
from isotorus.names import nearest

if TYPE_CHECKING:
    from eval_suite.options import Options

EPILOG = """examples:
  python -m eval_suite runs/elpv --train data/elpv/train --val data/elpv/val --test data/elpv/test
  python -m eval_suite runs/elpv --every 1000 --jobs 2 --train … --val …    many, and a comparison
  python -m eval_suite runs/elpv --every 1000 --watch --train … --val …      while it trains
  torchrun --nproc-per-node 8 -m eval_suite runs/elpv --train … --val …      features over 8 processes
  python -m eval_suite features.npz                                          vectors from elsewhere
  python -m eval_suite winding --help                    does a torus head go round when an image does
  python -m eval_suite codes --help                      what embeddings are worth as addresses

Results go to RUN/eval/<step>/: results.json, report.html, and features/, which may be deleted."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m eval_suite",
        description="What a pretrained encoder is good for, beside the same one untrained and raw pixels, "
        "and what geometry its embedding has.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names",
        nargs="+",
        metavar="RUN_OR_CHECKPOINT",
        help="a run folder (its latest checkpoint), a folder of runs, a checkpoint folder or its weights, a "
        "timm model folder, a pattern that matches some, or a features file (.npy, .npz, .parquet)",
    )
    parser.add_argument("--train", metavar="SHARDS", help="packed data set to fit on")
    parser.add_argument("--val", metavar="SHARDS", help="packed data set to choose settings on")
    parser.add_argument("--test", metavar="SHARDS", help="packed data set to report; without it, val is")
    parser.add_argument(
        "--targets",
        metavar="FILE",
        help="CSV or Parquet that says what is to be predicted, in place of the packed labels",
    )
    parser.add_argument("--target-columns", metavar="A,B,…", help="of --targets: what is to be predicted")
    parser.add_argument("--key-column", default="key", help="of --targets: keys of samples (default key)")
    parser.add_argument(
        "--target-kind", choices=["multiclass", "multilabel", "regression"], help="default: by the values"
    )
    parser.add_argument(
        "--every", type=int, metavar="STEPS", help="also checkpoints of multiples of these steps"
    )
    parser.add_argument("--jobs", type=int, default=1, help="evaluations at a time (default 1)")
    parser.add_argument(
        "--watch", action="store_true", help="go on as runs write checkpoints, until they end"
    )
    parser.add_argument("--poll", type=float, default=30.0, metavar="SECONDS", help="of --watch (default 30)")
    parser.add_argument("--out", metavar="DIR", help="where results go; default RUN/eval/<step>")
    parser.add_argument("--metrics", default=",".join(METRICS), help="of %(default)s (default: all)")
    parser.add_argument(
        "--baselines", default=",".join(BASELINES), help="of untrained, pixels (default: both)"
    )
    parser.add_argument(
        "--features",
        metavar="NAMES",
        help="of embedding (always kept), patch_mean, last2, last4, projector, angles (default: all)",
    )
    parser.add_argument("--k", metavar="10,20,100", help="neighbours to choose from on val")
    parser.add_argument("--samples", type=int, default=10_000, help="most for the geometry (default 10000)")
    parser.add_argument("--landmarks", type=int, default=500, help="points for homology (default 500)")
    parser.add_argument("--draws", type=int, default=20, help="null draws of homology (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="of all random choices (default 0)")
    parser.add_argument("--json", action="store_true", help="print the results as JSON instead of the table")
    parser.add_argument("--force", action="store_true", help="compute again what is there already")
    parser.add_argument(
        "--batch-size", type=int, default=64, help="images at a time and process (default 64)"
    )
    workers = min(
        8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    parser.add_argument(
        "--workers", type=int, default=workers, help="decoders a process (default %(default)s)"
    )
    given = parser.parse_args(arguments)
    _check(given)
    return given


def options(given: argparse.Namespace) -> "Options":
    """Raises UserError for a name that is none."""
    metrics = names(given.metrics, METRICS, "--metrics")
    baselines = names(given.baselines, BASELINES, "--baselines")
    features = None if given.features is None else names(given.features, FEATURE_SETS, "--features")
    useful: dict[str, Any] = {
        "metrics": tuple(name for name in metrics if name in USEFULNESS),
        "seed": given.seed,
    }
    if given.k:
        useful["k"] = numbers(given.k, "--k", 1, "10,20,100")
    # Imported here: they import torch, which takes seconds that a mistyped name need not cost.
    from eval_suite import usefulness
    from eval_suite.options import Options

    return Options(
        metrics=tuple(name for name in metrics if name in GEOMETRY),
        useful=usefulness.Options(**useful),
        baselines=baselines,
        features=features,
        samples=given.samples,
        landmarks=given.landmarks,
        draws=given.draws,
        seed=given.seed,
    )


def pass_on(given: argparse.Namespace) -> list[str]:
    """The options for a process that evaluates one of the checkpoints."""
    names = (
        "train val test targets target_columns key_column target_kind metrics baselines features k samples"
    )
    names += " landmarks draws seed batch_size workers"
    said = [
        word
        for name in names.split()
        if (value := getattr(given, name)) is not None
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    return [*said, "--json", *(["--force"] if given.force else [])]


def _check(given: argparse.Namespace) -> None:
    if given.workers < 0 or given.batch_size < 1:
        raise UserError("--workers takes 0 or more and --batch-size 1 or more")
    for name in ("samples", "landmarks", "draws", "jobs", "every", "poll"):
        if (value := getattr(given, name)) is not None and value <= 0:
            raise UserError(f"--{name} {value}: expected a number above 0")
    if (given.targets is None) != (given.target_columns is None):
        raise UserError("--targets and --target-columns go together: the file, and what of it to predict")
    if given.jobs > 1 and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("--jobs starts processes of its own; leave out torchrun, or --jobs")


def names(given: str, known: Sequence[str], option: str) -> tuple[str, ...]:
    """What a list between commas names, in the order of `known`; UserError for a name that is none."""
    wanted = [name.strip() for name in given.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            near = nearest(name, known)
            hint = f"did you mean {near}?" if near else f"one of {', '.join(known)}"
            raise UserError(f"{option}: unknown name '{name}'; {hint}")
    if not wanted and option == "--metrics":
        raise UserError(f"--metrics names none; give some of {', '.join(known)}")
    return tuple(name for name in known if name in wanted)


def numbers(given: str, option: str, least: int, example: str) -> tuple[int, ...]:
    """Whole numbers between commas; UserError for anything else, and for one below `least`."""
    try:
        found = tuple(int(part) for part in given.split(","))
    except ValueError:
        found = (least - 1,)
    if min(found) < least:
        raise UserError(
            f"{option} {given}: expected whole numbers of {least} or more, e.g. {option} {example}"
        )
    return found
