"""Compare the data, the encoder and the checkpoints with the configuration before a run starts."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.dataset.channel_names import placed
from data_pipeline.dataset.index import Dataset
from data_pipeline.decoders.pixels import convertible
from data_pipeline.sources import Sources
from data_pipeline.storage.remote import ONE_ATTEMPT
from data_pipeline.transforms.action_checks import refuse_unfit
from data_pipeline.transforms.physical import check_views
from isotorus import jsonl
from isotorus.errors import UserError
from pretrain.checkpoint import damage
from pretrain.checkpoint.readings import readings_before
from pretrain.checkpoint.warm_start import (
    NAMES,
    WarmStart,
    check_fit,
    find_weights,
    refuse_other_channels,
    silent_difference,
)
from pretrain.config import Config
from pretrain.methods.config import SupervisedConfig
from pretrain.models.description import beside
from pretrain.preflight.inputs import RunInputs
from pretrain.preflight.likely_mistakes import warn
from pretrain.preflight.model import check_model
from pretrain.preflight.resume import check_resume

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)


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
    newest = damage.latest_described(config.folder / "checkpoints", config.checkpoint.on_damage)
    mean, std = _normalisation(config, sources, newest)
    inputs = RunInputs(sources, kwargs, width, mean, std, task=task, held_out=held_out)
    if newest is not None:
        try:
            check_resume(config, inputs, newest)
            saved = damage.describe(newest)
            record = saved.get("warm_start")
            before = tuple(readings_before(saved, _reading(config, inputs)))
            start = record and WarmStart(**record)
            continued = dataclasses.replace(inputs, warm_start=start, readings_before=before)
            warn(config, newest, sources.datasets)
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
    warn(config, newest, sources.datasets)
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
