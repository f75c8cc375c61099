"""What `plan` says: FLOPs beside published ones, memory beside real tensors, and remedies that do fit."""

import json
import re
from pathlib import Path

import pytest
import timm
import torch

from isotorus.errors import UserError, exit_code
from pretrain.config import Config, load_config
from pretrain.cost import activation_memory, by_depth, cpu_speed
from pretrain.cost.accelerators import detect
from pretrain.cost.datasheets import KNOWN
from pretrain.cost.flops import flops_per_image, step_flops
from pretrain.cost.memory_estimate import Parameters, count_parameters, rank_memory, state_bytes
from pretrain.cost.plan import Request, estimate
from pretrain.cost.plan_command import main
from pretrain.engines.config import EngineConfig
from pretrain.methods.config import Turned
from pretrain.models.config import EncoderConfig
from pretrain.models.encoder import ViewEncoder, timm_kwargs
from pretrain.preflight.model import check_model

GIB = 2**30
PUBLISHED = {  # TFLOP to train on one image of 2 × 224² and 6 × 98²: 3 × forward
    "vit_large_patch14_dinov2": 1.52,
    "vit_giant_patch14_dinov2": 5.64,
    "vit_giant_patch14_224": 5.03,
    "vit_gigantic_patch14_224": 9.13,
}


def config(*overrides: str) -> Config:
    return load_config("lejepa_vits14", list(overrides))


@pytest.mark.parametrize("name", PUBLISHED)
def test_flops_are_the_published_ones(name: str):
    kwargs = timm_kwargs(EncoderConfig(name=name), 224, 3)
    width = {"large": 1024, "giant": 1536, "gigantic": 1664}[name.split("_")[1]]
    found = flops_per_image(config(f"encoder.name={name}"), kwargs, width) / 1e12
    # Projector and SIGReg, which the published figures leave out, add 0.1 % at most.
    assert found == pytest.approx(PUBLISHED[name], rel=0.005)


def test_what_a_step_executes_beside_the_model_s_flops():
    def of(*overrides: str):
        patch_16 = ["encoder={name: vit_tiny_patch16_224}", "views.local_size=96"]
        chosen = config(*patch_16, *overrides)
        model = check_model(chosen, 1)
        return step_flops(chosen, model.kwargs, model.width)

    plain = of()
    forward = plain.encoder_forward + plain.projector_forward + plain.regularizer_forward
    # Multiply-adds of the matrices by hand: 12 layers of 12 D² each token, attention 2 tokens · D, patches.
    width, sizes = 192, [(2, 197), (6, 37)]
    tokens = sum(views * n for views, n in sizes)
    attention = sum(views * n * n for views, n in sizes) * 2 * width
    patches = sum(views * (n - 1) for views, n in sizes) * 3 * 16 * 16 * width
    assert plain.encoder_forward == 2 * (12 * (12 * width**2 * tokens + attention) + patches)
    assert plain.executed == plain.model == 3 * forward
    assert of("engine.activation_checkpointing=full").executed == plain.executed + plain.encoder_forward
    assert of("engine.accumulation=2").executed == plain.executed + plain.encoder_forward
    assert of("engine.accumulation=2", "engine.accumulate=microbatch").executed == plain.executed
    target = of("objective={kind: jepa}")
    assert 0.5 * target.encoder_forward < target.target_forward < target.encoder_forward
    assert target.model == target.executed
    # Turned views count like others, also those of the size of global views.
    turned = of("views.actions=[rotation]", "views.turned=2")
    assert turned.encoder_forward - plain.encoder_forward == of("views.local_views=0").encoder_forward
    assert of("views.actions=[rotation]", "views.turned=all").encoder_forward == plain.encoder_forward


SUPERVISED = ("encoder.name=vit_tiny_patch16_224", "views.global_views=1", "views.local_views=0")


@pytest.mark.parametrize("features", ["last2", "last4", "patch_mean"])
def test_feature_sets_of_several_blocks_cost_what_the_embedding_does(features: str):
    def of(features: str) -> float:
        objective = f"objective={{kind: supervised, outputs: 3, val: x, features: {features}}}"
        chosen = config(*SUPERVISED, objective)
        model = check_model(chosen, 1)
        return step_flops(chosen, model.kwargs, model.width).encoder_forward

    assert of(features) == pytest.approx(of("embedding"), rel=1e-3)


