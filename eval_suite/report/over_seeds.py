"""Runs that differ only by their seed become one row: means, t-intervals over seeds, paired differences."""

import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from eval_suite.metrics import METHODS, SCORES
from eval_suite.report import names, run_config
from eval_suite.results import dig

Results = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Evaluated:
    """The results of one evaluation and the folder of its report."""

    results: Results
    folder: Path

    @property
    def name(self) -> str:
        return str(self.results["checkpoint"]["name"])

    @property
    def step(self) -> int:
        return int(self.results["checkpoint"]["step"])


@dataclass(frozen=True, eq=False)
class Row:
    """One row of the tables: an evaluation, or the evaluations of several seeds at one step.

    `results` have the form of results.json. Over several seeds their numbers are means, their intervals 95 %
    t-intervals over seeds, and `checkpoint` is named by what the runs' names have in common.
    """

    name: str
    results: Results
    members: tuple[Evaluated, ...]
    seeds: tuple[int, ...] = ()
    """The seeds of the members; () for a single evaluation."""

    @property
    def step(self) -> int:
        return self.members[0].step


@dataclass(frozen=True)
class _Known:
    """An evaluation of a run whose configuration is known."""

    evaluated: Evaluated
    run: str
    seed: int
    steps: Any
    settings: str
    """Everything that shapes the encoder except the seed, and the settings of the evaluation."""
    family: str
    """The same without the number of steps."""


def rows(evaluated: Sequence[Evaluated]) -> tuple[list[Row], list[str]]:
    """Return a row for each group of evaluations that differ by seed alone, in the order given, and notes.

    A group has one step. An evaluation without a group is a row of its own. The notes say in one line each
    what was kept apart, and why.
    """
    runs = {each.results["checkpoint"]["run"] for each in evaluated}
    notes: list[str] = []
    known = [found for each in evaluated if (found := _known(each, notes, several=len(runs) > 1)) is not None]
    groups = _groups(known, notes)
    notes += _unequal(known)
    names_of = _names(groups, evaluated)
    of = {id(member.evaluated): members for members in groups for member in members}
    runs_of: dict[str, set[str | None]] = {}
    for each in evaluated:
        runs_of.setdefault(each.name, set()).add(each.results["checkpoint"]["run"])
    made: list[Row] = []
    done: set[int] = set()
    for each in evaluated:
        if id(each) in done:
            continue
        members = of.get(id(each))
        if members is None:
            run = each.results["checkpoint"]["run"]
            name = f"{each.name} ({run})" if len(runs_of[each.name]) > 1 else each.name
            made.append(Row(name, each.results, (each,)))
            continue
        done |= {id(member.evaluated) for member in members}
        chosen = tuple(member.evaluated for member in members)
        seeds = tuple(member.seed for member in members)
        name = names_of[members[0].settings]
        made.append(Row(name, pooled([one.results for one in chosen], name, seeds), chosen, seeds))
        notes += _missing(chosen)
    return made, list(dict.fromkeys(notes))


