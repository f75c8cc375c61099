"""`python -m eval_suite RUN_OR_CHECKPOINT… --train SHARDS --val SHARDS`, alone or under torchrun."""

import argparse
import difflib
import json
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_pipeline.errors import ArgumentParser, UserError, exit_code

EPILOG = """examples:
  python -m eval_suite runs/elpv --train data/elpv/train --val data/elpv/val --test data/elpv/test
  torchrun --nproc-per-node 8 -m eval_suite runs/elpv --train … --val …     features over 8 processes

Results go to RUN/eval/<step>/: results.json, report.html, and features/, which may be deleted."""


def main() -> int:
    """Evaluate each checkpoint named; exit code 0, or 2 for what the user can mend."""
    given = parse(sys.argv[1:])
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    from eval_suite.splits import open_splits
    from eval_suite.suite import BASELINES, METRICS, Options, evaluate

    options = Options(
        metrics=_names(given.metrics, METRICS, "--metrics"),
        baselines=_names(given.baselines, BASELINES, "--baselines"),
        k=_counts(given.k) if given.k else None,
    )
    if given.workers < 0 or given.batch_size < 1:
        raise UserError("--workers takes 0 or more and --batch-size 1 or more")
    from eval_suite.checkpoints import resolve

    checkpoints = [resolve(name) for name in given.checkpoints]
    splits = open_splits(given.train, given.val, given.test)

    import torch
    from accelerate import PartialState

    # Long: the others wait at the next checkpoint while the first process fits probes.
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(hours=12))
    try:
        every = []
        for checkpoint in checkpoints:
            out = _folder(given.out, checkpoint, several=len(checkpoints) > 1)
            results = evaluate(
                checkpoint,
                splits,
                options,
                out,
                state,
                batch_size=given.batch_size,
                workers=given.workers,
                force=given.force,
            )
            if state.is_main_process:
                every.append(results)
                show(results, out, checkpoint.run, quiet=given.json)
        if given.json and state.is_main_process:
            print(json.dumps(every[0] if len(every) == 1 else every, indent=1))
    finally:
        state.destroy_process_group()
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m eval_suite",
        description="Compare a pretrained encoder with the same one untrained and with raw pixels.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoints",
        nargs="+",
        metavar="RUN_OR_CHECKPOINT",
        help="a run folder (its latest checkpoint), a checkpoint folder, or an encoder.safetensors",
    )
    parser.add_argument("--train", required=True, metavar="SHARDS", help="packed data set to fit on")
    parser.add_argument(
        "--val", required=True, metavar="SHARDS", help="packed data set to choose settings on"
    )
    parser.add_argument("--test", metavar="SHARDS", help="packed data set to report; without it, val is")
    parser.add_argument("--out", metavar="DIR", help="where results go; default RUN/eval/<step>")
    parser.add_argument("--metrics", default="probe,knn,rank", help="of probe, knn, rank (default: all)")
    parser.add_argument(
        "--baselines", default="untrained,pixels", help="of untrained, pixels (default: both)"
    )
    parser.add_argument("--k", metavar="10,20,100", help="neighbours to choose from on val")
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
    return parser.parse_args(arguments)


def show(results: dict[str, Any], out: Path, run: Path | None, *, quiet: bool) -> None:
    """Print the table and where everything is; log to the run's MLflow run if it has one."""
    from eval_suite import tracking
    from eval_suite.report import METHODS, reading

    console = Console(stderr=quiet)
    measured = results["representations"]
    if not quiet:
        which = results["checkpoint"]
        title = Text(f"{which['name']}, step {which['step']}, on {results['reported_on']}")
        table = Table(title=title, box=SIMPLE, pad_edge=False, collapse_padding=True)
        table.add_column("", no_wrap=True)
        methods = {m: title for m, title in METHODS.items() if m in measured["pretrained"]}
        for method in methods.values():
            table.add_column(f"{method}\nbalanced %", justify="right", no_wrap=True)
            table.add_column("\nAUROC %", justify="right", no_wrap=True)
        ranked = "rank" in measured["pretrained"]
        if ranked:
            table.add_column("eff.\nrank", justify="right")
        for name, found in measured.items():
            cells = [_cell(found[m], score) for m in methods for score in ("balanced_accuracy", "auroc")]
            rank = [f"{found['rank']['effective_rank']:.1f}"] if ranked else []
            table.add_row(name, *cells, *rank)
        console.print(table)
        console.print(reading(results), markup=False, highlight=False)
    lines = [f"report: {out / 'report.html'} (open it in a browser)"]
    record = tracking.store(run) if run else None
    if record and tracking.send(record, results, [out / "results.json", out / "report.html"]):
        uri = record["uri"]
        how = (
            "open it in a browser"
            if uri.startswith("http")
            else f"mlflow ui --backend-store-uri {shlex.quote(uri)}"
        )
        lines.append(f"MLflow: {uri} ({how})")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _cell(found: dict[str, Any], score: str) -> str:
    if found[score] is None:
        return "–"
    low, high = found[f"{score}_interval"]
    return f"{100 * found[score]:.1f} ({100 * low:.0f}–{100 * high:.0f})"


def _folder(out: str | None, checkpoint: Any, *, several: bool) -> Path:
    step = str(checkpoint.encoder.step)
    if out:
        return Path(out) / f"{checkpoint.name}-{step}" if several else Path(out)
    return (checkpoint.run or checkpoint.folder) / "eval" / step


def _names(given: str, known: Sequence[str], option: str) -> tuple[str, ...]:
    names = [name.strip() for name in given.split(",") if name.strip()]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(known)}"
            raise UserError(f"{option}: unknown name '{name}'; {hint}")
    if not names and option == "--metrics":
        raise UserError(f"--metrics names none; give some of {', '.join(known)}")
    return tuple(name for name in known if name in names)


def _counts(given: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in given.split(","))
    except ValueError:
        counts = (0,)
    if min(counts) < 1:
        raise UserError(f"--k {given}: expected whole numbers above 0, e.g. --k 10,20,100")
    return counts


if __name__ == "__main__":
    sys.exit(exit_code(main))