def test_the_layer_of_masks_is_counted_in_every_cell_of_the_map():
    objective = "objective={kind: supervised, task: segmentation, outputs: 5, val: x}"
    less, more = (
        config(*SUPERVISED, objective, f"views.global_size={size}", "data.batch_size=16")
        for size in (112, 224)
    )
    model = check_model(more, 1)
    flops = step_flops(more, model.kwargs, model.width)
    assert flops.projector_forward == 2 * 14**2 * 192 * 5
    parts = [rank_memory(each, model, count_parameters(each, model), 1, "cpu") for each in (less, more)]
    assert parts[1]["embeddings"] == 2 * 4 * 16 * 14**2 * 192
    # The logits of each pixel are kept for the loss, and have a gradient.
    assert parts[1]["regularizer"] > 2 * 4 * 16 * 224**2 * 5
    assert parts[1]["regularizer"] == pytest.approx(4 * parts[0]["regularizer"], rel=0.02)


TINY = {"patch_size": 8, "embed_dim": 32, "num_heads": 2, "drop_path_rate": 0.2}


def setting(**changes: object) -> activation_memory._Setting:
    usual = {"views": ((2, 32), (3, 16)), "channels": 3, "images": 4, "checkpointing": "none"}
    usual |= {"accumulated": False, "device": "cpu", "bf16": True}
    usual |= {"gathered_in_bf16": False, "keep_gradients": False, "packed": False, "size_by_size": False}
    return activation_memory._Setting(**usual | changes)


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize("keep_gradients", [False, True])
def test_tensors_without_bytes_weigh_what_real_ones_do(checkpointing: str, keep_gradients: bool):
    asked = setting(checkpointing=checkpointing, keep_gradients=keep_gradients)
    kwargs = timm_kwargs(EncoderConfig(kwargs=TINY | {"depth": 3}), 32, 3)
    found = activation_memory._measure_encoder("vit_small_patch16_224", json.dumps(kwargs), asked)
    timm_model = timm.create_model("vit_small_patch16_224", **kwargs)
    activation_memory.unfuse_attention(timm_model)
    encoder = ViewEncoder(timm_model).train()
    if checkpointing != "none":
        activation_memory.checkpoint_blocks(timm_model, checkpointing)
    # Constants of a device, of a few bytes, are kept only where tensors have bytes.
    assert activation_memory._forward_and_backward(encoder, asked) == pytest.approx(found, abs=32)


def test_no_gradient_waits_for_views_that_go_backward_in_another_pass():
    """Packed or size by size, a step never holds the whole gradient of one size beside the next size's."""
    kwargs = timm_kwargs(EncoderConfig(kwargs=TINY | {"depth": 8, "embed_dim": 128}), 32, 3)
    with torch.device("meta"):
        blocks = timm.create_model("vit_small_patch16_224", **kwargs).blocks
    gradients = 4 * sum(p.numel() for p in blocks.parameters())

    def peak(**changes: object) -> float:
        asked = setting(checkpointing="full", images=1, bf16=False, **changes)
        found = activation_memory._measure_encoder("vit_small_patch16_224", json.dumps(kwargs), asked)
        return max(size for (_, part), size in found.items() if part == "workspace")

    assert peak() > 0.8 * gradients
    assert max(peak(packed=True), peak(size_by_size=True)) < 0.4 * gradients


@pytest.mark.parametrize(
    "changes",
    [
        {"checkpointing": "full", "gathered_in_bf16": True, "device": "cuda"},
        {"keep_gradients": True},
        {"keep_gradients": True, "size_by_size": True},
        {"packed": True},
    ],
    ids=str,
)
def test_a_deep_encoder_is_measured_on_shallow_ones(changes: dict, monkeypatch: pytest.MonkeyPatch):
    kwargs = timm_kwargs(EncoderConfig(kwargs=TINY | {"depth": 11}), 32, 3)

    def peak() -> float:
        activation_memory._measure_encoder.cache_clear()
        phases: dict[str, float] = {}
        found = activation_memory._measure_encoder(
            "vit_small_patch16_224", json.dumps(kwargs), setting(**changes)
        )
        for (phase, _), size in found.items():
            phases[phase] = phases.get(phase, 0.0) + size
        return max(phases.values())

    extrapolated = peak()
    monkeypatch.setattr(by_depth, "SHALLOW", (50, 60))
    assert extrapolated == pytest.approx(peak(), rel=1e-3)


@pytest.mark.parametrize("name", ["test_efficientnet", "mixer_s32_224"])
def test_an_encoder_with_blocks_and_no_depth_is_measured_as_it_is(name: str):
    kwargs = timm_kwargs(EncoderConfig(name=name), 224, 3)
    seen: list[dict] = []

    def measure(kwargs: dict) -> dict[str, float]:
        seen.append(kwargs)
        return {"": 1.0}

    assert by_depth.by_depth(measure, name, kwargs) == {"": 1.0}
    assert seen == [kwargs]


