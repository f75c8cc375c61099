"""Run a task for each shard in several processes, with a progress bar.

The processes end when this process ends, however it ends.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.sharedctypes import Synchronized
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from isotorus.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")

_SECONDS_BETWEEN_LINES = 10

_done: "Synchronized[int]"


def count(more: int = 1) -> None:
    """Report from inside a task that `more` further units of work are done, for the progress bar."""
    with _done.get_lock():
        _done.value += more


def run(
    work: Callable[[Task], Result], tasks: Sequence[Task], workers: int, doing: str, total: int
) -> list[Result]:
    """Return `[work(task) for task in tasks]`, computed in `workers` processes, with a progress bar.

    `total` is the sum of what the tasks report with `count`, and `doing` is the name of the work on the bar.
    After a task has raised an exception, running tasks finish, no further task starts, and the exception is
    raised here. `work` and the tasks must be picklable. Raises `UserError` if a process was killed.
    """
    done = multiprocessing.Value("q", 0)
    executor = ProcessPoolExecutor(min(workers, max(len(tasks), 1)), initializer=_start, initargs=(done,))
    try:
        # Submit first: worker processes must be forked before the progress bar starts its thread.
        futures = [executor.submit(work, task) for task in tasks]
        with _progress(doing, total) as show:
            pending = set(futures)
            while pending:
                finished, pending = wait(pending, timeout=0.2, return_when=FIRST_EXCEPTION)
                show(done.value)
                if any(future.exception() for future in finished):
                    break
        executor.shutdown(cancel_futures=True)
        failed = [f for f in futures if not f.cancelled() and f.exception()]
        return [future.result() for future in failed or futures]
    except BrokenProcessPool:
        raise UserError(
            f"a process was killed while {doing}, perhaps because memory ran out; "
            "run the same command again, with fewer --workers"
        ) from None
    except KeyboardInterrupt:
        for child in multiprocessing.active_children():
            child.terminate()
        raise


def _start(done: "Synchronized[int]") -> None:
    """Prepare a worker process: it ignores Ctrl-C, which the parent handles, and ends with the parent."""
    global _done
    _done = done
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """End this process as soon as its parent has ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def _progress(doing: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on a terminal, or print a line every 10 seconds into a log.

    Yields a function to be called with the number of units done out of `total`.
    """
    console = Console()
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(doing, total=total)
            yield lambda done: bar.update(task, completed=done)
        return

    last = time.monotonic()

    def show(done: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            print(f"{doing}: {done} of {total}", flush=True)

    yield show
