"""Write a checkpoint's encoder to a folder in one of the formats of `isotorus export`."""

import json
from pathlib import Path
from typing import Any

from isotorus.errors import UserError
from pretrain.export import card, graph, to_onnx, to_timm, to_torch, to_transformers
from pretrain.export.command import Format
from pretrain.export.new_folder import new_folder, refuse_taken
from pretrain.export.trained import Trained, read

VECTOR = f"the output '{graph.OUTPUT}' (N, D) for the input '{graph.INPUT}', pixels in [0, 1]"


def export(given: Path, dest: Path, format: Format = "timm", licence: str | None = None) -> str:
    """Write the folder `dest`, whole or not at all; return in words how it was checked, if it was.

    `licence` is that of the data, for the model card.

    Raises UserError if `dest` exists, the checkpoint is damaged, or the format cannot express the encoder.
    """
    if format == "onnx":
        to_onnx.require()
    refuse_taken(dest)
    trained = read(given)
    if format in ("timm", "transformers") and "winding_classes" in trained.described.kwargs:
        raise UserError(
            f"{trained.folder} has winding attention, which neither timm nor transformers computes; use "
            "--format onnx or torch, or evaluate the checkpoint as it is"
        )
    with new_folder(dest) as folder:
        checked = _write(trained, folder, format)
        card.write(trained, folder, format, dest.absolute().name, licence, checked)
    return checked


def _write(trained: Trained, folder: Path, format: Format) -> str:
    """Write the files of a format, and return in words how they were checked, if they were."""
    if format == "timm":
        to_timm.write(trained, folder)
    elif format == "transformers":
        to_transformers.write(trained, folder)
    else:
        traced = graph.trace(trained)
        about = _about(trained, traced)
        to_timm.write_json(about, folder / "isotorus.json")
        if format == "torch":
            return to_torch.write(traced, folder)
        return to_onnx.write(traced, folder, json.dumps(about))
    return ""


def _about(trained: Trained, traced: graph.Graph) -> dict[str, Any]:
    """Return isotorus.json of a graph: its input, and where the weights come from."""
    described = trained.described
    return {
        "input": {
            "name": graph.INPUT,
            "shape": traced.shape,
            "type": "float32",
            "range": [0, 1],
            "multiple": traced.multiple,
        },
        "normalised_inside_with": {"mean": described.mean, "std": described.std},
        "prepared_by": f"largest centred square, resized to {described.image_size}² (bicubic, antialiased)",
        **trained.origin(VECTOR),
    }
