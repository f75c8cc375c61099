"""The recipe of a fine-tuning, from a checkpoint, the data and the options; and the same from scratch."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from data_pipeline.dataset.channel_names import placed
from data_pipeline.dataset.index import Dataset
from data_pipeline.dataset.masks import find
from data_pipeline.transforms.physical import check_square
from eval_suite.features.embed import check_channels
from eval_suite.inputs import brightness
from eval_suite.inputs.checkpoints import Checkpoint
from isotorus.errors import UserError
from isotorus.recipe import read_yaml
from pretrain.checkpoint.mirror.address import is_copy, without_cache
from pretrain.config import Config, assign, flatten, from_values
from pretrain.methods.config import HEAD_FILE, SupervisedConfig, TargetsConfig
from pretrain.models.channel_embedding import EMBEDDING
from pretrain.models.config import FeatureSet
from pretrain.models.description import EncoderDescription
from pretrain.models.feature_sets import FEATURES
from pretrain.preflight.inputs import RunInputs
from pretrain.preflight.model import check_model
from pretrain.run_control.lock import LOCK
from pretrain.supervised.masks import check_scored, choose, read_masks
from pretrain.supervised.task import check_targets, read_targets, some

SCRATCH = "scratch"
BASELINES, CACHE = "baselines", "cache"
"""Folders inside the run's folder: for the runs with which it is compared, and for vectors."""
_DECIDED = {
    "name": "--out",
    "runs": "--out",
    "seed": "--seed",
    "data.path": "SHARDS",
    "data.sources": "SHARDS",
    "encoder.name": "CHECKPOINT_OR_RUN",
    "encoder.weights": "CHECKPOINT_OR_RUN",
    "objective.kind": "--target-kind",
    "objective.task": "--target-kind",
    "objective.val": "--val",
    "objective.targets.labels": "--labels",
    "objective.targets": "--targets",
    "objective.features": "--features",
    "objective.head_start": "--head",
}
"""Fields of a recipe that an argument of the command decides, and this argument."""
_BEFORE = {CACHE, HEAD_FILE, BASELINES, LOCK}
"""What the folder of a run may have that ended before its first step, and so has no config.yaml yet."""
LEAST = 0.9
"""Smallest share of the area of an image that a crop shows."""
_CHOSEN = ("in_chans", "num_classes", "dynamic_img_size", "winding_classes", EMBEDDING, FEATURES)
"""Arguments of an encoder that a run decides itself, besides its image size."""
_PLACES = (
    "name",
    "runs",
    "tracking.",
    "stopping.",
    "engine.",
    "profile.",
    "data.workers",
    "data.cache.",
    "log_every",
)
"""Fields that do not change what is learned, and may differ when a run continues."""


