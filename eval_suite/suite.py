"""One evaluation, from a checkpoint or a file of features to results.json and report.html.

docs/results.md lists what the results hold.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray

from eval_suite import geometry, report, results, usefulness
from eval_suite.features import augmented, embed
from eval_suite.geometry import rank
from eval_suite.inputs.checkpoints import Checkpoint
from eval_suite.inputs.splits import Splits
from eval_suite.inputs.target_values import Kind
from eval_suite.inputs.targets import Targets, fingerprint, missed_classes, of_vectors
from eval_suite.inputs.vectors import SPLITS, Vectors
from eval_suite.options import Options
from eval_suite.usefulness import neighbors, scores
from eval_suite.usefulness.selection import standardiser
from isotorus.errors import UserError

_log = logging.getLogger(__name__)

MOST_JOBS = 4
"""Largest number of processes that compute persistent homology."""

Features = Mapping[str, Mapping[str, Mapping[str, NDArray[np.float32]]]]
"""(n, d) by representation, feature set and split."""


def evaluate(
    checkpoint: Checkpoint,
    splits: Splits,
    targets: Mapping[str, Targets],
    options: Options,
    out: Path,
    state: PartialState,
    *,
    batch_size: int = 64,
    workers: int = 0,
    force: bool = False,
) -> dict[str, Any]:
    """Evaluate a checkpoint against `targets` by split, and write results.json and report.html to `out`.

    Results that are there already are returned unless they depend on something that has changed, or with
    `force`. All processes must call this; the first one returns the results, the others an empty dict.
    Raises UserError for errors that the user can fix.
    """
    _check_neighbours(options.useful.k, targets["train"])
    inputs = {
        "format": results.FORMAT,
        "weights_sha256": checkpoint.weights_sha256,
        "encoder": {k: v for k, v in asdict(checkpoint.encoder).items() if k not in ("config", "step")},
        "data": {name: data.fingerprint for name, data in splits.items().items()},
        "targets": {name: fingerprint(of) for name, of in targets.items()},
        "options": options.stored(),
    }
    if state.is_main_process:
        results.make_folder(out)
    finished = None if force else results.finished(out, inputs)
    decided = [finished is not None]  # by the first process, because the others may not see its files
    broadcast_object_list(decided)
    if decided[0]:
        return finished or {}

    representations = _representations(checkpoint, options)
    features = _extract(representations, splits, out / "features", state, batch_size, workers)
    if not state.is_main_process:
        return {}
    measured = measure(features, targets, options, state)
    if "views" in options.geometry.metrics:
        drawn: dict[str, Any] = {"seed": options.geometry.seed, "device": state.device}
        for r in representations:
            if r.name != "pixels":
                views = augmented.embed_views(
                    r, checkpoint.encoder, splits.train, objects=options.objects, views=options.views, **drawn
                )
                measured["representations"][r.name]["views"] = geometry.of_views(views)
    written = {
        "format": results.FORMAT,
        "inputs": inputs,
        "checkpoint": {
            "name": checkpoint.name,
            "folder": str(checkpoint.folder),
            "run": str(checkpoint.run) if checkpoint.run else None,
            "step": checkpoint.step,
            "encoder": checkpoint.encoder.name,
            "embedding_width": checkpoint.encoder.embedding_width,
            "parameters": sum(p.numel() for p in representations[0].model.encoder.parameters()),
            "weights_sha256": checkpoint.weights_sha256,
        },
        "data": {
            name: _about_split(data.path, data.fingerprint, targets[name])
            for name, data in splits.items().items()
        },
        **measured,
    }
    return _write(written, features, targets, options, out, checkpoint, splits)


def evaluate_vectors(
    vectors: Vectors,
    options: Options,
    out: Path,
    state: PartialState,
    *,
    kind: Kind | None = None,
    missing: Sequence[str] | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Evaluate features that were made elsewhere; without images there are no baselines and no views.

    `kind` and `missing` say how to read the labels, as in `inputs.target_values.encode`.
    """
    inputs = {
        "format": results.FORMAT,
        "file_sha256": vectors.sha256,
        "options": options.stored(),
    }
    read_as = {"target_kind": kind, "missing": None if missing is None else list(missing)}
    inputs |= {name: value for name, value in read_as.items() if value is not None}
    if not state.is_main_process:
        return {}
    results.make_folder(out)
    if not force and (finished := results.finished(out, inputs)):
        return finished
    splits = [split for split in SPLITS if vectors.rows(split).any()]
    if "train" not in splits:
        raise UserError(f"{vectors.file} has no rows of the split train, on which the geometry is measured")
    features = {"pretrained": {"embedding": {split: vectors.x[vectors.rows(split)] for split in splits}}}
    targets = {split: of_vectors(vectors, split, kind, missing) for split in splits}
    written = {
        "format": results.FORMAT,
        "inputs": inputs,
        "checkpoint": {
            "name": vectors.name,
            "folder": str(vectors.file),
            "run": None,
            "step": 0,
            "encoder": "features from elsewhere",
            "embedding_width": vectors.x.shape[1],
            "parameters": 0,
            "weights_sha256": vectors.sha256,
        },
        "data": {split: _about_split(vectors.file, vectors.sha256, targets[split]) for split in splits},
        **measure(features, targets, options, state),
    }
    return _write(written, features, targets, options, out, None, None)