def test_activations_of_a_linear_layer_are_those_that_autograd_keeps():
    layer = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 4))
    x = torch.randn(10, 8)
    with activation_memory.LiveBytes([*layer.parameters(), x]) as live:
        out = layer(x)
    # The first layer's output and GELU's, fp32, and the result itself.
    assert live.alive.total() == 4 * 10 * (16 + 16 + 4)
    del out
    assert live.alive.total() == 0


@pytest.mark.parametrize("bf16", [False, True])
def test_a_head_weighs_its_outputs_and_projections(bf16: bool):
    """One linear layer keeps its output; SIGReg keeps a number for each direction, and its gradient."""
    views, images, width, slices = 3, 5_000, 8, 256
    objective = {
        "kind": "lejepa",
        "projector": {"layers": 1, "width": width},
        "sigreg": {"num_slices": slices},
    }
    found = activation_memory.head_footprint(json.dumps(objective), 32, 2, views, images, bf16)
    each = 2 if bf16 else 4
    # Autocast also keeps copies of the embeddings in bf16, and of the layer's weights.
    copies = each * views * images * 32 if bf16 else 0
    assert found["projector"] == pytest.approx(each * views * images * width + copies, rel=1e-3)
    projections = 4 * views * images * slices
    assert 2 * projections < found["regularizer"] < 2.3 * projections


@pytest.mark.parametrize("auto", [False, True], ids=["weight", "auto-weight"])
@pytest.mark.parametrize(
    ("objective", "turned"),
    [
        ({"kind": "lejepa", "encoder_weight": 0.1}, None),
        ({"kind": "lejepa", "sigreg": {"test": "shapiro_wilk", "num_slices": 16}}, None),
        ({"kind": "lejepa", "sigreg": {"test": "watson", "num_slices": 16}}, None),
        ({"kind": "jepa", "regularizer": "vicreg"}, None),
        ({"kind": "jepa", "regularizer": "sigreg", "prediction": "smooth_l1"}, None),
        ({"kind": "jepa", "regularizer": "toroidal", "weighting": "heat"}, None),
        ({"kind": "torus", "angles": 2, "norm": "batch"}, None),
        ({"kind": "torus", "angles": 16, "encoder_weight": 0.1}, None),
        (
            {"kind": "torus", "angles": 2, "content": "lejepa", "pose_width": 8},
            Turned(2, ("rotation", "hue")),
        ),
    ],
    ids=str,
)
def test_a_million_images_are_counted_without_computing_on_them(objective: dict, turned: Turned, auto: bool):
    """Each objective's memory grows with the number of images, and none needs their values."""
    given = json.dumps(objective | {"auto_weight": {"enabled": auto}})
    less, more = (activation_memory.head_footprint(given, 64, 2, 4, n, True, turned) for n in (10**5, 10**6))
    assert 5 < sum(more.values()) / sum(less.values()) < 20


@pytest.mark.parametrize(
    ("engine", "bytes_each"),
    [
        ({"kind": "ddp"}, 16),
        ({"kind": "fsdp"}, 16 / 8),
        ({"kind": "fsdp", "shard": 2}, 16 / 2),
        ({"kind": "deepspeed", "zero_stage": 0}, 16),
        ({"kind": "deepspeed", "zero_stage": 1}, 4 + 4 + 12 / 8),
        ({"kind": "deepspeed", "zero_stage": 2}, 4 + 4 / 8 + 12 / 8),
        ({"kind": "deepspeed", "zero_stage": 3}, 20 / 8),
        ({"kind": "deepspeed", "zero_stage": 3, "offload": "cpu"}, 0),
    ],
    ids=str,
)
def test_state_on_each_of_8_ranks(engine: dict, bytes_each: float):
    counts = Parameters(encoder=900, blocks=800, largest_block=100, projector=100, target=0, buffers=0)
    assert sum(state_bytes(EngineConfig(**engine), counts, 8).values()) == pytest.approx(bytes_each * 1000)


