"""The evaluation command: find what is named, evaluate each of them, then show and compare the results."""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from data_pipeline.targets.targets import Targets
from eval_suite import batch, progress, suite, terminal, tracking
from eval_suite.arguments import pass_on, target_options
from eval_suite.features import compared
from eval_suite.features.cache import FOLDER as CACHE
from eval_suite.inputs import against, find, vectors
from eval_suite.inputs.against import Against
from eval_suite.inputs.checkpoints import Checkpoint
from eval_suite.inputs.splits import Splits, open_splits, targets_of
from eval_suite.options import Options
from eval_suite.report import best_checkpoint, comparison, over_seeds
from eval_suite.results import finished, refuse_copy
from isotorus import foreign_files, mlflow_store
from isotorus.errors import UserError


def run(given: argparse.Namespace, options: Options) -> int:
    """Evaluate everything that the arguments name; returns the exit code, 1 if an evaluation failed."""
    splits, targets = _data(given)
    others = against.Against()
    if splits is not None and _checkpoints(given):
        others = against.named(given.against, splits, partial(compared.check, splits=splits))
    # Long, because the other processes wait at the next checkpoint while the first one measures.
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(hours=12))
    command = _Command(given, options, splits, targets, others, state, published=[], embedded=set())
    try:
        if given.watch:
            outcomes = batch.watch(command.tasks, command.finished, command.evaluate_all, given.poll)
        else:
            every = command.tasks()
            outcomes = command.evaluate_all(given.part.of_list(every) if given.part else every, every)
        if not state.is_main_process:
            return 0
        left = 0
        if given.part:
            outcomes, left = command.with_other_parts(every, outcomes)
        _show(given, outcomes, command.published, left)
    finally:
        state.destroy_process_group()
    failed = [outcome for outcome in outcomes if outcome.results is None]
    for outcome in failed:
        print(f"failed: {outcome.task.title}: {outcome.failure}", file=sys.stderr)
    return 1 if failed else 0


