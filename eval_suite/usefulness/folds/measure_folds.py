"""Probe and k-NN of one representation, cross-validated over the labelled samples of train and val.

A test split is in no fold. It is scored separately, by a fit on train and val together with the setting that
the folds chose.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipeline.targets.targets import Targets, aligned
from eval_suite import progress
from eval_suite.attempts import Unmeasurable, attempt
from eval_suite.metrics import METHODS
from eval_suite.usefulness import estimate, neighbors, probe, regression
from eval_suite.usefulness.estimate import Estimates
from eval_suite.usefulness.folds.cross_validation import (
    Method,
    Predicted,
    by_class,
    cross_validate,
    estimates,
)
from eval_suite.usefulness.folds.division import Codes, Division, divide, sentence, wanted
from eval_suite.usefulness.folds.label_curve import label_curve
from eval_suite.usefulness.options import Options
from eval_suite.usefulness.selection import JUDGES

Array = NDArray[np.floating]
Features = Mapping[str, Mapping[str, Array]]

_log = logging.getLogger(__name__)
ONLY = ("label_curve",)
"""Metrics that are measured on folds or not at all."""
ROUGH = 1e-5
"""Tolerance of the fits that only choose a strength; it moves a probability by less than 0.01."""
FOLDED = ("probe", "knn", *ONLY)
"""Metrics that are measured on folds; the others are measured on a single split."""


def measure(
    features: Features,
    division: Division,
    targets: Mapping[str, Targets],
    options: Options,
    *,
    device: str | torch.device = "cpu",
    name: str = "features",
) -> tuple[dict[str, Any], dict[str, Estimates]]:
    """Measure those of `options.metrics` that are in `FOLDED`, for features by feature set and split.

    Returns the results with `left_out`, and the estimates of each method's scores, which are paired with
    those of another representation with the same division. Those on a test split are under "<method>/test".
    """
    left_out: list[dict[str, str]] = []
    found: dict[str, Estimates] = {}
    kind, y = division.targets.kind, division.targets.values
    test = _aligned_test(targets, division)
    names = division.targets.names if test is None else test.names
    x = {key: division.features(by_split) for key, by_split in features.items()}
    for key in [key for key, of in x.items() if not np.isfinite(of).all()]:
        del x[key]
        left_out.append({"metric": f"feature set {key}", "reason": "it holds NaN or infinite features"})
    groups = int(division.unit.max()) + 1
    results: dict[str, Any] = {
        "reported_on": "folds",
        "kind": kind,
        "names": names,
        "widths": {key: of.shape[1] for key, of in x.items()},
        "missed_classes": [],
        "intervals": {"drawn": "groups" if groups < len(y) else "samples", "groups": groups},
        "left_out": left_out,
    }
    failed: dict[str, str] = {}
    predicted: dict[str, Predicted] = {}
    for metric in options.metrics:
        if metric not in FOLDED:
            continue
        progress.doing(f"{METHODS[metric].label} of {name} in {division.folds} folds")

        def compute(metric: str = metric) -> tuple[dict[str, Any], Estimates]:
            method, sets = _method(metric, x, division, len(names), options, device)
            of_all = predicted[metric] = cross_validate(sets, y, kind, division, method)
            scored = estimates(of_all, y, kind, division, options.resamples, options.seed)
            of: dict[str, Any] = {"reported_on": "folds", **of_all.best}
            of |= _with_intervals(scored)
            of |= {"converged": of_all.converged} if metric == "probe" else {}
            of |= {"inner": of_all.tried, "chosen": of_all.chosen}
            of |= {"train": of_all.train} if of_all.train else {}
            of |= by_class(of_all, y, kind, division, names)
            if test is not None:

                def beside() -> tuple[dict[str, Any], Estimates]:
                    return _on_test(features, test, sets, y, kind, method, of_all.best, options)

                if (judged := attempt(f"{metric}.test", beside, failed)) is not None:
                    of["test"], found[f"{metric}/test"] = judged
            return of, scored

        def curve() -> dict[str, Any]:
            if kind != "multiclass":
                raise Unmeasurable(f"it needs one class for each sample, the targets are {kind}")
            method, sets = _method("probe", x, division, len(names), options, device)
            whole = predicted.get("probe") or cross_validate(sets, y, kind, division, method)
            drawn = {"resamples": options.resamples, "seed": options.seed}
            points: dict[str, Any] = {}
            for labels, draws, scored in label_curve(sets, y, division, method, whole, **drawn):
                points[str(labels)] = {"draws": draws, **_with_intervals(scored)}
                found[f"label_curve/{labels}"] = scored
            return points

        if metric == "label_curve":
            if (points := attempt(metric, curve, failed)) is not None:
                results[metric] = points
            continue
        if (done := attempt(metric, compute, failed)) is None:
            continue
        results[metric], found[metric] = done
        if kind == "multiclass" and "confusion" not in results[metric]:
            failed[f"{metric}.confusion"] = f"more than {estimate.MOST_CLASSES} classes"
    left_out += [{"metric": metric, "reason": reason} for metric, reason in failed.items()]
    return results, found


def _with_intervals(scored: Estimates) -> dict[str, Any]:
    """Return every score and its interval."""
    found: dict[str, Any] = {}
    for score, value in scored.items():
        found |= {score: value.value, f"{score}_interval": value.interval(score)}
    return found


def divided(
    targets: Mapping[str, Targets], options: Options, alike: Callable[[], Sequence[Codes]]
) -> tuple[Division | None, list[dict[str, str]]]:
    """Return the folds that all representations share (None for a single split), and why there are none.

    `alike` returns groups of copies, and is called only if there are folds. A line on standard error says
    where the folds are not those that were asked for.
    """
    folds = wanted(targets, options.folds)
    if not folds or not set(options.metrics) & set(FOLDED):
        return None, []
    failed: dict[str, str] = {}

    def work() -> Division:
        progress.doing("looking for copies and dividing into folds")
        return divide(targets, folds, options.repeats, options.seed, alike())

    division = attempt("folds", work, failed)
    said = f"no folds: {failed['folds']}" if division is None else sentence(division.about)
    if said:
        _log.warning("note: %s", said)
    return division, [{"metric": metric, "reason": why} for metric, why in failed.items()]


def _method(
    metric: str,
    x: Mapping[str, Array],
    division: Division,
    classes: int,
    options: Options,
    device: str | torch.device,
) -> tuple[Method, Mapping[str, Array]]:
    """Return a metric's method, and the feature sets that it can use; raises Unmeasurable if it cannot."""
    if not x:
        raise Unmeasurable("there are no finite features")
    kind = division.targets.kind
    if metric == "knn":
        if kind != "multiclass":
            raise Unmeasurable(f"it needs one class for each sample, the targets are {kind}")
        sizes = np.array([held.sum() for _, _, held in division])
        least = len(division.targets.values) - 2 * int(sizes.max())
        grid = [count for count in options.k if count <= least]
        if not grid:
            raise Unmeasurable(f"the folds leave {least} samples, fewer than {min(options.k)} neighbours")

        def vote(_: str, of: Array, y: NDArray[Any], held: Array, k: Any) -> tuple[Any, bool]:
            return neighbors.knn_scores(of, y, held, k, options.temperature, classes), True

        return Method("k", grid[::-1], vote), neighbors.with_directions(x)
    if kind == "regression":

        def ridge(_: str, of: Array, y: NDArray[Any], held: Array, l2: Any) -> tuple[Any, bool]:
            return regression.predictions(of, y, held, l2), True

        return Method("l2", sorted(options.given_l2(regression.L2_GRID)), ridge, on_train=True), x

    bases: dict[str, torch.Tensor] = {}

    def fit(name: str, of: Array, y: NDArray[Any], held: Array, l2: Any) -> tuple[Any, bool]:
        tolerance = ROUGH if len(l2) > 1 else None
        # Fewer samples than features do not span the features of other folds.
        if of.shape[1] <= len(of) and name not in bases:
            bases[name] = probe.basis(of, device)
        basis = bases[name] if of.shape[1] <= len(of) else None
        return probe.predictions(
            of, y, held, l2, classes=classes, device=device, tolerance=tolerance, basis=basis
        )

    return Method("l2", sorted(options.l2), fit, on_train=True), x


