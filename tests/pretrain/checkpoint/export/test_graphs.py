"""ONNX files and torch.export programs give the checkpoint's vectors, also without this package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch

from isotorus.errors import UserError
from pretrain.checkpoint.export import graph, to_onnx
from pretrain.checkpoint.export.export import export
from tests.pretrain.checkpoint.export.checkpoints import SMALL, save_checkpoint

pytestmark = pytest.mark.usefixtures("no_trace_log")
TORCH = tuple(int(x) for x in torch.__version__.split(".")[:2])
VIT = "vit_small_patch14_dinov2"


def pixels(batch: int, size: int, channels: int) -> torch.Tensor:
    return torch.rand(batch, channels, size, size, generator=torch.Generator().manual_seed(4))


def expected(encoder: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        vectors: torch.Tensor = encoder((images - 0.4) / 0.2)
    return vectors


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Sums in another order differ by about 1e-6 of the largest number; other weights, by much of it."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def run_onnx(folder: Path, images: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["vector"], {"image": images.numpy()})[0])


def run_torch(folder: Path, images: torch.Tensor) -> torch.Tensor:
    program = torch.export.load(folder / "model.pt2")
    return program.module()(images)  # type: ignore[no-any-return]


def run_torch_alone(folder: Path, images: torch.Tensor) -> torch.Tensor:
    """Run the program in a process that cannot import timm or this package."""
    np.save(folder / "in.npy", images.numpy())
    code = (
        "import sys; sys.modules |= dict.fromkeys(('timm', 'pretrain', 'isotorus')); import numpy, torch; "
        "x = torch.from_numpy(numpy.load('in.npy')); "
        "numpy.save('out.npy', torch.export.load('model.pt2').module()(x).detach().numpy())"
    )
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
    return torch.from_numpy(np.load(folder / "out.npy"))


@pytest.mark.parametrize(
    ("name", "kwargs", "channels", "other_size"),
    [
        (VIT, SMALL | {"drop_path_rate": 0.3}, 3, 84),
        pytest.param(VIT, SMALL | {"global_pool": "avg"}, 1, 84, marks=pytest.mark.nightly),
        ("resnet10t", {}, 2, 70),
        ("convnext_atto", {"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}, 3, None),
    ],
    ids=["vit", "winding", "resnet", "one-size"],
)
def test_vectors_are_those_of_the_checkpoint(
    tmp_path: Path, name: str, kwargs: dict, channels: int, other_size: int | None
):
    winding = {"attention": "winding", "winding_classes": 3} if channels == 1 else {}
    encoder = save_checkpoint(tmp_path / "step", name, kwargs, channels, **winding)
    said = export(tmp_path / "step", tmp_path / "onnx", "onnx")
    assert said.startswith("opset 18") and "the largest difference is" in said
    assert "checked against torch" in export(tmp_path / "step", tmp_path / "torch", "torch")
    if name == "resnet10t" and TORCH < (2, 15):
        other_size = None  # earlier versions trace what depends on whether a side is even for one size only
    sizes = [56] if other_size is None else [56, other_size]
    for size in sizes:
        for batch in (1, 5):
            images = pixels(batch, size, channels)
            assert_close(run_onnx(tmp_path / "onnx", images), expected(encoder, images))
            assert_close(run_torch(tmp_path / "torch", images), expected(encoder, images))
    model = onnx.load(tmp_path / "onnx/model.onnx")
    assert [(x.domain, x.version) for x in model.opset_import] == [("", 18)]
    said_input = json.loads((tmp_path / "onnx/isotorus.json").read_text())
    sides = [56, 56] if other_size is None else ["height", "width"]
    assert said_input["input"]["shape"] == ["batch", channels, *sides]
    dims = model.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == said_input["input"]["shape"]
    assert {x.key: json.loads(x.value) for x in model.metadata_props if x.key == "isotorus"} == {
        "isotorus": said_input
    }
    assert said_input["normalised_inside_with"] == {"mean": [0.4] * channels, "std": [0.2] * channels}


def test_whole_images_of_another_size_than_crops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Position embeddings are resampled inside the graph. Weights too large for one file lie beside it."""
    monkeypatch.setattr(to_onnx, "_LARGEST_FILE", 0)
    encoder = save_checkpoint(tmp_path / "step", VIT, SMALL)
    description = json.loads((tmp_path / "step/encoder.json").read_text())
    (tmp_path / "step/encoder.json").write_text(json.dumps(description | {"image_size": 84}))
    images = pixels(2, 84, 3)
    for format, run in (("onnx", run_onnx), ("torch", run_torch_alone)):
        export(tmp_path / "step", tmp_path / format, format)
        found = run(tmp_path / format, images)
        assert_close(found, expected(encoder, images))
    assert (tmp_path / "onnx/model.onnx.data").stat().st_size > (tmp_path / "onnx/model.onnx").stat().st_size


def test_a_file_with_other_vectors_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_checkpoint(tmp_path / "step", VIT, SMALL)
    # torch may differ from any runtime by its own rounding, so nothing is as exact as this.
    monkeypatch.setattr(graph, "LARGEST_DIFFERENCE", 1e-12)
    with pytest.raises(UserError, match=r"model\.onnx differs from torch by .* in outputs of up to"):
        export(tmp_path / "step", tmp_path / "out", "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["step"]


class ByValue(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum().item() > 0 else -x


class Bessel(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.i1(x)


@timm.models.register_model
def resnet_by_value(pretrained: bool = False, **kwargs: object) -> torch.nn.Module:
    model = timm.create_model("resnet10t", **kwargs)
    model.layer3[0].act2 = ByValue()
    return model  # type: ignore[no-any-return]


@timm.models.register_model
def resnet_with_bessel(pretrained: bool = False, **kwargs: object) -> torch.nn.Module:
    model = timm.create_model("resnet10t", **kwargs)
    model.layer3[0].act2 = Bessel()
    return model  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("name", "formats", "said", "advice"),
    [
        ("resnet_by_value", "torch onnx", r"in layer3\.0\.act2 \(ByValue\): ", "use --format timm"),
        ("resnet_with_bessel", "onnx", r"the operator \S*bessel_i1;", "use --format torch or timm"),
    ],
)
def test_what_has_no_graph_is_named(tmp_path: Path, name: str, formats: str, said: str, advice: str):
    save_checkpoint(tmp_path / "step", "resnet10t", {})
    file = tmp_path / "step/encoder.json"
    file.write_text(file.read_text().replace("resnet10t", name))
    for format in formats.split():
        with pytest.raises(UserError, match=said) as error:
            export(tmp_path / "step", tmp_path / "out", format)
        assert str(error.value).endswith(advice) and "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step"]


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path):
    save_checkpoint(tmp_path / "step", VIT, SMALL)
    (tmp_path / "without").mkdir()
    (tmp_path / "without/onnxscript.py").write_text("raise ModuleNotFoundError(name='onnxscript')")
    given = ["export", str(tmp_path / "step"), "--out", str(tmp_path / "out"), "--format", "onnx"]
    done = subprocess.run(
        [sys.executable, "-m", "pretrain", *given],
        env=os.environ | {"PYTHONPATH": str(tmp_path / "without")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "pip install 'isotorus[onnx]'" in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1 and "onnxscript" in done.stderr
