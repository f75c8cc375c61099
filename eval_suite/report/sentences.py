"""The results in sentences, with no more certainty than the intervals and error rates allow."""

from collections.abc import Mapping
from typing import Any

from eval_suite.geometry.verdict import FLAT_TORI, NONE
from eval_suite.metrics import METHODS, SCORES, headlines
from eval_suite.report import names
from eval_suite.report.standing import Lead, Standing, baselines, lead, standings
from eval_suite.results import dig

NO_SHAPE = "no flat torus, circle, sphere or isotropic Gaussian"
CLOUDS = {
    "embedding": "the embedding",
    **names.HEADS,
    "untrained": "the untrained encoder's embedding",
}
SPLITS = {"test": "the test split", "val": "the validation split", "folds": "held-out folds"}
"""Words for the split on which scores are reported."""
Results = Mapping[str, Any]


def about_collapse(results: Results) -> str:
    """Say which representations give every train image the same vector; an empty string if none does."""
    collapsed = [
        CLOUDS.get(name, names.phrase(name))
        for name, of in results["representations"].items()
        if of.get("collapsed")
    ]
    if not collapsed:
        return ""
    return f"Collapsed: every train image has the same vector, up to rounding, in {', '.join(collapsed)}."


def headline(results: Results) -> str:
    """Say whether pretraining helps, judged against the best baseline; an empty string without baselines.

    The linear probe decides. k-NN is named if it disagrees, and so are baselines that could not be compared.
    """
    found = standings(results)
    if not found:
        return ""
    return " ".join(filter(None, (verdict(found[0], results), disagreements(results))))


def disagreements(results: Results) -> str:
    """Name the methods that come to another outcome than the first, and baselines that it lacks."""
    if not (found := standings(results)):
        return ""
    first, *others = found
    said = [
        f"{METHODS[other.method].label} disagrees: {_briefly(other)}."
        for other in others
        if other.outcome != first.outcome
    ]
    if first.without:
        missing = ", ".join(map(names.phrase, first.without))
        said.append(f"Not compared, for want of a {METHODS[first.method].label} score: {missing}.")
    return " ".join(said)


def verdict(standing: Standing, results: Results) -> str:
    """Say one of the four outcomes, with the interval of the lead over the best baseline."""
    seen = "with these seeds" if "seeds" in results["checkpoint"] else "on this set"
    best, by = standing.best, f"{METHODS[standing.method].label}, {SCORES[standing.score].label}"
    rival = names.phrase(best.baseline)
    over = rival if names.is_untrained(best.baseline) else f"the best baseline, {rival}"
    if standing.outcome == "ahead":
        return f"Pretraining helps: {_points(best.value)} ahead of {over} ({_interval(best)}; {by})."
    if standing.outcome == "behind":
        word = "Pretraining hurts" if names.is_untrained(best.baseline) else "Behind"
        return f"{word}: {rival} {names.are(best.baseline)} {_behind(best)}; {by})."
    if standing.outcome == "unclear":
        smallest = standing.smallest
        if smallest is None:
            return (
                f"No effect can be claimed: {_signed(best.value)} points against {over}, no interval ({by})."
            )
        said = f"No effect seen: {_signed(best.value)} points against {over} ({_interval(best)}; {by})."
        return f"{said} Effects below about {_points(smallest)} cannot be seen {seen}."
    assert standing.untrained is not None
    untrained = standing.untrained
    gain = f"{_points(untrained.value)} ahead of {names.phrase(untrained.baseline)} ({_interval(untrained)})"
    if best.sign < 0:
        said = f"Not yet: {rival} {names.are(best.baseline)} {_behind(best)}; {by})."
        return f"{said} The pretrained encoder is {gain}."
    return (
        f"Better than untrained, but not clearly than {rival}: {_signed(best.value)} points "
        f"({_interval(best)}; {by}). The pretrained encoder is {gain}."
    )


def _briefly(standing: Standing) -> str:
    """Say a standing in a few words, for the method that disagrees."""
    best, rival = standing.best, names.phrase(standing.best.baseline)
    if best.sign < 0:
        return f"{rival} {names.are(best.baseline)} {_behind(best)})"
    if best.sign > 0:
        return f"{_points(best.value)} ahead of {rival} ({_interval(best)})"
    return f"{_signed(best.value)} points against {rival} ({_interval(best)})"


def about_scores(results: Results) -> str:
    """Say how the pretrained encoder scores; with folds, also on test. The tables have the baselines."""
    measured = results["representations"]["pretrained"]
    methods = [name for name, method in METHODS.items() if method.summarised and name in measured]
    if not methods:
        reasons = {e["reason"] for e in results["left_out"] if e["metric"] in METHODS}
        return f"No scores against labels: {', '.join(sorted(reasons)) or 'they were not requested'}."
    parts: dict[str, list[str]] = {}
    for method in methods:
        values = [
            f"{SCORES[score].label} {100 * measured[method][score]:.1f}\u00a0%"
            for score in reversed(headlines(results["kind"]))
            if measured[method].get(score) is not None
        ]
        if values:
            own = measured[method].get("reported_on", results["reported_on"])
            parts.setdefault(own, []).append(f"{METHODS[method].label} {', '.join(values)}")
    said = [
        f"The pretrained encoder on {SPLITS.get(split, split)}: {'; '.join(scored)}."
        for split, scored in parts.items()
    ]
    return " ".join(filter(None, (*said, _on_test(results))))


