"""Does the training loss predict how useful the encoder is? Spearman's correlation within one objective.

Losses of different objectives have different units, so they are never put into one group. Over a sweep of λ,
LeJEPA's loss (1 − λ)·prediction + λ·SIGReg grows with λ whatever the encoder is worth. Balestriero and LeCun
(2025, arXiv:2511.08544, on the loss as a predictor of downstream accuracy) correlate the score with loss /
λ^α and report that α ≈ 0.4 works best; α = 0 stands for the unchanged loss. Results are given for both.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import norm, spearmanr

from eval_suite.metrics import METHODS, SCORES
from eval_suite.report import run_config
from eval_suite.report.training.log import loss_at
from eval_suite.results import dig

Results = Mapping[str, Any]

ALPHA = 0.4
"""The published exponent of λ."""
FEWEST = 4
"""Smallest group of checkpoints."""
SCORED = {
    f"{name}/{score.path}": f"{method.label}, {score.label}"
    for name, method in METHODS.items()
    for score in SCORES.values()
    if method.summarised and (score.over_steps or score.decides)
}
"""Scores that are correlated: their paths below the representation, and their labels."""


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of training loss / λ^`alpha` and a score, over a group of checkpoints."""

    group: str
    objective: str
    score: str
    alpha: float
    rho: float
    low: float
    """Lower end of the 95 % interval of `rho`."""
    high: float
    checkpoints: int


@dataclass(frozen=True)
class _Point:
    """A checkpoint with its loss; `objective` is None if the run's configuration cannot be read."""

    run: str
    name: str
    step: int
    loss: float
    objective: dict[str, Any] | None
    results: Results


def correlations(evaluations: Sequence[Results]) -> list[Correlation]:
    """Correlate loss and scores within each run, and over the newest checkpoints of runs of one objective.

    Groups of fewer than four checkpoints are left out, and those in which loss or score is constant.
    """
    points = [point for results in evaluations if (point := _point(results)) is not None]
    by_run: dict[str, list[_Point]] = {}
    for point in points:
        by_run.setdefault(point.run, []).append(point)
    found = []
    for members in by_run.values():
        found += _correlated(f"steps of {members[0].name}", members)
    newest = [max(members, key=lambda point: point.step) for members in by_run.values()]
    groups: dict[str, list[_Point]] = {}
    for point in newest:
        if point.objective is not None:
            groups.setdefault(_same_units(point.objective), []).append(point)
    for members in groups.values():
        found += _correlated("newest of each run", members)
    return found


def interval(rho: float, n: int) -> tuple[float, float]:
    """Return the 95 % interval of Spearman's correlation of n points.

    By Fisher's transformation with the variance (1 + ρ²/2) / (n − 3) of Bonett and Wright (2000,
    Psychometrika 65). Where ρ is 1 or −1 the transformation is infinite; then the inner end is that of the
    nearest correlation that n points can have.
    """
    swap = 12 / (n * (n * n - 1))  # swapping two neighbouring ranks lowers a correlation of 1 by this much
    inner = math.copysign(min(abs(rho), 1 - swap), rho)
    half = float(norm.ppf(0.975)) * math.sqrt((1 + inner**2 / 2) / (n - 3))
    low, high = math.tanh(math.atanh(inner) - half), math.tanh(math.atanh(inner) + half)
    return (low, 1.0) if rho >= 1 else (-1.0, high) if rho <= -1 else (low, high)


def _point(results: Results) -> _Point | None:
    """Return the checkpoint with its loss; None without a run or a logged loss."""
    checkpoint = results["checkpoint"]
    if not checkpoint["run"] or (loss := loss_at(Path(checkpoint["run"]), checkpoint["step"])) is None:
        return None
    config = run_config.read(Path(checkpoint["run"]))
    objective = None if isinstance(config, str) else run_config.objective(config)
    return _Point(checkpoint["run"], checkpoint["name"], checkpoint["step"], loss, objective or None, results)


def _same_units(objective: dict[str, Any]) -> str:
    """Return the objective as text, without λ where losses of several λ can be rescaled to each other."""
    kept = dict(objective)
    if _rescales(objective):
        kept.pop("weight", None)
    return json.dumps(kept, sort_keys=True, default=str)


def _rescales(objective: dict[str, Any]) -> bool:
    """Say whether the published rescaling is about this objective: LeJEPA with a fixed λ above 0."""
    weight = objective.get("weight")
    fixed = not objective.get("auto_weight.enabled")
    return objective.get("kind") == "lejepa" and fixed and isinstance(weight, int | float) and weight > 0


def _correlated(group: str, members: Sequence[_Point]) -> list[Correlation]:
    """Return the correlations of a group with each score, over several λ also of the rescaled loss."""
    objectives = [point.objective or {} for point in members]
    weights = list(dict.fromkeys(objective.get("weight") for objective in objectives))
    rescaled = len(weights) > 1 and all(map(_rescales, objectives))
    kind = str(objectives[0].get("kind", "unknown"))
    if rescaled:
        kind += f", λ from {min(filter(None, weights))} to {max(filter(None, weights))}"
    elif weights[0] is not None:
        kind += f", λ = {weights[0]}"
    found = []
    for path, label in SCORED.items():
        for alpha in (0.0, ALPHA) if rescaled else (0.0,):
            pairs = [
                (point.loss / (objective["weight"] ** alpha if alpha else 1), score)
                for point, objective in zip(members, objectives, strict=True)
                if (score := dig(point.results["representations"]["pretrained"], path)) is not None
            ]
            if len(pairs) < FEWEST or any(len(set(column)) < 2 for column in zip(*pairs, strict=True)):
                continue
            rho = float(spearmanr(*zip(*pairs, strict=True)).statistic)
            low, high = interval(rho, len(pairs))
            found.append(Correlation(group, kind, label, alpha, rho, low, high, len(pairs)))
    return found