def measure(
    features: Features, targets: Mapping[str, Targets], options: Options, state: PartialState
) -> dict[str, Any]:
    """Measure what needs only features: the usefulness of each representation, and each cloud's geometry."""
    reported = "test" if "test" in targets else "val"
    if reported in targets and (missed := missed_classes(targets, reported)):
        some = ", ".join(missed[:5]) + ", …" * (len(missed) > 5)
        _log.warning("note: train has no samples of %s, which count as missed in %s", some, reported)
    representations: dict[str, dict[str, Any]] = {}
    samples: dict[tuple[str, str], usefulness.Samples] = {}
    for name, sets in features.items():
        scored = {key: x for key, x in sets.items() if key not in geometry.CLOUDS[1:]}
        useful, drawn = usefulness.measure_paired(scored, targets, options.useful, device=state.device)
        samples |= {(name, method): values for method, values in drawn.items()}
        train = sets["embedding"]["train"]
        representations[name] = {"width": train.shape[1], **useful}
        if "rank" in options.geometry.metrics:
            representations[name]["rank"] = rank.summary(train)
    pretrained = representations["pretrained"]
    labels = targets["train"].class_indices()
    # Homology computes its null draws in processes that share the cores.
    jobs = min(MOST_JOBS, torch.get_num_threads())
    return {
        "classes": targets["train"].names if targets["train"].kind == "multiclass" else [],
        "kind": pretrained.get("kind"),
        "reported_on": pretrained["reported_on"],
        "representations": representations,
        "differences": _differences(representations, samples),
        "geometry": {
            name: geometry.measure(x, labels if (labels >= 0).any() else None, options.geometry, jobs)
            for name, x in geometry.clouds(features).items()
        },
        "left_out": pretrained["left_out"],
    }


def _representations(checkpoint: Checkpoint, options: Options) -> list[embed.Representation]:
    """Return the pretrained encoder and the baselines that the options name."""
    representations = [embed.pretrained(checkpoint, options.features)]
    if "untrained" in options.baselines:
        representations.append(embed.untrained(checkpoint, options.features))
    if "pixels" in options.baselines:
        representations.append(embed.pixels(checkpoint, options.pixel_size))
    return representations


def _extract(
    representations: Sequence[embed.Representation],
    splits: Splits,
    cache: Path,
    state: PartialState,
    batch_size: int,
    workers: int,
) -> dict[str, dict[str, dict[str, NDArray[np.float32]]]]:
    """Return features by representation, feature set and split; raw pixels are standardised by train."""
    loading = {"batch_size": batch_size, "workers": workers}
    by_split = {
        split: embed.extract(representations, data, cache, state, **loading)
        for split, data in splits.items().items()
    }
    features = {
        r.name: {
            name: {split: of[r.name][name] for split, of in by_split.items()}
            for name in by_split["train"][r.name]
        }
        for r in representations
    }
    if "pixels" in features:
        pixels = features["pixels"]["embedding"]
        standardise = standardiser(pixels["train"])
        features["pixels"]["embedding"] = {k: standardise(x).astype(np.float32) for k, x in pixels.items()}
    return features


def _check_neighbours(k: Sequence[int], train: Targets) -> None:
    """Raise UserError for a number of neighbours that is given and too large; default ones are skipped."""
    available = int(train.known.sum())
    if tuple(k) != neighbors.K_GRID and 0 < available < max(k):
        raise UserError(
            f"k = {max(k)} neighbours, but train has {available} labelled samples; give smaller ones, "
            f"e.g. --k {max(1, available // 4)}"
        )


def _differences(
    representations: Mapping[str, Mapping[str, Any]], samples: Mapping[tuple[str, str], usefulness.Samples]
) -> dict[str, Any]:
    """Return pretrained minus baseline, by baseline, method and score, on the same resampled test sets."""
    differences: dict[str, Any] = {}
    for (name, method), theirs in samples.items():
        if name == "pretrained" or ("pretrained", method) not in samples:
            continue
        ours = samples["pretrained", method]
        pair = representations["pretrained"][method], representations[name][method]
        differences.setdefault(name, {})[method] = {
            score: {
                "value": pair[0][score] - pair[1][score],
                "interval": scores.interval(ours[score] - theirs[score]),
            }
            for score in theirs
            if pair[0][score] is not None and pair[1][score] is not None
        }
    return differences


def _about_split(path: str | Path, fingerprint: str, targets: Targets) -> dict[str, Any]:
    """Return the entry about a split in results.json."""
    return {
        "path": str(path),
        "fingerprint": fingerprint,
        "samples": len(targets.known),
        "labelled": int(targets.known.sum()),
    }


def _write(
    written: dict[str, Any],
    features: Features,
    targets: Mapping[str, Targets],
    options: Options,
    out: Path,
    checkpoint: Checkpoint | None,
    splits: Splits | None,
) -> dict[str, Any]:
    """Write report.html, then results.json, which marks the evaluation as finished; returns the results."""
    written = results.json_safe(written)
    page = report.render(written, features, targets, options.geometry.seed, checkpoint, splits)
    results.write(out / "report.html", page)
    results.write(out / "results.json", results.as_json(written))
    return written