@dataclass(frozen=True)
class _Command:
    """The arguments of one call of the command, with the data sets and processes that they stand for."""

    given: argparse.Namespace
    options: Options
    splits: Splits | None
    targets: Mapping[str, Targets]
    against: Against
    state: PartialState
    published: list[str]
    """Lines that say where results were sent to."""
    embedded: set[Path]
    """Weights of the checkpoints whose features this call has put into the cache."""

    def tasks(self) -> list[batch.Task]:
        """Find the checkpoints and files of features that are named, and choose a folder for each."""
        given = self.given
        checkpoints = find.find(_checkpoints(given), given.every, waiting=given.watch)
        files = [Path(name) for name in given.names if vectors.is_vectors(name)]
        several = len(checkpoints) + len(files) > 1

        def folder(home: Path, step: str, name: str) -> Path:
            if not given.out:
                refuse_copy(home)
                return home / "eval" / step
            return Path(given.out) / name if several else Path(given.out)

        tasks = []
        for c in checkpoints:
            try:
                step = c.results_name
            except UserError:  # which its own evaluation reports
                step = "unknown"
            out = folder(c.run or c.folder, step, f"{c.name}-{step}")
            given_again = str(c.folder if c.run and not c.is_average else c.weights)
            tasks.append(batch.Task(f"{c.name}, step {step}", given_again, out))
        for file in files:
            tasks.append(batch.Task(file.stem, str(file), folder(file.parent, file.stem, file.stem)))
        return tasks

    def finished(self) -> bool:
        """Say whether all runs that are named have the checkpoint of their last step."""
        return find.finished(self.given.names)

    def evaluate_all(
        self, tasks: list[batch.Task], every: Sequence[batch.Task] | None = None
    ) -> list[batch.Outcome]:
        """Evaluate each, or several at the same time; one that fails does not stop the others.

        `every` are the tasks of all parts. The parts use one cache, and so share the features of what every
        checkpoint is compared with.
        """
        given = self.given
        cache = self.cache(every or tasks)
        self.share(tasks, cache)
        if given.jobs > 1 and len(tasks) > 1:
            passed = [*pass_on(given), f"--cache={cache}"]
            outcomes = batch.side_by_side(tasks, passed, given.jobs)
        elif len(tasks) == 1 and not given.watch:
            progress.evaluating(tasks[0].title)
            outcomes = iter([batch.Outcome(tasks[0], self.evaluate(tasks[0], cache))])
        else:
            evaluate = partial(self.evaluate, cache=cache)
            outcomes = batch.one_by_one(tasks, evaluate, alone=self.state.num_processes == 1)
        return batch.follow(outcomes, len(tasks), quiet=given.json or not self.state.is_main_process)

    def cache(self, tasks: Sequence[batch.Task]) -> Path:
        """Return the folder of the features that the evaluations share."""
        given = self.given
        if given.cache or given.out:
            return Path(given.cache or Path(given.out) / CACHE)
        # A run that is watched may get its first checkpoint after others have been evaluated.
        watched = [run / "eval" for run in find.runs(given.names)] if given.watch else []
        embedded = [task.out.parent for task in tasks if not vectors.is_vectors(task.given)]
        common = _common(watched or embedded or [task.out.parent for task in tasks])
        foreign_files.inside(common / CACHE, common.parent)
        return common / CACHE

    def share(self, tasks: Sequence[batch.Task], cache: Path) -> None:
        """Embed the images once for all checkpoints without results, so that each is decoded once."""
        given, state, splits = self.given, self.state, self.splits
        if splits is None or (given.jobs > 1 and given.force):  # those processes would embed them again
            return
        unfinished: list[Checkpoint] = []
        for task in tasks if state.is_main_process else ():
            with suppress(UserError):  # which its own evaluation reports
                if not vectors.is_vectors(task.given) and (found := self._unfinished(task, splits)):
                    unfinished.append(found)
        agreed = [unfinished]
        broadcast_object_list(agreed)
        # On several GPUs each evaluation embeds its own checkpoint, as they do so at the same time.
        alone = given.jobs > 1 and torch.cuda.device_count() > 1
        if len(agreed[0]) < 2:
            return
        progress.evaluating(f"features of {len(agreed[0])} checkpoints")
        how = {"batch_size": given.batch_size, "workers": given.workers, "force": given.force}
        for chunk in compared.chunks(agreed[0], splits):
            groups = [suite.compared_with(c, splits, self.against, self.options) for c in chunk]
            if alone:
                groups = [group[1:] for group in groups if group[1:]]
            done = compared.embed_together(groups, splits, cache, state, **how)
            self.embedded.update(chunk[number].weights for number in done if not alone)

    def with_other_parts(
        self, every: Sequence[batch.Task], own: list[batch.Outcome]
    ) -> tuple[list[batch.Outcome], int]:
        """Return the outcomes of `every` task and 0 if the other parts have finished; else the outcomes in
        `own`, and the number of tasks that are not finished.

        So the part that finishes last has all outcomes, and compares them.
        """
        found = {outcome.task.out: outcome for outcome in own}
        for task in [task for task in every if task.out not in found]:
            results = None
            with suppress(UserError):  # the part that evaluates the task reports the error
                results = self._finished(task)
            if results is not None:
                found[task.out] = batch.Outcome(task, results)
        left = len(every) - len(found)
        return (own, left) if left else ([found[task.out] for task in every], 0)

    def _finished(self, task: batch.Task) -> dict[str, Any] | None:
        """Return the results of a task that were written with the same options; None if there are none."""
        if vectors.is_vectors(task.given):
            file, others = self._vectors(task)
            how = (self.given.target_kind, self.given.missing)
            return finished(task.out, suite.inputs_of_vectors(file, self.options, others, *how))
        assert self.splits is not None
        return self._written(task, _checkpoint(task, self.splits), self.splits)

    def _unfinished(self, task: batch.Task, splits: Splits) -> Checkpoint | None:
        """Return the checkpoint of a task, None if its results are there already."""
        checkpoint = _checkpoint(task, splits)
        return None if self._written(task, checkpoint, splits) and not self.given.force else checkpoint

    def _written(self, task: batch.Task, checkpoint: Checkpoint, splits: Splits) -> dict[str, Any] | None:
        """Return the results in the folder of a task; None if they depend on something that has changed."""
        inputs = suite.inputs_of(checkpoint, splits, self.targets, self.options, self.against, self.state)
        return finished(task.out, inputs)

    def _vectors(self, task: batch.Task) -> tuple[vectors.Vectors, Against]:
        """Read the file of features of a task, and the files that it is compared with."""
        file = vectors.read(task.given, not_distances=self.given.not_distances)
        return file, against.beside(self.given.against, file)

    def evaluate(self, task: batch.Task, cache: Path) -> dict[str, Any]:
        """Evaluate one checkpoint or file of features and publish the results; returns them."""
        given, state = self.given, self.state
        if vectors.is_vectors(task.given):
            file, others = self._vectors(task)
            how = {"kind": given.target_kind, "missing": given.missing, "force": given.force}
            results = suite.evaluate_vectors(file, self.options, task.out, state, against=others, **how)
        else:
            assert self.splits is not None
            checkpoint = _checkpoint(task, self.splits)
            how = {
                "against": self.against,
                "cache": cache,
                "embedded": checkpoint.weights in self.embedded,
                "batch_size": given.batch_size,
                "workers": given.workers,
                "force": given.force,
                "asked": target_options(given),
            }
            results = suite.evaluate(
                checkpoint, self.splits, self.targets, self.options, task.out, state, **how
            )
        if state.is_main_process:
            (task.out / batch.ERROR).unlink(missing_ok=True)  # from an earlier attempt
            self.published.append(tracking.publish(results, task.out, mlflow_store.own(given.mlflow)))
        return results


