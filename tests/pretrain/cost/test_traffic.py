"""The calls that `plan` expects of a step, beside those that real steps make on a fake group of ranks."""

import importlib.util
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch.distributed as dist

from pretrain.config import Config, from_values
from pretrain.cost.memory_estimate import count_parameters
from pretrain.cost.traffic import step_traffic
from pretrain.preflight.model import check_model


@pytest.fixture(scope="module")
def counting() -> Iterator[ModuleType]:
    path = Path(__file__).parents[3] / "benchmarks/collectives.py"
    spec = importlib.util.spec_from_file_location("collectives", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    dist.destroy_process_group()


def same_run(counting: ModuleType, engine: dict[str, Any], method: str, ranks: int) -> Config:
    """Return the configuration of the step that benchmarks/collectives.py makes."""
    name, small, _ = counting.ENCODERS["vit"]
    mlp = {"hidden": 24, "layers": 3}
    values = counting.METHODS[method] | {"projector": mlp | {"width": 8}}
    return from_values(
        {
            "name": "x",
            "steps": 10,
            "data": {"path": "nowhere", "batch_size": 2 * ranks},
            "views": {"global_views": 2, "global_size": 32, "local_views": 2, "local_size": 16},
            "encoder": {"name": name, "kwargs": small | {"depth": 2}},
            "objective": values,
            "engine": {"precision": "fp32"} | engine,
        }
    )


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("ddp", "jepa"),
        ("fsdp", "lejepa"),
        ("fsdp", "jepa"),
        ("fsdp, packed", "lejepa"),
        ("fsdp, not resharded", "lejepa"),
        ("HSDP, shard=8, packed", "lejepa"),
    ],
)
def test_a_step_sends_the_bytes_that_are_planned(counting: ModuleType, name: str, method: str):
    """A parameter's rows are padded to whole shards, so small tensors are larger there."""
    ranks = 64 if "shard=" in name or "ddp" in name else 8
    counting.be_one_of(ranks)
    sent = counting.calls_of_step(counting.build(counting.ENGINES[name], method))
    config = same_run(counting, counting.ENGINES[name], method, ranks)
    planned: Counter[str] = Counter()
    number: Counter[str] = Counter()
    model = check_model(config, ranks)
    for calls in step_traffic(config, count_parameters(config, model), ranks, bf16=False):
        planned[calls.kind] += round(calls.bytes)
        number[calls.kind] += round(calls.number)
    assert set(planned) == set(sent.bytes)
    for kind, size in planned.items():
        assert 0.88 * sent.bytes[kind] <= size <= 1.1 * sent.bytes[kind], kind
    assert number == sent.number
