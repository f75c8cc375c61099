"""The results in sentences, with no more certainty than their intervals and error rates allow."""

from collections.abc import Mapping
from typing import Any

METHODS = {"probe": "linear probe", "minibatch_probe": "minibatch probe", "knn": "k-NN"}
BASELINES = {"untrained": "the same encoder untrained", "pixels": "raw pixels"}
HEADLINES = {
    "multiclass": ("balanced_accuracy", "auroc"),
    "multilabel": ("auroc", "average_precision"),
    "regression": ("r2", "spearman"),
}
"""The two scores that are shown of each kind of target; the second decides what is said of pretraining."""
TITLES = {
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "average_precision": "average precision",
    "r2": "R²",
    "spearman": "Spearman",
}
DECISIVE = {"multiclass": "auroc", "multilabel": "auroc", "regression": "r2"}
CLOUDS = {
    "embedding": "the embedding",
    "projector": "the projector's output",
    "angles": "the torus head's angles",
    "untrained": "the untrained encoder's embedding",
}
NO_EFFECT = "No clear effect of pretraining"


def reading(results: Mapping[str, Any]) -> str:
    """What the encoder is good for, beside its baselines."""
    measured = results["representations"]["pretrained"]
    methods = [method for method in ("probe", "knn") if method in measured]
    if not methods:
        reasons = {entry["reason"] for entry in results["left_out"] if entry["metric"] in METHODS}
        return (
            f"There are no scores against labels: {', '.join(sorted(reasons)) or 'they were not asked for'}."
        )
    where = "the test split" if results["reported_on"] == "test" else "the validation split"
    sentences = []
    for method in methods:
        for score in reversed(HEADLINES[results["kind"]]):
            if measured[method][score] is None:
                continue
            compared = [
                _compared(name, found[method][score])
                for name, found in results["differences"].items()
                if score in found.get(method, {})
            ]
            value = f"{TITLES[score]} {100 * measured[method][score]:.1f}\u00a0%"
            sentences.append(", ".join([f"{METHODS[method]} {value}", *compared]))
    decisive = DECISIVE[results["kind"]]
    effect = _effect(results["differences"].get("untrained", {}), methods, decisive)
    return f"{effect}The pretrained encoder on {where}, with 95\u00a0% intervals: {'; '.join(sentences)}."


def geometry(results: Mapping[str, Any]) -> str:
    """What shape each cloud was found to have."""
    found = {name: of["verdict"]["name"] for name, of in results["geometry"].items() if "verdict" in of}
    if not found:
        return ""
    said = "; ".join(f"{CLOUDS[name]}: {verdict}" for name, verdict in found.items())
    return f"Geometry of {said}."


def _effect(differences: Mapping[str, Any], methods: list[str], score: str) -> str:
    """What pretrained minus untrained says, by method where they say different things.

    AUROC needs no threshold, so it tells smaller differences apart than balanced accuracy does.
    """
    said: dict[str, list[str]] = {}
    for method in methods:
        if score in differences.get(method, {}):
            low, high = differences[method][score]["interval"]
            effect = "Pretraining helps" if low > 0 else "Pretraining hurts" if high < 0 else NO_EFFECT
            said.setdefault(effect, []).append(METHODS[method])
    if len(said) == 1:
        return f"{next(iter(said))} ({TITLES[score]}). "
    return "".join(f"{effect} by {' and '.join(by)} ({TITLES[score]}). " for effect, by in said.items())


def _compared(name: str, difference: Mapping[str, Any]) -> str:
    value = 100 * difference["value"]
    low, high = (_signed(100 * bound) for bound in difference["interval"])
    return f"{_signed(value)} points against {BASELINES[name]} ({low} to {high})"


def _signed(points: float) -> str:
    return f"{points:+.1f}".replace("-", "−")
