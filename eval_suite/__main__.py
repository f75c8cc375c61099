"""`python -m eval_suite RUN_OR_CHECKPOINT… --train SHARDS --val SHARDS`, alone or under torchrun.

`python -m eval_suite layers …` shows every block through training, `winding …` says whether a torus head goes
round when an image does, `codes …` what its embedding is worth as an address, `duplicates …` which images it
takes for the same.
"""

import json
import logging
import os
import sys
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from eval_suite.arguments import options, parse, pass_on
from isotorus.errors import UserError, exit_code
from isotorus.processes import end_with_launcher

OTHERS = {
    "layers": "eval_suite.layers.command",
    "winding": "eval_suite.torus_head.winding",
    "codes": "eval_suite.torus_head.codes",
    "duplicates": "eval_suite.torus_head.duplicates",
}
"""Commands of their own, and the modules whose `main` they are; imported when asked for."""


def main() -> int:
    """Evaluate all that is named; exit code 0, 2 for what the user can mend, 1 if some of several failed."""
    end_with_launcher()
    if sys.argv[1:] and sys.argv[1] in OTHERS:
        code: int = import_module(OTHERS[sys.argv[1]]).main(sys.argv[2:])
        return code
    given = parse(sys.argv[1:])
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    chosen = options(given)
    # Imported here: they take seconds, which a mistyped option need not cost.
    import torch
    from accelerate import PartialState

    from eval_suite import batch, suite, terminal
    from eval_suite.inputs import find, vectors
    from eval_suite.inputs.splits import open_splits, targets_of
    from eval_suite.report import comparison

    splits = open_splits(given.train, given.val, given.test) if given.train and given.val else None
    if splits is None and (named := [name for name in given.names if not vectors.is_vectors(name)]):
        raise UserError(f"{named[0]} needs images to look at; name packed data sets with --train and --val")
    if given.watch and not find.runs(given.names):
        raise UserError(
            f"--watch: {given.names[0]} is no run, nor a folder of runs (no checkpoints/); name one"
        )
    columns = [name.strip() for name in (given.target_columns or "").split(",") if name.strip()]
    targets = (
        targets_of(splits, given.targets, given.key_column, columns, given.target_kind) if splits else {}
    )

    def tasks() -> list[batch.Task]:
        named = [name for name in given.names if not vectors.is_vectors(name)]
        found = find.find(named, given.every, waiting=given.watch)
        files = [Path(name) for name in given.names if vectors.is_vectors(name)]
        several = len(found) + len(files) > 1
        todo = []
        for c in found:
            step = str(c.step)
            out = _folder(given.out, c.run or c.folder, step, several and f"{c.name}-{step}")
            todo.append(batch.Task(f"{c.name}, step {step}", str(c.folder if c.run else c.weights), out))
        for file in files:
            out = _folder(given.out, file.parent, file.stem, several and file.stem)
            todo.append(batch.Task(file.stem, str(file), out))
        return todo

    def work(todo: list[batch.Task]) -> list[batch.Outcome]:
        quiet = given.json or not state.is_main_process
        if given.jobs > 1 and len(todo) > 1:
            outcomes = batch.side_by_side(todo, pass_on(given), given.jobs)
        elif len(todo) == 1 and not given.watch:
            outcomes = iter([batch.Outcome(todo[0], evaluate(todo[0]))])
        else:
            outcomes = batch.one_by_one(todo, evaluate, alone=state.num_processes == 1)
        return batch.follow(outcomes, len(todo), quiet=quiet)

    def evaluate(task: batch.Task) -> dict[str, Any]:
        if vectors.is_vectors(task.given):
            file = vectors.read(task.given)
            results = suite.evaluate_vectors(file, chosen, task.out, state, force=given.force)
        else:
            assert splits is not None
            (checkpoint,) = find.find([task.given])
            results = suite.evaluate(
                checkpoint,
                splits,
                targets,
                chosen,
                task.out,
                state,
                batch_size=given.batch_size,
                workers=given.workers,
                force=given.force,
            )
        if state.is_main_process:
            (task.out / batch.ERROR).unlink(missing_ok=True)  # of an attempt before
            published.append(terminal.publish(results, task.out))
        return results

    published: list[str] = []
    # Long: the others wait at the next checkpoint while the first process measures.
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(hours=12))
    try:
        if given.watch:
            outcomes = batch.watch(tasks, lambda: find.finished(given.names), work, given.poll)
        else:
            outcomes = work(tasks())
        if not state.is_main_process:
            return 0
        done = [outcome for outcome in outcomes if outcome.results is not None]
        if given.json:
            every = [outcome.results for outcome in done]
            print(json.dumps(every[0] if len(every) == len(outcomes) == 1 else every, indent=1))
        terminal.show(done, published, quiet=given.json)
        if len(done) > 1:
            out = Path(given.out) if given.out else _common([outcome.task.out for outcome in done])
            comparison.write([(o.results, o.task.out) for o in done if o.results], out)
            terminal.tell(f"comparison: {out / 'comparison.html'}, {out / 'results.csv'}", quiet=given.json)
    finally:
        state.destroy_process_group()
    failed = [outcome for outcome in outcomes if outcome.results is None]
    for outcome in failed:
        print(f"failed: {outcome.task.title}: {outcome.failure}", file=sys.stderr)
    return 1 if failed else 0


def _folder(out: str | None, home: Path, step: str, name: str | Literal[False]) -> Path:
    """Of results: HOME/eval/STEP, or `out`; with a name, where there are several, below it."""
    if out:
        return Path(out) / name if name else Path(out)
    return home / "eval" / step


def _common(folders: list[Path]) -> Path:
    """RUN/eval of several checkpoints of one run; of several runs, the eval folder beside them."""
    common = Path(os.path.commonpath([folder.absolute() for folder in folders]))
    return common if common.name == "eval" else common / "eval"


if __name__ == "__main__":
    sys.exit(exit_code(main))
