"""A training step makes few collective calls, on any number of ranks; benchmarks/collectives.py counts them.

The numbers are for encoders of two blocks, and for projectors of three linear layers with two batch norms. A
change must not go beyond them.
"""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

SUMS, GATHERS, SCATTERS = "all-reduce", "all-gather", "reduce-scatter"


@pytest.fixture(scope="module")
def counting() -> Iterator[ModuleType]:
    path = Path(__file__).parents[2] / "benchmarks/collectives.py"
    spec = importlib.util.spec_from_file_location("collectives", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    dist.destroy_process_group()


HEAD = {
    # Each batch norm, and the loss: a sum in each direction.
    "lejepa": {SUMS: 6},
    "torus": {SUMS: 6},
    # The predictor has batch norms too; covariances need the mean before.
    "jepa": {SUMS: 10},
}
STEP = {
    # The head's calls, and a sum of the gradients of encoder and head.
    "ddp": {SUMS: 8},
    "ddp, packed": {SUMS: 8},
    # The head's calls and the norm of the gradients. Two blocks, the other layers of the encoder, and the
    # head are gathered before they are used: the blocks for each size of the views, and again in the backward
    # pass. Gradients of the encoder are scattered for each size.
    "fsdp": {SUMS: 7, GATHERS: 11, SCATTERS: 7},
    "fsdp, packed": {SUMS: 7, GATHERS: 6, SCATTERS: 4},
    "fsdp, not resharded": {SUMS: 7, GATHERS: 6, SCATTERS: 4},
    # And a sum over replicas for each block, the rest of the encoder, and the head.
    "HSDP, shard=8": {SUMS: 11, GATHERS: 11, SCATTERS: 7},
    "HSDP, shard=8, packed": {SUMS: 11, GATHERS: 6, SCATTERS: 4},
}
MOST_KIB = {
    # One fp32 value for each of the 35,000 parameters, and the statistics of the head.
    "ddp": {SUMS: 210},
    "fsdp, packed": {SUMS: 80, GATHERS: 600, SCATTERS: 400},
}


@pytest.mark.parametrize("method", HEAD)
def test_a_head_makes_few_calls(counting: ModuleType, method: str):
    counting.be_one_of(64)
    assert counting.calls_of_head(method).number == HEAD[method]


def test_the_probe_sums_twice(counting: ModuleType):
    counting.be_one_of(64)
    assert counting.calls_of_probe().number == {SUMS: 2}


@pytest.mark.parametrize("ranks", [64, 1024])
@pytest.mark.parametrize("name", STEP)
def test_a_step_makes_few_calls(counting: ModuleType, name: str, ranks: int):
    counting.be_one_of(ranks)
    calls = counting.calls_of_step(counting.build(counting.ENGINES[name]))
    assert calls.number == STEP[name]
    for kind, most in MOST_KIB.get(name, {}).items() if ranks == 64 else ():
        assert calls.bytes[kind] <= most * 1024, kind


class Operations(TorchDispatchMode):
    """Counts operations that compute something."""

    number = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: Any = (), options: dict[str, Any] | None = None
    ) -> Any:
        self.number += not operation.is_view
        return operation(*arguments, **(options or {}))


@pytest.mark.parametrize("name", ["ddp", "fsdp", "HSDP, shard=8"])
def test_an_update_takes_as_many_operations_for_more_blocks(counting: ModuleType, name: str):
    """Clipping, AdamW and the target network's average work on lists of this rank's parts of parameters."""
    counting.be_one_of(64)
    found = []
    for depth in (1, 3):
        engine = counting.build(counting.ENGINES[name], "jepa", depth=depth)
        for parameter in engine.networks.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        engine.step(1e-4, 0.9)  # makes the moments
        for parameter in engine.networks.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        with Operations() as operations:
            engine.step(1e-4, 0.9)
        found.append(operations.number)
    assert found[0] == found[1] < 50


def test_a_batch_norm_of_images_makes_one_call_in_each_direction(counting: ModuleType):
    """With JEPA, the target network runs too, on the global views and without a backward pass."""
    counting.be_one_of(64)
    head = counting.calls_of_head("jepa").number
    calls = counting.calls_of_step(counting.build({}, "jepa", "resnet")).number
    sizes, norms, projector = 2, 13, 2
    gradients = 2  # of encoder and head
    assert calls[SUMS] - head[SUMS] == 2 * sizes * norms + norms + projector + gradients
    assert GATHERS not in calls
