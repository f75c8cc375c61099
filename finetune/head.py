"""Write the weights that the linear layer starts from: those of a linear probe on the encoder as it is.

A random layer sends random gradients into the encoder, which distort what it has learned. With the probe's
weights the training starts at the probe's score (LP-FT, Kumar et al. 2022, arXiv:2202.10054). The layer reads
the feature set on which a probe is best on val.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from scipy.special import expit, softmax

from eval_suite.features.embed import extract
from eval_suite.features.representation import pretrained
from eval_suite.inputs.checkpoints import Checkpoint
from eval_suite.metrics import headlines
from eval_suite.usefulness import probe, regression
from eval_suite.usefulness.selection import JUDGES
from finetune.processes import on_first, processes
from finetune.recipe import CACHE
from isotorus.errors import UserError, from_os_error
from isotorus.files import atomic
from pretrain.config import Config
from pretrain.methods.config import HEAD_FILE, SupervisedConfig
from pretrain.models.config import FeatureSet
from pretrain.models.description import SupervisedDescription
from pretrain.models.feature_sets import FEATURES
from pretrain.preflight.inputs import RunInputs
from pretrain.supervised.task import Task

Features = NDArray[np.floating]
Layer = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Weight (outputs, D) and bias (outputs,)."""


def write(
    config: Config, features: FeatureSet | None, checkpoint: Checkpoint, inputs: RunInputs
) -> FeatureSet:
    """Write the layer to the run's folder, and return the feature set that it reads; all ranks call it.

    Without `features`, the feature set is chosen on val. Nothing is written if the run has begun already, or
    if the linear layer starts from random weights: then it is the set of the configuration. Raises UserError
    for features that the encoder does not have.
    """
    objective, task = config.objective, inputs.task
    assert isinstance(objective, SupervisedConfig) and task is not None
    state = processes()
    # The first process decides, because the others may see files that it writes later.
    if on_first(lambda: has_start(config)):
        return objective.features
    x, datasets = [], (*inputs.sources.datasets, task.val)
    checkpoint = checkpoint.for_images_of(*datasets)
    for dataset in datasets:
        loading: dict[str, Any] = {"batch_size": 64, "workers": config.data.workers}
        found = extract([pretrained(checkpoint)], dataset, config.folder / CACHE, state, **loading)
        if state.is_main_process:
            x.append(found["pretrained"])

    def fit() -> FeatureSet:
        readable = _readable(x, checkpoint, features)
        train = {name: np.concatenate(of[:-1])[task.known] for name, of in readable.items()}
        val = {name: of[-1][task.val_rows] for name, of in readable.items()}
        chosen, (weight, bias) = best_on_val(task, train, val)
        save_layer(config, torch.from_numpy(weight), torch.from_numpy(bias))
        return cast(FeatureSet, chosen)

    return on_first(fit)


def has_start(config: Config) -> bool:
    """Return whether the run has begun already, or begins with a random layer."""
    assert isinstance(config.objective, SupervisedConfig)
    begun = (config.folder / HEAD_FILE).exists() and (config.folder / "config.yaml").exists()
    return begun or config.objective.head_start != "probe"


def save_layer(config: Config, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Write the layer that a run starts from: weight (outputs, D) and bias (outputs,)."""
    file = config.folder / HEAD_FILE
    layer = {"0.weight": weight.float().contiguous(), "0.bias": bias.float().contiguous()}
    try:
        with atomic(file) as stream:
            stream.write(save(layer))
    except OSError as error:
        raise from_os_error(error, f"writing {file}") from error


def _readable(
    found: Sequence[Mapping[str, Features]], checkpoint: Checkpoint, features: FeatureSet | None
) -> dict[str, list[Features]]:
    """Return the feature sets that an encoder can return, of each data set; with `features`, this one alone.

    `found` are all feature sets of each data set. The embedding of an encoder that was fine-tuned on another
    set is that set. A set with numbers that are not finite is left out. Raises UserError if the encoder does
    not have `features`.
    """
    own = {"embedding": checkpoint.encoder.kwargs.get(FEATURES, "embedding")}
    named = {own.get(name, name): [of[name] for of in found] for name in found[0]}
    readable = {
        name: x
        for name, x in named.items()
        if name in get_args(FeatureSet) and all(np.isfinite(part).all() for part in x)
    }
    if features is None:
        return readable
    if features not in readable:
        raise UserError(
            f"--features {features}: {checkpoint.folder} gives {', '.join(readable)} for these images; use "
            "one of these"
        )
    return {features: readable[features]}


def best_on_val(task: Task, train: Mapping[str, Features], val: Mapping[str, Features]) -> tuple[str, Layer]:
    """Return the feature set and the probe on it whose L2 strength is best on val.

    `train` and `val` are the features of samples with targets, by feature set. If several probes are equal,
    that of the last set and of the largest strength is returned, as an evaluation chooses. The probe predicts
    what the network is trained to predict: logits, or standardised numbers.
    """
    y = task.targets[task.known]
    best: tuple[tuple[float, ...], str, Layer] | None = None
    for name, x in train.items():
        if task.kind == "regression":
            layers = regression.linear_layers(x, y, sorted(regression.L2_GRID))
        else:
            of_rows = y.argmax(1) if task.kind == "multiclass" else y.astype(np.int64)
            layers = probe.linear_layers(x, of_rows, sorted(probe.L2_GRID), classes=len(task.names))
        for weight, bias in layers:
            score = on_val(task, val[name].astype(np.float64) @ weight.T + bias)
            if best is None or score >= best[0]:
                best = score, name, (weight, bias)
    assert best is not None
    return best[1:]


def on_val(task: Task, outputs: NDArray[np.floating]) -> tuple[float, ...]:
    """Return the headline scores of a network's outputs (n, columns) for the samples of val with targets."""
    described = SupervisedDescription(task.kind, task.names, task.center.tolist(), task.scale.tolist())
    measured = JUDGES[task.kind].summary(task.val_y, predictions(described, outputs))
    return tuple(float(np.nan_to_num(measured[score], nan=-np.inf)) for score in headlines(task.kind))


def predictions(described: SupervisedDescription, outputs: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return probabilities of classes or labels, or numbers in their units, for outputs (n, columns)."""
    outputs = outputs.astype(np.float64)
    if described.task == "multiclass":
        return np.asarray(softmax(outputs, axis=1))
    if described.task == "multilabel":
        return np.asarray(expit(outputs))
    return outputs * np.array(described.scale) + np.array(described.center)
