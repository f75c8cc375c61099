"""Write the encoder as an ONNX file, and compare it with torch in onnxruntime."""

import logging
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isotorus.errors import UserError
from pretrain.checkpoint.export.graph import INPUT, Graph

FILE = "model.onnx"
OPSET = 18
"""Version of ONNX's operators: the one that torch's exporter writes without conversion, and that onnxruntime
reads from 1.14 (2023) on."""
_LARGEST_FILE = 2**30
"""Bytes of weights above which they go to a file of their own, as an ONNX file holds less than 2 GiB."""


def require() -> None:
    """Raise UserError if a package of the extra `onnx` is not installed."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(package)
        except ImportError:
            raise UserError(
                f"--format onnx needs {package}, which is not installed; pip install 'isotorus[onnx]'"
            ) from None


def write(graph: Graph, folder: Path, about: str) -> str:
    """Write model.onnx with the JSON text `about` in its metadata; return how far it is from torch.

    Raises UserError, naming the operator, if ONNX has none for what the encoder computes, and if onnxruntime
    gives other outputs than torch.
    """
    import onnx
    import onnxruntime

    converted = _convert(graph)
    _name_dimensions(converted.model.graph, graph)
    converted.model.metadata_props["isotorus"] = about
    converted.save(folder / FILE, external_data=graph.weight_bytes > _LARGEST_FILE)
    onnx.checker.check_model(folder / FILE)
    session = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {INPUT: images.numpy()})[0])

    return f"opset {OPSET}, {graph.difference(FILE, run)}"


def _convert(graph: Graph) -> Any:
    """Return the ONNX program of a graph; raises UserError, naming the operator that has none."""
    for name in ("torch.onnx", "onnx_ir", "onnxscript"):  # they log each step
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.onnx.export(
                graph.program,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[graph.output],
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # the exporter fails in many ways
        raise UserError(
            f"the encoder cannot be written as ONNX: {_what_is_missing(error)}; use --format torch or timm"
        ) from error


def _what_is_missing(error: BaseException) -> str:
    """Name the operator that could not be converted, or else the first line of the innermost error."""
    said, inner = [], error
    while inner:
        said.append(str(inner))
        inner = inner.__cause__ or inner.__context__  # type: ignore[assignment]
    if operator := re.search(r"OpOverload\(op='([\w.]+)'|\b(aten\.\w+(?:\.\w+)?)", "\n".join(said[::-1])):
        return f"the operator {operator[1] or operator[2]}"
    return " ".join(said[-1].split())[:200]


def _name_dimensions(onnx_graph: Any, graph: Graph) -> None:
    """Name what may vary batch, height and width, instead of the symbols that torch made up."""
    symbols = {
        str(symbol): name
        for symbol, name in zip(onnx_graph.inputs[0].shape, graph.shape, strict=True)
        if isinstance(name, str)
    }
    pattern = re.compile("|".join(rf"\b{re.escape(symbol)}\b" for symbol in symbols))
    values = [*onnx_graph.inputs, *(value for node in onnx_graph.all_nodes() for value in node.outputs)]
    for value in values:
        for place, size in enumerate(value.shape or ()):
            if not isinstance(size, int) and size.value:
                value.shape[place] = pattern.sub(lambda found: symbols[found[0]], str(size.value))
