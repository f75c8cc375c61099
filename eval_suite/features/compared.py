"""The features of everything that an evaluation compares: encoders, baselines, features from elsewhere."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from numpy.typing import NDArray

from data_pipeline.transforms.physical import check_square
from eval_suite.features import embed
from eval_suite.features import representation as kinds
from eval_suite.features.representation import Representation
from eval_suite.inputs.against import Against
from eval_suite.inputs.checkpoints import Checkpoint
from eval_suite.inputs.splits import Splits
from isotorus.errors import UserError

_log = logging.getLogger(__name__)
MEMORY = 4 * 2**30
"""Largest number of bytes for weights and features of the checkpoints that one pass over the images
embeds."""
Features = Mapping[str, Mapping[str, Mapping[str, NDArray[np.floating]]]]
"""Features (n, d) by representation, feature set and split."""


def representations(
    checkpoint: Checkpoint,
    splits: Splits,
    against: Against,
    *,
    baselines: Sequence[str],
    initialisations: int,
    pixel_size: int,
    sets: tuple[str, ...] | None,
) -> list[Representation]:
    """Return the pretrained encoder, the named baselines, and the encoders in `against`.

    The numbers and the feature sets are those of `eval_suite.options`. Raises UserError if the images have
    other channels than the pretrained encoder takes.
    """
    for data in splits.items().values():
        embed.check_channels(checkpoint.encoder.channels, data)
        check_square(checkpoint.encoder.square, data, quiet=True)
    found = [kinds.pretrained(checkpoint, sets)]
    if "untrained" in baselines:
        for number in range(1, initialisations + 1):
            found.append(kinds.untrained(checkpoint, sets, number))
    if "pixels" in baselines:
        found.append(kinds.pixels(checkpoint, pixel_size))
    if "handmade" in baselines:
        grey = all(data.channels == 1 for data in splits.items().values())
        found.append(kinds.handmade(checkpoint, splits.train, grey=grey))
    for name, other in against.encoders.items():
        found.append(replace(kinds.pretrained(other, sets), name=name))
    return found


def check(checkpoint: Checkpoint, splits: Splits) -> None:
    """Embed one image, to see whether a checkpoint is whole and takes the images of all splits.

    Raises UserError, in one line, if it does not.
    """
    for data in splits.items().values():
        embed.check_channels(checkpoint.encoder.channels, data)
        check_square(checkpoint.encoder.square, data, quiet=True)
    embed.check(kinds.pretrained(checkpoint, ()))


def extract(
    compared: Sequence[Representation],
    against: Against,
    splits: Splits,
    cache: Path,
    state: PartialState,
    **loading: Any,
) -> Features:
    """Return features by representation, feature set and split.

    All processes must call this; the first one returns the features, the others an empty dict. `loading` and
    errors are those of `embed.extract`.
    """
    by_split = {
        split: embed.extract(compared, data, cache, state, **loading)
        for split, data in splits.items().items()
    }
    if not state.is_main_process:
        return {}
    features: dict[str, Mapping[str, Mapping[str, NDArray[np.floating]]]] = {
        r.name: {
            name: {split: of[r.name][name] for split, of in by_split.items()}
            for name in by_split["train"][r.name]
        }
        for r in compared
    }
    return features | {name: {"embedding": x} for name, x in against.features.items()}


def embed_together(
    groups: Sequence[Sequence[Representation]],
    splits: Splits,
    cache: Path,
    state: PartialState,
    **loading: Any,
) -> set[int]:
    """Fill the cache with what several evaluations compare, reading and decoding each image once.

    `groups` are the representations of each evaluation. If the model of a group cannot be built, the group is
    left to its own evaluation, which reports the error; if the pass fails, all groups are. Returns the
    indices of the groups that were embedded. All processes must call this.
    """
    built = [number for number, group in enumerate(groups) if _builds(group[0])]
    everywhere = set.intersection(*map(set, gather_object([built])))
    wanted = [r for number in sorted(everywhere) for r in groups[number]]
    try:
        for data in splits.items().values():
            embed.extract(wanted, data, cache, state, **loading)
    except UserError:  # all processes raise it together
        return set()
    except Exception:  # such as a GPU that has no memory for all of them
        if state.num_processes > 1:
            raise
        _log.debug("one pass for %d checkpoints", len(groups), exc_info=True)
        return set()
    return everywhere


def _builds(r: Representation) -> bool:
    """Build the model and return whether that was possible."""
    try:
        return bool(r.model)
    except Exception:
        return False


def chunks(checkpoints: Sequence[Checkpoint], splits: Splits) -> list[list[Checkpoint]]:
    """Divide checkpoints into lists whose weights and features together need at most `MEMORY` bytes."""
    images = max(len(data) for data in splits.items().values())
    lists: list[list[Checkpoint]] = []
    free = 0
    for checkpoint in checkpoints:
        # Embedding, last2 and last4 are seven times as wide as the embedding.
        need = checkpoint.weights.stat().st_size + 4 * 7 * images * checkpoint.encoder.embedding_width
        if not lists or need > free:
            lists.append([])
            free = MEMORY
        lists[-1].append(checkpoint)
        free -= need
    return lists


def finite(features: Features) -> tuple[Features, dict[str, str]]:
    """Return the feature sets that are finite, and why the others are left out."""
    sound: dict[str, dict[str, Mapping[str, NDArray[np.floating]]]] = {}
    left_out: dict[str, str] = {}
    for name, sets in features.items():
        for key, by_split in sets.items():
            broken = sum(int((~np.isfinite(x).all(axis=1)).sum()) for x in by_split.values())
            if broken:
                images = sum(map(len, by_split.values()))
                place = f"feature set {key}" if name == "pretrained" else f"{name}/feature set {key}"
                left_out[place] = f"{broken} of {images} images give NaN or infinite features"
            else:
                sound.setdefault(name, {})[key] = by_split
        if next(iter(sets)) not in sound.get(name, {}):  # a baseline without its embedding
            sound.pop(name, None)
    return sound, left_out
