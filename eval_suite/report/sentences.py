"""The results in sentences, with no more certainty than the intervals and error rates allow."""

from collections.abc import Mapping
from typing import Any

from eval_suite.metrics import METHODS, SCORES, headlines

BASELINES = {"untrained": "the untrained encoder", "pixels": "raw pixels"}
CLOUDS = {
    "embedding": "the embedding",
    "projector": "the projector's output",
    "angles": "the torus head's angles",
    "untrained": "the untrained encoder's embedding",
}


def about_usefulness(results: Mapping[str, Any]) -> str:
    """Say how well the pretrained encoder scores, and whether it is better than its baselines.

    A collapsed encoder, or baseline, is named before anything else.
    """
    return about_collapse(results) + _about_scores(results)


def about_collapse(results: Mapping[str, Any]) -> str:
    """Say which representations give every train image the same vector; an empty string if none does."""
    named = {**CLOUDS, "pretrained": "the pretrained encoder", **BASELINES}
    collapsed = [named[name] for name, of in results["representations"].items() if of.get("collapsed")]
    if not collapsed:
        return ""
    return f"Collapsed: every train image has the same vector, up to rounding, in {', '.join(collapsed)}. "


def _about_scores(results: Mapping[str, Any]) -> str:
    """Say how the pretrained encoder scores, alone and compared with the baselines."""
    measured = results["representations"]["pretrained"]
    methods = [name for name, method in METHODS.items() if method.summarised and name in measured]
    if not methods:
        reasons = {e["reason"] for e in results["left_out"] if e["metric"] in METHODS}
        return f"No scores against labels: {', '.join(sorted(reasons)) or 'they were not requested'}."
    scores = headlines(results["kind"])
    parts = []
    for method in methods:
        for score in reversed(scores):
            if measured[method][score] is None:
                continue
            compared = [
                _compared(name, difference[method][score])
                for name, difference in results["differences"].items()
                if score in difference.get(method, {})
            ]
            value = f"{SCORES[score].label} {100 * measured[method][score]:.1f}\u00a0%"
            parts.append(", ".join([f"{METHODS[method].label} {value}", *compared]))
    decisive = next(score for score in scores if SCORES[score].decides)
    effect = _effect(results["differences"].get("untrained", {}), methods, decisive)
    split = "the test split" if results["reported_on"] == "test" else "the validation split"
    return f"{effect}The pretrained encoder on {split}, with 95\u00a0% intervals: {'; '.join(parts)}."


def about_geometry(results: Mapping[str, Any]) -> str:
    """Say which shape each cloud has; an empty string where no verdict was asked for."""
    verdicts = [
        f"{CLOUDS[name]}: {measured['verdict']['name']}"
        for name, measured in results["geometry"].items()
        if "verdict" in measured
    ]
    return f"Geometry of {'; of '.join(verdicts)}." if verdicts else ""


def _effect(differences: Mapping[str, Any], methods: list[str], score: str) -> str:
    """Say whether pretraining helps, judged by pretrained minus untrained in one score.

    The score needs no threshold, so it detects smaller differences than balanced accuracy does. Methods that
    disagree get a sentence each.
    """
    effects: dict[str, list[str]] = {}
    label = SCORES[score].label
    for method in methods:
        if score in differences.get(method, {}):
            low, high = differences[method][score]["interval"]
            effect = "No clear effect of pretraining"
            if low > 0 or high < 0:
                effect = f"Pretraining {'helps' if (low > 0) == SCORES[score].higher_is_better else 'hurts'}"
            effects.setdefault(effect, []).append(METHODS[method].label)
    if len(effects) == 1:
        return f"{next(iter(effects))} ({label}). "
    return "".join(f"{effect} ({', '.join([*by, label])}). " for effect, by in effects.items())


def _compared(name: str, difference: Mapping[str, Any]) -> str:
    low, high = (_signed(100 * bound) for bound in difference["interval"])
    return f"{_signed(100 * difference['value'])} points relative to {BASELINES[name]} ({low} to {high})"


def _signed(points: float) -> str:
    return f"{points:+.1f}".replace("-", "−")
