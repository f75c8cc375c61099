"""Encoders by name, without memory, and warm starts: what fits, what is fitted, and what is refused."""

import hashlib
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.models import adapt_input_conv

from isotorus.errors import UserError
from pretrain.assemble import build_engine
from pretrain.checkpoint import damage
from pretrain.checkpoint.warm_start import check_fit, find_weights, initial_state
from pretrain.config import load_config
from pretrain.models.config import EncoderConfig
from pretrain.models.encoder import build_encoder, embedding_width, timm_kwargs
from pretrain.preflight.check import check
from pretrain.train import train

# Millions of parameters as published beside the models' papers and in timm's results, without classifier.
NAMED = [
    ("vit_tiny_patch16_224", {}, 96, 192, 5.5),
    ("vit_small_patch14_dinov2", {}, 98, 384, 21.6),
    ("vit_base_patch14_dinov2", {}, 98, 768, 85.7),
    ("vit_large_patch14_dinov2", {"reg_tokens": 4}, 98, 1024, 303.2),
    ("vit_huge_patch14_224", {}, 98, 1280, 630.8),
    ("vit_giant_patch14_dinov2", {}, 98, 1536, 1134.8),
    ("vit_giant_patch14_224", {}, 98, 1408, 1011.2),
    ("vit_gigantic_patch14_224", {}, 98, 1664, 1842.8),
    ("convnext_tiny", {}, 98, 768, 27.8),
    ("convnextv2_nano", {}, 98, 640, 15.0),
    ("resnet18", {}, 98, 512, 11.2),
    ("resnet50", {}, 98, 2048, 23.5),
    ("mobilenetv3_small_100", {}, 98, 1024, 1.52),  # its vector is wider than num_features
]


def on_meta(name: str, kwargs: dict) -> torch.nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, **kwargs)


@pytest.mark.parametrize(("name", "kwargs", "local", "width", "millions"), NAMED, ids=lambda x: str(x))
def test_named_encoders_take_both_view_sizes(
    name: str, kwargs: dict, local: int, width: int, millions: float
):
    kwargs = timm_kwargs(EncoderConfig(name=name, kwargs=kwargs), 224, 3)
    encoder = on_meta(name, kwargs)
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)
    # Two blocks show the shapes as well as 48 do.
    shallow = on_meta(name, kwargs | {"depth": 2}) if name.startswith("vit") else encoder
    assert embedding_width(shallow, name, 3, [224, local]) == width


@pytest.mark.parametrize(
    ("name", "kwargs", "said"),
    [
        ("vit_tiny_patch16_224", {"global_pool": ""}, r"gives \(2, 5, 192\) for 2 images, one vector"),
        ("convnext_atto", {"global_pool": ""}, r"gives \(2, 320, 1, 1\).*global_pool=avg"),
        ("mixer_s32_224", {}, "does not take images of 64².*set views.local_size=32 .*or use"),
    ],
)
def test_encoders_that_give_no_vector_an_image(name: str, kwargs: dict, said: str):
    encoder = on_meta(name, timm_kwargs(EncoderConfig(name=name, kwargs=kwargs), 32, 3))
    with pytest.raises(UserError, match=said):
        embedding_width(encoder, name, 3, [32, 64])


def test_channels_are_the_data_s():
    with pytest.raises(UserError, match=r"set data\.channels"):
        timm_kwargs(EncoderConfig(kwargs={"in_chans": 1}), 32, 3)


