"""Where a step's time goes: the row that is logged, and the trace of a few steps."""

import json
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.autograd import Variable

from isotorus import jsonl
from pretrain.config import load_config
from pretrain.monitoring.timing import StepTimer
from pretrain.preflight.check import check
from pretrain.train import train


@pytest.fixture(scope="module", autouse=True)
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_parts_of_a_step_and_a_trace_of_some(recipe: Path):
    config = load_config(str(recipe), ["steps=6", "log_every=2", "profile.start=2", "profile.steps=2"])
    train(config, check(config, world_size=1), torch.device("cpu"))

    rows = jsonl.read(config.folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 4, 6]
    for row in rows:
        named = ("data", "augment", "forward", "head", "backward", "reduce", "optimizer")
        parts = [row[f"seconds_{part}"] for part in named]
        assert min(parts) > 0 and sum(parts) < row["seconds_step"]
        assert row["images_per_second"] == pytest.approx(8 / row["seconds_step"])
        assert row["slowest_rank"] == 0
        assert row["slowest_rank_seconds"] == row["median_rank_seconds"] == pytest.approx(sum(parts[:3]))
    # The save of step 4 is in the row after it, and in no step's time.
    assert [row["seconds_checkpoint"] > 0 for row in rows] == [False, False, True]

    trace = json.loads((config.folder / "profile/step_00000002.json").read_text())["traceEvents"]
    seen = Counter(event["name"] for event in trace if event.get("cat") == "user_annotation")
    assert seen["head"] == seen["backward"] == seen["optimizer"] == 2
    assert "aten::" in (config.folder / "profile/step_00000002.txt").read_text()


def test_what_a_backward_pass_waits_for_after_its_own_work_is_reduce():
    """DDP, FSDP and ZeRO wait for the sums over ranks in a callback that a parameter's hook queues."""
    weight = torch.ones(2, requires_grad=True)
    wait, work = 0.2, 0.1

    def computed(gradient: torch.Tensor) -> None:
        time.sleep(work)
        Variable._execution_engine.queue_callback(lambda: time.sleep(wait))

    weight.register_hook(computed)
    timer = StepTimer(torch.device("cpu"))
    with timer.device("forward"), timer.host("data"), timer.device("augment"):
        loss = weight.sum()
    with timer.backward(loss):
        loss.backward()
    report = timer.report(steps=2)
    assert report["seconds_reduce"] >= wait / 2
    assert work / 2 <= report["seconds_backward"] < report["seconds_step"] - wait / 2
