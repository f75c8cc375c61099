"""The linear layer of an encoder that was trained with labels, as the classifier of a timm model."""

from typing import Any

import torch
from torch import Tensor

from isotorus.errors import UserError
from pretrain.checkpoint.export.trained import Trained
from pretrain.models.encoder import create
from pretrain.models.feature_sets import FEATURES

_TOLERANCE = 1e-4
"""Largest difference of logits, as a share of the largest one, between the timm model and the parts."""


def with_classifier(trained: Trained) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the arguments and the tensors of a timm model that predicts what the run was trained on.

    Numbers come in the units of the targets. Raises UserError for a timm model that has no single linear
    classifier after the vector that the run learned from.
    """
    described = trained.described.supervised
    assert described is not None
    if trained.described.predicts_masks:
        raise UserError(
            f"{trained.folder} predicts masks, and timm has no models that do; use --format onnx, torch or "
            "mlflow, or --without-head for the encoder alone"
        )
    if read := trained.described.kwargs.get(FEATURES):
        raise UserError(
            f"the linear layer of {trained.folder} reads the feature set {read}, and a classifier of timm "
            "reads only the model's own vector; use --format onnx, torch or mlflow, or --without-head for "
            "the encoder alone"
        )
    count = len(described.names)
    kwargs = {**trained.kwargs, "num_classes": count}
    with torch.device("meta"):
        model = create(trained.described.name, kwargs)
    place = model.pretrained_cfg.get("classifier")
    weight, bias = trained.layer()
    state = {**trained.state, f"{place}.weight": weight, f"{place}.bias": bias}
    expected = {name: x.shape for name, x in model.state_dict().items()}
    if expected != {name: x.shape for name, x in state.items()}:
        raise UserError(
            f"timm's {trained.described.name} has no linear classifier on the vector that the run learned "
            "from; use --format onnx, torch or mlflow, or --without-head for the encoder alone"
        )
    _compare(trained, kwargs, state, weight, bias)
    return kwargs, state


@torch.no_grad()
def _compare(
    trained: Trained, kwargs: dict[str, Any], state: dict[str, Tensor], weight: Tensor, bias: Tensor
) -> None:
    """Raise UserError unless the timm model gives the layer's output for the encoder's vectors."""
    model = create(trained.described.name, kwargs)
    model.load_state_dict(state)
    channels, size = trained.described.channels, trained.described.image_size
    images = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    wanted = trained.encoder()(images) @ weight.T + bias
    difference = (model.eval()(images) - wanted).abs().max()
    if not difference <= _TOLERANCE * wanted.abs().max():
        raise UserError(
            f"timm's {trained.described.name} computes other logits with this classifier (difference "
            f"{difference:.2g}); use --format onnx, torch or mlflow"
        )