def _data(given: argparse.Namespace) -> tuple[Splits | None, dict[str, Targets]]:
    """Open the data sets and their targets; files of features need neither."""
    splits = open_splits(given.train, given.val, given.test) if given.train and given.val else None
    if splits is None and (named := _checkpoints(given)):
        raise UserError(f"{named[0]} needs images; name packed data sets with --train and --val")
    if given.watch and not find.runs(given.names):
        raise UserError(
            f"--watch: {given.names[0]} is neither a run nor a folder of runs (no checkpoints/); name one"
        )
    files = [name for name in given.names if vectors.is_vectors(name)]
    if given.targets and files:
        raise UserError(
            f"--targets names samples of packed data sets, which {files[0]} does not have; put the labels "
            "into that file, and evaluate it without --targets"
        )
    if given.missing is not None and not given.targets and not files:
        raise UserError("--missing is about a table; packed labels have none, give one with --targets")
    if splits is None:
        return None, {}
    columns = [name.strip() for name in (given.target_columns or "").split(",") if name.strip()]
    of = given.targets, given.key_column, columns, given.target_kind, given.missing
    return splits, targets_of(splits, *of)


def _checkpoint(task: batch.Task, splits: Splits) -> Checkpoint:
    """Return the checkpoint of a task, for images with the channels that these splits have."""
    (found,) = find.find([task.given])
    return found.for_images_of(*splits.items().values())


def _checkpoints(given: argparse.Namespace) -> list[str]:
    return [name for name in given.names if not vectors.is_vectors(name)]


def _show(
    given: argparse.Namespace, outcomes: Sequence[batch.Outcome], published: Sequence[str], left: int
) -> None:
    """Print the results, and write the comparison if there are several.

    `left` is the number of tasks that other parts have not finished; there is no comparison until it is 0.
    """
    done = [outcome for outcome in outcomes if outcome.results is not None]
    results = [outcome.results for outcome in done if outcome.results is not None]
    folders = [outcome.task.out for outcome in done]
    if given.json:
        print(json.dumps(results[0] if len(results) == len(outcomes) == 1 else results, indent=1))
    evaluated = [over_seeds.Evaluated(*each) for each in zip(results, folders, strict=True)]
    compared = comparison.compare(evaluated) if len(done) > 1 and not left else None
    terminal.show(done, published, compared, quiet=given.json)
    if left:
        line = (
            f"part {given.part}: {len(outcomes)} evaluated, {left} left to other parts; the part that ends "
            "last compares all"
        )
        terminal.tell(line, quiet=given.json)
    if compared is not None:
        out = Path(given.out) if given.out else _common(folders)
        comparison.write(compared, out)
        terminal.tell(f"comparison: {out / 'comparison.html'}, {out / 'results.csv'}", quiet=given.json)
        links, refused = best_checkpoint.link(evaluated)
        said = [f"best: {place} → {folder.name}" for place, folder in links.items()]
        if len(said) > terminal.SHOWN:
            said = [f"best: linked as {next(iter(links))}, and so for {len(links) - 1} more runs"]
        for line in (*said, *refused):
            terminal.tell(line, quiet=given.json)


def _common(folders: Sequence[Path]) -> Path:
    """Return RUN/eval for checkpoints of one run, and the folder eval beside the runs for several."""
    common = Path(os.path.commonpath([folder.absolute() for folder in folders]))
    return common if common.name == "eval" else common / "eval"