def _aligned_test(targets: Mapping[str, Targets], division: Division) -> Targets | None:
    """Return the targets of test with the classes of the folds first; None if there are none to score."""
    if "test" not in targets or not targets["test"].known.any():
        return None
    try:
        return aligned({"folds": division.targets, "test": targets["test"]})["test"]
    except ValueError:
        return None


def _on_test(
    features: Features,
    test: Targets,
    x: Mapping[str, Array],
    y: NDArray[Any],
    kind: str,
    method: Method,
    best: Mapping[str, Any],
    options: Options,
) -> tuple[dict[str, Any], Estimates]:
    """Score, on the test split, a fit on all samples of the folds with the setting that the folds chose."""
    key = best.get("feature_set", next(iter(x)))
    held = features[key]["test"][test.known]
    if not np.isfinite(held).all():
        raise Unmeasurable(f"feature set {key} holds NaN or infinite features in test")
    (predicted, *_), _ = method.predict(key, x[key], y, held, [best[method.setting]])
    of_class = test.values[test.known]
    measured = {f"test_{score}": value for score, value in JUDGES[kind].summary(of_class, predicted).items()}
    groups = None if test.groups is None else test.groups[test.known]
    drawn = {"resamples": options.resamples, "seed": options.seed}
    return estimate.of_test(
        {**measured, "test_scores": predicted}, of_class, groups, kind, test.names, **drawn
    )
