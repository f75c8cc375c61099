"""Refuse, before any process group starts, every run that is known not to work."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from data_pipeline.dataset.channel_names import placed
from data_pipeline.dataset.description import describe
from data_pipeline.dataset.index import Dataset
from data_pipeline.decoders.pixels import convertible
from data_pipeline.sources import Sources
from data_pipeline.storage.remote import ONE_ATTEMPT
from data_pipeline.transforms.action_checks import doubts, refuse_rotations, refuse_unfit
from data_pipeline.transforms.physical import check_views
from isotorus import jsonl
from isotorus.errors import UserError
from pretrain.checkpoint import store
from pretrain.checkpoint.readings import readings_before
from pretrain.checkpoint.warm_start import (
    NAMES,
    WarmStart,
    check_fit,
    find_weights,
    refuse_other_channels,
    silent_difference,
)
from pretrain.config import Config, flatten
from pretrain.engines.check import check_engine
from pretrain.engines.schedule import rate_of
from pretrain.methods.config import ObjectiveConfig, SupervisedConfig
from pretrain.models.batch_norm import has_batch_norm
from pretrain.models.description import beside
from pretrain.models.encoder import create_on_meta, embedding_width, patch_size, timm_kwargs
from pretrain.models.frozen import check_frozen
from pretrain.models.lora import check_adapters
from pretrain.models.repeated import with_few_blocks
from pretrain.rehearsal import rehearse
from pretrain.supervised.mixing import check_mixing

if TYPE_CHECKING:
    from pretrain.supervised.task import Task

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class RunInputs:
    """What a run needs beyond its configuration, found out from the data, the encoder and its checkpoints."""

    sources: Sources
    encoder_kwargs: dict[str, Any]
    """Arguments of `pretrain.models.encoder.create`."""
    embedding_width: int
    mean: tuple[float, ...]
    """Mean of the pixels in each channel."""
    std: tuple[float, ...]
    warm_start: WarmStart | None = None
    """The file that the first weights came from; None where they were random."""
    initial_weights: str | None = None
    """The file to read the first weights from; None if they are random or a checkpoint is continued."""
    task: Task | None = None
    """What a supervised run predicts."""
    held_out: Dataset | None = None
    """The data set of `held_out.path`."""
    readings_before: tuple[dict[str, Any], ...] = ()
    """How the run read its data before starts that changed it, see `pretrain.checkpoint.readings`."""


def check(config: Config, world_size: int) -> RunInputs:
    """Open the data, build the encoder without memory, and compare both with the configuration.

    Raises UserError for the first thing that cannot work.
    """
    sources = config.data.open()
    patience = config.data.cache.patience + ONE_ATTEMPT
    if sources.remote and config.stopping.hang < patience:
        raise UserError(
            f"stopping.hang={config.stopping.hang:g} s would end a run that waits for its store, which may "
            f"take data.cache.patience={config.data.cache.patience:g} s and {ONE_ATTEMPT:g} s for the last "
            f"attempt; use stopping.hang={patience:g} or less patience"
        )
    refuse_unfit(config.views.actions, config.data.channel_count, sources.datasets)
    check_views(config.views, sources.datasets)
    kwargs, encoder, width = check_model(config, world_size)
    task = None
    if isinstance(config.objective, SupervisedConfig):
        # Imported here so that runs without labels do not wait for pyarrow.
        from pretrain.supervised.task import read_task

        channels = config.data.channel_count, config.data.channel_names
        task = read_task(config.objective, sources.datasets, *channels)
        sources = sources.only(task.known)
    held_out = _held_out(config, sources)
    newest = store.latest_described(config.folder / "checkpoints", config.checkpoint.on_damage)
    mean, std = _normalisation(config, sources, newest)
    inputs = RunInputs(sources, kwargs, width, mean, std, task=task, held_out=held_out)
    if newest is not None:
        try:
            _check_resume(config, inputs, newest)
            saved = store.describe(newest)
            record = saved.get("warm_start")
            before = tuple(readings_before(saved, _reading(config, inputs)))
            start = record and WarmStart(**record)
            continued = dataclasses.replace(inputs, warm_start=start, readings_before=before)
            _warn(config, newest, sources.datasets)
            return continued
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            said = " ".join(str(error).split())[:100]
            raise UserError(
                f"{newest}/encoder.json does not describe a checkpoint of a run ({type(error).__name__}: "
                f"{said}); remove that folder, or choose another name for the run"
            ) from None
    if config.resume == "never" and jsonl.read(config.folder / "metrics.jsonl"):
        raise UserError(f"{config.folder} holds a run already; choose another name, or resume=auto")
    if config.encoder.weights is not None:
        warm_start = find_weights(config.encoder.weights, f"encoder.weights={config.encoder.weights}")
        check_fit(config.encoder.name, encoder, warm_start.file)
        refuse_other_channels(config.data.channel_names, warm_start.file)
        inputs = dataclasses.replace(inputs, warm_start=warm_start, initial_weights=warm_start.file)
    # Made before the first note, so that a place where no folder can be is one line.
    config.folder.mkdir(parents=True, exist_ok=True)
    _warn(config, newest, sources.datasets)
    if inputs.warm_start and (difference := silent_difference(encoder, inputs.warm_start.file)):
        log.warning("encoder.weights=%s fit in shape only: %s", config.encoder.weights, difference)
    return inputs


def _held_out(config: Config, sources: Sources) -> Dataset | None:
    """Open the data set of `held_out.path`, which must not be one that is trained on; None without a path."""
    path = config.held_out.path
    if path is None:
        return None
    dataset = Dataset(path, cache=config.data.cache)
    if dataset.fingerprint in {each.fingerprint for each in sources.datasets}:
        raise UserError(
            f"held_out.path={path} is trained on, so it is not held out; name another set, such as shards/val"
        )
    if sources.channel_names is not None:
        placed(dataset, sources.channel_names)
    elif not convertible(dataset.channels, config.data.channel_count):
        raise UserError(
            f"held_out.path={path} has images of {dataset.channels} channels, but data.channels="
            f"{config.data.channel_count}; name a set whose images have as many"
        )
    check_views(config.views, [dataset])
    if len(dataset) < 2:
        raise UserError(f"held_out.path={path} has {len(dataset)} images; name a set with 2 or more")
    return dataset


def _reading(config: Config, inputs: RunInputs) -> dict[str, Any]:
    """Return how the run reads its data now, in the keys of encoder.json."""
    return {
        "seed": config.seed,
        "data_fingerprint": inputs.sources.fingerprint,
        "supervised": inputs.task and inputs.task.describe(),
        "config": {"data": config.data.model_dump(mode="json")},
    }


class Model(NamedTuple):
    """The encoder to be trained, without memory."""

    kwargs: dict[str, Any]
    """Arguments of `pretrain.models.encoder.create`."""
    encoder: Any
    """The timm model, on the meta device."""
    width: int
    """The embedding's dimension D."""


