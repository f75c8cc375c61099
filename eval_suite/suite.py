"""One evaluation, from a checkpoint or a file of features to results.json and report.html.

docs/results.md lists what the results hold.
"""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray

from data_pipeline.targets.target_values import Kind
from data_pipeline.targets.targets import Targets, fingerprint, missed_classes
from eval_suite import geometry, progress, report, results, usefulness
from eval_suite.attempts import attempt, reason
from eval_suite.features import augmented, compared
from eval_suite.features import representation as kinds
from eval_suite.features.compared import Features
from eval_suite.features.constant import is_constant
from eval_suite.features.representation import Representation
from eval_suite.geometry import rank
from eval_suite.inputs import brightness, copies
from eval_suite.inputs.against import Against, with_average
from eval_suite.inputs.checkpoints import Checkpoint
from eval_suite.inputs.splits import Splits
from eval_suite.inputs.vectors import SPLITS, Vectors, of_vectors
from eval_suite.metrics import METHODS
from eval_suite.options import Options
from eval_suite.report import certified
from eval_suite.usefulness import finetuning, neighbors
from eval_suite.usefulness.folds.division import Codes
from eval_suite.usefulness.selection import standardiser
from eval_suite.usefulness.tokens import measure_tokens
from isotorus.errors import UserError
from pretrain.models.feature_sets import FEATURES

_log = logging.getLogger(__name__)

MOST_JOBS = 4
"""Largest number of processes that compute persistent homology."""
AUGMENTED = ("pretrained", "untrained")
"""Representations whose augmented views are compared."""
HEAD = geometry.CLOUDS[1:]
"""Feature sets behind the encoder; each is a representation of its own, since nobody uses them downstream."""


