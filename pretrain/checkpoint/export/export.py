"""Write a checkpoint's encoder to a folder in one of the formats of `isotorus export`, or register it."""

import contextlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isotorus.errors import UserError
from pretrain.checkpoint.export import card, graph, to_mlflow, to_onnx, to_timm, to_torch, to_transformers
from pretrain.checkpoint.export.command import Format
from pretrain.checkpoint.export.new_folder import new_folder, refuse_taken, require_room
from pretrain.checkpoint.export.trained import Trained, read

_ROOM_BESIDE_WEIGHTS = 2**23
"""Bytes for a graph without its weights, and for files beside it."""


def export(
    given: Path,
    dest: Path,
    format: Format = "timm",
    licence: str | None = None,
    channels: Sequence[str] | None = None,
    *,
    head: bool = True,
) -> str:
    """Write the folder `dest`, whole or not at all; return in words how it was checked, if it was.

    `licence` is the licence of the data, for the model card. `channels` are the channels of the images that
    the export takes, if the encoder finds channels by name. Without `head`, and for transformers, the linear
    layer of a run that was trained with labels is left out.
    Raises UserError if `dest` exists, the checkpoint is damaged, or the format cannot express the encoder.
    """
    if format == "onnx":
        to_onnx.require()
    refuse_taken(dest)
    trained = read(given, channels)
    trained = trained if head and format != "transformers" else trained.without_head()
    return _export(trained, dest, format, dest.absolute().name, licence)


def register(
    given: Path,
    dest: Path | None,
    uri: str,
    name: str | None,
    licence: str | None = None,
    channels: Sequence[str] | None = None,
    *,
    head: bool = True,
) -> str:
    """Register the encoder in the MLflow store at `uri`, as a new version of the model `name`.

    `name` is by default that of the run. The folder `dest` gets the same files, if it is not None. Returns in
    words how they were checked and what was registered; raises UserError also if the store refuses, and then
    `dest` stays.
    """
    client = to_mlflow.connect(uri)
    if dest:
        refuse_taken(dest)
    trained = read(given, channels)
    trained = trained if head else trained.without_head()
    name = name or trained.name
    with contextlib.ExitStack() as stack:
        folder = dest or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "encoder"
        checked = _export(trained, folder, "mlflow", name, licence)
        try:
            version = to_mlflow.register(client, uri, trained, folder, name)
        except UserError as error:
            stays = f"; the files are in {dest}, remove it before the same command" if dest else ""
            raise UserError(f"{error}{stays}") from error
    return f"{checked}\nmodel {name}, version {version}"


def _export(trained: Trained, dest: Path, format: Format, called: str, licence: str | None) -> str:
    """Write the folder `dest`, whole or not at all; `called` is what the model card calls the export."""
    if format in ("timm", "transformers") and "winding_classes" in trained.described.kwargs:
        raise UserError(
            f"{trained.folder} has winding attention, which neither timm nor transformers computes; use "
            "--format onnx or torch, or evaluate the checkpoint as it is"
        )
    if format in ("timm", "transformers"):
        trained.require_plain()
    with new_folder(dest) as folder:
        checked = _write(trained, folder, format)
        card.write(trained, folder, format, called, licence, checked)
    return checked


def _write(trained: Trained, folder: Path, format: Format) -> str:
    """Write the files of a format, and return in words how they were checked, if they were."""
    if format == "timm":
        to_timm.write(trained, folder)
        return ""
    if format == "transformers":
        to_transformers.write(trained, folder)
        return ""
    traced = graph.trace(trained)
    require_room(folder, traced.weight_bytes + _ROOM_BESIDE_WEIGHTS)
    about = _about(trained, traced)
    if format == "torch":
        checked = to_torch.write(traced, folder)
    elif format == "onnx":
        checked = to_onnx.write(traced, folder, json.dumps(about))
    else:
        checked = to_mlflow.write(traced, folder)
    to_timm.write_json(about, folder / "isotorus.json")
    return checked


def _predicts(trained: Trained) -> dict[str, Any]:
    """Return the task and the names of the outputs, after training with labels."""
    supervised = trained.described.supervised
    return {} if supervised is None else {"task": supervised.task, "label_names": supervised.names}


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
        **({"channels": described.channel_names} if described.channel_names else {}),
        "normalised_inside_with": {"mean": described.mean, "std": described.std},
        "prepared_by": f"{described.seen}, resized to {described.image_size}² (bicubic, antialiased)",
        **_predicts(trained),
        **trained.origin(f"the output '{traced.output}' for the input '{graph.INPUT}', pixels in [0, 1]"),
    }
