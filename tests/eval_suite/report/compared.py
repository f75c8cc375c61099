"""Results dictionaries with chosen scores, as results.json has them."""

import json
from pathlib import Path
from typing import Any

import yaml

from eval_suite.report.over_seeds import Evaluated


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


def evaluated(
    folder: Path,
    name: str,
    *,
    step: int = 500,
    seed: int | None = 0,
    losses: dict[int, float] | None = None,
    config: dict[str, Any] | None = None,
    **scores: Any,
) -> Evaluated:
    """Return an evaluation of a run that is made in `folder`; without a seed its config.yaml is left out.

    `scores` go to `results`, `losses` by step to metrics.jsonl, and `config` into config.yaml.
    """
    run = folder / "runs" / name
    run.mkdir(parents=True, exist_ok=True)
    if seed is not None:
        values = {"name": name, "seed": seed, "steps": 500, "optimizer": {"lr": 0.001}} | (config or {})
        (run / "config.yaml").write_text(yaml.safe_dump(values))
    if losses is not None:
        rows = [json.dumps({"step": at, "loss": loss}) for at, loss in losses.items()]
        (run / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    found = results(name=name, run=str(run), folder=f"{run}/checkpoints/{step}", step=step, **scores)
    return Evaluated(found, run / "eval" / str(step))
