"""Exports: timm and transformers load them offline and give the same features; the rest is refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from isotorus.errors import UserError, exit_code
from pretrain.checkpoint.export.command import main
from pretrain.checkpoint.export.export import export
from tests.pretrain.checkpoint.export.checkpoints import SMALL, images, save_checkpoint


@pytest.mark.parametrize(
    ("name", "kwargs", "channels"),
    [
        ("vit_small_patch14_dinov2", SMALL | {"global_pool": "avg", "drop_path_rate": 0.3}, 1),
        ("vit_small_patch14_reg4_dinov2", SMALL, 3),
        ("resnet18", {}, 3),
    ],
)
def test_timm_loads_the_folder_offline(tmp_path: Path, name: str, kwargs: dict, channels: int):
    encoder = save_checkpoint(tmp_path / "run/checkpoints/step_00000007", name, kwargs, channels)
    (tmp_path / "run/checkpoints/latest").symlink_to("step_00000007")
    export(tmp_path / "run", tmp_path / "out")
    loaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    with torch.no_grad():
        for size in (56, 84):
            x = images(size, channels)
            torch.testing.assert_close(loaded(x), encoder(x), rtol=1e-5, atol=1e-5)
    data = timm.data.resolve_model_data_config(loaded)
    assert data["input_size"] == (channels, 56, 56) and list(data["mean"]) == [0.4] * channels
    said = json.loads((tmp_path / "out/config.json").read_text())
    assert said["isotorus"]["step"] == 7 and said["isotorus"]["vector"].endswith(said["global_pool"])


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("vit_small_patch14_dinov2", SMALL),
        ("vit_small_patch16_224", SMALL | {"patch_size": 14, "drop_path_rate": 0.3}),
        ("vit_giant_patch14_dinov2", SMALL),
        ("vit_small_patch14_reg4_dinov2", SMALL),
        ("vit_small_patch14_dinov2", SMALL | {"reg_tokens": 2}),
    ],
    ids=["dinov2", "no-layer-scale", "swiglu", "registers", "registers-with-positions"],
)
def test_transformers_gives_equal_features(tmp_path: Path, name: str, kwargs: dict):
    transformers = pytest.importorskip("transformers")
    encoder = save_checkpoint(tmp_path / "step", name, kwargs)
    export(tmp_path / "step", tmp_path / "out", "transformers")
    loaded, report = transformers.AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    x = images()
    with torch.no_grad():
        found = loaded.eval()(x)
        torch.testing.assert_close(found.pooler_output, encoder(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.last_hidden_state, encoder.forward_features(x), rtol=1e-5, atol=1e-5)
    assert "pooler_output" in loaded.config.isotorus["vector"]


@pytest.mark.parametrize(
    ("name", "kwargs", "said"),
    [
        ("resnet18", {}, "it is a ResNet and Dinov2 a VisionTransformer"),
        (
            "vit_small_patch14_dinov2",
            SMALL | {"global_pool": "avg"},
            "Dinov2's is the normalised class token",
        ),
        ("vit_small_patch14_dinov2", SMALL | {"qk_norm": True}, r"it has \(q_norm\): LayerNorm.*Identity"),
        ("vit_small_patch14_dinov2", SMALL | {"mlp_ratio": 3.5}, "no whole mlp_ratio gives"),
        ("vit_small_patch14_dinov2", SMALL | {"pre_norm": True}, r"it has \(proj\): Conv2d.*bias=False"),
    ],
)
def test_other_architectures_are_no_dinov2(tmp_path: Path, name: str, kwargs: dict, said: str):
    save_checkpoint(tmp_path / "step", name, kwargs)
    with pytest.raises(UserError, match=said) as error:
        export(tmp_path / "step", tmp_path / "out", "transformers")
    assert "use --format timm" in str(error.value) and not (tmp_path / "out").exists()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    save_checkpoint(tmp_path / "step", "vit_small_patch14_dinov2", SMALL)
    given = [str(tmp_path / "step/encoder.safetensors"), str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "pretrain", "export", *given], capture_output=True, text=True
    )
    assert done.returncode == 0 and "timm.create_model('local-dir:" in done.stdout, done.stderr
    assert exit_code(lambda: main(given)) == 2
    assert capsys.readouterr().err.endswith("out exists already; name a folder that does not, or remove it\n")
    with pytest.raises(UserError, match=r"has no encoder\.json"):
        export(tmp_path / "out", tmp_path / "new")
    with pytest.raises(UserError, match="does not exist"):
        export(tmp_path / "nothing", tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "step"]


def test_mistakes_in_the_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    save_checkpoint(tmp_path / "step", "vit_small_patch14_dinov2", SMALL)
    step, out = str(tmp_path / "step"), str(tmp_path / "out")
    for given, said in (
        ([step], "name the folder to make once"),
        ([step, out, "--out", out], "name the folder to make once"),
        ([step, out, "--format", "tensorrt"], "invalid choice: 'tensorrt'"),
    ):
        assert exit_code(lambda given=given: main(given)) == 2
        assert said in capsys.readouterr().err
    weights = tmp_path / "step/encoder.safetensors"
    for damaged in (weights.read_bytes()[:-100], b"", b"\x80\x02K\x01."):
        weights.write_bytes(damaged)
        assert exit_code(lambda: main([step, "--out", out])) == 2
        assert "is not a whole safetensors file" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["step"]


def test_a_flipped_bit_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = shutil.copytree(Path(__file__).parents[3] / "formats/runs/lejepa", tmp_path / "run", symlinks=True)
    given = [str(run), "--out", str(tmp_path / "out")]
    for name in ("encoder.safetensors", "encoder.json"):
        file = run / "checkpoints/latest" / name
        whole = file.read_bytes()
        file.write_bytes(whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:])
        assert exit_code(lambda: main(given)) == 2
        assert f"is damaged: {name} has another checksum" in capsys.readouterr().err
        file.write_bytes(whole)
    assert not (tmp_path / "out").exists() and main(given) == 0