def evaluate(
    checkpoint: Checkpoint,
    splits: Splits,
    targets: Mapping[str, Targets],
    options: Options,
    out: Path,
    state: PartialState,
    *,
    against: Against,
    cache: Path,
    batch_size: int = 64,
    workers: int = 0,
    force: bool = False,
    embedded: bool = False,
    asked: Sequence[str] = (),
) -> dict[str, Any]:
    """Evaluate a checkpoint against `targets` by split, and write results.json and report.html to `out`.

    The encoder is compared with its baselines and with what is in `against`. The folder `cache` keeps the
    features; evaluations that name the same one share what is equal. Results that are there already are
    returned, unless they depend on something that has changed. With `force` all is measured again, and the
    features are computed again unless this call of the command has `embedded` them. `asked` are the options
    that name the targets. All processes must call this; the first one returns the results, the others an
    empty dict. Raises UserError for errors that the user can fix.
    """
    neighbors.check_number(options.useful.k, int(targets["train"].known.sum()))
    inputs = inputs_of(checkpoint, splits, targets, options, against, state)
    if state.is_main_process:
        results.make_folder(out, checkpoint.root)
    finished = None if force else results.finished(out, inputs)
    decided = [finished is not None]  # by the first process, because the others may not see its files
    broadcast_object_list(decided)
    if decided[0]:
        return finished or {}
    if state.is_main_process and (other := brightness.difference(checkpoint.encoder, splits.items())):
        _log.warning("note: %s", other)
    representations = compared_with(checkpoint, splits, against, options)
    loading: dict[str, Any] = {"batch_size": batch_size, "workers": workers}
    loading["force"] = force and not embedded
    features = compared.extract(representations, against, splits, cache, state, **loading)
    if not state.is_main_process:
        return {}
    features, left_out = compared.finite(_pixels_standardised(features))
    left_out |= with_average(against, checkpoint).left_out
    for name in options.features or ():
        if name not in features["pretrained"]:
            left_out.setdefault(f"feature set {name}", "the checkpoint has no such features")
    looked_at = {name: targets[name].known for name in ("train", "val")}
    datasets = {name: splits.items()[name] for name in looked_at}
    measured = measure(features, targets, options, state, lambda: copies.of_images(datasets, looked_at))
    measured["left_out"] += [{"metric": metric, "reason": why} for metric, why in left_out.items()]
    sound = [r for r in representations if r.name in features]
    if "views" in options.geometry.metrics:
        drawn: dict[str, Any] = {"seed": options.geometry.seed, "device": state.device}
        drawn |= {"objects": options.objects, "views": options.views}
        for r in (r for r in sound if r.name in AUGMENTED):
            progress.doing(f"augmented views, {r.name}")

            def compute(r: Representation = r) -> dict[str, float]:
                return geometry.of_views(augmented.embed_views(r, checkpoint.encoder, splits.train, **drawn))

            failed: dict[str, str] = {}
            if (found := attempt("views", compute, failed)) is not None:
                measured["representations"][r.name]["views"] = found
            place = "views" if r.name == "pretrained" else f"{r.name}/views"
            measured["left_out"] += [{"metric": place, "reason": why} for why in failed.values()]
    measure_tokens.add(
        measured, sound, splits.items(), targets, options.useful, cache, state.device, batch_size, workers
    )
    how: dict[str, Any] = {"asked": asked, "workers": workers, "force": force}
    finetuning.add(measured, checkpoint.weights, splits.items(), inputs, options.useful, out, **how)
    encoder: Any = representations[0].model.encoder
    supervised = checkpoint.encoder.supervised
    written = {
        "format": results.FORMAT,
        "inputs": inputs,
        "checkpoint": {
            "name": checkpoint.name,
            "folder": str(checkpoint.folder),
            # MLflow and comparisons over steps take results of a run for those of its last weights.
            "run": str(checkpoint.run) if checkpoint.run and not checkpoint.is_average else None,
            "step": checkpoint.step,
            "encoder": checkpoint.encoder.name,
            "embedding_width": checkpoint.encoder.embedding_width,
            "parameters": sum(p.numel() for p in encoder.parameters()),
            "weights_sha256": checkpoint.weights_sha256,
            "supervised": supervised
            and {
                "task": supervised.task,
                "features": checkpoint.encoder.kwargs.get(FEATURES, "embedding"),
            },
        },
        "data": {
            name: _about_split(data.path, data.fingerprint, targets[name])
            for name, data in splits.items().items()
        },
        **measured,
    }
    return _write(written, features, targets, options, out, checkpoint, splits)


def inputs_of(
    checkpoint: Checkpoint,
    splits: Splits,
    targets: Mapping[str, Targets],
    options: Options,
    against: Against,
    state: PartialState,
) -> dict[str, Any]:
    """Return everything that the results depend on, as results.json keeps it."""
    inputs = {
        "format": results.FORMAT,
        "weights_sha256": checkpoint.weights_sha256,
        "encoder": checkpoint.encoder.inputs(),
        "features": kinds.made_by(state.device),
        "data": {name: data.fingerprint for name, data in splits.items().items()},
        "targets": {name: fingerprint(of) for name, of in targets.items()},
        "options": options.stored(),
    }
    if "views" in options.geometry.metrics:
        inputs["views"] = {key: checkpoint.encoder.config.get(key) for key in ("views", "augment")}
    if compared_inputs := with_average(against, checkpoint).inputs:
        inputs["against"] = compared_inputs
    return dict(results.json_safe(inputs))


def compared_with(
    checkpoint: Checkpoint, splits: Splits, against: Against, options: Options
) -> list[Representation]:
    """Return the pretrained encoder and everything with images that the options compare it with.

    That includes the encoder's own averaged weights, where the checkpoint has them.
    """
    return compared.representations(
        checkpoint,
        splits,
        with_average(against, checkpoint),
        baselines=options.baselines,
        initialisations=options.initialisations,
        pixel_size=options.pixel_size,
        sets=options.features,
    )


