"""Compare a run with its newest checkpoint: what differs is refused, unless `accept` allows it."""

import contextlib
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from data_pipeline.dataset.description import describe
from data_pipeline.sources import Sources
from isotorus.errors import UserError
from pretrain.checkpoint import damage
from pretrain.checkpoint.mirror.address import without_cache
from pretrain.config import Config, flatten
from pretrain.methods.config import ObjectiveConfig
from pretrain.models.feature_sets import FEATURES, MAP
from pretrain.preflight.inputs import RunInputs


def check_resume(config: Config, inputs: RunInputs, newest: Path) -> None:
    """Raise UserError if the run differs from its newest checkpoint in a way that `accept` does not allow."""
    if config.resume == "never":
        raise UserError(
            f"{config.folder} has a checkpoint ({newest.name}) and resume=never; "
            "choose another name, or resume=auto"
        )
    saved = damage.describe(newest)
    # An encoder that gives a map is described as one that gives a vector, see `encoder_json.plain`.
    kwargs = {key: x for key, x in inputs.encoder_kwargs.items() if (key, x) != (FEATURES, MAP)}
    if (saved["name"], saved["kwargs"]) != (config.encoder.name, kwargs):
        raise UserError(
            f"{newest} is of another architecture, {saved['name']} {saved['kwargs']}, than the "
            f"configuration's {config.encoder.name} {kwargs}; choose another name or the old encoder"
        )
    before, now = saved["config"], config.model_dump(mode="json")
    if now["average"]["momentum"] is not None and before.get("average", {}).get("momentum") is None:
        raise UserError(
            f"average.momentum={now['average']['momentum']:g}: {newest} has no average to continue; leave it "
            "out, or choose another name for the run"
        )
    weights = [without_cache(values["encoder"].get("weights")) for values in (before, now)]
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
