"""One evaluation, from a checkpoint or a file of vectors to results; docs/results.md lists what they hold."""

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
from eval_suite.inputs.targets import Targets, fingerprint, of_vectors
from eval_suite.inputs.vectors import SPLITS, Vectors
from eval_suite.options import Options
from eval_suite.usefulness import neighbors, scores
from eval_suite.usefulness.standardise import standardiser
from isotorus.errors import UserError

MOST_JOBS = 4

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
    """Compute or reuse the results of a checkpoint; writes results.json and report.html to `out`.

    `targets` is what to predict, by split. Called by all processes; the first one returns the results, the
    others an empty dict. Raises UserError for what the user can mend.
    """
    _check_neighbours(options.useful.k, targets["train"])
    inputs = _inputs(checkpoint, splits, targets, options)
    if state.is_main_process:
        results.make_folder(out)
    done = None if force else results.finished(out, inputs)
    decided = [done is not None]  # by the first process: the others may not see its files
    broadcast_object_list(decided)
    if decided[0]:
        return done or {}

    representations = [embed.pretrained(checkpoint, options.features)]
    if "untrained" in options.baselines:
        representations.append(embed.untrained(checkpoint, options.features))
    if "pixels" in options.baselines:
        representations.append(embed.pixels(checkpoint, options.pixel_size))
    extracted = {
        split: embed.extract(
            representations, data, out / "features", state, batch_size=batch_size, workers=workers
        )
        for split, data in splits.items().items()
    }
    if not state.is_main_process:
        return {}
    features = {
        r.name: {
            name: {split: extracted[split][r.name][name] for split in extracted}
            for name in extracted["train"][r.name]
        }
        for r in representations
    }
    if "pixels" in features:
        features["pixels"]["embedding"] = _standardised(features["pixels"]["embedding"])
    measured = measure(features, targets, options, state)
    if "views" in options.geometry.metrics:
        for r in representations:
            if r.name != "pixels":
                x = augmented.embed_views(
                    r,
                    checkpoint.encoder,
                    splits.train,
                    objects=options.objects,
                    views=options.views,
                    seed=options.geometry.seed,
                    device=state.device,
                )
                measured["representations"][r.name]["views"] = geometry.of_views(x)
    found = {
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
            name: {
                "path": str(data.path),
                "fingerprint": data.fingerprint,
                "samples": len(data),
                "labelled": int(targets[name].known.sum()),
            }
            for name, data in splits.items().items()
        },
        **measured,
    }
    return _publish(found, features, targets, options, out, checkpoint, splits)


def evaluate_vectors(
    vectors: Vectors, options: Options, out: Path, state: PartialState, *, force: bool = False
) -> dict[str, Any]:
    """The same for features that were computed elsewhere: no images, so no baselines and no views."""
    inputs = {
        "format": results.FORMAT,
        "file_sha256": vectors.sha256,
        "options": options.stored(),
    }
    if not state.is_main_process:
        return {}
    results.make_folder(out)
    if not force and (done := results.finished(out, inputs)):
        return done
    splits = [split for split in SPLITS if vectors.rows(split).any()]
    if "train" not in splits:
        raise UserError(f"{vectors.file} has no rows of the split train, which the geometry is measured on")
    features = {"pretrained": {"embedding": {split: vectors.x[vectors.rows(split)] for split in splits}}}
    targets = {split: of_vectors(vectors, split) for split in splits}
    found = {
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
        "data": {
            split: {
                "path": str(vectors.file),
                "fingerprint": vectors.sha256,
                "samples": len(targets[split].known),
                "labelled": int(targets[split].known.sum()),
            }
            for split in splits
        },
        **measure(features, targets, options, state),
    }
    return _publish(found, features, targets, options, out, None, None)


def measure(
    features: Features, targets: Mapping[str, Targets], options: Options, state: PartialState
) -> dict[str, Any]:
    """What needs features alone: what each representation is good for, and each cloud's geometry."""
    representations: dict[str, dict[str, Any]] = {}
    samples: dict[tuple[str, str], usefulness.Samples] = {}
    for name, sets in features.items():
        scored = {key: x for key, x in sets.items() if key not in geometry.CLOUDS[1:]}
        found, drawn = usefulness.measure_paired(scored, targets, options.useful, device=state.device)
        samples |= {(name, method): values for method, values in drawn.items()}
        train = sets["embedding"]["train"]
        representations[name] = {"width": train.shape[1], **found}
        if "rank" in options.geometry.metrics:
            representations[name]["rank"] = rank.summary(train)
    first = representations["pretrained"]
    # Homology's null draws are processes, which share its memory.
    jobs = min(MOST_JOBS, torch.get_num_threads())
    return {
        "classes": targets["train"].names if targets["train"].kind == "multiclass" else [],
        "kind": first.get("kind"),
        "reported_on": first["reported_on"],
        "representations": representations,
        "differences": _differences(representations, samples),
        "geometry": {
            name: geometry.measure(x, _classes(targets["train"]), options.geometry, jobs)
            for name, x in geometry.clouds(features).items()
        },
        "left_out": first["left_out"],
    }


def _check_neighbours(k: Sequence[int], train: Targets) -> None:
    """Counts that were asked for are refused where the default ones are passed over."""
    available = int(train.known.sum())
    if tuple(k) != neighbors.K_GRID and 0 < available < max(k):
        raise UserError(
            f"k = {max(k)} neighbours, but train has {available} labelled samples; give smaller ones, "
            f"e.g. --k {max(1, available // 4)}"
        )


def _classes(targets: Targets) -> NDArray[np.int64] | None:
    if targets.kind != "multiclass" or not targets.known.any():
        return None
    return np.where(targets.known, targets.values, -1)


def _differences(
    representations: Mapping[str, Mapping[str, Any]], samples: Mapping[tuple[str, str], usefulness.Samples]
) -> dict[str, Any]:
    """Pretrained minus each baseline, on the same resampled test sets: baseline → method → score."""
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


def _publish(
    found: dict[str, Any],
    features: Features,
    targets: Mapping[str, Targets],
    options: Options,
    out: Path,
    checkpoint: Checkpoint | None,
    splits: Splits | None,
) -> dict[str, Any]:
    """The page first: results.json says that an evaluation is done."""
    found = results.json_safe(found)
    page = report.render(found, features, targets, options.geometry.seed, checkpoint, splits)
    results.write(out / "report.html", page)
    results.write(out / "results.json", results.as_json(found))
    return found


def _standardised(x: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    standardised = standardiser(x["train"])
    return {split: standardised(rows).astype(np.float32) for split, rows in x.items()}


def _inputs(
    checkpoint: Checkpoint, splits: Splits, targets: Mapping[str, Targets], options: Options
) -> dict[str, Any]:
    """All that the results depend on."""
    described = {k: v for k, v in asdict(checkpoint.encoder).items() if k not in ("config", "step")}
    return {
        "format": results.FORMAT,
        "weights_sha256": checkpoint.weights_sha256,
        "encoder": described,
        "data": {name: data.fingerprint for name, data in splits.items().items()},
        "targets": {name: fingerprint(of) for name, of in targets.items()},
        "options": options.stored(),
    }
