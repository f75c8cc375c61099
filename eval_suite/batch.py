"""Many checkpoints: one that fails does not stop the others, and new ones are waited for."""

import contextlib
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from isotorus.errors import UserError

ERROR = "error.txt"
"""Beside where the results would be: the traceback of what ended the evaluation."""
Results = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One evaluation: what it is called, the name that finds it, and the folder of its results."""

    title: str
    given: str
    out: Path


@dataclass(frozen=True)
class Outcome:
    """Results of a task, or why there are none."""

    task: Task
    results: Results | None
    failure: str = ""


def one_by_one(
    tasks: Sequence[Task], evaluate: Callable[[Task], Results], *, alone: bool
) -> Iterator[Outcome]:
    """Evaluate in this process; not `alone`, with others beside it, only what all of them meet is caught."""
    for task in tasks:
        try:
            yield Outcome(task, evaluate(task))
        except UserError as error:
            yield Outcome(task, None, str(error))
        except Exception as error:  # whatever it is, the others are not its fault
            if not alone:
                raise
            said = (str(error).splitlines() or [""])[0]
            yield _crashed(task, f"{type(error).__name__}: {said}", traceback.format_exc())


def side_by_side(tasks: Sequence[Task], arguments: Sequence[str], jobs: int) -> Iterator[Outcome]:
    """Evaluate in `jobs` processes of this command, which share the cores and take turns on the GPUs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = torch.cuda.device_count()

    def run(number: int, task: Task) -> Outcome:
        environment = os.environ | {"OMP_NUM_THREADS": str(max(1, cores // jobs))}
        if gpus > 1:
            environment["CUDA_VISIBLE_DEVICES"] = str(number % gpus)
        command = [sys.executable, "-m", "eval_suite", task.given, "--out", str(task.out), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit {done.returncode}"]
            if done.returncode == 2:
                return Outcome(task, None, said[-1].removeprefix("error: "))
            return _crashed(task, said[-1], done.stderr)
        return Outcome(task, json.loads((task.out / "results.json").read_text()))

    with ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(run, number, task) for number, task in enumerate(tasks)]
        for finished in as_completed(running):
            yield finished.result()


def _crashed(task: Task, said: str, details: str) -> Outcome:
    """What nobody foresaw: a line of it, and the file that has the rest."""
    with contextlib.suppress(OSError):  # a full disk may be what it died of
        task.out.mkdir(parents=True, exist_ok=True)
        (task.out / ERROR).write_text(details)
        said += f"; see {task.out / ERROR}"
    return Outcome(task, None, said)


def follow(outcomes: Iterator[Outcome], total: int, *, quiet: bool) -> list[Outcome]:
    """Take the outcomes under a bar with the time left; tell of failures at once."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    found = []
    with Progress(*columns, console=console, disable=quiet or total < 2, transient=True) as progress:
        bar = progress.add_task("evaluating", total=total)
        for outcome in outcomes:
            found.append(outcome)
            progress.advance(bar)
            if outcome.failure and not quiet and total > 1:
                console.print(f"{outcome.task.title}: {outcome.failure}", style="red", markup=False)
    return found


def watch(
    find: Callable[[], list[Task]],
    finished: Callable[[], bool],
    evaluate: Callable[[list[Task]], list[Outcome]],
    seconds: float,
) -> list[Outcome]:
    """Evaluate what `find` comes to know of until `finished`; what has failed once is not tried again."""
    outcomes: dict[Path, Outcome] = {}
    while True:
        ended = finished()  # asked first: what is saved after that is found in this round
        fresh = [task for task in find() if task.out not in outcomes]
        for outcome in evaluate(fresh) if fresh else []:
            outcomes[outcome.task.out] = outcome
        if ended and not fresh:
            return list(outcomes.values())
        if not fresh:
            time.sleep(seconds)
