"""Sum up the layers of a run: how training changed the last block, and how features change with depth."""

import shlex
from collections.abc import Mapping
from typing import Any

from eval_suite.report.summary.lines import Line

SHOWN = {"rank": "effective rank", "dimension": "intrinsic dimension", "sigreg": "SIGReg over null"}
"""Quantities that the first line compares with the untrained encoder, by their names in layers.json."""
DORMANT = 0.5
"""Share of dormant units above which a block is named."""
LESS = 0.5
"""Rank of the last block over the largest rank of a block, below which earlier features are worth a try."""


def conclusion(run: Mapping[str, Any], data: str) -> list[Line]:
    """Return up to four lines about the newest checkpoint of a run in layers.json; [] without values."""
    if not run["checkpoints"]:
        return []
    newest = run["checkpoints"][-1]["values"]
    before = run.get("untrained") or {}
    lines = []
    changes = [
        f"{title} {_from(before.get(name))}{newest[name][-1]:.3g}"
        for name, title in SHOWN.items()
        if newest.get(name) and newest[name][-1] is not None
    ]
    if changes:
        lines.append(Line("last block", f"{'; '.join(changes)}."))
    narrows = False
    ranks = [(value, block) for block, value in enumerate(newest.get("rank", [])) if value is not None]
    if len(ranks) > 1:
        most, block = max(ranks)
        last = ranks[-1][0]
        narrows = last < LESS * most
        then = f", and falls to {last:.3g} at the last" if block != ranks[-1][1] else ""
        lines.append(
            Line("through depth", f"The effective rank is largest at block {block}, {most:.3g}{then}.")
        )
    asleep = [b for b, share in enumerate(newest.get("dormant", [])) if share is not None and share > DORMANT]
    if asleep:
        blocks = ", ".join(map(str, asleep))
        lines.append(Line("health", f"More than half of the units are dormant in block {blocks}."))
    return [*lines, _next(run, data, narrows)] if lines else []


def _from(row: list[float | None] | None) -> str:
    """Return the value of the untrained encoder at the last block, as the beginning of a change."""
    return f"{row[-1]:.3g} (untrained) → " if row and row[-1] is not None else ""


def _next(run: Mapping[str, Any], data: str, narrows: bool) -> Line:
    """Return what to try: the features of earlier blocks, where their rank is much higher."""
    name = shlex.quote(str(run["folder"] or run["checkpoints"][-1]["folder"]))
    if narrows:
        text = "The last blocks reduce the rank of the features: score those of earlier blocks too."
        return Line(
            "try next", text, f"isotorus eval {name} --train SHARDS --val SHARDS --features last4,stages"
        )
    text = "See which layers differ from another encoder's."
    return Line("try next", text, f"isotorus eval compare {name} OTHER --data {shlex.quote(data)}")
