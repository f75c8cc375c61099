"""The top of a report: at most five short lines on what was found and what to do next."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from eval_suite.metrics import METHODS, SCORES, headlines
from eval_suite.report.sentences import (
    CLOUDS,
    about_collapse,
    about_scores,
    headline,
    shape_in_words,
    verdict,
)
from eval_suite.report.standing import standings
from eval_suite.report.summary.advice import advice, what_next
from eval_suite.report.training.healthy import SOURCE, judged
from eval_suite.results import dig

Results = Mapping[str, Any]
MOST = 5
"""Largest number of lines."""


class Line(NamedTuple):
    """One line of the summary: what it is about, what was found, and a command that may follow it."""

    about: str
    text: str
    command: str = ""


def summary(
    results: Results, rows: Sequence[Mapping[str, Any]], certificate: Mapping[str, Any] | None = None
) -> list[Line]:
    """Return at most `MOST` lines; `rows` are those that the run logged up to the evaluated step."""
    health, remedy = _health(results, rows)
    lines = [_usefulness(results), health]
    if certificate:
        lines.append(Line("torus", str(certificate["headline"])))
    lines += geometry_line(results)
    todo = advice(results)
    ahead = bool(found := standings(results)) and found[0].outcome == "ahead"
    text = f"{remedy}; then: {todo.text}" if remedy and not ahead else todo.text
    return [*lines, Line("try next", sentence(text), todo.command)]


def _usefulness(results: Results) -> Line:
    """Say what the encoder is good for, against the best baseline, with the interval of its lead."""
    if found := standings(results):
        return Line("good for", verdict(found[0], results))
    measured = results["representations"]["pretrained"]
    for method, described in METHODS.items():
        for score in headlines(results["kind"]):
            value = measured.get(method, {}).get(score) if described.summarised else None
            if value is not None and SCORES[score].decides:
                shown = f"{described.label} {SCORES[score].label} {100 * value:.1f}\u00a0%"
                return Line("good for", f"{shown}. No baseline was measured beside it, so this says little.")
    return Line("good for", f"{about_scores(results)} {_unlabelled(results)}".strip())


def _unlabelled(results: Results) -> str:
    """Name the measures that need no labels, with those of the untrained encoder in brackets."""
    of = results["representations"]
    said = []
    for path, label in (
        ("views/lidar", "LiDAR"),
        ("views/alignment", "alignment"),
        ("rank/effective_rank", "effective rank"),
    ):
        ours, before = (dig(of.get(name, {}), path) for name in ("pretrained", "untrained"))
        if ours is not None:
            said.append(f"{label} {ours:.3g}" + (f" ({before:.3g})" if before is not None else ""))
    path = "shape/hubness/skewness"
    ours, before = (dig(results["geometry"].get(name, {}), path) for name in ("embedding", "untrained"))
    if ours is not None:
        said.append(f"hubness {ours:.3g}" + (f" ({before:.3g})" if before is not None else ""))
    if not said:
        return ""
    return (
        f"Measures without labels: {', '.join(said)} (in brackets: untrained encoder). Look whether the "
        "nearest neighbours below make sense."
    )


def _health(results: Results, rows: Sequence[Mapping[str, Any]]) -> tuple[Line, str]:
    """Say whether the run and its features are healthy; also return what to do where they are not."""
    if collapsed := about_collapse(results):
        return Line("health", collapsed), "raise objective.weight or lower optimizer.lr"
    if nearly := results["representations"]["pretrained"].get("nearly_collapsed"):
        return Line("health", f"Nearly collapsed: {nearly}."), "raise objective.weight or lower optimizer.lr"
    count, found = judged(rows)
    if found:
        more = f" See the charts below for {len(found) - 1} more." if len(found) > 1 else ""
        return Line("health", f"Not healthy: {found[0].said}.{more}"), found[0].remedy
    rank = dig(results["representations"]["pretrained"], "rank/effective_rank")
    uses = "" if rank is None else f"; effective rank {rank:.3g}, no collapse"
    if not count:
        return Line("health", f"No training log was found{uses}."), ""
    return Line("health", f"Healthy: {count} logged quantities are within their limits ({SOURCE}){uses}."), ""


def geometry_line(results: Results) -> list[Line]:
    """Name the shape of the embedding and, for a torus head, of the angles, or else the nearest shape."""
    verdicts = {name: results["geometry"].get(name, {}).get("verdict") for name in ("embedding", "angles")}
    said = [f"{CLOUDS[name]}: {shape_in_words(found)}" for name, found in verdicts.items() if found]
    if said:
        return [Line("geometry", sentence("; ".join(said)))]
    why = results["geometry"].get("embedding", {}).get("left_out", {}).get("homology")
    return [Line("geometry", f"No verdict on the embedding: {why}.")] if why else []


def sentence(text: str) -> str:
    """Return words as a sentence: with a capital and a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def about_usefulness(results: Results) -> str:
    """Say whether pretraining helps, what to do next, and how well the pretrained encoder scores.

    A collapsed encoder, or baseline, is named before anything else.
    """
    said = (about_collapse(results), headline(results), about_scores(results), what_next(results))
    return " ".join(filter(None, said))
