"""Which runs of the study are missing, the most wanted first: all grids, then seeds, then further runs."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from studies.geometry.further import FURTHER, Point
from studies.geometry.plan import OBJECTIVES, Run, grid, run

Row = dict[str, Any]


class Task(NamedTuple):
    """A run, and how it is measured."""

    run: Run
    stage: str
    """val: scores to choose a point of the grid by; test: all measures, and scores on test."""

    @property
    def key(self) -> tuple[str, str]:
        return self.run.name, self.stage


def missing(rows: Iterable[Row], names: Sequence[str]) -> list[Task]:
    """Return what is not among the rows and can be started now; an empty list means that all is done.

    `names` are some of OBJECTIVES and FURTHER. Seeds of an objective can be started when its grid is
    finished, further runs when the grids that they depend on are.
    """
    finished = {(row["name"], row["stage"]): row for row in rows}
    needed = [*names, *(other for name in names if name in FURTHER for other in FURTHER[name].objectives)]
    wanted = [Task(each, "val") for name in OBJECTIVES if name in needed for each in grid(name)]
    for name, objective in OBJECTIVES.items():
        if name in names and (point := best(finished, [name])):
            wanted += [Task(run(*point, seed), "test") for seed in range(objective.seeds)]
    for name, family in FURTHER.items():
        if name in names and (point := best(finished, family.objectives)):
            wanted += [Task(each, "test") for each in family.runs(point)]
    return [task for task in wanted if task.key not in finished]


def best(finished: dict[tuple[str, str], Row], objectives: Iterable[str]) -> Point | None:
    """Return the best point on val of these grids; None while one is not finished, or if all runs failed."""
    keys = [(each.name, "val") for name in objectives for each in grid(name)]
    if not all(key in finished for key in keys):
        return None
    row = max((finished[key] for key in keys), key=on_val)
    return None if "failed" in row else Point(row["objective"], row["learning_rate"], row["weight"])


def on_val(row: Row) -> float:
    """Return the score by which a point of the grid is chosen; a run that failed is below all others."""
    return -1.0 if "failed" in row else (row["val"]["knn"] + row["val"]["minibatch_probe"]) / 2
