"""Which of several checkpoints is best on val, or out of fold, and whether the newest is worse beyond noise.

The test split chooses nothing.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from eval_suite.metrics import METHODS, SCORES, headlines
from eval_suite.report.over_seeds import Evaluated, Results, Row, t_interval
from eval_suite.results import dig

NAME = "best"
"""The link beside the folders of a run's evaluations that points to the best one."""


class Chosen(NamedTuple):
    """The score by which checkpoints are compared, and half the width of its interval."""

    method: str
    score: str
    split: str
    value: float
    half: float
    """Half the width of the 95 % interval; infinite if there is no interval."""


@dataclass(frozen=True, eq=False)
class Best:
    """The best row of one run, or of one group of seeds, and how much worse the newest is."""

    row: Row
    newest: Row
    of: tuple[Row, ...]
    """All rows of that run or group, one for each step."""
    by: Chosen
    worse: float
    """Score of the best row minus that of the newest, with the sign turned if lower is better."""
    low: float
    """Lower end of the 95 % interval of `worse`; infinite if there is no interval."""
    high: float

    @property
    def beyond_noise(self) -> bool:
        return self.low > 0

    @property
    def sentence(self) -> str:
        """Say which checkpoint is best, by what, and whether to prefer it to the newest."""
        by = (
            f"{METHODS[self.by.method].label}, {SCORES[self.by.score].label} {100 * self.by.value:.1f}\u00a0%"
        )
        split = {"val": "on val", "folds": "out of fold"}[self.by.split]
        said = f"{self.row.name}: step {self.row.step} is best {split} ({by})"
        if self.newest is self.row:
            return f"{said}; it is the newest."
        how = f"{100 * self.worse:.1f} points worse"
        bounds = f"{100 * self.low:+.1f} to {100 * self.high:+.1f}".replace("-", "−")
        noise = f"beyond noise ({bounds})" if self.beyond_noise else f"which is within noise ({bounds})"
        if not math.isfinite(self.high - self.low):
            noise = "without an interval"
        return f"{said}; step {self.newest.step}, the newest, is {how}, {noise}."


def best_of(rows: Sequence[Row]) -> list[Best]:
    """Return the best row of every run or group of seeds that has several steps.

    Rows over seeds are compared over the seeds that all of them have.
    """
    lines: dict[tuple[str, object], list[Row]] = {}
    for row in rows:
        run = None if row.seeds else row.results["checkpoint"]["run"]
        if row.seeds or run:
            lines.setdefault((row.name, run), []).append(row)
    found = (_best(members) for members in lines.values())
    return [best for best in found if best is not None]


def chosen(results: Results) -> Chosen | None:
    """Return the score on val, or out of fold, by which a checkpoint is chosen; None if there is none.

    It is the deciding score of the first method that has one; the linear probe comes first. If the results
    are reported on test, it is the score of the chosen setting on val. Its interval is as wide as that on
    test times √(labelled samples of test / labelled samples of val).
    """
    measured, reported = results["representations"]["pretrained"], results["reported_on"]
    for method in (name for name, described in METHODS.items() if described.summarised):
        for score in headlines(results["kind"]):
            of = measured.get(method, {})
            if not SCORES[score].decides or of.get(score) is None:
                continue
            low, high = of.get(f"{score}_interval") or (None, None)
            half = math.inf if low is None or high is None else (high - low) / 2
            if reported in ("val", "folds"):
                return Chosen(method, score, reported, of[score], half)
            for tried in of.get("val", []):
                setting = {key for key in tried if key not in SCORES}
                if tried.get(score) is not None and all(of.get(key) == tried[key] for key in setting):
                    on_test, on_val = (
                        dig(results.get("data", {}), f"{split}/labelled") for split in ("test", "val")
                    )
                    scale = math.sqrt(on_test / on_val) if on_test and on_val else math.inf
                    return Chosen(method, score, "val", tried[score], half * scale)
    return None


def link(evaluated: Sequence[Evaluated]) -> tuple[dict[Path, Path], list[str]]:
    """Link the best evaluation of every run that has several; returns the links' targets, and notes.

    The link is RUN/eval/best, or best-<name> where evaluations of several runs are in one folder. If links
    are not possible, a file with the name of the folder takes its place.
    """
    rows = [Row(each.name, each.results, (each,)) for each in evaluated]
    runs_in: dict[Path, set[object]] = {}
    for each in evaluated:
        runs_in.setdefault(each.folder.parent, set()).add(each.results["checkpoint"]["run"])
    links, notes = {}, []
    for best in best_of(rows):
        folder = best.row.members[0].folder
        place = folder.parent / (NAME if len(runs_in[folder.parent]) == 1 else f"{NAME}-{best.row.name}")
        try:
            _point(place, folder.name)
            links[place] = folder
        except OSError as error:
            notes.append(f"no link {place} to {folder.name} ({error.strerror})")
    return links, notes


def _point(place: Path, target: str) -> None:
    """Make `place` a link to `target` beside it, or a file that holds its name; raises OSError."""
    temporary = place.with_name(f".{place.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(target)
    except (OSError, NotImplementedError):
        with temporary.open("x") as file:
            file.write(f"{target}\n")
    try:
        temporary.replace(place)
    except OSError:
        temporary.unlink()
        raise


def _best(rows: Sequence[Row]) -> Best | None:
    """Choose among the rows of one run or one group of seeds; None for fewer than two steps with a score."""
    shared = set(rows[0].seeds).intersection(*(row.seeds for row in rows))
    found: list[tuple[Row, list[Chosen]]] = []
    for row in rows:
        counted = [m for i, m in enumerate(row.members) if not row.seeds or row.seeds[i] in shared]
        of = [by for member in counted if (by := chosen(member.results)) is not None]
        if of and len(of) == len(counted):
            found.append((row, of))
    # Rows with another score than that of the newest row cannot be compared with it.
    newest, last = max(found, key=lambda each: each[0].step, default=(None, []))
    found = [(row, of) for row, of in found if all(by[:3] == last[0][:3] for by in of)]
    if newest is None or len({row.step for row, _ in found}) < 2:
        return None
    sign = 1 if SCORES[last[0].score].higher_is_better else -1

    def mean(of: Sequence[Chosen]) -> float:
        return sum(by.value for by in of) / len(of)

    row, best = max(found, key=lambda each: (sign * mean(each[1]), each[0].step))
    worse = sign * (mean(best) - mean(last))
    half = math.hypot(best[0].half, last[0].half)
    low, high = worse - half, worse + half
    if row.seeds:
        # Members are in the order of the seeds of each row, which need not be the same.
        ordered = (
            dict(zip([seed for seed in of.seeds if seed in shared], by, strict=True))
            for of, by in ((row, best), (newest, last))
        )
        ours, theirs = ordered
        paired = t_interval([sign * (ours[seed].value - theirs[seed].value) for seed in ours])
        low, high = (math.inf * s if end is None else end for s, end in zip((-1, 1), paired, strict=True))
    return Best(row, newest, tuple(rows), last[0]._replace(value=mean(best)), worse, low, high)
