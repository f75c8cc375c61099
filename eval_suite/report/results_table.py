"""Several evaluations as a table, one row each: results.csv and results.parquet."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from eval_suite.report import training_log
from isotorus.errors import from_os_error
from isotorus.files import atomic

LOSS = "training/loss"
WINDOW = 0.01
"""Share of the run's steps that the training loss is averaged over."""


def write(evaluations: Sequence[dict[str, Any]], out: Path) -> list[dict[str, Any]]:
    """Write results.csv and results.parquet to the folder `out` and return their rows.

    Raises UserError where the disk refuses.
    """
    rows = [row(results) for results in evaluations]
    columns = list(dict.fromkeys(name for each in rows for name in each))
    table = pa.Table.from_pydict({name: [each.get(name) for each in rows] for name in columns})
    try:
        out.mkdir(parents=True, exist_ok=True)
        with atomic(out / "results.csv") as stream:
            pyarrow.csv.write_csv(table, stream)
        with atomic(out / "results.parquet") as stream:
            pyarrow.parquet.write_table(table, stream)
    except OSError as error:
        raise from_os_error(error, f"writing the comparison to {out}") from error
    return rows


def row(results: dict[str, Any]) -> dict[str, Any]:
    """Return one flat row: the checkpoint, every measured number, the verdicts and the training loss."""
    checkpoint = results["checkpoint"]
    flat = {key: checkpoint[key] for key in ("name", "step", "encoder", "parameters", "folder")}
    flat |= numbers(results)
    for cloud, measured in results["geometry"].items():
        if "verdict" in measured:
            flat[f"geometry/{cloud}/verdict"] = measured["verdict"]["name"]
    if checkpoint["run"]:
        logged = training_log.logged(Path(checkpoint["run"]))
        window = max(1, round(WINDOW * logged[-1]["step"])) if logged else 1
        if (loss := training_log.at(logged, "loss", checkpoint["step"], window)) is not None:
            flat[LOSS] = loss
    return flat


def numbers(results: dict[str, Any]) -> dict[str, float]:
    """Return every single number, named <representation>/<metric>/… or geometry/<cloud>/<metric>/…."""
    return dict(_flatten(results["representations"] | {"geometry": results["geometry"]}, ""))


def _flatten(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{key}", float(value)
