"""Write the weights that the linear layer starts from: those of a linear probe on the encoder as it is.

A random layer sends random gradients into the encoder, which distort what it has learned. With the probe's
weights the training starts at the probe's score (LP-FT, Kumar et al. 2022, arXiv:2202.10054).
"""

from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray
from safetensors.torch import save

from eval_suite.features.embed import extract
from eval_suite.features.representation import pretrained
from eval_suite.inputs.checkpoints import Checkpoint
from eval_suite.metrics import headlines
from eval_suite.usefulness import probe, regression
from eval_suite.usefulness.selection import JUDGES
from finetune.compare import CACHE, predictions, processes
from isotorus.errors import from_os_error
from isotorus.files import atomic
from pretrain.config import Config
from pretrain.methods.config import HEAD_FILE, SupervisedConfig
from pretrain.models.description import SupervisedDescription
from pretrain.preflight.inputs import RunInputs
from pretrain.supervised.task import Task

Layer = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Weight (outputs, D) and bias (outputs,)."""


def write(config: Config, checkpoint: Checkpoint, inputs: RunInputs) -> None:
    """Write the layer to the run's folder; all ranks call it.

    Does nothing if the file is there already, or if the linear layer starts from random weights.
    """
    objective, task = config.objective, inputs.task
    assert isinstance(objective, SupervisedConfig) and task is not None
    file, state = config.folder / HEAD_FILE, processes()
    begun = [objective.head_start != "probe" or file.exists()]
    # The first process decides, because the others may see the file that it writes below.
    broadcast_object_list(begun)
    if begun[0]:
        return
    x, datasets = [], (*inputs.sources.datasets, task.val)
    checkpoint = checkpoint.for_images_of(*datasets)
    for dataset in datasets:
        loading: dict[str, Any] = {"batch_size": 64, "workers": config.data.workers}
        found = extract([pretrained(checkpoint)], dataset, config.folder / CACHE, state, **loading)
        if state.is_main_process:
            x.append(found["pretrained"]["embedding"])
    if state.is_main_process:
        train, val = np.concatenate(x[:-1]), x[-1]
        weight, bias = best_on_val(task, train[task.known], val[task.val_rows])
        layer = {"0.weight": torch.from_numpy(weight).float(), "0.bias": torch.from_numpy(bias).float()}
        try:
            with atomic(file) as stream:
                stream.write(save({name: x.contiguous() for name, x in layer.items()}))
        except OSError as error:
            raise from_os_error(error, f"writing {file}") from error


def best_on_val(task: Task, train_x: NDArray[np.floating], val_x: NDArray[np.floating]) -> Layer:
    """Return the probe whose L2 strength is best on val; if several are equal, that of the largest strength.

    It predicts what the network is trained to predict: logits, or standardised numbers.
    """
    y = task.targets[task.known]
    if task.kind == "regression":
        strengths, layers = regression.L2_GRID, regression.linear_layers(train_x, y, regression.L2_GRID)
    else:
        strengths = probe.L2_GRID
        of_rows = y.argmax(1) if task.kind == "multiclass" else y.astype(np.int64)
        layers = probe.linear_layers(train_x, of_rows, strengths, classes=len(task.names))

    def key(number: int) -> tuple[tuple[float, ...], float]:
        weight, bias = layers[number]
        return on_val(task, val_x.astype(np.float64) @ weight.T + bias), strengths[number]

    return layers[max(range(len(layers)), key=key)]


def on_val(task: Task, outputs: NDArray[np.floating]) -> tuple[float, ...]:
    """Return the headline scores of a network's outputs (n, columns) for the samples of val with targets."""
    described = SupervisedDescription(task.kind, task.names, task.center.tolist(), task.scale.tolist())
    measured = JUDGES[task.kind].summary(task.val_y, predictions(described, outputs))
    return tuple(float(np.nan_to_num(measured[score], nan=-np.inf)) for score in headlines(task.kind))
