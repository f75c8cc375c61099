"""Which samples of its data sets a run visited: training with labels leaves out those without a target."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from data_pipeline.dataset.index import Dataset
from isotorus.errors import UserError
from pretrain.methods.config import SupervisedConfig
from pretrain.recording.who_saw.past_sets import State


def visited(
    facts: dict[str, Any], states: Sequence[State], paths: Sequence[str]
) -> list[NDArray[np.int64]] | None:
    """Return the samples of each source that a run visited, in their order; None if it visited all.

    `facts` are those of encoder.json, and `paths` those of the sources. Raises `UserError` if that cannot be
    found out, because the data sets or the targets are no longer as they were.
    """
    total = sum(state.count for state in states)
    images = facts.get("images", total)  # earlier versions lack it, and their runs visited all
    if images == total:
        return None
    try:
        # Imported here because it reads tables, which other runs do not need.
        from pretrain.supervised.task import read_task

        config = SupervisedConfig.model_validate(facts["config"]["objective"])
        datasets = [_opened(path, state) for path, state in zip(paths, states, strict=True)]
        task = read_task(config, datasets, int(facts["channels"]), facts.get("channel_names"))
        known = str(facts["supervised"]["fingerprint"])
    except (UserError, OSError, ValidationError, KeyError, TypeError, ValueError):
        known = ""
    if not known or task.fingerprint.partition("-")[0] != known.partition("-")[0]:
        raise UserError(
            f"it trained on {images} of {total} images, those with a target, and the data sets or targets "
            "are not where or as they were then; treat it as a run that saw the images"
        )
    parts = np.split(task.known, np.cumsum([state.count for state in states])[:-1])
    return [np.flatnonzero(part) for part in parts]


def _opened(path: str, state: State) -> Dataset:
    """Open the generation of a data set that `state` describes; raises `UserError` if it is gone."""
    dataset = Dataset(path)
    prints = [generation.fingerprint for generation in dataset.generations]
    if state.fingerprint not in prints:
        raise UserError(f"{path} no longer has the generation {state.fingerprint}")
    return Dataset(path, generation=prints.index(state.fingerprint) + 1)
