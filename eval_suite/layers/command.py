"""The sub-command `isotorus eval layers`: the geometry of every block of every checkpoint."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval_suite import arguments
from eval_suite.layers import quantities
from isotorus import mlflow_store
from isotorus.errors import ArgumentParser, UserError
from isotorus.numbers import duration

EPILOG = """examples:
  isotorus eval layers runs/elpv --every 100 --data data/elpv/val
  isotorus eval layers runs/elpv --data … --metrics rank,holonomy
  isotorus eval layers runs/elpv --data … --metrics list          all metrics with their cost

Results go to RUN/eval/layers/: layers.html, a page with everything in it, and layers.json."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of the sub-command; raises UserError for values that cannot work."""
    parser = ArgumentParser(
        prog="isotorus eval layers",
        description="Measure the geometry of every block of an encoder in each checkpoint, and draw a heat\n"
        "map of checkpoints by blocks for each metric.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_checkpoints(parser)
    arguments.add_data(parser)
    parser.add_argument("--out", metavar="DIR", help="folder for the results (default RUN/eval/layers)")
    parser.add_argument(
        "--metrics",
        default=",".join(quantities.DEFAULT),
        help=f"what to measure: some of {', '.join(quantities.NAMES)}; list prints what each one costs "
        "(default: all but holonomy, bending and curvature)",
    )
    parser.add_argument(
        "--images",
        type=arguments.at_least(10),
        default=500,
        help="images to measure on (default %(default)s)",
    )
    parser.add_argument(
        "--few",
        type=arguments.at_least(1),
        default=8,
        help="images for the metrics contraction, stability and holonomy, which need derivatives "
        "(default %(default)s)",
    )
    parser.add_argument(
        "--targets",
        metavar="FILE",
        help="CSV or Parquet file with a periodic label for the metric angle (default: images are rotated, "
        "and the label is the angle of rotation)",
    )
    parser.add_argument(
        "--period", metavar="COLUMN=PERIOD", help="column of --targets and its period, such as hour=24"
    )
    arguments.add_key_column(parser)
    arguments.add_seed(parser)
    arguments.add_mlflow(parser)
    arguments.add_batches(parser, workers=None)
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    args = parser.parse_args(argv)
    if (args.targets is None) != (args.period is None):
        raise UserError("--targets and --period go together: the file, and COLUMN=PERIOD of it")
    return args


def main(argv: Sequence[str]) -> int:
    """Run the sub-command and return its exit code; raises UserError for arguments that cannot work.

    The code is 0, or 2 if the only checkpoint failed, or 1 if some or all of several checkpoints failed.
    """
    args = parse(argv)
    listing = args.metrics.strip() == "list"
    chosen = quantities.NAMES if listing else arguments.names(args.metrics, quantities.NAMES, "--metrics")
    # Imported here because they take seconds; a mistyped option is refused before that.
    from data_pipeline.dataset.index import Dataset
    from eval_suite import results, terminal
    from eval_suite.inputs import find
    from eval_suite.layers import page, series

    dataset = Dataset(args.data)
    found, unread = series.readable(find.find(args.names, args.every))
    checkpoints = [checkpoint.for_images_of(dataset) for checkpoint in found]
    labels = series.periodic(dataset, args.targets, args.period, args.key_column) if args.targets else None
    survey = series.Survey(dataset, labels, args.images, args.few, args.batch_size, args.seed)
    estimate = survey.estimate_first(checkpoints, chosen)
    if listing:
        series.show_costs(estimate)
        return 0
    homes = {c.run or c.folder.parent for c in checkpoints}
    if args.out is None and len(homes) > 1:
        raise UserError(f"{len(homes)} runs are named; say with --out where the page of all should go")
    runs, home = len(homes), homes.pop()
    name = "layers-average" if all(c.is_average for c in checkpoints) else "layers"
    out = Path(args.out) if args.out else home / "eval" / name
    results.make_folder(out, home)
    seconds = sum(estimate.values()) * (len(checkpoints) + runs)  # and each run's encoder untrained
    terminal.tell(f"{len(checkpoints)} checkpoints, about {duration(max(seconds, 1.0))}", quiet=args.json)
    started = time.monotonic()
    measured: dict[str, Any] = {
        "format": 2,
        "inputs": {
            "data": str(args.data),
            "data_fingerprint": dataset.fingerprint,
            "images": min(args.images, len(dataset)),
            "few": args.few,
            "seed": args.seed,
            "metrics": list(chosen),
            "periodic_label": args.period or "the angle that images are turned by",
        },
        **survey.measure(checkpoints, chosen, quiet=args.json),
    }
    measured["seconds"] = round(time.monotonic() - started, 1)
    measured = results.json_safe(measured)
    failures = measured["failures"] = [*unread, *measured["failures"]]
    for failure in failures:
        print(f"failed: {failure['title']}: {failure['reason']}", file=sys.stderr)
    if not any(group["checkpoints"] for group in measured["runs"]):
        return 1 if len(failures) > 1 else 2
    results.write(out / "layers.json", results.as_json(measured))
    results.write_page(out / "layers.html", lambda: page.render(measured))
    if args.json:
        print(json.dumps(measured, indent=1))
    for line in series.publish(measured, out, mlflow_store.own(args.mlflow)):
        terminal.tell(line, quiet=args.json)
    terminal.tell(f"page: {out / 'layers.html'} (open it in a browser)", quiet=args.json)
    return 1 if failures else 0
