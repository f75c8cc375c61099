"""Estimate the memory of one rank at the peak of a step, by part, for an engine and a number of ranks.

What depends on the architecture is measured (`pretrain.cost.activation_memory`); everything else is
arithmetic on numbers of parameters. Parameters, gradients and AdamW's two moments are fp32 in every engine:
16 bytes a parameter.
"""

from dataclasses import dataclass

from torch import nn

from pretrain.config import Config
from pretrain.cost.accelerators import plans_bf16
from pretrain.cost.activation_memory import encoder_footprint, gathers_in_bf16, head_footprint
from pretrain.cost.map_grid import map_grid
from pretrain.engines.blocks import blocks
from pretrain.engines.config import LIVE_BUCKETS, ZERO_BUCKET, EngineConfig
from pretrain.methods import build_head
from pretrain.methods.config import Turned
from pretrain.models.batch_norm import GlobalBatchNorm
from pretrain.preflight.model import Model

FP32, BF16 = 4, 2
GIB = 2**30
# Assumed, not measured: the CUDA context, NCCL and cuBLAS on a GPU, or torch itself on a CPU; and the share
# that an allocator wastes.
RUNTIME = {"cuda": 1.5 * GIB, "cpu": 0.7 * GIB}
FRAGMENTATION = {"cuda": 0.05, "cpu": 0.0}


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters; those of target network and average are not trained."""

    encoder: int
    blocks: int
    """Parameters of the encoder that lie in its repeated blocks."""
    largest_block: int
    projector: int
    """All MLPs of the head."""
    target: int
    """Encoder and projector again, for a target network and for an average."""
    buffers: int
    """Bytes of buffers, mostly of batch norm."""
    depth: int = 1
    """Number of the encoder's repeated blocks."""
    norms: int = 0
    """Number of batch norms of a step: of the head, and of the encoder for the views of each size."""
    norm_features: int = 0
    """Features of all these batch norms together."""

    @property
    def trained(self) -> int:
        """Number of trained parameters."""
        return self.encoder + self.projector


def count_parameters(config: Config, model: Model) -> Parameters:
    """Count the parameters of a run's networks; `model.encoder` is on the meta device."""
    turned = Turned.of(config.views)
    head = build_head(config.objective, model.width, config.views.global_views, 0, turned)
    each = [_count(block) for block in blocks(model.encoder)]
    encoder = _count(model.encoder)
    followed = encoder + _count(head.get_submodule("projector"))
    buffers = [*model.encoder.buffers(), *head.buffers()]
    norms = _norms(model.encoder) * len(config.views.resolutions()) + _norms(head)
    return Parameters(
        encoder=encoder,
        blocks=sum(each),
        largest_block=max(each),
        projector=_count(head),
        target=followed * ((config.objective.kind == "jepa") + (config.average.momentum is not None)),
        buffers=sum(buffer.nbytes for buffer in buffers),
        depth=len(each),
        norms=len(norms),
        norm_features=sum(norms),
    )