def build(args: argparse.Namespace, checkpoint: Checkpoint) -> Config:
    """Return the configuration of the run; raises UserError for data that do not fit the checkpoint."""
    described = checkpoint.encoder
    train, val = Dataset(args.shards), Dataset(args.val)
    splits = {"train": train, "val": val} | ({"test": Dataset(args.test)} if args.test else {})
    for name, dataset in splits.items():
        if not len(dataset):
            raise UserError(f"{name}: {dataset.path} has no images; name another data set")
        if described.finds_by_name:
            placed(dataset, described.channel_names or [])
        else:
            check_channels(described.channels, dataset)
        check_square(described.square, dataset)
    objective, labelled = _objective(args, splits, described)
    batch = min(args.batch_size, max(2, labelled))
    steps = max(args.min_steps, round(args.epochs * labelled / batch))
    usual = steps // 10 if args.head == "random" else 0
    head_steps = min(usual if args.head_steps is None else args.head_steps, steps)
    out = Path(args.out)
    values: dict[str, Any] = {
        "name": out.name,
        "runs": str(out.parent),
        "seed": args.seed % 2**64,
        "steps": steps,
        "log_every": max(1, steps // 100),
        "online_probe": False,
        "data": {
            "path": args.shards,
            "batch_size": batch,
            "workers": args.workers,
            "channels": described.channel_names if described.finds_by_name else described.channels,
            "order": "windowed" if train.remote else "uniform",
        },
        "views": _views(described),
        "augment": _augment(described.config),
        "encoder": {
            "name": described.name,
            "kwargs": _kwargs(described),
            "weights": str(checkpoint.weights),
            "pixels": "weights",
            "freeze": args.freeze,
            "lora": args.lora or 0,
        },
        "objective": objective.model_dump()
        | {"features": _features(args), "head_start": args.head, "head_steps": head_steps},
        "optimizer": {"lr": args.lr, "layer_decay": args.layer_decay, "warmup_steps": steps // 10},
        "checkpoint": {"every": -(-steps // 20), "keep_last": 1},
        # Once a network has learned most labels, the loss of a batch with one hard image is far above that of
        # other batches. This is no fault, so no update is refused for it.
        "guard": {"spike": None},
    }
    if "winding_classes" in described.kwargs:
        winding = {"attention": "winding", "winding_classes": described.kwargs["winding_classes"]}
        values["encoder"] |= winding
    if args.mlflow:
        values["tracking"] = {"uri": args.mlflow}
    for override in args.overrides:
        _check_override(override.partition("=")[0].strip(), objective.task)
        assign(values, override)
    return from_values(values)


def _check_override(key: str, task: str) -> None:
    """Raise UserError for a field that an argument of the command decides, for a section with such a field,
    and for a field without effect.

    The comparison with baselines reads the arguments alone. With such a field it would use other data, or
    another folder, than the training.
    """
    for field, argument in _DECIDED.items():
        if f"{key}.".startswith(f"{field}."):
            raise UserError(
                f"{key}: the argument {argument} decides this, for the training and for the comparison; "
                f"leave {key} out, and change {argument} if needed"
            )
    if any(field.startswith(f"{key}.") for field in _DECIDED):
        raise UserError(
            f"{key} is a section of which the command decides some fields; give the others one by one, such "
            "as data.workers=2 or objective.balanced=false"
        )
    if key == "objective.balanced" and task in ("multilabel", "regression"):
        raise UserError(f"{key} is for multiclass and segmentation, and the task is {task}; leave it out")


def note(checkpoint: Checkpoint, config: Config) -> str:
    """Return notes for the user in one line; "" if there are none.

    One is about a rule of brightness that differs from that of pretraining. The other one is about masks that
    are not predicted, because the set has labels too.
    """
    assert isinstance(config.objective, SupervisedConfig)
    sets = {path: Dataset(path) for path in (str(config.data.path), config.objective.val)}
    lines = [brightness.difference(checkpoint.encoder, sets)]
    packed = not config.objective.segments and config.objective.targets.file is None
    if packed and sets[str(config.data.path)].description.masks is not None:
        lines.append(
            f"{config.data.path} has labels and masks; labels are predicted, and masks with --target-kind "
            "segmentation"
        )
    return "; ".join(filter(None, lines))


def _objective(
    args: argparse.Namespace, splits: dict[str, Dataset], described: EncoderDescription
) -> tuple[SupervisedConfig, int]:
    """Return the objective, and the number of labelled images that it learns from.

    The objective has the kind and number of the targets. Raises UserError for unfit targets.
    """
    if _segments(args, splits["train"]):
        return _of_masks(args, splits, described)
    targets = TargetsConfig(
        file=args.targets,
        columns=args.target_columns or [],
        key_column=args.key_column,
        missing=args.missing,
    )
    found = read_targets(targets, args.target_kind, splits)
    check_targets(found)
    labelled = int(found["train"].known.sum())
    if args.labels is not None:
        given = _number(args, labelled)
        targets = targets.model_copy(update={"labels": given, "seed": args.seed})
        try:
            check_targets(found | {"train": some(found["train"], targets)})
        except UserError as error:
            raise UserError(f"--labels {given}: {error}, or give more --labels") from None
        labelled = given
    objective = SupervisedConfig(
        kind="supervised",
        task=found["train"].kind,
        outputs=len(found["train"].names),
        val=args.val,
        targets=targets,
        label_smoothing=0.0 if found["train"].kind == "regression" else args.label_smoothing,
        mixup=args.mixup,
        cutmix=args.cutmix,
        patience=args.patience,
    )
    return objective, labelled


def _number(args: argparse.Namespace, labelled: int) -> int:
    """Return the number of images of --labels, of which there are `labelled`; raises UserError for more."""
    given = args.labels if isinstance(args.labels, int) else max(1, round(args.labels * labelled))
    if given > labelled:
        raise UserError(f"--labels {given}: train has {labelled} labelled images; give at most as many")
    return int(given)


def _segments(args: argparse.Namespace, train: Dataset) -> bool:
    """Return whether masks are predicted: if it is asked for, or if the set has masks and no labels."""
    if args.target_kind is not None or args.targets is not None:
        return bool(args.target_kind == "segmentation")
    return not (train.labels >= 0).any() and bool(find(train).known.any())


def _of_masks(
    args: argparse.Namespace, splits: dict[str, Dataset], described: EncoderDescription
) -> tuple[SupervisedConfig, int]:
    """Return the objective of predicting masks, and the number of masks that it learns from.

    Raises UserError for unfit masks, and for options that are for labels.
    """
    for option, why in (
        ("targets", "masks are packed with their images"),
        ("features", "masks are predicted from the encoder's map"),
        ("mixup", "only labels of whole images can be mixed"),
        ("cutmix", "only labels of whole images can be mixed"),
    ):
        if getattr(args, option):
            raise UserError(f"--{option} is not for --target-kind segmentation, as {why}; leave it out")
    found = read_masks(splits)
    names, labelled, targets = found.names, int(found.known["train"].sum()), TargetsConfig()
    if args.labels is not None:
        labelled = _number(args, labelled)
        targets = TargetsConfig(labels=labelled, seed=args.seed)
        choose(found, splits, targets)
    for name in [name for name in splits if name != "train"]:
        rows = np.flatnonzero(found.known[name])
        check_scored(name, splits[name], rows, described.image_size, described.square, names)
    objective = SupervisedConfig(
        kind="supervised",
        task="segmentation",
        outputs=len(names),
        val=args.val,
        targets=targets,
        balanced=False,
        label_smoothing=args.label_smoothing,
        patience=args.patience,
    )
    return objective, labelled


def _kwargs(described: EncoderDescription) -> dict[str, Any]:
    """Return the arguments of the encoder that the run does not decide itself.

    `img_size` is the size of the position embedding. It is one of them if it differs from the size at which
    the encoder is evaluated and fine-tuned: the crops of pretraining were smaller (`views.whole_size`).
    """
    own = described.kwargs.get("img_size") == described.image_size
    left_out = (*_CHOSEN, "img_size") if own else _CHOSEN
    return {key: x for key, x in described.kwargs.items() if key not in left_out}


def _views(described: EncoderDescription) -> dict[str, Any]:
    """Return the views: one crop of each image, with at least `LEAST` of the area that evaluations show.

    A label is often about a small part of an image, and a crop without that part would have a wrong label.
    """
    views = {"global_views": 1, "local_views": 0, "global_size": described.image_size}
    if (square := described.square) is None:
        return views | {"global_scale": [LEAST, 1.0]}
    return views | {
        "scale_by": "spacing",
        "unit": square.unit,
        "physical_size": [square.side * LEAST**0.5, square.side],
        "whole_physical_size": square.side,
        "unscaled": square.unscaled,
    }


def _augment(pretraining: dict[str, Any]) -> dict[str, Any]:
    """Return the augmentation: turns and mirror images as in pretraining, light changes of brightness.

    Whether an image may be mirrored or turned depends on the kind of images, which is that of pretraining.
    Stronger changes of colour, blur and solarization make the task of pretraining harder, and labels do not
    need them.
    """
    before = pretraining.get("augment")
    kept = ("horizontal_flip", "vertical_flip", "quarter_turns")
    natural = {key: before[key] for key in kept if key in before} if isinstance(before, dict) else {}
    off = dict.fromkeys(("grey_probability", "blur_probability", "solarize_probability"), 0.0)
    light = {"jitter_probability": 0.5, "brightness": 0.1, "contrast": 0.1, "saturation": 0.1, "hue": 0.0}
    return natural | light | off


def from_scratch(config: Config) -> Config:
    """Return the same training, from random weights and with the data's own mean and deviation."""
    values = config.model_dump(mode="json")
    values |= {"name": SCRATCH, "runs": str(config.folder / BASELINES)}
    values["encoder"] |= {"weights": None, "pixels": "data", "freeze": 0, "lora": 0}
    if config.mirror:  # a folder of its own, because the baselines of other runs have the same name
        values["checkpoint"] |= {"mirror": f"{config.mirror}/{BASELINES}"}
    values["objective"] |= {"head_start": "random", "head_steps": 0}
    values["optimizer"] |= {"layer_decay": 1.0}
    return from_values(values)


def reading(
    features: FeatureSet, config: Config, inputs: RunInputs, world_size: int
) -> tuple[Config, RunInputs]:
    """Return the configuration and inputs of the same run, whose linear layer reads `features`."""
    assert isinstance(config.objective, SupervisedConfig)
    if config.objective.features == features:
        return config, inputs
    values = config.model_dump(mode="json")
    values["objective"] |= {"features": features}
    changed = from_values(values)
    model = check_model(changed, world_size)
    return changed, replace(inputs, encoder_kwargs=model.kwargs, embedding_width=model.width)


def _features(args: argparse.Namespace) -> str:
    """Return the features that were asked for, or else those that an earlier start of the run has chosen."""
    objective = (_earlier(Path(args.out)) or {}).get("objective") or {}
    return args.features or objective.get("features") or "embedding"


def _earlier(folder: Path) -> dict[str, Any] | None:
    """Return the values of a run's config.yaml; None if there are none that can be read."""
    try:
        found = read_yaml((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return found if isinstance(found, dict) else None


def require_same(config: Config) -> None:
    """Raise UserError if the folder of the run has other files than those of an earlier start of the same
    run.
    """
    folder = config.folder
    if is_copy(folder):
        raise UserError(
            f"--out {folder} lies in the cache, which may be emptied at any time; name another folder"
        )
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is no folder; name one that does not exist")
    if not folder.is_dir() or {each.name for each in folder.iterdir()} <= _BEFORE:
        return
    earlier = _earlier(folder)
    if earlier is None or (earlier.get("objective") or {}).get("kind") != "supervised":
        raise UserError(f"--out {folder} has other files, which are kept; name a folder that does not exist")
    before, now = flatten(earlier), flatten(config.model_dump(mode="json"))
    for values in (before, now):
        if "encoder.weights" in values:
            values["encoder.weights"] = without_cache(values["encoder.weights"])
    for key in now:
        if not key.startswith(_PLACES) and before.get(key, now[key]) != now[key]:
            raise UserError(
                f"--out {folder} was made with {key}={before[key]}, not {now[key]}; give the same options to "
                "continue it, or name another folder"
            )
