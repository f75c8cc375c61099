"""What the newest evaluation of the exported weights found, from RUN/eval, in lines for the model card.

The folder may be a stranger's. So the card says which file its numbers are from, takes only numbers and short
names from it, and leaves out whatever is not where an evaluation puts it.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isotorus import foreign_files
from isotorus.errors import UserError, one_line
from pretrain.checkpoint.export.trained import Trained

_LARGEST = 2**28  # bytes of results.json
_METHODS = {"probe": "linear probe", "knn": "k-NN"}
_SCORES = {
    "auroc": "AUROC",
    "balanced_accuracy": "balanced accuracy",
    "average_precision": "average precision",
    "r2": "R²",
    "spearman": "Spearman",
}
_BASELINES = ("untrained", "pixels", "handmade")
_CLOUDS = {"embedding": "embedding", "projector": "projector's output", "angles": "torus head's angles"}


def plain(text: Any, most: int = 80) -> str:
    """Return a text of somebody's file as code of Markdown, on one line and cut."""
    return "`" + one_line(str(text))[:most].replace("`", "'").replace("|", "/") + "`"


def number(value: Any) -> float | None:
    """Return a value of somebody's file as a number; None if it is not a number, or not finite."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    with contextlib.suppress(OverflowError):  # a whole number of hundreds of digits
        return float(value) if math.isfinite(value) else None
    return None


@dataclass(frozen=True)
class Evaluation:
    """Results of the exported weights: results.json and, of a torus head, certificate.json beside it."""

    file: Path
    """The file of the results."""
    results: dict[str, Any]
    certificate: dict[str, Any] | None

    def scores(self) -> list[str]:
        """Return the rows of a table: score, this encoder with its interval, the best baseline."""
        rows = []
        for method, title in _METHODS.items():
            for score, label in _SCORES.items():
                ours = self._shown("pretrained", method, score)
                if ours is None:
                    continue
                best = max(self._baselines(method, score), default=None)
                beside = "not compared" if best is None else f"{best[0]:.3f} ({plain(best[1])})"
                rows.append(f"| {title}, {label} | {ours} | {beside} |")
        return rows

    def geometry(self) -> list[str]:
        """Return a sentence for each cloud: its verdict, its dimension, its rank; and for the certificate."""
        said = []
        for cloud, title in _CLOUDS.items():
            found = _dig(self.results, "geometry", cloud)
            parts = []
            if name := _dig(found, "verdict", "name"):
                parts.append(f"the verdict is {plain(name)}")
            if (dimension := number(_dig(found, "dimension", "two_nn"))) is not None:
                parts.append(f"the intrinsic dimension is {dimension:.1f} (TwoNN)")
            if (rank := number(_dig(found, "rank", "effective_rank"))) is not None:
                parts.append(f"the effective rank is {rank:.1f}")
            if parts:
                said.append(f"- {title[0].upper()}{title[1:]}: {', '.join(parts)}.")
        if self.certificate:
            headline = plain(_dig(self.certificate, "headline") or "no headline", 300)
            share = _dig(self.certificate, "windings", "right_share_interval")
            interval = _interval(share)
            of = f"; windings are right for {interval} of the images (95 % interval)" if interval else ""
            said.append(f"- Certificate of the torus: {headline}{of}.")
        return said

    def about_data(self) -> str:
        """Say which split the scores are on, and of how many images."""
        split = str(self.results.get("reported_on"))
        data = _dig(self.results, "data", "train" if split == "folds" else split)
        count = number(_dig(data, "samples"))
        of = f" of {count:,.0f} images" if count is not None else ""
        mark = f" (fingerprint {plain(_dig(data, 'fingerprint'))})" if _dig(data, "fingerprint") else ""
        return f"{'held-out folds' if split == 'folds' else f'the {plain(split)} split'}{of}{mark}"

    def _shown(self, name: str, method: str, score: str) -> str | None:
        value = number(_dig(self.results, "representations", name, method, score))
        if value is None:
            return None
        interval = _interval(
            _dig(self.results, "representations", name, method, f"{score}_interval"), percent=False
        )
        return f"{value:.3f} ({interval})" if interval else f"{value:.3f}"

    def _baselines(self, method: str, score: str) -> Iterator[tuple[float, str]]:
        rows = _dig(self.results, "representations")
        for name in rows if isinstance(rows, Mapping) else ():
            value = number(_dig(rows, name, method, score))
            if name.startswith(_BASELINES) and value is not None:
                yield value, name


def newest(trained: Trained) -> Evaluation | None:
    """Return the newest evaluation of exactly these weights under the run; None if there is none."""
    if trained.run is None:
        return None
    found = []
    for file in (trained.run / "eval").glob("*/results.json"):
        results = _read(file, trained.run)
        if _weights(_dig(results, "checkpoint", "weights_sha256")) == trained.weights.sha256:
            found.append((file.stat().st_mtime, file, results))
    if not found:
        return None
    _, file, results = max(found, key=lambda entry: entry[0])
    certificate = _read(file.with_name("certificate.json"), trained.run)
    if _weights(_dig(certificate, "inputs", "weights_sha256")) != trained.weights.sha256:
        certificate = {}
    return Evaluation(file, results, certificate or None)


def _read(file: Path, run: Path) -> dict[str, Any]:
    """Return the content of a file of the run; {} if it is missing or not a mapping."""
    try:
        read = foreign_files.read_json(file, run, _LARGEST)
    except (OSError, UserError):
        return {}
    return read if isinstance(read, dict) else {}


def _weights(written: Any) -> str:
    """Return the SHA-256 of the encoder's file, from a text where those of the projectors follow it."""
    return str(written).partition("-")[0]


def _dig(values: Any, *keys: str) -> Any:
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def _interval(values: Any, percent: bool = True) -> str:
    """Return the two ends of an interval; an empty string if `values` are not an interval."""
    ends = [number(x) for x in values] if isinstance(values, list) and len(values) == 2 else [None]
    if any(end is None for end in ends):
        return ""
    return " to ".join(f"{100 * end:.1f} %" if percent else f"{end:.3f}" for end in ends if end is not None)
