"""Results dictionaries with chosen scores, as results.json has them."""

from typing import Any


def results(
    *,
    ours: float = 0.8,
    baselines: dict[str, tuple[float, tuple[float, float] | None]],
    knn: dict[str, tuple[float, tuple[float, float] | None]] | None = None,
    **checkpoint: Any,
) -> dict[str, Any]:
    """Return results in which the pretrained encoder has the AUROC `ours`.

    `baselines` and, by k-NN, `knn` hold the AUROC of each baseline and the paired interval of pretrained
    minus baseline; None leaves the difference out. All scores have the interval ± 0.02.
    """
    representations: dict[str, Any] = {"pretrained": {}}
    differences: dict[str, Any] = {}
    for method, given in (("probe", baselines), ("knn", knn)):
        if given is None:
            continue
        for name, (value, interval) in {"pretrained": (ours, None), **given}.items():
            representations.setdefault(name, {})[method] = {
                "auroc": value,
                "auroc_interval": [value - 0.02, value + 0.02],
                "balanced_accuracy": value - 0.1,
                "balanced_accuracy_interval": [value - 0.13, value - 0.07],
            }
            if interval:
                difference = {"auroc": {"value": ours - value, "interval": list(interval)}}
                differences.setdefault(name, {})[method] = difference
    return {
        "checkpoint": {"name": "a", "run": "runs/a", "folder": "runs/a/checkpoints/latest", "step": 500}
        | checkpoint,
        "representations": representations,
        "differences": differences,
        "geometry": {},
        "left_out": [],
        "kind": "multiclass",
        "reported_on": "test",
    }
