"""Several evaluations as tables: results.csv and results.parquet with a row each, and correlations.csv."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from eval_suite.report.best_checkpoint import Best
from eval_suite.report.loss_correlation import Correlation
from eval_suite.report.over_seeds import Row, t_interval
from eval_suite.report.training.log import loss_at
from isotorus.errors import from_os_error
from isotorus.files import atomic

LOSS = "training/loss"


def write(
    rows: Sequence[Row], best: Sequence[Best], correlations: Sequence[Correlation], out: Path
) -> list[dict[str, Any]]:
    """Write the tables to the folder `out` and return the rows of results.csv.

    Raises UserError where the disk refuses.
    """
    flat = [row(each, best) for each in rows]
    columns = list(dict.fromkeys(name for each in flat for name, value in each.items() if value is not None))
    table = pa.Table.from_pydict({name: [each.get(name) for each in flat] for name in columns})
    try:
        out.mkdir(parents=True, exist_ok=True)
        with atomic(out / "results.csv") as stream:
            pyarrow.csv.write_csv(table, stream)
        with atomic(out / "results.parquet") as stream:
            pyarrow.parquet.write_table(table, stream)
        if correlations:
            with atomic(out / "correlations.csv") as stream:
                pyarrow.csv.write_csv(pa.Table.from_pylist([asdict(each) for each in correlations]), stream)
        else:  # a file of an earlier comparison is about other checkpoints
            (out / "correlations.csv").unlink(missing_ok=True)
    except OSError as error:
        raise from_os_error(error, f"writing the comparison to {out}") from error
    return flat


def row(of: Row, best: Sequence[Best]) -> dict[str, Any]:
    """Return one flat row: the checkpoint, every measured number with its interval, the verdicts, the loss.

    The column `best` says whether the row is the best of its run; it is None if the run has one checkpoint.
    """
    results, checkpoint = of.results, of.results["checkpoint"]
    flat: dict[str, Any] = {"name": of.name, "step": of.step}
    flat["seeds"] = ", ".join(map(str, of.seeds)) or None
    flat["n"] = len(of.members)
    flat |= {key: checkpoint.get(key) for key in ("encoder", "parameters")}
    flat["folder"] = ", ".join(str(each.results["checkpoint"]["folder"]) for each in of.members)
    compared = [each for each in best if of in each.of]
    flat["best"] = any(each.row is of for each in compared) if compared else None
    flat |= numbers(results)
    flat |= dict(_bounds(results["representations"] | {"geometry": results["geometry"]}, ""))
    differences = {"differences": results.get("differences", {})}
    for name, value in (*_flatten(differences, ""), *_bounds(differences, "")):
        flat[name.replace("/value", "")] = value
    for cloud, measured in results["geometry"].items():
        if "verdict" in measured:
            flat[f"geometry/{cloud}/verdict"] = measured["verdict"]["name"]
    losses = [
        loss
        for each in of.members
        if (run := each.results["checkpoint"]["run"]) and (loss := loss_at(Path(run), each.step)) is not None
    ]
    if losses:
        flat[LOSS] = math.fsum(losses) / len(losses)
        if of.seeds:
            flat[f"{LOSS}_low"], flat[f"{LOSS}_high"] = t_interval(losses)
    return flat


def numbers(results: Mapping[str, Any]) -> dict[str, float]:
    """Return every single number, named <representation>/<metric>/… or geometry/<cloud>/<metric>/…."""
    return dict(_flatten(results["representations"] | {"geometry": results["geometry"]}, ""))


def _flatten(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{key}", float(value)


def _bounds(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float | None]]:
    """Yield the ends of each interval as <number>_low and <number>_high."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _bounds(value, f"{prefix}{key}/")
        elif (key == "interval" or key.endswith("_interval")) and isinstance(value, list) and len(value) == 2:
            # The interval of a difference has no name of its own before it.
            name = prefix.rstrip("/") if key == "interval" else prefix + key.removesuffix("_interval")
            yield f"{name}_low", value[0]
            yield f"{name}_high", value[1]
