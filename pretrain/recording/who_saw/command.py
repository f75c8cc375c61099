"""`isotorus who-saw DEST KEY…`: name the runs and checkpoints that trained on some images."""

import json
from pathlib import Path
from typing import Any

from data_pipeline.dataset.description import subsets
from data_pipeline.dataset.index import Dataset
from data_pipeline.withdrawal.choose import find, read_keys
from isotorus.errors import ArgumentParser, UserError, one_line
from pretrain.recording.who_saw import runs
from pretrain.recording.who_saw.past_sets import States, states
from pretrain.recording.who_saw.runs import Checkpoint, Sight

_SHOWN = 4
"""Largest number of checkpoints that a line names."""


def main(arguments: list[str]) -> int:
    """Run the command."""
    parser = ArgumentParser(
        prog="isotorus who-saw",
        description="Name the runs and checkpoints that trained on some images, and the evaluations whose "
        "probes were fitted on them. The sample order is a function of seed and step, so the step in which "
        "an image was first seen is computed. Images that were removed can be asked for too.",
    )
    add = parser.add_argument
    add("dest", metavar="DEST", help="folder or URL of a data set, or folder with those of a split")
    add("keys", nargs="*", metavar="KEY", help="keys or paths of images")
    add("--keys", dest="file", type=Path, metavar="FILE", help="text file with one of them on each line")
    add("--group", action="append", default=[], metavar="GROUP", help="group of images, such as a patient")
    where = "runs, or folders of runs, to look at (default: runs)"
    add("--runs", nargs="+", type=Path, default=[Path("runs")], metavar="FOLDER", help=where)
    add("--json", action="store_true", help="print JSON, for scripts")
    args = parser.parse_args(arguments)
    keys = [*args.keys, *(read_keys(args.file) if args.file else [])]
    if not keys and not args.group:
        raise UserError("no image is named; give its key, --keys FILE or --group GROUP")

    folders = subsets(args.dest) or [args.dest]
    names = find({folder: Dataset(folder) for folder in folders}, keys, args.group)
    asked: States = {}
    for folder in folders:
        asked |= states(folder, names)
    saved: dict[Path, list[Checkpoint]] = {}
    sights: dict[Path, Sight] = {}
    untold: dict[Path, str] = {}
    for run in runs.find_runs(args.runs):
        try:
            saved[run] = runs.checkpoints(run)
            if not saved[run]:
                raise UserError("it has no complete checkpoint")
            if found := runs.sight(run, saved[run], asked):
                sights[run] = found
        except (UserError, OSError, ValueError) as error:
            untold[run] = one_line(str(error))
    for found in runs.inherited(saved, sights):
        sights[found.run] = found
        untold.pop(found.run, None)
    others = len(saved.keys() - sights.keys() - untold.keys())
    print(_as_json(sights, untold, others) if args.json else _as_text(sights, untold, others))
    return 0


def _as_text(sights: dict[Path, Sight], untold: dict[Path, str], others: int) -> str:
    """Return a line for each run, and what to do."""
    lines = []
    for sight in sights.values():
        said = f"trained on {sight.images} of these images, first in step {sight.first_step}"
        if sight.weights:
            said = f"began with {sight.weights}, which has seen them"
        elif not sight.images:
            said = "did not train on them"
        lines.append(f"{one_line(str(sight.run))}: {one_line(said)}")
        lines.append(f"  checkpoints after that: {_names(sight.checkpoints)}; before: {_names(sight.before)}")
        if sight.results:
            lines.append(f"  probes fitted on them: {', '.join(one_line(str(p)) for p in sight.results)}")
        if sight.replaced:
            lines.append(
                f"  {sight.replaced} damaged images were replaced by others, which may be among these images"
            )
    lines += [f"{one_line(str(run))}: not known: {reason}" for run, reason in untold.items()]
    count = len(sights)
    lines.append(f"runs affected: {count}; not affected: {others}; not known: {len(untold)}")
    if count:
        lines.append(
            "next: delete the checkpoints after that step and what was exported from them, and train those "
            "runs again without the images (isotorus remove, isotorus compact)"
        )
    return "\n".join(lines)


def _names(paths: list[Path]) -> str:
    """Name checkpoints; the first and the last where there are many."""
    names = [path.name for path in paths]
    if len(names) > _SHOWN:
        names = [*names[:2], f"… ({len(names) - 3} more)", names[-1]]
    return ", ".join(names) or "none"


def _as_json(sights: dict[Path, Sight], untold: dict[Path, str], others: int) -> str:
    """Return the answer as JSON."""
    found: list[dict[str, Any]] = [
        {
            "run": str(sight.run),
            "images": sight.images,
            "first_step": sight.first_step,
            "checkpoints": list(map(str, sight.checkpoints)),
            "before": list(map(str, sight.before)),
            "results": list(map(str, sight.results)),
            "replaced": sight.replaced,
            "weights": sight.weights,
        }
        for sight in sights.values()
    ]
    cannot = {str(run): reason for run, reason in untold.items()}
    return json.dumps({"runs": found, "not_affected": others, "cannot_be_told": cannot}, indent=1)
