"""Low-rank adapters: what they change in an encoder, what checkpoints hold, which encoders are refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from finetune.arguments import parse
from finetune.train_and_compare import run
from isotorus.errors import UserError
from pretrain.checkpoint.export.export import export
from pretrain.models.encoder import create_on_meta
from pretrain.models.lora import add_adapters, check_adapters, merge
from pretrain.run_control.signals import Signals
from tests.eval_suite.eval_samples import CLASSES, KWARGS, pack, save_checkpoint

pytest.importorskip("peft")


def test_checkpoints_have_the_adapters_in_the_weights(tmp_path: Path):
    train, val = (pack(tmp_path / name, [*CLASSES] * 10, seed=i) for i, name in enumerate(("train", "val")))
    encoder = save_checkpoint(tmp_path / "encoder")
    given = [encoder, train, "--val", val, "--out", tmp_path / "run", "--lora", "2", "--baselines", "none"]
    steps = [
        "--features",
        "embedding",
        "--epochs",
        "2",
        "--min-steps",
        "1",
        "--batch-size",
        "10",
        "--workers",
        "0",
        "--lr",
        "0.01",
    ]
    assert run(parse([*map(str, (*given, *steps)), "tracking.enabled=false"]), Signals(), 1) == 0
    before, after = (load_file(f / "encoder.safetensors") for f in (encoder, tmp_path / "run"))
    assert before.keys() == after.keys()
    for name, x in before.items():
        change = after[name] - x
        adapted = name.startswith("blocks.") and name.endswith(
            ("qkv.weight", "proj.weight", "fc1.weight", "fc2.weight")
        )
        if adapted:
            assert torch.linalg.matrix_rank(change, rtol=1e-3) == 2
        else:
            assert not change.any(), name
    export(tmp_path / "run", tmp_path / "model")  # compares its logits with those of the parts


def test_adapters_change_nothing_before_the_first_step_and_merge_to_what_they_compute():
    import timm

    encoder = timm.create_model("vit_tiny_patch16_224", **KWARGS).eval()
    images = torch.randn(2, 3, 32, 32)
    before = encoder(images)
    add_adapters(encoder, 3, seed=0)
    assert torch.equal(encoder(images), before)
    trained = [name for name, p in encoder.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    for name, p in encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    whole = timm.create_model("vit_tiny_patch16_224", **KWARGS).eval()
    whole.load_state_dict(merge(encoder.state_dict()))
    torch.testing.assert_close(whole(images), encoder(images), rtol=1e-4, atol=1e-5)


def test_an_encoder_without_linear_layers_is_refused():
    encoder = create_on_meta("resnet10t", {"num_classes": 0, "in_chans": 1})
    with pytest.raises(UserError, match=r"encoder.lora=4: the blocks of resnet10t have no linear layers"):
        check_adapters(4, "resnet10t", encoder, "auto")
    check_adapters(0, "resnet10t", encoder, "auto")
