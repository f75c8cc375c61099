"""Running many evaluations: one that fails does not stop the others, and new checkpoints are waited for."""

import contextlib
import os
import signal
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

from eval_suite import progress
from eval_suite.attempts import reason
from eval_suite.results import read
from isotorus.errors import UserError
from isotorus.files import atomic
from isotorus.processes import usable_cores

ERROR = "error.txt"
"""File in the folder of the results with the traceback of an evaluation that crashed."""
Results = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One evaluation: its title, the path of its checkpoint or features, and the folder for its results."""

    title: str
    given: str
    out: Path


@dataclass(frozen=True)
class Outcome:
    """The results of a task, or None and the reason of its failure."""

    task: Task
    results: Results | None
    failure: str = ""


def one_by_one(
    tasks: Sequence[Task], evaluate: Callable[[Task], Results], *, alone: bool
) -> Iterator[Outcome]:
    """Evaluate the tasks in this process.

    A task may fail with any exception if this process is `alone`. Under torchrun only a UserError is caught,
    because all processes raise it together; after another exception they would wait for each other.
    """
    for number, task in enumerate(tasks, start=1):
        progress.evaluating(f"{task.title} ({number} of {len(tasks)})")
        try:
            yield Outcome(task, evaluate(task))
        except UserError as error:
            yield Outcome(task, None, str(error))
        except Exception as error:  # whatever it is, the other tasks can still succeed
            if not alone:
                raise
            yield _crashed(task, reason(error), traceback.format_exc())
    progress.evaluating("")


def side_by_side(tasks: Sequence[Task], arguments: Sequence[str], jobs: int) -> Iterator[Outcome]:
    """Evaluate the tasks in `jobs` processes of this command, which share the cores and the GPUs."""
    cores = usable_cores()
    gpus = torch.cuda.device_count()

    def run(number: int, task: Task) -> Outcome:
        environment = os.environ | {"OMP_NUM_THREADS": str(max(1, cores // jobs))}
        if gpus > 1:
            environment["CUDA_VISIBLE_DEVICES"] = str(number % gpus)
        command = [sys.executable, "-m", "eval_suite", task.given, "--out", str(task.out), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit {done.returncode}"]
            if done.returncode < 0:
                ended = f"ended by {signal.Signals(-done.returncode).name}; its last line was: {said[-1]}"
                return _crashed(task, ended, done.stderr)
            if done.returncode == 2:
                return Outcome(task, None, said[-1].removeprefix("error: "))
            return _crashed(task, said[-1], done.stderr)
        return Outcome(task, read(task.out))

    with ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(run, number, task) for number, task in enumerate(tasks)]
        progress.evaluating(f"{jobs} evaluations at a time")
        for number, finished in enumerate(as_completed(running), start=1):
            progress.doing(f"{number} of {len(tasks)} have ended")
            yield finished.result()
    progress.evaluating("")


def _crashed(task: Task, message: str, details: str) -> Outcome:
    """Return the outcome of an unexpected failure; its details go to a file that the message names."""
    with contextlib.suppress(OSError):  # the failure may be a full disk
        task.out.mkdir(parents=True, exist_ok=True)
        with atomic(task.out / ERROR) as stream:
            stream.write(details.encode(errors="backslashreplace"))
        message += f"; see {task.out / ERROR}"
    return Outcome(task, None, message)


def follow(outcomes: Iterator[Outcome], total: int, *, quiet: bool) -> list[Outcome]:
    """Collect the outcomes, and print failures as they happen."""
    console = Console(stderr=True)
    collected = []
    for outcome in outcomes:
        collected.append(outcome)
        if outcome.failure and not quiet and total > 1:
            console.print(f"{outcome.task.title}: {outcome.failure}", style="red", markup=False)
    return collected


def watch(
    find: Callable[[], list[Task]],
    finished: Callable[[], bool],
    evaluate: Callable[[list[Task]], list[Outcome]],
    seconds: float,
) -> list[Outcome]:
    """Evaluate the tasks that `find` returns, again and again until `finished`, with pauses of `seconds`.

    Each task is evaluated once, also if it fails. Returns the outcomes of all tasks.
    """
    outcomes: dict[Path, Outcome] = {}
    while True:
        ended = finished()  # before `find`, so that the last checkpoint is not missed
        fresh = [task for task in find() if task.out not in outcomes]
        for outcome in evaluate(fresh) if fresh else []:
            outcomes[outcome.task.out] = outcome
        if ended and not fresh:
            return list(outcomes.values())
        if not fresh:
            time.sleep(seconds)
