"""Every piece of Python code in docs/export.md runs as it stands, and gives the checkpoint's vectors."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isotorus import mlflow_store
from pretrain.checkpoint.export.command import Format
from pretrain.checkpoint.export.export import export, register
from pretrain.checkpoint.export.loading import code
from pretrain.checkpoint.export.trained import read
from tests.pretrain.checkpoint.export.checkpoints import SMALL, save_checkpoint

PAGE = (Path(__file__).parents[4] / "docs/export.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
FORMATS: dict[Format, list[int]] = {
    "timm": [0, 1],
    "transformers": [1],
    "onnx": [2],
    "torch": [3],
    "mlflow": [4],
}
"""The pieces of code that read each format. The first of each is what the model card says, too."""


@pytest.mark.usefixtures("no_trace_log")
def test_each_piece_of_code_gives_the_same_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_checkpoint(tmp_path / "step", "vit_small_patch14_dinov2", SMALL)
    vectors, used, described = [], set(), read(tmp_path / "step").described
    for format, numbers in FORMATS.items():
        folder = tmp_path / format
        folder.mkdir()
        noise = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
        Image.fromarray(noise).resize((72, 56)).save(folder / "photo.jpg", quality=95)
        monkeypatch.chdir(folder)
        if format == "mlflow":
            monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
            register(tmp_path / "step", None, mlflow_store.own(None), "cells")
        else:
            export(tmp_path / "step", folder / "encoder", format)
        called = "cells" if format == "mlflow" else "encoder"
        assert SNIPPETS[numbers[0]] == code(format, described, called)
        for number in numbers:
            names: dict[str, object] = {}
            exec(SNIPPETS[number], names)
            vectors.append(np.asarray(names["vectors"]))
            used.add(number)
    assert used == set(range(len(SNIPPETS)))
    for other in vectors:
        assert other.shape == (1, 48)
        # Pillow and torch resize with rounding of their own.
        assert np.abs(other - vectors[0]).max() < 0.02 * np.abs(vectors[0]).max()
