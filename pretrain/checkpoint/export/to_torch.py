"""Write the encoder as a program of torch.export, which torch loads without timm and without this package."""

from pathlib import Path

import torch

from pretrain.checkpoint.export.graph import Graph

FILE = "model.pt2"


def write(graph: Graph, folder: Path) -> str:
    """Write model.pt2, load it and compare it with the encoder; return in words how far they are apart."""
    torch.export.save(graph.program, folder / FILE)
    return graph.difference(FILE, torch.export.load(folder / FILE).module())
