"""What one representation is good for: probes, neighbours, few-shot and retrieval against its targets.

Every setting, the feature set among them, is chosen on val; test is looked at once for each method. What
cannot be computed is left out with a reason.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from eval_suite.inputs.targets import Targets, aligned
from eval_suite.names import USEFULNESS
from eval_suite.results import json_safe
from eval_suite.usefulness import angle_retrieval, label_scores, neighbors, regression, scores
from eval_suite.usefulness.few_shot import few_shot
from eval_suite.usefulness.minibatch_probe import Protocol, minibatch_probe
from eval_suite.usefulness.probe import L2_GRID, linear_probe
from eval_suite.usefulness.regression import ridge_probe
from eval_suite.usefulness.retrieval import retrieval
from eval_suite.usefulness.selection import Unmeasurable
from isotorus.section import Section

Array = NDArray[np.floating]
Samples = dict[str, NDArray[np.float64]]
"""A score's values on bootstrap test sets, by score."""

MOST_CLASSES = 100
"""Classes up to which the confusion matrix is part of the results."""


class Options(Section):
    """What is measured, and how."""

    metrics: tuple[str, ...] = USEFULNESS
    """Of `names.USEFULNESS`."""
    l2: tuple[float, ...] = L2_GRID
    """Strengths of the converged probe; ridge regression has its own."""
    protocol: Protocol = Protocol()
    """Of the minibatch probe."""
    k: tuple[int, ...] = neighbors.K_GRID
    """Neighbours to choose from; those that train is too small for are passed over."""
    temperature: float = Field(0.07, gt=0)
    """Of the neighbours' votes."""
    shots: tuple[int, ...] = (1, 10)
    """Labelled samples a class."""
    draws: int = Field(20, ge=2)
    """Random choices of those samples."""
    resamples: int = Field(1000, ge=1)
    """Bootstrap test sets for each interval."""
    seed: int = 0
    """Of the draws, the queries and the bootstrap; minibatches have their own in `protocol`."""


class _Data(NamedTuple):
    """Samples that have targets. x: feature set → (n, d); y as in `Targets`."""

    train_x: dict[str, Array]
    train_y: NDArray[Any]
    val_x: dict[str, Array]
    val_y: NDArray[Any]
    test_x: dict[str, Array]
    test_y: NDArray[Any]


def measure(
    features: Mapping[str, Mapping[str, Array]],
    targets: Mapping[str, Targets],
    options: Options | None = None,
    *,
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """All that `options` ask for, of features by feature set, then split, (n, d); ready for JSON.

    Splits are train, val and, if it is there, test; without it val is reported too, and `reported_on`
    says so. docs/usefulness.md lists the keys. Never raises for what the data lack: `left_out` holds
    metric and reason.
    """
    return measure_paired(features, targets, options, device=device)[0]


def measure_paired(
    features: Mapping[str, Mapping[str, Array]],
    targets: Mapping[str, Targets],
    options: Options | None = None,
    *,
    device: str | torch.device = "cpu",
) -> tuple[dict[str, Any], dict[str, Samples]]:
    """`measure`, and the bootstrap samples of each method's scores.

    For the same targets and seed the test sets are the same, so the difference of two representations has
    the samples' difference for its distribution.
    """
    options = options or Options()
    reported = "test" if "test" in targets else "val"
    left_out: list[dict[str, str]] = []
    samples: dict[str, Samples] = {}
    results: dict[str, Any] = {
        "reported_on": reported,
        "targets": {
            split: {
                "samples": len(of.known),
                "used": int(of.known.sum()),
                "without_row": of.without_row,
                "without_value": of.without_value,
            }
            for split, of in targets.items()
        },
        "left_out": left_out,
    }
    try:
        together = _usable(targets, reported)
        data = _data(features, together, reported, left_out)
    except Unmeasurable as reason:
        left_out += [{"metric": metric, "reason": str(reason)} for metric in options.metrics]
        return results, samples
    kind, names = together["train"].kind, together["train"].names
    results |= {
        "kind": kind,
        "names": names,
        "widths": {name: x.shape[1] for name, x in data.train_x.items()},
    }
    judge: Any = {"multiclass": scores, "multilabel": label_scores, "regression": regression}[kind]
    for metric in options.metrics:
        try:
            found = _METHODS[metric](data, kind, len(names), options, device)
        except Unmeasurable as reason:
            left_out.append({"metric": metric, "reason": str(reason)})
            continue
        if "test_scores" in found:
            predicted = found.pop("test_scores")
            drawn = judge.bootstrap(data.test_y, predicted, resamples=options.resamples, seed=options.seed)
            samples[metric] = drawn if isinstance(drawn, dict) else drawn._asdict()
            found = {key.removeprefix("test_"): value for key, value in found.items()}
            found |= {f"{score}_interval": scores.interval(of) for score, of in samples[metric].items()}
            found |= _details(kind, names, data.test_y, predicted)
            if kind == "multiclass" and len(names) > MOST_CLASSES:
                left_out.append(
                    {"metric": f"{metric}.confusion", "reason": f"more than {MOST_CLASSES} classes"}
                )
        results[metric] = found
    return json_safe(results), samples


def _usable(targets: Mapping[str, Targets], reported: str) -> dict[str, Targets]:
    """The targets with common classes; Unmeasurable if nothing can be fitted, chosen or reported."""
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
    features: Mapping[str, Mapping[str, Array]],
    targets: Mapping[str, Targets],
    reported: str,
    left_out: list[dict[str, str]],
) -> _Data:
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
        return ridge_probe(*data)
    return linear_probe(*data, l2=options.l2, classes=classes, device=device)


