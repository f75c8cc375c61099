"""Count the collective calls of a training step, and their bytes, as one of very many ranks would make them.

One process takes the place of rank 0, and its messages go nowhere (torch's fake process group), so that the
calls of 1,024 ranks are counted on any machine. Prints the table of docs/engines.md.
"""

import argparse
import multiprocessing
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from pydantic import TypeAdapter
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pretrain import engines
from pretrain.engines import Engine
from pretrain.engines.config import EngineConfig, OptimizerConfig
from pretrain.engines.step import MicroBatch, train_step
from pretrain.methods import build_head
from pretrain.methods.config import ObjectiveConfig
from pretrain.models.config import EncoderConfig
from pretrain.models.drop_path import sample_keys
from pretrain.models.encoder import build_encoder, timm_kwargs
from pretrain.monitoring.online_probe import OnlineProbe

IMAGES, CLASSES = 2, 10
"""Images of a rank, and classes of the probe."""
KINDS = {
    "allreduce_": "all-reduce",
    "_allgather_base_": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "broadcast_": "broadcast",
}
"""Names of torch's operations; a call under another name is counted by that name."""
ENCODERS: dict[str, tuple[str, dict[str, Any], int]] = {
    "vit": ("vit_tiny_patch16_224", {"patch_size": 8, "embed_dim": 32, "num_heads": 2}, 32),
    "resnet": ("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]}, 32),
}
METHODS: dict[str, dict[str, Any]] = {
    "lejepa": {"kind": "lejepa", "sigreg": {"num_slices": 64}},
    "jepa": {"kind": "jepa"},
    "torus": {"kind": "torus"},
}
ENGINES: dict[str, dict[str, Any]] = {
    "ddp": {"kind": "ddp"},
    "ddp, packed": {"kind": "ddp", "packed": True},
    "fsdp": {"kind": "fsdp"},
    "fsdp, packed": {"kind": "fsdp", "packed": True},
    "fsdp, not resharded": {"kind": "fsdp", "reshard_after_forward": False},
    "HSDP, shard=8": {"kind": "fsdp", "shard": 8},
    "HSDP, shard=8, packed": {"kind": "fsdp", "shard": 8, "packed": True},
}


class Calls(NamedTuple):
    """Collective calls by kind."""

    number: Counter[str]
    bytes: Counter[str]
    """Bytes of the tensors that are summed, of those that are gathered, and of those that are scattered."""


class Count(TorchDispatchMode):
    """Counts the collective calls while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = Calls(Counter(), Counter())

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: Any = (), options: dict[str, Any] | None = None
    ) -> Any:
        if operation.namespace == "c10d":
            kind = KINDS.get(operation._opname, operation._opname)
            largest = max((x.nbytes for x in tree_leaves(arguments) if isinstance(x, Tensor)), default=0)
            self.calls.number[kind] += 1
            self.calls.bytes[kind] += largest
        return operation(*arguments, **(options or {}))


def build(options: dict[str, Any], method: str = "lejepa", encoder: str = "vit", depth: int = 2) -> Engine:
    """Build a small engine on the CPU."""
    name, small, width = ENCODERS[encoder]
    more = {"depth": depth} if encoder == "vit" else {}
    kwargs = timm_kwargs(EncoderConfig(name=name, kwargs=small | more), 32, 3)
    mlp: dict[str, Any] = {"hidden": 24, "layers": 3}
    values = METHODS[method] | ({"head": mlp} if method == "torus" else {"projector": mlp | {"width": 8}})
    config = TypeAdapter(ObjectiveConfig).validate_python(values)
    engine = engines.build_engine(
        lambda: build_encoder(name, kwargs, seed=0),
        build_head(config, width, n_global=2, seed=0),
        EngineConfig(**{"precision": "fp32"} | options),
        OptimizerConfig(),
        torch.device("cpu"),
        with_target=method == "jepa",
    )
    for replica in vars(engine).values():
        if isinstance(replica, DistributedDataParallel):
            replica.register_comm_hook(None, average)
    return engine


def average(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Average a bucket of gradients as DDP does, which cannot read the result of a fake group's sum."""
    future: torch.futures.Future[Tensor] = torch.futures.Future()
    dist.all_reduce(bucket.buffer())
    future.set_result(bucket.buffer().div_(dist.get_world_size()))
    return future


def calls_of_step(engine: Engine) -> Calls:
    """Return the calls of one step of training, after those that only happen at first."""
    for step in range(3):
        views = [torch.randn(2, IMAGES, 3, size, size) for size in (32, 16)]
        batch = MicroBatch(views, sample_keys(0, step, 0, IMAGES, views=4))
        with Count() as count:
            train_step(engine, batch, step, lr=1e-4)
    return count.calls


def calls_of_head(method: str = "lejepa") -> Calls:
    """Return the calls of a head's forward and backward pass, without the mean of its gradients."""
    head = build({"kind": "ddp"}, method).networks.head
    embeddings = torch.randn(4, IMAGES, 32, requires_grad=True)
    target = [torch.randn(2, IMAGES, 8)] if method == "jepa" else []
    with Count() as count:
        head(embeddings, 0, *target).parts["loss"].backward()
    return count.calls


def calls_of_probe() -> Calls:
    """Return the calls of a step of the online probe."""
    probe = OnlineProbe(32, CLASSES, torch.device("cpu"))
    with Count() as count:
        probe.learn(torch.randn(IMAGES, 32), torch.zeros(IMAGES, dtype=torch.int64))
    return count.calls


def be_one_of(ranks: int) -> None:
    """Make this process rank 0 of a group whose messages go nowhere."""
    if dist.is_initialized():
        dist.destroy_process_group()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)


def row(name: str, ranks: int, calls: Calls) -> str:
    """Return a row of the table."""
    assert set(calls.number) <= set(KINDS.values()), calls
    cells = [
        f"{calls.number[kind]}, {calls.bytes[kind] / 1024:,.0f}" if calls.number[kind] else "–"
        for kind in KINDS.values()
    ]
    return " | ".join(["", name, f"{ranks:,}", *cells, ""]).strip()


def row_of_zero(stage: int, ranks: int) -> str:
    """Return the row of a stage of ZeRO; call it once in a process."""
    be_one_of(ranks)
    return row(f"ZeRO-{stage}", ranks, calls_of_step(build({"kind": "deepspeed", "zero_stage": stage})))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[64, 1024])
    given = parser.parse_args()
    print(f"| | ranks | {' | '.join(f'{kind}s, KiB' for kind in KINDS.values())} |\n|{'---|' * 6}")
    for ranks in given.ranks:
        be_one_of(ranks)
        for name, options in ENGINES.items():
            print(row(name, ranks, calls_of_step(build(options))), flush=True)
        # DeepSpeed keeps groups for as long as a process lives.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:
            for stage in (2, 3):
                print(pool.submit(row_of_zero, stage, ranks).result(), flush=True)
        print(row("ddp, JEPA", ranks, calls_of_step(build(ENGINES["ddp"], "jepa"))), flush=True)
        resnet = build(ENGINES["ddp"], "jepa", "resnet")
        print(row("ddp, JEPA, ResNet with 13 batch norms", ranks, calls_of_step(resnet)), flush=True)
        for method in METHODS:
            print(row(f"of which the head of {method}", ranks, calls_of_head(method)), flush=True)
        print(row("and the online probe", ranks, calls_of_probe()), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