def rank_memory(
    config: Config, model: Model, parameters: Parameters, ranks: int, device: str
) -> dict[str, float]:
    """Return the bytes at the peak of a training step on one of `ranks`, by part.

    `device` is "cuda" or "cpu".
    """
    engine, bf16 = config.engine, plans_bf16(config.engine, device)
    images = -(-config.data.batch_size // ranks)  # on the rank with the most
    resolutions = config.views.resolutions()
    views = sum(r.views for r in resolutions)
    pixels = images * config.data.channel_count * sum(r.views * r.size**2 for r in resolutions)
    state = state_bytes(engine, parameters, ranks)
    # A single replica and FSDP make gradients while the backward pass frees activations. The other engines
    # have buffers for gradients all the time; on CPUs those of ZeRO-2 take memory only when they are filled.
    filled = engine.kind == "deepspeed" and engine.zero_stage == 2 and device == "cpu"
    alone = engine.kind == "ddp" and ranks == 1
    made = engine.accumulation == 1 and (engine.kind == "fsdp" or alone or filled)
    kept = made and engine.kind == "fsdp" and not engine.reshard_after_forward
    gathered = _gathered(engine, bf16)
    step = encoder_footprint(
        config.encoder.name,
        model.kwargs,
        [(r.views, r.size) for r in resolutions],
        config.data.channel_count,
        -(-images // engine.accumulation),
        engine,
        device,
        bf16,
        gradients_made=state["gradients"] / (FP32 * parameters.trained) if made else 0.0,
        kept_whole=gathered * parameters.blocks if kept else 0.0,
        buffers=(2 * gathered * parameters.largest_block, 2 * FP32 * parameters.largest_block)
        if kept
        else (0, 0),
    )
    if made and sum(step.values()) < state["gradients"]:
        step = {}  # the peak is at the update
    elif made:
        state["gradients"] = step.pop("gradients", 0.0)
    grid = map_grid(config, model.kwargs)
    cells = grid.height * grid.width
    head = head_footprint(
        config.objective.model_dump_json(),
        model.width,
        config.views.global_views,
        views,
        images,
        bf16,
        Turned.of(config.views),
        grid,
    )
    parts = state | {
        "buffers": parameters.buffers,
        "views": pixels * (1 + FP32),  # uint8, and augmented
        "embeddings": 2 * FP32 * views * images * cells * model.width,  # with their gradient
        "activations": step.get("activations", 0.0),
        "weight copies": step.get("weight copies", 0.0),
        "communication": _communication(engine, parameters, bf16) + step.get("gathered", 0.0),
        "backward": step.get("workspace", 0.0),
        **head,
    }
    parts["reserve"] = RUNTIME[device] + FRAGMENTATION[device] * sum(parts.values())
    return parts


def state_bytes(engine: EngineConfig, parameters: Parameters, ranks: int) -> dict[str, float]:
    """Return the bytes on the device that stay from step to step, by part."""
    whole, shards = FP32 * parameters.trained, engine.ranks_of_replica or ranks
    if engine.kind != "deepspeed":
        share = whole / (shards if engine.kind == "fsdp" else 1)
        target = FP32 * parameters.target / (shards if engine.kind == "fsdp" else 1)
        return {"parameters": share, "gradients": share, "optimizer": 2 * share, "target": target}
    stage, share = engine.zero_stage, whole / ranks
    here = engine.offload == "none"
    # From stage 1 on the optimizer works on a copy of its share of the parameters.
    optimizer = 2 * whole if stage == 0 else 3 * share
    held = share if stage == 3 else whole
    return {
        "parameters": held if here or stage < 3 else 0.0,
        "gradients": (whole if stage < 2 else share) if here or stage < 2 else 0.0,
        "optimizer": optimizer if here else 0.0,
        "target": FP32 * parameters.target / (ranks if stage == 3 else 1),
    }


def _communication(engine: EngineConfig, parameters: Parameters, bf16: bool) -> float:
    """Return the bytes of whole parameters and gradients that pass through a rank, buffers included."""
    if engine.kind == "ddp":
        return 0.0
    if engine.kind == "deepspeed":
        # Gradients are reduced from two buckets. ZeRO-3 gathers fp32 up to its limit, and one bucket ahead.
        limit = {0: 1, 1: 1, 2: 2, 3: 2 + LIVE_BUCKETS + 1}[engine.zero_stage] * ZERO_BUCKET
        return FP32 * min(limit, 3 * parameters.trained)
    gathered = _gathered(engine, bf16)
    outside, largest = parameters.trained - parameters.blocks, parameters.largest_block
    # Outside the blocks, parameters stay gathered and gradients stay whole until they are reduced. Those of a
    # block pass through buffers: two for gathering its parameters, and two for reducing its gradients.
    around = (gathered + FP32) * outside
    if engine.accumulation == 1 and not engine.reshard_after_forward:
        return around  # pretrain.cost.activation_memory counts the blocks, as `gathered`
    buffers = around + 2 * (gathered + FP32) * largest
    if engine.reshard_after_forward:
        return buffers + 2 * gathered * largest  # the block at work and the next one
    return buffers + (gathered + FP32) * parameters.blocks  # gradients wait for the last micro-batch


def _gathered(engine: EngineConfig, bf16: bool) -> int:
    """Return the bytes of a gathered parameter."""
    return BF16 if bf16 and gathers_in_bf16(engine) else FP32


def checkpoint_bytes(parameters: Parameters) -> float:
    """Return the bytes of one checkpoint on disk.

    DCP files hold parameters, moments and target; encoder.safetensors holds the encoder again.
    """
    dcp = 3 * FP32 * parameters.trained + FP32 * parameters.target + parameters.buffers
    return dcp + FP32 * parameters.encoder


def _norms(module: nn.Module) -> list[int]:
    """Return the features of each batch norm."""
    kinds = (GlobalBatchNorm, nn.modules.batchnorm._BatchNorm)
    norms = (m for m in module.modules() if isinstance(m, kinds))
    return [m.running_mean.numel() for m in norms if m.running_mean is not None]


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
