"""FSDP on a fake group of 64 ranks: what is gathered and reduced in a step, and when."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from pydantic import TypeAdapter
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain import engines
from pretrain.engines.config import EngineConfig, OptimizerConfig
from pretrain.engines.step import MicroBatch, train_step
from pretrain.methods import build_head
from pretrain.methods.config import ObjectiveConfig
from pretrain.models.config import EncoderConfig
from pretrain.models.encoder import build_encoder, timm_kwargs

DEPTH = 4
NAME, SMALL = "vit_tiny_patch16_224", {"patch_size": 8, "depth": DEPTH, "embed_dim": 32, "num_heads": 2}
GATHER, REDUCE = "c10d::_allgather_base_", "c10d::_reduce_scatter_base_"
PATCHES_BACKWARD = "aten::convolution_backward"


@pytest.fixture(scope="module", autouse=True)
def many_ranks() -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=64)
    yield
    dist.destroy_process_group()


class Calls(TorchDispatchMode):
    """Notes the name of each operator, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


def second_step(**options: Any) -> list[str]:
    """Return the operators of a step on 2 large and 3 small views; the first step sets FSDP up."""
    kwargs = timm_kwargs(EncoderConfig(name=NAME, kwargs=SMALL), 32, 3)
    # One layer has no batch norm, which would gather its statistics.
    projector = {"layers": 1, "width": 8}
    values = {"kind": "lejepa", "sigreg": {"num_slices": 16}, "projector": projector}
    engine = engines.build_engine(
        lambda: build_encoder(NAME, kwargs, 0),
        build_head(TypeAdapter(ObjectiveConfig).validate_python(values), 32, n_global=2, seed=0),
        EngineConfig(kind="fsdp", precision="fp32", **options),
        OptimizerConfig(),
        torch.device("cpu"),
    )
    views = [torch.randn(2, 3, 3, 32, 32), torch.randn(3, 3, 3, 16, 16)]
    batch = MicroBatch(views, torch.zeros(5, 3, dtype=torch.int64))
    train_step(engine, batch, 0, 1e-3)
    with Calls() as calls:
        train_step(engine, batch, 1, 1e-3)
    return calls.names


@pytest.mark.parametrize("shard", [None, 8])
def test_gradients_of_small_views_are_reduced_before_large_views_go_backward(shard: int | None):
    names = second_step(shard=shard)
    # The patches of a size are the last to go backward.
    first, second = (place for place, name in enumerate(names) if name == PATCHES_BACKWARD)
    assert names[:first].count(REDUCE) >= DEPTH
    assert names[first:second].count(REDUCE) >= DEPTH
    # Replicas average the whole gradient of the encoder alone; that of the head is whole already.
    assert names[names.index(REDUCE) : first].count("c10d::allreduce_") == (0 if shard is None else 1)


@pytest.mark.parametrize(
    ("options", "gathered", "reduced"),
    [({}, 19, 11), ({"packed": True}, 10, 6), ({"reshard_after_forward": False}, 10, 6)],
)
def test_collectives_of_a_step(options: dict[str, Any], gathered: int, reduced: int):
    """The figures of docs/engines.md: 4 blocks, what lies around them, and the head."""
    names = second_step(**options)
    assert (names.count(GATHER), names.count(REDUCE)) == (gathered, reduced)
