"""A fine-tuning on two processes is that of one, with every engine: losses, scores and weights."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from tests.console import ROOT
from tests.eval_suite.eval_samples import CLASSES, pack, save_checkpoint
from tests.masked_shapes import pack_centred, pack_shapes

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
FP32 = ("engine.precision=fp32", "tracking.enabled=false")
ENGINES = {
    "ddp": ["engine.kind=ddp"],
    "fsdp": ["engine.kind=fsdp"],
    "zero2": ["engine.kind=deepspeed", "engine.zero_stage=2"],
    "zero3": ["engine.kind=deepspeed", "engine.zero_stage=3"],
}


class Inputs(NamedTuple):
    encoder: Path
    train: Path
    val: Path


class Ended(NamedTuple):
    """What a run leaves: losses by step, the curve of the score on val, and the weights."""

    losses: dict[int, float]
    curve: list[list[float]]
    weights: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    train, val = (pack(folder / name, [*CLASSES] * 10, seed=i) for i, name in enumerate(("train", "val")))
    return Inputs(save_checkpoint(folder / "encoder"), train, val)


@pytest.fixture(scope="module")
def alone(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    return finetune(1, inputs, tmp_path_factory.mktemp("alone") / "run")


MIXED = ("--features", "last2", "--mixup", "1", "--cutmix", "1")


def finetune(ranks: int, inputs: Inputs, out: Path, *options: str, labels: tuple[str, ...] = MIXED) -> Ended:
    """Run the command on one or more processes to its end; `labels` are options that are not for masks."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    given = [inputs.encoder, inputs.train, "--val", inputs.val, "--out", out, "--epochs", "3"]
    steps = ["--batch-size", "8", "--min-steps", "1", "--workers", "0", "--baselines", "none", "log_every=1"]
    command = [*(torchrun if ranks > 1 else []), "-m", "finetune", *given, *steps, *labels]
    whole = [sys.executable, *map(str, (*command, *FP32, *options))]
    done = subprocess.run(whole, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    results = json.loads((out / "results.json").read_text())
    return Ended(
        {row["step"]: row["loss"] for row in rows},
        results["scores"]["finetuned"]["val_curve"],
        load_file(out / "encoder.safetensors"),
    )


@pytest.mark.nightly
@pytest.mark.parametrize("engine", list(ENGINES))
def test_two_ranks_learn_what_one_learns(engine: str, inputs: Inputs, alone: Ended, tmp_path: Path):
    two = finetune(2, inputs, tmp_path / "run", *ENGINES[engine])
    assert len(two.losses) == 8 and two.losses == pytest.approx(alone.losses, rel=1e-4)
    assert two.curve == alone.curve
    for key, tensor in alone.weights.items():
        torch.testing.assert_close(tensor, two.weights[key], rtol=1e-3, atol=1e-4)


@pytest.mark.nightly
def test_two_ranks_with_fsdp_train_the_adapters_that_one_trains(inputs: Inputs, tmp_path: Path):
    pytest.importorskip("peft")
    one = finetune(1, inputs, tmp_path / "one", "--lora", "2")
    two = finetune(2, inputs, tmp_path / "two", "--lora", "2", *ENGINES["fsdp"])
    assert len(two.losses) == 8 and two.losses == pytest.approx(one.losses, rel=1e-4)
    assert two.curve == one.curve
    before = load_file(inputs.encoder / "encoder.safetensors")
    changed = [key for key, tensor in two.weights.items() if not torch.equal(tensor, before[key])]
    assert changed and all(key.startswith("blocks.") for key in changed)
    for key, tensor in one.weights.items():
        torch.testing.assert_close(tensor, two.weights[key], rtol=1e-3, atol=1e-4)


@pytest.mark.nightly
def test_a_probe_that_cannot_be_fitted_ends_both_ranks(inputs: Inputs, tmp_path: Path):
    """The first rank fits it alone. No launcher is here to end the other one, as on another machine."""
    train, val = pack_centred(tmp_path / "train", 8, 0), pack_shapes(tmp_path / "val", 8, 1)
    command = [
        sys.executable,
        "-m",
        "finetune",
        inputs.encoder,
        train,
        "--val",
        val,
        "--out",
        tmp_path / "run",
    ]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        subprocess.Popen(
            [*map(str, (*command, *FP32))],
            env=ENVIRONMENT | group | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [rank.communicate(timeout=120)[1] for rank in started]
    finally:
        for rank in started:
            rank.kill()
    assert [rank.returncode for rank in started] == [2, 2]
    assert "error: the segmentation probe that the layer starts from cannot be fitted" in said[0]


@pytest.mark.nightly
def test_two_ranks_learn_from_masks_what_one_learns(inputs: Inputs, tmp_path: Path):
    sets = [pack_shapes(tmp_path / name, 19, i, without=1) for i, name in enumerate(("train", "val"))]
    masked = inputs._replace(train=sets[0], val=sets[1])
    one = finetune(1, masked, tmp_path / "one", labels=())
    for engine in ("ddp", "fsdp", "zero2"):
        two = finetune(2, masked, tmp_path / engine, *ENGINES[engine], labels=())
        assert len(two.losses) == 7 and two.losses == pytest.approx(one.losses, rel=1e-4)
        curves = zip(one.curve, two.curve, strict=True)
        assert all(a == pytest.approx(b, abs=1e-3) for a, b in curves)
        for key, tensor in one.weights.items():
            torch.testing.assert_close(tensor, two.weights[key], rtol=1e-3, atol=1e-4)
