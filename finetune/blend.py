"""Blend the weights before and after fine-tuning, with the share of each that is best on val (WiSE-FT).

A network between the two is often better than both (Wortsman et al. 2022, arXiv:2109.01903). The network
before fine-tuning is the linear probe, so on val the blend is no worse than the probe.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from data_pipeline.targets.mask_scores import mean_iou
from eval_suite.features.embed import extract
from eval_suite.features.feature_sets import FeatureSets
from eval_suite.features.representation import Representation, pretrained
from eval_suite.inputs import find
from finetune import best
from finetune.head import on_val
from finetune.masks.predicted import MaskPredictor, counted
from finetune.processes import on_first, processes
from finetune.recipe import CACHE
from isotorus.errors import from_os_error
from isotorus.files import atomic
from pretrain.checkpoint.warm_start import initial_state
from pretrain.config import Config
from pretrain.methods.config import HEAD_FILE, SupervisedConfig
from pretrain.models.channel_embedding import fold
from pretrain.models.config import MLPConfig
from pretrain.models.encoder import create
from pretrain.models.projector import build_mlp
from pretrain.preflight.inputs import RunInputs
from pretrain.supervised.task import Task

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the fine-tuned weights in a blend; the rest comes from the weights before fine-tuning."""
State = dict[str, Tensor]
Ends = tuple[State, State]
"""Tensors of encoder and linear layer, named encoder.… and head.…: before and after fine-tuning."""


def publish(config: Config, inputs: RunInputs) -> None:
    """Write the blend that is best on val to the run's folder; all ranks call it.

    It blends the weights before fine-tuning and those of the best checkpoint.
    """
    objective, task = config.objective, inputs.task
    assert isinstance(objective, SupervisedConfig) and task is not None
    best_checkpoint = best.of_run(config.folder)
    ends = _before(config, inputs), _after(best_checkpoint)
    network = find.find([str(best_checkpoint)])[0].for_images_of(task.val)
    of_network = pretrained(network, ("projector",))
    candidates = [
        replace(
            of_network,
            name=f"{share:g}",
            weights=f"{of_network.weights}-{share:g}-from-{config.encoder.weights}",
            build=partial(_build, config, inputs, ends, share, network.channel_names),
        )
        for share in SHARES
    ]
    scores = _scored(candidates, config, task)
    on_first(lambda: _write(config, ends, best_checkpoint, scores))


def _write(config: Config, ends: Ends, best_checkpoint: Path, scores: dict[float, tuple[float, ...]]) -> None:
    """Write the blend with the best score; raises UserError if it cannot be written."""
    share = max(SHARES, key=lambda each: (scores[each], each))
    blended = _blend(ends, share)
    description = json.loads((best_checkpoint / "encoder.json").read_text())
    description["blend"] = {"share": share, "val": {f"{each:g}": scores[each][0] for each in SHARES}}
    try:
        for part, file in (("encoder.", "encoder.safetensors"), ("head.", "projector.safetensors")):
            tensors = {name.removeprefix(part): x for name, x in blended.items() if name.startswith(part)}
            with atomic(config.folder / file) as stream:
                stream.write(save({name: x.contiguous() for name, x in tensors.items()}))
        with atomic(config.folder / "encoder.json") as stream:  # last, because commands look for it
            stream.write(json.dumps(description, indent=2).encode())
    except OSError as error:
        raise from_os_error(error, f"writing the network to {config.folder}") from error


def _scored(
    candidates: Sequence[Representation], config: Config, task: Task
) -> dict[float, tuple[float, ...]]:
    """Return the scores of blends on val by their share, on the first process; all ranks call it."""
    state, workers = processes(), config.data.workers
    if task.kind == "segmentation":
        of_masks = counted(candidates, task.val, task.val_rows, len(task.names), state, workers)
        return {float(name): (float(mean_iou(counts)[0]),) for name, counts in of_masks.items()}
    loading: dict[str, Any] = {"batch_size": 64, "workers": workers}
    found = extract(candidates, task.val, config.folder / CACHE, state, **loading)
    return {
        float(name): on_val(task, sets["projector"][task.val_rows].astype(float))
        for name, sets in found.items()
    }


def _before(config: Config, inputs: RunInputs) -> State:
    """Return the tensors with which the training started."""
    encoder = initial_state(
        config.encoder.name, inputs.encoder_kwargs, config.seed, str(config.encoder.weights)
    )
    head = load_file(config.folder / HEAD_FILE)
    return {f"encoder.{n}": x for n, x in encoder.items()} | {f"head.{n}": x for n, x in head.items()}


def _after(checkpoint: Path) -> State:
    """Return the tensors of a checkpoint."""
    files = {"encoder": "encoder.safetensors", "head": "projector.safetensors"}
    return {
        f"{part}.{name}": x
        for part, file in files.items()
        for name, x in load_file(checkpoint / file).items()
    }


def _blend(ends: Ends, share: float) -> State:
    """Return a blend with the `share` of the tensors after; integers, such as counts, are those after."""
    before, after = ends
    return {
        name: torch.lerp(before[name].to(x.dtype), x, share) if x.is_floating_point() else x
        for name, x in after.items()
    }


def _build(
    config: Config, inputs: RunInputs, ends: Ends, share: float, names: Sequence[str] | None
) -> FeatureSets | MaskPredictor:
    """Build the network of a blend; `names` are the channels of the images, if channels are found by name."""
    encoder: nn.Module = create(config.encoder.name, inputs.encoder_kwargs)
    assert isinstance(config.objective, SupervisedConfig)
    head = build_mlp(inputs.embedding_width, MLPConfig(layers=1), config.objective.outputs, config.seed)
    blended = _blend(ends, share)
    for part, module in (("encoder.", encoder), ("head.", head)):
        module.load_state_dict(
            {name.removeprefix(part): x for name, x in blended.items() if name.startswith(part)}
        )
    if names is not None:
        assert isinstance(config.data.channels, list)
        fold(encoder, config.data.channels, names)
    return MaskPredictor(encoder, head) if config.objective.segments else FeatureSets(encoder, head)
