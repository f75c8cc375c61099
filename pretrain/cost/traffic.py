"""The collective calls of a training step, and their bytes, for each engine.

tests/pretrain/cost/test_traffic.py compares them with the calls that real steps make.
"""

from typing import Literal, NamedTuple

from pretrain.config import Config
from pretrain.cost.activation_memory import gathers_in_bf16
from pretrain.cost.memory_estimate import Parameters
from pretrain.methods.config import JEPAConfig, LeJEPAConfig

FP32, BF16 = 4, 2
DDP_BUCKET = 25 * 2**20
"""Bytes of gradients that DDP sums in one call, torch's default."""


class Calls(NamedTuple):
    """Calls of one kind that a step makes."""

    kind: Literal["all-reduce", "all-gather", "reduce-scatter"]
    number: float
    bytes: float
    """Bytes in all calls together, of the tensors that are summed or gathered, or whose sum is scattered."""
    over: Literal["all", "shard", "replicas"] = "all"
    """Ranks that take part: all, those that share one replica, or those that have the same shard."""
    beside: Literal["forward", "backward", "nothing"] = "nothing"
    """The computation during which the calls can go on; "nothing" where all ranks wait."""


def step_traffic(config: Config, parameters: Parameters, ranks: int, bf16: bool) -> list[Calls]:
    """Return the calls of a step on several ranks, with the engine's `auto` settings decided."""
    if ranks == 1:
        return []
    engine, sums = config.engine, statistics(config, parameters)
    gradients, norm = FP32 * parameters.trained, Calls("all-reduce", 1, FP32)
    if engine.kind == "fsdp":
        return [*_fsdp(config, parameters, ranks, bf16), *sums, norm]
    if engine.kind == "ddp":
        buckets = -(-FP32 * parameters.encoder // DDP_BUCKET) + -(-FP32 * parameters.projector // DDP_BUCKET)
        return [Calls("all-reduce", buckets, gradients, beside="backward"), *sums]
    if engine.zero_stage < 3:
        # Stages 0 and 1 sum after the backward pass (`overlap_comm` in pretrain.engines.deepspeed).
        beside: Literal["backward", "nothing"] = "backward" if engine.zero_stage == 2 else "nothing"
        summed = Calls("all-reduce", 2, gradients, beside=beside)
        updated = Calls("all-gather", 2, gradients)
        return [summed, *([updated] if engine.zero_stage else []), *sums, norm]
    sizes, passes = _passes(config)
    forward, backward = (sizes * n * FP32 * parameters.encoder for n in passes)
    head = FP32 * parameters.projector
    layers = 8 * parameters.depth  # each weight and bias of a block is gathered in a call of its own
    scattered = passes[1] * gradients
    return [
        Calls("all-gather", layers * sizes * passes[0], forward + head, beside="forward"),
        Calls("all-gather", layers * sizes * passes[1], backward + head, beside="backward"),
        Calls("reduce-scatter", passes[1], scattered, beside="backward"),
        *sums,
        norm,
    ]


def statistics(config: Config, parameters: Parameters) -> list[Calls]:
    """Return the sums over ranks that batch norms and the loss need, during which all ranks wait.

    A sum is made in each direction. Batch norms sum a count, a mean and a square for each feature in float64.
    """
    objective, views = config.objective, sum(r.views for r in config.views.resolutions())
    size = 2 * 2 * 8 * parameters.norm_features
    number = 2 * parameters.norms + 2
    sigreg = isinstance(objective, LeJEPAConfig) or getattr(objective, "regularizer", "") == "sigreg"
    if sigreg and isinstance(objective, LeJEPAConfig | JEPAConfig):
        seen = views if isinstance(objective, LeJEPAConfig) else 1
        size += 2 * 2 * FP32 * (objective.sigreg.knots - 1) * seen * objective.sigreg.num_slices
    elif isinstance(objective, JEPAConfig):
        size += 2 * FP32 * objective.projector.width**2
        number += 2  # covariances need the mean first
    if isinstance(objective, JEPAConfig):
        number += objective.projector.layers - 1  # the target network's projector, forward alone
    return [Calls("all-reduce", number, size)]


def _fsdp(config: Config, parameters: Parameters, ranks: int, bf16: bool) -> list[Calls]:
    """Return the calls of `pretrain.engines.fsdp`.

    A block is gathered for the views of each size, and once more for each in the backward pass. What lies
    outside the blocks, and the head, stay gathered until the backward pass of a size ends.
    """
    engine, (sizes, (forwards, backwards)) = config.engine, _passes(config)
    gathered = BF16 if bf16 and gathers_in_bf16(engine) else FP32
    blocks, outside = parameters.blocks, parameters.encoder - parameters.blocks
    shard = engine.ranks_of_replica or ranks
    # Parameters that stay whole are sharded again when the views of one size have gone backward.
    blocks_forward = sizes * forwards if engine.reshard_after_forward else 1
    blocks_backward = sizes * backwards if engine.reshard_after_forward else sizes * backwards - 1
    scatters = sizes * backwards if engine.reshard_after_forward else 1
    head = parameters.projector
    depth = parameters.depth
    over: Literal["shard", "all"] = "shard" if shard < ranks else "all"
    ahead = Calls(
        "all-gather",
        depth * blocks_forward + 2,
        gathered * (blocks_forward * blocks + outside + head),
        over,
        "forward",
    )
    again = scatters - 1  # how often parameters outside the blocks are gathered in the backward passes
    behind = Calls(
        "all-gather",
        depth * blocks_backward + again,
        gathered * (blocks_backward * blocks + again * outside),
        over,
        "backward",
    )
    scattered = Calls(
        "reduce-scatter",
        (depth + 1) * scatters + 1,
        FP32 * (scatters * parameters.encoder + head),
        over,
        "backward",
    )
    calls = [ahead, behind, scattered]
    if shard < ranks:
        size = FP32 * parameters.trained / shard
        calls.append(Calls("all-reduce", depth + 2, size, "replicas", "backward"))
    if isinstance(config.objective, JEPAConfig):
        followers = 1 + (config.average.momentum is not None)
        size = gathered * parameters.target / followers * engine.accumulation
        calls.append(Calls("all-gather", (depth + 2) * engine.accumulation, size, over, "forward"))
    return calls


def _passes(config: Config) -> tuple[int, tuple[int, int]]:
    """Return how many sizes of views are encoded one by one, and the forward and backward passes of each."""
    engine = config.engine
    sizes = 1 if engine.packed else len(config.views.resolutions())
    first = engine.accumulation if engine.accumulation > 1 and engine.accumulate == "exact" else 0
    return sizes, (first + engine.accumulation, engine.accumulation)
