"""How useful one representation is: probes, neighbours, few-shot and retrieval against its targets.

With a division into folds, probe and k-NN are cross-validated (`usefulness.folds`). Otherwise, and for the
other methods, every setting, also the feature set, is chosen on val; each method looks at test once. A method
that cannot be computed, or that fails, is left out with a reason.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipeline.targets.targets import Targets, aligned, missed_classes
from eval_suite import progress
from eval_suite.attempts import Unmeasurable, attempt
from eval_suite.metrics import METHODS
from eval_suite.results import json_safe
from eval_suite.usefulness import angle_retrieval, neighbors, regression
from eval_suite.usefulness.estimate import MOST_CLASSES, Estimates, of_test
from eval_suite.usefulness.few_shot import few_shot
from eval_suite.usefulness.folds import measure_folds
from eval_suite.usefulness.folds.division import Division
from eval_suite.usefulness.minibatch_probe import minibatch_probe
from eval_suite.usefulness.options import Options
from eval_suite.usefulness.probe import linear_probe
from eval_suite.usefulness.regression import ridge_probe
from eval_suite.usefulness.resampling import units
from eval_suite.usefulness.retrieval import retrieval
from isotorus.errors import UserError

Array = NDArray[np.floating]
Features = Mapping[str, Mapping[str, Array]]
"""Features (n, d) of one representation, by feature set, then split."""


class _Data(NamedTuple):
    """The samples that have targets; x by feature set (n, d), y as in `Targets.values`."""

    train_x: dict[str, Array]
    train_y: NDArray[Any]
    val_x: dict[str, Array]
    val_y: NDArray[Any]
    test_x: dict[str, Array]
    test_y: NDArray[Any]


def measure(
    features: Features,
    targets: Mapping[str, Targets],
    options: Options | None = None,
    *,
    device: str | torch.device = "cpu",
    division: Division | None = None,
) -> dict[str, Any]:
    """Measure everything in `options` on the features and targets by split; the result is ready for JSON.

    Splits are train, val and, if there is one, test. Scores are reported on the folds of the `division`,
    without one on test, and without test on val; `reported_on` names which. docs/usefulness.md lists the
    keys. A metric for which the data are not enough raises nothing; it is in `left_out` with a reason.
    """
    return measure_paired(features, targets, options, device=device, division=division)[0]


def measure_paired(
    features: Features,
    targets: Mapping[str, Targets],
    options: Options | None = None,
    *,
    device: str | torch.device = "cpu",
    name: str = "features",
    division: Division | None = None,
) -> tuple[dict[str, Any], dict[str, Estimates]]:
    """Do the same as `measure`, and also return the estimates of the scores by method.

    `name` is what progress calls the representation. What is drawn depends only on targets, division and
    seed. So the estimates of two representations are paired, and can be subtracted.
    """
    options = options or Options()
    wanted = [metric for metric in options.metrics if METHODS[metric].of_vectors]
    if division is None:
        metrics = tuple(metric for metric in wanted if metric not in measure_folds.ONLY)
        results, estimates = _on_a_split(features, targets, options, metrics, device, name)
    else:
        metrics = tuple(metric for metric in wanted if metric not in measure_folds.FOLDED)
        results, estimates = _on_a_split(features, targets, options, metrics, device, name)
        folded, more = measure_folds.measure(features, division, targets, options, device=device, name=name)
        folded["left_out"] += [e for e in results["left_out"] if e not in folded["left_out"]]
        results, estimates = {**results, **folded}, estimates | more
    results["targets"] = {split: _counts(of) for split, of in targets.items()}
    return json_safe(results), estimates


def _on_a_split(
    features: Features,
    targets: Mapping[str, Targets],
    options: Options,
    metrics: Sequence[str],
    device: str | torch.device,
    name: str,
) -> tuple[dict[str, Any], dict[str, Estimates]]:
    """Measure `metrics`, fitted on train, with settings chosen on val, and reported on test or else val."""
    reported = "test" if "test" in targets else "val"
    left_out: list[dict[str, str]] = []
    estimates: dict[str, Estimates] = {}
    results: dict[str, Any] = {"reported_on": reported, "left_out": left_out}
    try:
        usable = usable_targets(targets, reported)
        data = _data(features, usable, reported, left_out)
    except Unmeasurable as reason:
        left_out += [{"metric": metric, "reason": str(reason)} for metric in metrics]
        return results, estimates
    kind, names = usable["train"].kind, usable["train"].names
    widths = {name: x.shape[1] for name, x in data.train_x.items()}
    results |= {"kind": kind, "names": names, "widths": widths}
    results["missed_classes"] = missed_classes(usable, reported)
    groups = usable[reported].groups
    groups = None if groups is None else groups[usable[reported].known]
    results["intervals"] = {"drawn": "samples" if groups is None else "groups"}
    if groups is not None:
        results["intervals"]["groups"] = int(units(groups).max()) + 1
    failed: dict[str, str] = {}
    for metric in metrics:
        progress.doing(f"{METHODS[metric].label} of {name}")

        def compute(metric: str = metric) -> tuple[dict[str, Any], Estimates | None]:
            measured = _METHODS[metric](data, kind, len(names), options, device)
            if "test_scores" not in measured:
                return measured, None
            drawn = {"resamples": options.resamples, "seed": options.seed}
            return of_test(measured, data.test_y, groups, kind, names, **drawn)

        if (judged := attempt(metric, compute, failed)) is None:
            continue
        results[metric], found = judged
        results[metric]["reported_on"] = reported
        if found is not None:
            estimates[metric] = found
            if kind == "multiclass" and "confusion" not in results[metric]:
                failed[f"{metric}.confusion"] = f"more than {MOST_CLASSES} classes"
    left_out += [{"metric": metric, "reason": reason} for metric, reason in failed.items()]
    return results, estimates


def _counts(targets: Targets) -> dict[str, int]:
    """Count the samples of a split, those that are used, and those that are left out."""
    return {
        "samples": len(targets.known),
        "used": int(targets.known.sum()),
        "without_row": targets.without_row,
        "without_value": targets.without_value,
    }


def usable_targets(targets: Mapping[str, Targets], reported: str) -> dict[str, Targets]:
    """Return the targets with classes common to all splits.

    Raises Unmeasurable if a split that is needed has no targets, or only one value of them.
    """
    for split in dict.fromkeys(("train", "val", reported)):
        if split not in targets:
            raise Unmeasurable(f"there are no targets of {split}")
        of = targets[split]
        if not of.known.any():
            raise Unmeasurable(
                f"{split} has no labels" if of.kind == "multiclass" else f"{split} has no targets"
            )
        present = np.unique(of.values[of.known], axis=0)
        if of.kind == "multiclass" and len(present) == 1:
            raise Unmeasurable(f"all labelled samples of {split} are of one class, {of.names[present[0]]}")
        if of.kind != "multiclass" and len(present) == 1:
            raise Unmeasurable(f"all samples of {split} have the same targets")
    try:
        return aligned(targets)
    except ValueError as error:
        raise Unmeasurable(str(error)) from None


def _data(
    features: Features, targets: Mapping[str, Targets], reported: str, left_out: list[dict[str, str]]
) -> _Data:
    """Collect the samples that have targets; feature sets that are not finite go to `left_out`."""
    sound = {}
    for name, by_split in features.items():
        known = {split: by_split[split][targets[split].known] for split in {"train", "val", reported}}
        if all(np.isfinite(x).all() for x in known.values()):
            sound[name] = known
        else:
            left_out.append({"metric": f"feature set {name}", "reason": "it holds NaN or infinite features"})
    if not sound:
        raise Unmeasurable("there are no finite features")
    parts: list[Any] = []
    for split in ("train", "val", reported):
        of = targets[split]
        parts += [{name: known[split] for name, known in sound.items()}, of.values[of.known]]
    return _Data(*parts)


def _probe(data: _Data, kind: str, classes: int, options: Options, device: Any) -> dict[str, Any]:
    if kind == "regression":
        return ridge_probe(*data, l2=options.given_l2(regression.L2_GRID))
    return linear_probe(*data, l2=options.l2, classes=classes, device=device)


def _minibatch_probe(data: _Data, kind: str, classes: int, options: Options, device: Any) -> dict[str, Any]:
    if kind == "regression":
        raise Unmeasurable("numbers are predicted by ridge regression, which has a closed form")
    return minibatch_probe(*data, protocol=options.protocol, classes=classes, device=device)


def _knn(data: _Data, kind: str, classes: int, options: Options, device: Any) -> dict[str, Any]:
    _only_classes(kind)
    k = [count for count in options.k if count <= len(data.train_y)]
    if not k:
        raise Unmeasurable(f"train has {len(data.train_y)} samples, fewer than {min(options.k)} neighbours")
    data = _with_directions(data)
    return neighbors.evaluate(*data, k=k, temperature=options.temperature, classes=classes)


def _few_shot(data: _Data, kind: str, classes: int, options: Options, device: Any) -> dict[str, Any]:
    """Measure each number of shots; those that a class has too few samples for are listed with a reason."""
    _only_classes(kind)

    def of(shots: int) -> Callable[..., dict[str, Any]]:
        return lambda *rows: few_shot(*rows, shots=shots, draws=options.draws, seed=options.seed)

    measured: dict[str, Any] = {}
    for shots in options.shots:
        try:
            measured[str(shots)] = _best_feature_set(data, of(shots), "balanced_accuracy")
        except Unmeasurable as reason:
            measured.setdefault("left_out", {})[str(shots)] = str(reason)
    if set(measured) == {"left_out"}:
        raise Unmeasurable("; ".join(measured["left_out"].values()))
    return measured


def _retrieval(data: _Data, kind: str, classes: int, options: Options, device: Any) -> dict[str, Any]:
    """Measure retrieval by cosine, and that of a torus head's angles also with a memory as the index."""
    _only_classes(kind)
    data = _with_directions(data)
    measured = _best_feature_set(data, lambda *rows: retrieval(*rows, seed=options.seed), "map")
    if "angles" in data.train_x:
        gallery, queries = data.train_x["angles"], data.test_x["angles"]
        try:
            measured["memory"] = angle_retrieval.retrieval(gallery, data.train_y, queries, data.test_y)
        except UserError as error:  # too many angles for a memory
            measured["left_out"] = {"memory": str(error)}
    return measured