def asked(*arguments: str, capsys: pytest.CaptureFixture[str]) -> dict:
    assert main(["--json", "--config", "lejepa_vits14", "encoder.kwargs.depth=2", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_what_does_not_fit_gets_a_remedy_that_does(capsys: pytest.CaptureFixture[str]):
    given = ["data.batch_size=2048", "--gpu", "l40s", "--mfu", "0.4"]
    found = asked(*given, capsys=capsys)
    assert not found["memory"]["fits"]
    remedy = found["nearest_fit"]["arguments"]
    assert remedy == ["engine.activation_checkpointing=full"]
    again = asked(*given, *remedy, capsys=capsys)
    assert again["memory"]["fits"] and again["memory"] == found["nearest_fit"]["memory"]
    # What is computed twice takes longer, but is no model FLOP.
    assert again["speed"]["hours"] == pytest.approx(found["speed"]["hours"] * 4 / 3, rel=1e-2)
    assert again["speed"]["mfu"] == pytest.approx(0.3, rel=1e-2)
    assert again["flops"]["model"] == found["flops"]["model"]


def test_hours_epochs_and_checkpoints(capsys: pytest.CaptureFixture[str]):
    given = ["--gpus", "8", "--mfu", "0.5", "--images", "1000000", "--disk", "1", "steps=1000"]
    found = asked(*given, capsys=capsys)
    rate = 8 * 0.5 * 989e12 / found["flops"]["executed"]
    assert found["speed"]["images_per_second"] == pytest.approx(rate)
    assert found["speed"]["hours"] == pytest.approx(512_000 / rate / 3600)
    assert found["speed"]["epochs"] == pytest.approx(0.512)
    trained = found["parameters"]["encoder"] + found["parameters"]["projector"]
    expected = 12 * trained + 4 * found["parameters"]["encoder"] + found["parameters"]["buffers"]
    assert found["checkpoint_seconds"] * 1e9 == found["checkpoint_bytes"] == expected


def test_the_table_and_what_is_refused(capsys: pytest.CaptureFixture[str]):
    given = ["--config", "lejepa_vits14", "encoder.kwargs.depth=2", "--gpus", "8", "engine.kind=fsdp"]
    assert main(given) == 0
    said = capsys.readouterr().out
    for words in (
        "encoder, forward",
        "activations",
        "communication",
        "of 79.0: fits",
        "GPU-hours",
        "checkpoint",
    ):
        assert words in said
    for arguments, message in (
        (["--gpus", "513"], "data.batch_size=512 is less than an image for each of 513 ranks; use fewer"),
        (["--gpus", "0"], "argument --gpus: invalid positive int value: '0'"),
        (["--gpu", "tpu"], "argument --gpu: invalid choice: 'tpu'"),
        (["views.local_size=96"], "views.local_size=96 is not a multiple of the encoder's patch of 14"),
    ):
        assert exit_code(lambda given=arguments: main(["--config", "lejepa_vits14", *given])) == 2
        assert message in capsys.readouterr().err


def test_batch_norm_rules_out_what_would_falsify_it():
    chosen = config("encoder={name: resnet50}", "data.batch_size=4096", "engine.kind=fsdp")
    with pytest.raises(UserError, match="batch norm"):
        estimate(
            chosen.model_copy(update={"engine": EngineConfig(activation_checkpointing="full")}),
            Request(gpus=1, gpu="h100", mfu=0.4, images=None, disk=1e9),
        )


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H200 NVL", "h200-nvl"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-PCIE-40GB", "a100-40gb"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("NVIDIA GH200 144G HBM3e", "gh200-144g"),
        ("NVIDIA GB200", "gb200"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA B200", "b200"),
        ("Tesla T4", None),
    ],
)
def test_accelerators_are_known_by_their_names(name: str, known: str | None):
    assert detect(name) == (known and KNOWN[known])


RECIPES = Path(__file__).parents[3] / "configs"
STATED = re.compile(r"([\d,]+) GPU-hours.* (\d+) × H100.*?(\d+) GiB", re.DOTALL)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*14.yaml")), ids=lambda path: path.stem)
def test_recipes_state_what_plan_says(path: Path):
    head = " ".join(line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#"))
    hours, gpus, memory = STATED.search(head).groups()
    request = Request(gpus=int(gpus), gpu="h100", mfu=0.4, images=1_281_167, disk=2e9)
    found = estimate(load_config(path.stem, []), request)
    assert found.memory.fits
    assert found.speed.gpu_hours == pytest.approx(float(hours.replace(",", "")), rel=0.02)
    assert found.memory.total / GIB == pytest.approx(float(memory), abs=0.6)


def test_cpus_are_timed_on_a_micro_batch_unless_the_encoder_is_large():
    for name, changes, images in (
        ("quickstart", [], 32),
        ("quickstart", ["engine.accumulation=4", "engine.accumulate=microbatch"], 8),
        ("lejepa_vitl14", [], 2),
    ):
        chosen = load_config(name, ["data.batch_size=64", *changes])
        model = check_model(chosen, 2)
        flops = step_flops(chosen, model.kwargs, model.width)
        assert cpu_speed.images_timed(chosen, flops, 2) == images