def pooled(members: Sequence[Results], name: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Return one results dictionary for several seeds: means, t-intervals over seeds, paired differences."""
    first = members[0]
    checkpoint = _merged([of["checkpoint"] for of in members])
    return {
        **{key: first[key] for key in ("data", "classes", "kind", "reported_on") if key in first},
        "checkpoint": {
            **checkpoint,
            "name": name,
            **{key: first["checkpoint"][key] for key in ("run", "folder", "step")},
            "seeds": list(seeds),
        },
        "representations": _merged([of["representations"] for of in members]),
        "differences": _merged([of.get("differences", {}) for of in members]),
        "geometry": _merged([of["geometry"] for of in members]),
        "left_out": list({json.dumps(entry): entry for of in members for entry in of["left_out"]}.values()),
    }


def t_interval(values: Sequence[float]) -> list[float | None]:
    """Return the 95 % interval of the mean by Student's t with n − 1 degrees; [None, None] for one value."""
    n = len(values)
    if n < 2:
        return [None, None]
    half = float(student.ppf(0.975, n - 1) * np.std(values, ddof=1) / n**0.5)
    return [float(np.mean(values)) - half, float(np.mean(values)) + half]


def newest(rows: Sequence[Row]) -> list[Row]:
    """Return the row of the largest step of each group of seeds."""
    largest: dict[str, Row] = {}
    for row in rows:
        if row.seeds and (row.name not in largest or row.step > largest[row.name].step):
            largest[row.name] = row
    return list(largest.values())


def paired(row: Row, other: Row, path: str) -> list[float]:
    """Return row minus other in a score of the pretrained encoder, one difference for each common seed."""
    first, second = (
        {
            seed: value
            for seed, each in zip(of.seeds, of.members, strict=bool(of.seeds))
            if (value := dig(each.results, f"representations/pretrained/{path}")) is not None
        }
        for of in (row, other)
    )
    return [value - second[seed] for seed, value in first.items() if seed in second]


def _merged(of: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the mean of every number with its interval, and every other value that is equal in all members.

    The interval of a number has the key <key>_interval; that of a difference's `value` has the key
    `interval`. If texts differ, such as the chosen feature set, the result lists the texts with their counts.
    """
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(key for each in of for key in each):
        values = [each[key] for each in of if each.get(key) is not None]
        if key == "interval" or key.endswith("_interval") or not values:
            continue
        if all(isinstance(value, Mapping) for value in values):
            merged[key] = _merged(values)
        elif all(isinstance(value, bool) for value in values):
            merged[key] = any(values)
        elif all(value == values[0] for value in values) and not isinstance(values[0], float):
            merged[key] = values[0]
        elif all(isinstance(value, int | float) for value in values):
            if any(isinstance(value, float) for value in values):
                merged[key] = float(np.mean(values))
                ends = t_interval(values)
                if key in SCORES and SCORES[key].percent:  # a share lies within 0 and 1
                    ends = [None if end is None else min(max(end, 0.0), 1.0) for end in ends]
                merged["interval" if key == "value" else f"{key}_interval"] = ends
        elif all(isinstance(value, str) for value in values):
            merged[key] = ", ".join(f"{value} ({n})" for value, n in Counter(values).items())
    return merged


def _known(each: Evaluated, notes: list[str], *, several: bool) -> _Known | None:
    """Return what identifies the settings of an evaluation; None, with a note, if they cannot be read."""
    checkpoint = each.results["checkpoint"]
    if not checkpoint["run"]:
        return None
    config = run_config.read(Path(checkpoint["run"]))
    if not isinstance(config, str) and not isinstance(config.get("seed"), int):
        config = "its config.yaml has no seed"
    if isinstance(config, str):
        if several:
            notes.append(f"{each.name} is a row of its own: {config}")
        return None
    inputs = each.results.get("inputs", {})
    how = json.dumps([inputs.get(key) for key in ("data", "targets", "options")], sort_keys=True)
    family = run_config.settings(config, steps=False) + how
    return _Known(
        each,
        os.path.realpath(checkpoint["run"]),
        config["seed"],
        config.get("steps"),
        run_config.settings(config) + how,
        family,
    )


def _groups(known: Iterable[_Known], notes: list[str]) -> list[list[_Known]]:
    """Return the evaluations of equal settings and step with two seeds or more, one for each seed."""
    found: dict[tuple[str, int], dict[int, _Known]] = {}
    for each in known:
        by_seed = found.setdefault((each.settings, each.evaluated.step), {})
        first = by_seed.setdefault(each.seed, each)
        if first.run != each.run:
            notes.append(
                f"{each.evaluated.name} is a row of its own: it has the settings and the seed of "
                f"{first.evaluated.name}"
            )
    return [list(by_seed.values()) for by_seed in found.values() if len(by_seed) > 1]


def _unequal(known: Sequence[_Known]) -> list[str]:
    """Return a line for each run that ends earlier than others with its settings, or has its length alone."""
    notes = []
    for family in dict.fromkeys(each.family for each in known):
        newest: dict[str, _Known] = {}
        for each in known:
            if each.family == family and each.evaluated.step >= _step(newest.get(each.run)):
                newest[each.run] = each
        lengths = Counter(str(each.steps) for each in newest.values())
        seeds = {each.seed for each in newest.values()}
        for each in newest.values():
            name, step = each.evaluated.name, each.evaluated.step
            longest = max((of for of in newest.values() if of.steps == each.steps), key=_step)
            if lengths[str(each.steps)] == 1 and len(lengths) > 1 and len(seeds) > 1:
                others = ", ".join(length for length in lengths if length != str(each.steps))
                notes.append(f"{name} is a row of its own: it has steps={each.steps}, other seeds {others}")
            elif step < _step(longest):
                notes.append(
                    f"{name} is not in rows after step {step}, its newest; {longest.evaluated.name} has "
                    f"step {_step(longest)}"
                )
    return notes


def _step(known: _Known | None) -> int:
    return -1 if known is None else known.evaluated.step


def _missing(members: Sequence[Evaluated]) -> list[str]:
    """Return a line for each score of a method that one seed lacks and others have."""
    having: dict[tuple[str, str], list[str]] = {}
    for each in members:
        for name, of in each.results["representations"].items():
            for method in METHODS:
                if method in of:
                    having.setdefault((name, method), []).append(each.name)
    return [
        f"{each.name} has no {METHODS[method].label} score of {names.phrase(name)}; "
        "its row has the mean of the other seeds"
        for (name, method), of_runs in having.items()
        for each in members
        if each.name not in of_runs
    ]


def _names(groups: Sequence[Sequence[_Known]], evaluated: Sequence[Evaluated]) -> dict[str, str]:
    """Return a name for each group of settings: what the names of its runs have in common."""
    runs: dict[str, list[str]] = {}
    for members in groups:
        of = runs.setdefault(members[0].settings, [])
        of += [m.evaluated.name for m in members if m.evaluated.name not in of]
    chosen: dict[str, str] = {}
    taken = {each.name for each in evaluated} - {name for of in runs.values() for name in of}
    for settings, of in runs.items():
        name = _common(of)
        chosen[settings] = name if name and name not in taken else ", ".join(of)
        taken.add(chosen[settings])
    return chosen


def _common(of: Sequence[str]) -> str:
    """Return what all names share: the name without its seed, or else their common prefix, perhaps ""."""
    without = {re.sub(r"(^|[-_.])(seed|s)[=_-]?\d+(?=$|[-_.])", "", name).strip("-_.") for name in of}
    if len(without) == 1:
        return without.pop()
    shared = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*of, strict=False))
    return "".join(letters[0] for letters in shared).rstrip("-_.=")
