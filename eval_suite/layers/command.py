"""`python -m eval_suite layers RUN_OR_CHECKPOINT… --data SHARDS`: every block of every checkpoint named."""

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval_suite.arguments import names
from eval_suite.layers import quantities
from isotorus.errors import ArgumentParser, UserError

EPILOG = """examples:
  python -m eval_suite layers runs/elpv --every 100 --data data/elpv/val
  python -m eval_suite layers runs/elpv --data … --metrics rank,holonomy
  python -m eval_suite layers runs/elpv --data … --metrics list          names, and what each would cost

Results go to RUN/eval/layers/: layers.html, one page with everything in it, and layers.json."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m eval_suite layers",
        description="How geometry changes through the blocks of an encoder and over its training.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="+", metavar="RUN_OR_CHECKPOINT", help="as for python -m eval_suite")
    parser.add_argument("--data", required=True, metavar="SHARDS", help="packed images to look at")
    parser.add_argument("--out", metavar="DIR", help="where results go; default RUN/eval/layers")
    parser.add_argument(
        "--every", type=int, metavar="STEPS", help="also checkpoints of multiples of these steps"
    )
    parser.add_argument(
        "--metrics",
        default=",".join(quantities.DEFAULT),
        help="of "
        + ", ".join(quantities.NAMES)
        + "; list shows them; default: all but holonomy and curvature",
    )
    parser.add_argument("--images", type=int, default=500, help="how many are drawn (default 500)")
    parser.add_argument("--few", type=int, default=8, help="images for what needs derivatives (default 8)")
    parser.add_argument(
        "--targets",
        metavar="FILE",
        help="CSV or Parquet with a periodic label, for angle; else images are turned",
    )
    parser.add_argument("--period", metavar="COLUMN=PERIOD", help="of --targets, such as hour=24")
    parser.add_argument("--key-column", default="key", help="of --targets: keys of samples (default key)")
    parser.add_argument("--seed", type=int, default=0, help="of all random choices (default 0)")
    parser.add_argument("--batch-size", type=int, default=64, help="images at a time (default 64)")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    given = parser.parse_args(arguments)
    for name in ("images", "few", "every", "batch_size"):
        if (value := getattr(given, name)) is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: expected a number above 0")
    if given.images < 10:
        raise UserError(f"--images {given.images}: a cloud takes 10 or more")
    if (given.targets is None) != (given.period is None):
        raise UserError("--targets and --period go together: the file, and COLUMN=PERIOD of it")
    return given


def main(arguments: Sequence[str]) -> int:
    """Exit code 0; 1 if some of several checkpoints failed; UserError for what the user can mend."""
    given = parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    listing = given.metrics.strip() == "list"
    chosen = quantities.NAMES if listing else names(given.metrics, quantities.NAMES, "--metrics")
    # Imported here: they take seconds, which a mistyped option need not cost.
    from data_pipeline.dataset.index import Dataset
    from eval_suite import results, terminal
    from eval_suite.inputs import find
    from eval_suite.layers import page, series

    dataset = Dataset(given.data)
    checkpoints = sorted(
        find.find(given.names, given.every), key=lambda c: (str(c.run or c.folder), c.encoder.step)
    )
    labels = (
        series.periodic(dataset, given.targets, given.period, given.key_column) if given.targets else None
    )
    survey = series.Survey(dataset, labels, given.images, given.few, given.batch_size, given.seed)
    estimate = survey.estimate(checkpoints[0], chosen)
    if listing:
        series.show_costs(estimate)
        return 0
    homes = {c.run or c.folder.parent for c in checkpoints}
    if given.out is None and len(homes) > 1:
        raise UserError(f"{len(homes)} runs are named; say with --out where the page of all should go")
    out = Path(given.out) if given.out else homes.pop() / "eval" / "layers"
    results.make_folder(out)
    seconds = sum(estimate.values()) * len(checkpoints)
    terminal.tell(f"{len(checkpoints)} checkpoints, about {series.duration(seconds)}", quiet=given.json)
    started = time.monotonic()
    found: dict[str, Any] = {
        "format": 1,
        "inputs": {
            "data": str(given.data),
            "data_fingerprint": dataset.fingerprint,
            "images": min(given.images, len(dataset)),
            "few": given.few,
            "seed": given.seed,
            "metrics": list(chosen),
            "periodic_label": given.period or "the angle that images are turned by",
        },
        **survey.measure(checkpoints, chosen, quiet=given.json),
    }
    found["seconds"] = round(time.monotonic() - started, 1)
    found = results.json_safe(found)
    failures = found["failures"]
    for failure in failures:
        print(f"failed: {failure['title']}: {failure['reason']}", file=sys.stderr)
    if not any(group["checkpoints"] for group in found["runs"]):
        return 1 if len(failures) > 1 else 2
    results.write(out / "layers.json", results.as_json(found))
    results.write(out / "layers.html", page.render(found))
    if given.json:
        print(json.dumps(found, indent=1))
    for line in series.publish(found, out):
        terminal.tell(line, quiet=given.json)
    terminal.tell(f"page: {out / 'layers.html'} (open it in a browser)", quiet=given.json)
    return 1 if failures else 0