_METHODS = {
    "probe": _probe,
    "minibatch_probe": _minibatch_probe,
    "knn": _knn,
    "few_shot": _few_shot,
    "retrieval": _retrieval,
}


def _with_directions(data: _Data) -> _Data:
    """Keep the feature sets whose cosines differ; raises Unmeasurable if there are none."""
    kept = neighbors.with_directions(data.train_x)
    changed: dict[str, Any] = {
        field: {name: x for name, x in getattr(data, field).items() if name in kept}
        for field in ("train_x", "val_x", "test_x")
    }
    return data._replace(**changed)


def _best_feature_set(data: _Data, score: Callable[..., dict[str, Any]], by: str) -> dict[str, Any]:
    """Return what `score` gives on test for the feature set that is best on val, the first among equals."""
    val = []
    if len(data.train_x) > 1:
        for name, x in data.train_x.items():
            val.append({"feature_set": name, by: score(x, data.train_y, data.val_x[name], data.val_y)[by]})
    best = max(val, key=lambda row: row[by])["feature_set"] if val else next(iter(data.train_x))
    measured = score(data.train_x[best], data.train_y, data.test_x[best], data.test_y)
    return {**measured, "feature_set": best, "val": val}


def _only_classes(kind: str) -> None:
    """Raise Unmeasurable for other kinds of targets than classes."""
    if kind != "multiclass":
        raise Unmeasurable(f"it needs one class for each sample, the targets are {kind}")