def about_masks(results: Results) -> str:
    """Say how well masks are predicted, against the best other representation and the most frequent class.

    An empty string where no masks were predicted.
    """
    path = "segmentation_probe/miou"
    ours = results["representations"]["pretrained"].get("segmentation_probe")
    if not ours:
        return ""
    split, majority = SPLITS.get(ours["reported_on"], ours["reported_on"]), ours["majority"]
    said = f"Masks on {split}: mIoU {100 * ours['miou']:.1f}\u00a0% by the segmentation probe"
    leads = [found for name in baselines(results) if (found := lead(results, path, name))]
    if leads:
        best = min(leads, key=lambda found: found.value)
        said += f", {_signed(best.value)} points against {names.phrase(best.baseline)} ({_interval(best)})"
    return (
        f"{said}; predicting class {majority['name']} everywhere gives {100 * majority['miou']:.1f}\u00a0%."
    )


def about_finetuning(results: Results) -> str:
    """Say how the fine-tuned encoder scores, against the linear probe and against training from scratch.

    Returns "" if nothing was fine-tuned.
    """
    score = next((name for name in headlines(results["kind"]) if SCORES[name].decides), "")
    said, split = [], ""
    for method in (name for name, described in METHODS.items() if described.trains):
        ours = results["representations"]["pretrained"].get(method)
        if not ours or ours.get(score) is None:
            continue
        split = SPLITS.get(ours["reported_on"], ours["reported_on"])
        rivals = {
            "a linear probe": ours.get("over_probe", {}),
            "training from scratch": results["differences"].get("untrained", {}).get(method, {}),
        }
        against = [
            f"{_signed(over['value'])} points against {name} ({' to '.join(map(_signed, over['interval']))})"
            for name, of in rivals.items()
            if (over := of.get(score)) and None not in over["interval"]
        ]
        value = f"{SCORES[score].label} {100 * ours[score]:.1f}\u00a0%"
        said.append(", ".join([f"on {ours['labels']:,} labels {value}", *against]))
    return f"Fine-tuning, on {split}: {'; '.join(said)}." if said else ""


def _on_test(results: Results) -> str:
    """Say how the encoder scores on a test split beside folds, against the best baseline of the folds."""
    for standing in standings(results)[:1]:
        path = f"{standing.method}/test/{standing.score}"
        over = lead(results, path, standing.best.baseline)
        if over is not None:
            value = 100 * dig(results["representations"]["pretrained"], path)
            by = f"{METHODS[standing.method].label} {SCORES[standing.score].label} {value:.1f}\u00a0%"
            against = f"{_signed(over.value)} points against {names.phrase(over.baseline)}"
            return f"On the test split, which is in no fold: {by}, {against} ({_interval(over)})."
    return ""


def about_geometry(results: Results) -> str:
    """Say which shape each cloud has; an empty string where no verdict was asked for."""
    verdicts = []
    for name, measured in results["geometry"].items():
        if "verdict" in measured:
            verdicts.append(f"{CLOUDS[name]}: {shape_in_words(measured['verdict'])}{_pairs(measured)}")
    return f"Geometry of {'; of '.join(verdicts)}." if verdicts else ""


def shape_in_words(said: Mapping[str, Any]) -> str:
    """Return a verdict with the ratio of a torus's circles, or with what is nearest to the cloud."""
    if said["name"] == NONE:
        return NO_SHAPE + (f" (nearest: {said['nearest']})" if said.get("nearest") else "")
    if said["name"] in FLAT_TORI and said.get("flat_torus"):
        return f"{said['name']} with circles {said['flat_torus']['ratio']:.2f} : 1"
    return str(said["name"])


def _pairs(measured: Mapping[str, Any]) -> str:
    """Say how many pairs of angles are flat tori, in brackets; empty without pairs."""
    if not (judged := measured.get("pairs", {}).get("pairs")):
        return ""
    tori = sum(pair["name"] in FLAT_TORI for pair in judged)
    return f" ({tori} of {len(judged)} pairs of angles are flat tori)"


def _behind(over: Lead) -> str:
    """Say by how much a baseline is ahead; the caller adds to the bracket and closes it."""
    turned = Lead(over.baseline, -over.value, -over.high, -over.low)
    return f"{_points(turned.value)} ahead ({_interval(turned)}"


def _interval(over: Lead) -> str:
    return f"95\u00a0% interval {_signed(over.low)} to {_signed(over.high)}"


def _points(value: float) -> str:
    return f"{100 * value:.1f} points"


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")