def _pixels_standardised(features: Features) -> Features:
    """Return the features, with raw pixels standardised by train."""
    if "pixels" not in features:
        return features
    pixels = features["pixels"]["embedding"]
    standardise = standardiser(pixels["train"])
    standardised = {split: standardise(x).astype(np.float32) for split, x in pixels.items()}
    return {**features, "pixels": {"embedding": standardised}}


def evaluate_vectors(
    vectors: Vectors,
    options: Options,
    out: Path,
    state: PartialState,
    *,
    against: Against,
    kind: Kind | None = None,
    missing: Sequence[str] | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Evaluate features that were made elsewhere; without images there are no baselines and no views.

    `against` is what `inputs.against.beside` returns for them. `kind` and `missing` say how to read the
    labels, as in `data_pipeline.targets.target_values.encode`.
    """
    inputs = inputs_of_vectors(vectors, options, against, kind, missing)
    if not state.is_main_process:
        return {}
    results.make_folder(out, vectors.file.parent)
    if not force and (finished := results.finished(out, inputs)):
        return finished
    splits = [split for split in SPLITS if vectors.rows(split).any()]
    if "train" not in splits:
        raise UserError(f"{vectors.file} has no rows of the split train, on which the geometry is measured")
    clouds = {"pretrained": vectors.x} | {name: x[""] for name, x in against.features.items()}
    features = {
        name: {"embedding": {split: x[vectors.rows(split)] for split in splits}} for name, x in clouds.items()
    }
    targets = {split: of_vectors(vectors, split, kind, missing) for split in splits}
    written = {
        "format": results.FORMAT,
        "inputs": inputs,
        "checkpoint": {
            "name": vectors.name,
            "folder": str(vectors.file),
            "run": None,
            "step": 0,
            "encoder": results.ELSEWHERE,
            "embedding_width": vectors.x.shape[1],
            "parameters": 0,
            "weights_sha256": vectors.sha256,
        },
        "data": {split: _about_split(vectors.file, vectors.sha256, targets[split]) for split in splits},
        **measure(
            features, targets, options, state, lambda: copies.of_rows(features["pretrained"]["embedding"])
        ),
    }
    others = [name for name in options.useful.metrics if not METHODS[name].of_vectors]
    written["left_out"] += [{"metric": name, "reason": "it needs the images"} for name in others]
    return _write(written, features, targets, options, out, None, None)


def inputs_of_vectors(
    vectors: Vectors, options: Options, against: Against, kind: Kind | None, missing: Sequence[str] | None
) -> dict[str, Any]:
    """Return everything that the results of `evaluate_vectors` depend on, as results.json keeps it."""
    inputs = {"format": results.FORMAT, "file_sha256": vectors.sha256, "options": options.stored()}
    read_as = {"target_kind": kind, "missing": None if missing is None else list(missing)}
    inputs |= {name: value for name, value in read_as.items() if value is not None}
    return inputs | ({"against": against.inputs} if against.inputs else {})


def measure(
    features: Features,
    targets: Mapping[str, Targets],
    options: Options,
    state: PartialState,
    alike: Callable[[], Sequence[Codes]] = list,
) -> dict[str, Any]:
    """Measure what needs only features: the usefulness of each representation, and each cloud's geometry.

    `alike` returns groups of copies, and is called if there are folds.
    """
    division, undivided = usefulness.divided(targets, options.useful, alike)
    reported = "test" if "test" in targets else "val"
    if reported in targets and (missed := missed_classes(targets, reported)):
        some = ", ".join(missed[:5]) + ", …" * (len(missed) > 5)
        _log.warning("note: train has no samples of %s, which count as missed in %s", some, reported)
    representations: dict[str, dict[str, Any]] = {}
    estimates: dict[str, dict[str, usefulness.Estimates]] = {}
    for name, sets in _by_row(features).items():
        useful, estimates[name] = usefulness.measure_paired(
            sets, targets, options.useful, device=state.device, name=name, division=division
        )
        train = next(iter(sets.values()))["train"]
        representations[name] = {"width": train.shape[1], "collapsed": is_constant(train), **useful}
        if "rank" in options.geometry.metrics:
            failed: dict[str, str] = {}
            if (found := attempt("rank", partial(rank.summary, train), failed)) is not None:
                nearly = rank.nearly_collapsed(train, found)
                representations[name] |= {"rank": found, "nearly_collapsed": nearly}
                if nearly and name in ("pretrained", *HEAD):
                    _log.warning("note: nearly collapsed: %s: %s", name, nearly)
            representations[name]["left_out"] += [{"metric": m, "reason": why} for m, why in failed.items()]
    pretrained = representations["pretrained"]
    labels = targets["train"].class_indices()
    # Homology computes its null draws in processes that share the cores.
    jobs = min(MOST_JOBS, torch.get_num_threads())
    return {
        "classes": targets["train"].names if targets["train"].kind == "multiclass" else [],
        "kind": pretrained.get("kind"),
        "reported_on": pretrained["reported_on"],
        "representations": representations,
        "folds": None if division is None else division.about,
        "differences": usefulness.differences(
            {name: of for name, of in estimates.items() if name not in HEAD}
        ),
        "geometry": {
            name: _geometry(name, x, labels if (labels >= 0).any() else None, options, jobs)
            for name, x in geometry.clouds(features).items()
        },
        "left_out": undivided + _left_out(representations),
    }


def _by_row(features: Features) -> Features:
    """Return the feature sets that each representation chooses from; what a head gives is one of its own."""
    rows = {name: {key: x for key, x in sets.items() if key not in HEAD} for name, sets in features.items()}
    return rows | {key: {key: x} for key, x in features["pretrained"].items() if key in HEAD}


def _geometry(
    name: str, x: NDArray[np.floating], labels: NDArray[np.integer] | None, options: Options, jobs: int
) -> dict[str, Any]:
    """Measure the geometry of one cloud; a failure does not lose the others."""
    progress.doing(f"geometry of {name}")
    failed: dict[str, str] = {}
    of_cloud = partial(geometry.measure, x, labels, options.geometry, jobs, circles=name == "angles")
    found = attempt("geometry", of_cloud, failed)
    if found is None:
        return {"samples": len(x), "width": x.shape[1], "left_out": failed}
    if name == "angles" and x.shape[1] >= 6 and "homology" in options.geometry.metrics:
        progress.doing("geometry of pairs of angles")
        pairs = attempt(
            "pairs of angles", lambda: geometry.measure_pairs(x, options.geometry, jobs), found["left_out"]
        )
        found |= {"pairs": pairs} if pairs else {}
    return found


def _left_out(representations: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return what was left out of the pretrained encoder, then what only others lack, as <name>/<metric>."""
    pretrained = list(representations["pretrained"]["left_out"])
    others = [
        {"metric": f"{name}/{entry['metric']}", "reason": entry["reason"]}
        for name, of in representations.items()
        for entry in of["left_out"]
        if entry not in pretrained
    ]
    return pretrained + others


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
    """Write results.json, then report.html, which marks the evaluation as finished; returns the results.

    Whatever happens while pictures are drawn, the results are on disk.
    """
    written = results.json_safe(written)
    with contextlib.suppress(OSError):
        (out / "report.html").unlink()  # one of earlier results
    results.write(out / "results.json", results.as_json(written))
    progress.doing("drawing the report")
    try:
        seed = options.geometry.seed
        certificate = certified.read(out, checkpoint) if checkpoint else None
        page = report.render(written, features, targets, seed, checkpoint, splits, certificate)
    except Exception as error:  # the numbers are worth more than the page
        _log.warning("warning: no report.html (%s); %s has the results", reason(error), out / "results.json")
        _log.debug("report", exc_info=True)
        return written
    results.write(out / "report.html", page)
    results.seal(out)
    return written