TINY = {"patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2}


def kwargs_of(image_size: int = 32, channels: int = 3, **more: object) -> dict:
    return timm_kwargs(EncoderConfig(name="vit_tiny_patch16_224", kwargs=TINY | more), image_size, channels)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A classifier's weights as timm publishes them: 32² images of 3 channels, 10 classes."""
    model = build_encoder("vit_tiny_patch16_224", kwargs_of(num_classes=10), seed=3)
    save_file(model.state_dict(), tmp_path / "published.safetensors")
    return tmp_path / "published.safetensors"


def test_warm_start_takes_the_file_s_weights_and_no_classifier(published: Path):
    source = build_encoder("vit_tiny_patch16_224", kwargs_of(num_classes=10), seed=3).state_dict()
    state = initial_state("vit_tiny_patch16_224", kwargs_of(), 0, str(published))
    assert source.keys() - state.keys() == {"head.weight", "head.bias"}
    assert all(torch.equal(x, source[name]) for name, x in state.items())
    build_encoder("vit_tiny_patch16_224", kwargs_of(), seed=0).load_state_dict(state, strict=True)


def test_warm_start_resamples_and_adapts_channels(published: Path):
    source = build_encoder("vit_tiny_patch16_224", kwargs_of(num_classes=10), seed=3).state_dict()
    state = initial_state("vit_tiny_patch16_224", kwargs_of(48, channels=1), 0, str(published))
    grid = resample_abs_pos_embed(source["pos_embed"], [6, 6], [4, 4], num_prefix_tokens=1)
    torch.testing.assert_close(state["pos_embed"], grid)
    kernel = source["patch_embed.proj.weight"]
    torch.testing.assert_close(state["patch_embed.proj.weight"], adapt_input_conv(1, kernel))
    state = initial_state("vit_tiny_patch16_224", kwargs_of(32, channels=5), 0, str(published))
    torch.testing.assert_close(state["patch_embed.proj.weight"], adapt_input_conv(5, kernel))
    # A larger patch sees the same at lower resolution: a constant image gives the same patch embedding.
    state = initial_state("vit_tiny_patch16_224", kwargs_of(64, patch_size=16), 0, str(published))
    torch.testing.assert_close(
        state["patch_embed.proj.weight"].sum((2, 3)), kernel.sum((2, 3)), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"reg_tokens": 4}, r"1 missing in the file \(first: reg_token 1×4×32\)"),
        ({"depth": 1}, r"12 unknown to the model \(first: blocks.1.attn.proj.bias 32\)"),
        ({"embed_dim": 64}, "of another shape .*cls_token is 1×1×32 in the file, 1×1×64 in the model"),
    ],
)
def test_weights_of_another_architecture_are_refused_before_reading(
    published: Path, changed: dict, said: str
):
    name, kwargs = "vit_tiny_patch16_224", kwargs_of(**changed)
    with pytest.raises(UserError, match=said) as error:
        check_fit(name, on_meta(name, kwargs), str(published))
    assert "\n" not in str(error.value) and "choose the encoder.name" in str(error.value)
    with pytest.raises(UserError, match=said):
        initial_state(name, kwargs, 0, str(published))


def test_what_is_no_weights_file(tmp_path: Path, published: Path):
    with pytest.raises(UserError, match=r"nowhere does not exist; name a .safetensors file"):
        find_weights(tmp_path / "nowhere", "encoder.weights=nowhere")
    with pytest.raises(UserError, match=r"holds none of encoder.safetensors or model.safetensors"):
        find_weights(tmp_path, "x")
    torch.save({}, tmp_path / "model.pth")
    with pytest.raises(UserError, match="convert it with safetensors"):
        find_weights(tmp_path / "model.pth", "x")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(published.read_bytes()[:500])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        check_fit("vit_tiny_patch16_224", on_meta("vit_tiny_patch16_224", kwargs_of()), str(cut))


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_run_starts_from_a_checkpoint_and_continues_without_it(
    one_process: None, recipe: Path, published: Path, tmp_path: Path
):
    cpu, asked = torch.device("cpu"), [f"encoder.weights={published}", "data.channels=3", "steps=1"]
    asked += [f"encoder.kwargs={TINY}".replace("'", "")]
    config = load_config(str(recipe), asked)
    plan = check(config, world_size=1)
    started = build_engine(config, plan, cpu).state()["model"]
    first = initial_state("vit_tiny_patch16_224", plan.encoder_kwargs, 0, str(published))
    assert all(torch.equal(started[f"encoder.encoder.{name}"], x) for name, x in first.items())
    train(config, plan, cpu)

    saved = damage.describe(config.folder / "checkpoints/latest")
    digest = hashlib.sha256(published.read_bytes()).hexdigest()
    assert saved["warm_start"] == {"file": str(published), "sha256": digest}
    # Another run may start from this one; and this one no longer needs what it started from.
    other = check(load_config(str(recipe), [*asked, "name=other", f"encoder.weights={config.folder}"]), 1)
    assert other.initial_weights == str(config.folder / "checkpoints/step_00000001/encoder.safetensors")
    published.unlink()
    longer = load_config(str(recipe), [*asked, "steps=2"])
    train(longer, check(longer, world_size=1), cpu)
    assert damage.describe(config.folder / "checkpoints/latest")["warm_start"] == saved["warm_start"]
    with pytest.raises(UserError, match=r"was trained with encoder\.weights="):
        check(load_config(str(recipe), [*asked, "encoder.weights=null"]), world_size=1)
