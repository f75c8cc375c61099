"""Predicted steps beside published runs, and beside closed forms of communication."""

import json

import pytest

from isotorus.errors import exit_code
from pretrain.config import load_config
from pretrain.cost import links, roofline
from pretrain.cost.datasheets import KNOWN
from pretrain.cost.plan import Request, scaling
from pretrain.cost.plan_command import main
from pretrain.preflight.model import check_model

# NeMo has no views, so two of its images are one of ours, with two views. Its micro-batches have 64 images.
NEMO = [
    "encoder={name: vit_giant_patch14_224}",
    "views.global_size=224",
    "views.local_views=0",
    "data.batch_size=2048",
    "engine={kind: ddp, micro_batch: 32, accumulate: microbatch}",
]
VIT_L = ["encoder={name: vit_large_patch16_224}", "views.global_size=224", "views.local_views=0"]
FP8 = "engine={kind: ddp, precision: fp8, compile: true}"
DINOV3 = [
    "encoder={name: vit_large_patch16_224}",
    "views.global_size=256",
    "views.local_size=112",
    "views.local_views=8",
    "data.batch_size=2048",
    "objective={kind: jepa}",
    "engine={kind: fsdp, compile: true}",
]
# Accelerator, numbers of GPUs, configuration, images a second of each number of GPUs.
PUBLISHED = {
    "NeMo ViT-g/14 on H100": ("h100", [8, 128], NEMO, [1428 / 2, 21561 / 2]),
    "stable-pretraining ViT-L/16, fp8": ("h200", [1], [*VIT_L, "data.batch_size=128", FP8], [511]),
    "DINOv3 ViT-L/16": ("h100", [32], DINOV3, [32 * 159]),
}


@pytest.mark.parametrize("run", PUBLISHED)
def test_published_runs_are_predicted_within_20_per_cent(run: str):
    gpu, gpus, overrides, published = PUBLISHED[run]
    config = load_config("lejepa_vitl14", overrides)
    request = Request(gpus[0], gpu, None, None, 1e9)
    rows = scaling(config, request, check_model(config, gpus[0]), gpus, grow_batch=False)
    for row, real in zip(rows, published, strict=True):
        assert row.speed.images_per_second == pytest.approx(real, rel=0.2)
    # 94 % was published for 8 to 128 GPUs.
    assert len(rows) == 1 or 0.85 < rows[-1].efficiency < 1


def test_a_ring_sends_all_but_a_rank_s_own_part():
    machine = links.machine("h100")
    node, all_of_128 = links.all_ranks(machine, 8), links.all_ranks(machine, 128)
    size = 1e12  # so that latency does not matter
    assert node.gather(size) == pytest.approx(size * 7 / 8 / (0.82 * 450e9), rel=1e-3)
    # A node's 8 ports of 400 Gbit/s are slower together than NVLink; 15 of 16 nodes' parts pass through them.
    assert all_of_128.reduce(size) == pytest.approx(2 * size * 15 / 16 / (0.82 * 400e9), rel=0.06)
    slow = links.machine("h100", between="eth-25", inside="pcie5")
    assert links.all_ranks(slow, 16).reduce(size) == pytest.approx(size / (0.82 * 8 * 3.125e9), rel=1e-3)
    one = links.machine("h100", between="1xeth-25")
    assert links.all_ranks(one, 16).gather(size) == pytest.approx(size / 2 / (0.82 * 3.125e9), rel=1e-3)
    assert links.all_ranks(machine, 1).reduce(size) == 0


def test_seconds_of_operations_by_hand():
    hardware = KNOWN["h100"]
    operations = {("forward", "linear"): 989e12 * 0.8, ("forward", "bytes"): 3.35e12 * 0.9}
    assert roofline.seconds(operations, "forward", hardware, "bf16") == pytest.approx(2)
    assert roofline.seconds(operations, "forward", hardware, "fp8") == pytest.approx(1 + 989 / 1979)
    assert roofline.seconds(operations, "backward", hardware, "bf16") == 0
    many = {("forward", "kernels"): 1e6}
    assert roofline.seconds(many, "forward", hardware, "bf16") == pytest.approx(1e6 * roofline.LAUNCH)


def test_an_operation_reads_and_writes_memory_unless_it_is_fused():
    import torch

    def moved(fused: bool) -> float:
        x, weight = torch.ones(64, 32), torch.ones(32, 16)
        with roofline.Costs(fused) as costs:
            torch.mm(torch.exp(x) * 2, weight)
        assert costs.found["forward", "linear"] == 2 * 64 * 32 * 16
        return costs.found["forward", "bytes"] / 4

    products = 64 * 32 + 32 * 16 + 64 * 16
    # exp and the product each read and write; fused, x is read and the product written.
    assert moved(fused=False) == products + 4 * 64 * 32
    assert moved(fused=True) == products + 2 * 64 * 32


def test_a_table_of_several_numbers_of_gpus(capsys: pytest.CaptureFixture[str]):
    given = ["--config", "lejepa_vits14", "encoder.kwargs.depth=2", "--gpus", "8,64"]

    def rows(*more: str) -> list[dict]:
        assert main([*given, "--json", *more]) == 0
        return json.loads(capsys.readouterr().out)["scaling"]

    fast, slow, grown = rows(), rows("--between", "1xeth-25"), rows("--grow-batch")
    assert [row["gpus"] for row in fast] == [8, 64] and fast[0]["efficiency"] == 1
    assert slow[1]["efficiency"] < 0.6 * fast[1]["efficiency"] < 0.6
    assert rows("--between", "1xeth-25", "--no-overlap")[1]["efficiency"] < slow[1]["efficiency"]
    assert grown[1]["batch_size"] == 8 * fast[1]["batch_size"] and grown[1]["efficiency"] > 0.9
    assert main(given) == 0
    assert "efficiency" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--machine", "dgx"], "--machine dgx: must be one of dgx-a100, dgx-h100"),
        (["--inside", "nvlink9"], "--inside nvlink9: must be one of nvlink3, nvlink4"),
        (["--between", "4xeth-26"], "--between eth-26: must be one of nvlink3"),
        (["--gpus", "8,1024"], "less than an image for each of 1024 ranks"),
        (["--gpus", "8,x"], "argument --gpus: invalid positive int value: '8,x'"),
        (["--gpus", "8", "--images", "7"], "--gpus 8: more than the 7 images of the data set"),
    ],
)
def test_what_cannot_be_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    given = ["--config", "lejepa_vits14", "encoder.kwargs.depth=2"]
    assert exit_code(lambda: main([*given, *arguments])) == 2
    said = capsys.readouterr().err
    assert message in said


def test_on_cpus_steps_are_timed_and_a_long_run_gets_a_smaller_recipe(capsys: pytest.CaptureFixture[str]):
    kwargs = "{patch_size: 14, embed_dim: 64, num_heads: 2, depth: 3}"
    tiny = f"encoder={{name: vit_tiny_patch16_224, kwargs: {kwargs}}}"
    views = ["views.global_size=28", "views.local_size=14", "data.batch_size=64"]
    given = ["--config", "lejepa_vits14", "--gpu", "cpu", tiny, *views]
    assert main([*given, "steps=100"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Measured now on this machine" in said and "CPU-hours" in said
    assert "month" not in said and "failure" not in said
    assert main([*given, "steps=1000000000"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "More than a month. No packaged recipe takes less" in said