def _minibatch_probe(data: _Data, kind: str, classes: int, options: Options, device: Any) -> dict[str, Any]:
    if kind == "regression":
        raise Unmeasurable("numbers have ridge regression, whose optimum is known in closed form")
    return minibatch_probe(*data, protocol=options.protocol, classes=classes, device=device)


def _knn(data: _Data, kind: str, classes: int, options: Options, device: Any) -> dict[str, Any]:
    _only_classes(kind)
    k = [count for count in options.k if count <= len(data.train_y)]
    if not k:
        raise Unmeasurable(f"train has {len(data.train_y)} samples, fewer than {min(options.k)} neighbours")
    return neighbors.evaluate(*data, k=k, temperature=options.temperature, classes=classes)


def _few_shot(data: _Data, kind: str, classes: int, options: Options, device: Any) -> dict[str, Any]:
    """By number of shots; those that a class has too few samples for are listed with the reason."""
    _only_classes(kind)

    def of(shots: int) -> Callable[..., dict[str, Any]]:
        return lambda *rows: few_shot(*rows, shots=shots, draws=options.draws, seed=options.seed)

    found: dict[str, Any] = {}
    for shots in options.shots:
        try:
            found[str(shots)] = _best_feature_set(data, of(shots), "balanced_accuracy")
        except Unmeasurable as reason:
            found.setdefault("left_out", {})[str(shots)] = str(reason)
    if set(found) == {"left_out"}:
        raise Unmeasurable("; ".join(found["left_out"].values()))
    return found


def _retrieval(data: _Data, kind: str, classes: int, options: Options, device: Any) -> dict[str, Any]:
    _only_classes(kind)
    found = _best_feature_set(data, lambda *rows: retrieval(*rows, seed=options.seed), "map")
    if "angles" in data.train_x:
        gallery, queries = data.train_x["angles"], data.test_x["angles"]
        found["memory"] = angle_retrieval.retrieval(gallery, data.train_y, queries, data.test_y)
    return found


_METHODS = {
    "probe": _probe,
    "minibatch_probe": _minibatch_probe,
    "knn": _knn,
    "few_shot": _few_shot,
    "retrieval": _retrieval,
}


def _best_feature_set(data: _Data, score: Callable[..., dict[str, Any]], by: str) -> dict[str, Any]:
    """What `score` gives on test for the feature set that is best on val; of equals the first."""
    val = []
    if len(data.train_x) > 1:
        for name, x in data.train_x.items():
            val.append({"feature_set": name, by: score(x, data.train_y, data.val_x[name], data.val_y)[by]})
    best = max(val, key=lambda row: row[by])["feature_set"] if val else next(iter(data.train_x))
    found = score(data.train_x[best], data.train_y, data.test_x[best], data.test_y)
    return {**found, "feature_set": best, "val": val}


def _only_classes(kind: str) -> None:
    if kind != "multiclass":
        raise Unmeasurable(f"it needs one class for each sample, the targets are {kind}")


def _details(kind: str, names: list[str], y: NDArray[Any], predicted: NDArray[Any]) -> dict[str, Any]:
    """A row for each class or column, and the confusion matrix (true class × predicted class)."""
    if kind == "multilabel":
        rows = label_scores.per_label(y, predicted)
    elif kind == "regression":
        rows = regression.per_column(y, predicted)
    else:
        rows = scores.per_class(y, predicted)
    found: dict[str, Any] = {"per_class": [{"name": n, **row} for n, row in zip(names, rows, strict=True)]}
    if kind == "multiclass" and len(names) <= MOST_CLASSES:
        found["confusion"] = scores.confusion(y, predicted).tolist()
    return found