def _normalisation(
    config: Config, sources: Sources, newest: Path | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation by which pixels are normalised; UserError if they are not known."""
    if config.encoder.pixels == "data":
        return sources.statistics(config.data.channel_count)
    if config.encoder.weights is None:
        raise UserError("encoder.pixels=weights needs encoder.weights; name them, or use encoder.pixels=data")
    asked = f"encoder.weights={config.encoder.weights}"
    # A run that continues no longer needs the file that it began with.
    file = newest / NAMES[0] if newest else Path(find_weights(config.encoder.weights, asked).file)
    described = beside(file)
    names = config.data.channel_names
    if described is not None and names is not None and described.channel_names != names:
        theirs = ", ".join(described.channel_names or ["without names"])
        raise UserError(
            f"encoder.pixels=weights: {file} was trained on channels {theirs}, and data.channels are "
            f"{', '.join(names)}; give the same, or use encoder.pixels=data"
        )
    if described is None or described.channels != config.data.channel_count:
        found = "nothing" if described is None else f"a description for {described.channels} channels"
        raise UserError(
            f"encoder.pixels=weights: beside {file} lies {found}, so it is not known how pixels of "
            f"{config.data.channel_count} channels were normalised; use encoder.pixels=data"
        )
    return tuple(described.mean), tuple(described.std)


def check_share(config: Config, world_size: int) -> None:
    """Raise `UserError` for a batch of fewer images than there are ranks, or micro-batches on them."""
    images = config.data.batch_size // world_size
    if images == 0:
        raise UserError(
            f"data.batch_size={config.data.batch_size} is less than an image for each of {world_size} ranks; "
            f"use fewer ranks, or a larger batch"
        )
    if config.engine.accumulation > images:
        raise UserError(
            f"engine.accumulation={config.engine.accumulation} is more than the {images} images of a rank; "
            "use less accumulation or a larger batch"
        )


def check_model(config: Config, world_size: int) -> Model:
    """Build the encoder without memory and check what does not depend on the data.

    Raises UserError for the first thing that cannot work.
    """
    check_share(config, world_size)
    refuse_unfit(config.views.actions, config.data.channel_count)
    refuse_rotations(config.views.actions, config.augment)
    _refuse_by_name(config)
    channels, named = config.data.channel_count, config.data.channel_names is not None
    kwargs = timm_kwargs(config.encoder, config.views.global_size, channels, named=named)
    encoder: Any = create_on_meta(config.encoder.name, kwargs)
    patch = patch_size(encoder)
    sizes = {f"views.{r.kind}_size": r.size for r in config.views.resolutions()}
    if config.views.whole_size:
        sizes["views.whole_size"] = config.views.whole_size
    for key, size in sizes.items():
        if size % patch:
            near = " or ".join(str(s) for s in (size // patch * patch, (size // patch + 1) * patch) if s)
            raise UserError(f"{key}={size} is not a multiple of the encoder's patch of {patch}; use {near}")
    check_frozen(config.encoder.freeze, encoder)
    check_adapters(config.encoder.lora, config.encoder.name, encoder, config.engine.precision)
    few = create_on_meta(config.encoder.name, with_few_blocks(config.encoder.name, kwargs))
    width = embedding_width(few, config.encoder.name, channels, sizes.values())
    model = Model(kwargs, encoder, width)
    check_ranks(config, model, world_size)
    return model


def check_ranks(config: Config, model: Model, world_size: int) -> None:
    """Check the engine and the number of ranks for a model that `check_model` has returned.

    The engine may be another one than then. Raises UserError for the first thing that cannot work.
    """
    check_share(config, world_size)
    followed = config.objective.kind == "jepa" or config.average.momentum is not None
    check_engine(config.engine, world_size, model.encoder, followed)
    passes = config.engine.passes(config.data.batch_size, world_size)
    if passes > 1 and config.engine.accumulate == "exact" and has_batch_norm(model.encoder):
        raise UserError(
            f"engine.accumulation={passes}: the batch norm of {config.encoder.name} sees "
            "micro-batches, so it cannot be exact; use engine.accumulate=microbatch or another encoder"
        )
    if isinstance(config.objective, SupervisedConfig):
        check_mixing(config, config.objective, world_size)
        if config.objective.head_steps and config.engine.kind == "deepspeed":
            raise UserError(
                "objective.head_steps has not been tried with engine.kind=deepspeed; use engine.kind=ddp or "
                "fsdp, or objective.head_steps=0"
            )
    rehearse(config, model.kwargs, model.width, world_size)


def _refuse_by_name(config: Config) -> None:
    """Raise UserError for augmentations that turn colours or move channels, if channels are found by name."""
    if config.data.channel_names is None:
        return
    if "hue" in config.views.actions:
        raise UserError(
            "views.actions has hue, which turns red, green and blue, but data.channels finds channels by "
            "name; leave hue out, or use data.channels=3"
        )
    if config.augment.channel_shuffle_probability:
        raise UserError(
            "augment.channel_shuffle_probability would put channels under wrong names; set it to 0, or use "
            "augment.channel_drop_probability"
        )


def _warn(config: Config, newest: Path | None, datasets: Sequence[Dataset] = ()) -> None:
    """Log a line for each setting of actions or learning rate that is possible but likely a mistake."""
    for doubt in doubts(config.views, datasets, config.seed):
        log.warning("%s", doubt)
    optimizer = config.optimizer.model_dump()
    if optimizer["warmup_steps"] >= config.steps:
        log.warning(
            "optimizer.warmup_steps=%d is no less than steps=%d: the learning rate only rises, to %.2g where "
            "optimizer.lr is %.2g; set fewer warm-up steps, such as %d",
            optimizer["warmup_steps"], config.steps, rate_of(config.steps - 1, config.steps, optimizer),
            optimizer["lr"], config.steps // 10,
        )  # fmt: skip
    if newest is None:
        return
    saved = store.describe(newest)
    step, steps = saved["step"], saved["config"]["steps"]
    before = rate_of(min(step, steps - 1), steps, saved["config"]["optimizer"])
    now = rate_of(step, config.steps, optimizer)
    if config.steps > step > 0 and steps != config.steps and now > 2 * before:
        log.warning(
            "the learning rate rises from %.2g to %.2g at step %d, because the schedule now has %d steps "
            "and had %d; to go on at a low rate instead, lower optimizer.lr and set "
            "optimizer.warmup_steps=0",
            before, now, step, config.steps, steps,
        )  # fmt: skip


def _check_resume(config: Config, inputs: RunInputs, newest: Path) -> None:
    """Raise UserError if the run differs from its newest checkpoint in a way that `accept` does not allow."""
    if config.resume == "never":
        raise UserError(
            f"{config.folder} has a checkpoint ({newest.name}) and resume=never; "
            "choose another name, or resume=auto"
        )
    saved = store.describe(newest)
    if (saved["name"], saved["kwargs"]) != (config.encoder.name, inputs.encoder_kwargs):
        raise UserError(
            f"{newest} is of another architecture, {saved['name']} {saved['kwargs']}, than the "
            f"configuration's {config.encoder.name} {inputs.encoder_kwargs}; choose another name or the old "
            "encoder"
        )
    before, now = saved["config"], config.model_dump(mode="json")
    if now["average"]["momentum"] is not None and before.get("average", {}).get("momentum") is None:
        raise UserError(
            f"average.momentum={now['average']['momentum']:g}: {newest} has no average to continue; leave it "
            "out, or choose another name for the run"
        )
    weights = [values["encoder"].get("weights") for values in (before, now)]
    channels = saved.get("channel_names"), config.data.channel_names
    objectives = _with_defaults(before["objective"]), now["objective"]
    old_objective, objective = (flatten({"objective": values}) for values in objectives)
    for key, accept, old, new in (
        ("seed", "seed", saved["seed"], config.seed),
        ("encoder.weights", "", *weights),
        ("data.channels", "", *channels),
        ("encoder.lora", "", before["encoder"].get("lora", 0), config.encoder.lora),
        ("data.batch_size", "batch_size", before["data"]["batch_size"], config.data.batch_size),
        ("data.order", "data", before["data"]["order"], config.data.order),
        *(
            (key, "objective", old_objective.get(key), objective.get(key))
            for key in old_objective | objective
        ),
    ):
        if old != new and accept not in config.accept:
            go_on = f", or accept=[{accept}] to go on with that" if accept else ""
            raise UserError(
                f"{newest} was trained with {key}={old}, not {new}; choose another name for the run{go_on}"
            )
    labels = inputs.task and inputs.task.fingerprint
    if (saved.get("supervised") or {}).get("fingerprint") != labels and "data" not in config.accept:
        raise UserError(
            f"{newest} was trained with other labels; choose another name for the run, or accept=[data] to "
            "go on with these"
        )
    fingerprint = inputs.sources.fingerprint
    if saved["data_fingerprint"] != fingerprint and "data" not in config.accept:
        raise UserError(
            f"{newest} was trained on other data ({saved['data_fingerprint']}, now {fingerprint}); choose "
            "another name for the run, or accept=[data] to go on with "
            f"that{_earlier(saved['data_fingerprint'], inputs.sources)}"
        )


def _with_defaults(objective: dict[str, Any]) -> dict[str, Any]:
    """Return the objective of an earlier run with the fields that have been added since, at their defaults.

    A default is what the objective did before there was the field.
    """
    # An objective with a field that no longer exists cannot be read, and is compared as it was saved.
    with contextlib.suppress(ValidationError):
        config: ObjectiveConfig = TypeAdapter(ObjectiveConfig).validate_python(objective)
        return config.model_dump(mode="json")
    return objective


def _earlier(fingerprint: str, sources: Sources) -> str:
    """Say how to go on with the images that the run began with, if an earlier generation of a set has the
    fingerprint, or that they are deleted.
    """
    for dataset in sources.datasets:
        if fingerprint in {former.fingerprint for former in describe(dataset.path, dataset.cache).former}:
            return (
                f"; images that it may have seen were deleted from {dataset.path} since (isotorus compact), "
                "so rather begin a new run"
            )
        for number, generation in enumerate(dataset.generations, start=1):
            if generation.fingerprint == fingerprint:
                only = f"[{{path: {dataset.path}, generation: {number}}}]"
                return f", or go on with the images as they were: data.path=null data.sources='{only}'"
    return ""
