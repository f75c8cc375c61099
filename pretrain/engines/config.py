"""How a step is spread over processes and what it is computed in: fields, and what cannot go together."""

from typing import Any, Literal

from pydantic import PositiveInt, model_validator
from torch import nn

from isotorus.errors import UserError
from isotorus.section import Section
from pretrain.models.batch_norm import has_batch_norm, unsynchronized
from pretrain.models.packed import unfit

# Elements of DeepSpeed's communication buffers, 200 MB in fp32.
ZERO_BUCKET = 50_000_000
# Buckets of parameters that ZeRO-3 may keep gathered at once.
LIVE_BUCKETS = 4
# Fields that only one engine has.
OPTIONS = {
    "fsdp": ("reshard_after_forward", "shard"),
    "deepspeed": ("zero_stage", "offload", "nvme_path"),
}


class EngineConfig(Section):
    kind: Literal["ddp", "fsdp", "deepspeed"] = "ddp"
    """ddp: a full replica on each rank; fsdp: parameters, gradients and moments sharded by torch's FSDP2;
    deepspeed: ZeRO."""
    precision: Literal["auto", "fp32", "bf16", "fp8"] = "auto"
    """Arithmetic of encoder and projector; auto is bf16 on GPUs and CPUs that compute in it, else fp32. fp8
    is bf16 but for the linear layers of the encoder's blocks, on GPUs that have it; best with compile=true.
    Statistics, parameters, gradients' sums over ranks and moments stay fp32."""
    deterministic: bool = False
    """Bit for bit the same run each time on the same machines, for some speed."""
    accumulation: PositiveInt = 1
    """Micro-batches that a rank's share of the batch is cut into, to save memory."""
    micro_batch: PositiveInt | None = None
    """Images that a rank may hold at once, in place of `accumulation`, which then follows from the rank's
    share of the batch: fewer ranks take more micro-batches rather than more memory."""
    accumulate: Literal["exact", "microbatch"] = "exact"
    """exact: loss and gradient of the whole batch, for a second forward pass (a third more time);
    microbatch: a mean of the micro-batches' losses, another objective for statistics of the batch."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """What of a block's activations is recomputed in the backward pass, to save memory. selective: all but
    the outputs of linear layers, convolutions and fused attention; full: everything but the block's input."""
    compile: bool = False
    """torch.compile each block of the encoder: faster steps after a slow first one."""
    packed: bool = False
    """Views of all sizes go through a ViT as one sequence of tokens, with attention within each view: layers
    see one large matrix, and fsdp and ZeRO-3 gather parameters once, not once a size."""
    reshard_after_forward: bool = True
    """fsdp: gather a block's parameters again in the backward pass and reduce gradients each micro-batch;
    false keeps both whole from the forward pass to the update: less traffic, more memory."""
    shard: PositiveInt | None = None
    """fsdp: ranks that one replica is sharded over, e.g. the GPUs of a node; replicas of it are averaged
    (HSDP). By default all ranks."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """deepspeed: what is sharded: 1 moments, 2 also gradients, 3 also parameters; 0 nothing."""
    offload: Literal["none", "cpu", "nvme"] = "none"
    """deepspeed: where moments (zero_stage 1 and 2) and parameters (3) wait while they are not in use."""
    nvme_path: str | None = None
    """deepspeed: folder on a local NVMe disk for offload=nvme."""

    @model_validator(mode="after")
    def _possible(self) -> "EngineConfig":
        for kind, options in OPTIONS.items():
            for name in options:
                given = getattr(self, name)
                if kind != self.kind and given != type(self).model_fields[name].default:
                    raise ValueError(
                        f"engine.{name}={given} is an option of engine.kind={kind}, which {self.kind} does "
                        f"not have; leave it out or use engine.kind={kind}"
                    )
        if self.micro_batch and self.accumulation > 1:
            raise ValueError(
                f"engine.micro_batch={self.micro_batch} and engine.accumulation={self.accumulation}: the "
                "first decides the second; give one of them"
            )
        if self.kind == "deepspeed":
            self._zero_possible()
        return self

    def passes(self, batch_size: int, world_size: int) -> int:
        """Micro-batches a step, equal on all ranks: they communicate in each.

        With `micro_batch` as many as the largest share of the batch needs. With micro_batch=1 and uneven
        shares that is one too many for the smallest, so the largest has one of two images.
        """
        if self.micro_batch is None:
            return self.accumulation
        return min(-(-batch_size // (world_size * self.micro_batch)), batch_size // world_size)

    def on(self, batch_size: int, world_size: int) -> "EngineConfig":
        """The same with `accumulation` in the place of `micro_batch`, for so many ranks."""
        passes = self.passes(batch_size, world_size)
        return self.model_copy(update={"accumulation": passes, "micro_batch": None})

    def _zero_possible(self) -> None:
        stage = f"engine.zero_stage={self.zero_stage}"
        if self.precision == "fp8":
            raise ValueError(
                "engine.precision=fp8 has not been tried with engine.kind=deepspeed; use engine.kind=ddp or "
                "fsdp, or engine.precision=bf16"
            )
        if self.compile and self.zero_stage == 3:
            raise ValueError(
                f"engine.compile=true with {stage}: ZeRO-3's hooks break compiled graphs; use "
                "engine.zero_stage=2, engine.kind=fsdp or engine.compile=false"
            )
        if self.activation_checkpointing == "selective" and self.zero_stage == 3:
            raise ValueError(
                f"engine.activation_checkpointing=selective with {stage}: ZeRO-3 gathers parameters within "
                "what is recomputed; use full, or engine.kind=fsdp"
            )
        if self.offload == "cpu" and self.zero_stage == 0:
            raise ValueError(f"engine.offload=cpu with {stage}: nothing is sharded; use engine.zero_stage=1")
        if self.offload == "nvme" and self.zero_stage != 3:
            raise ValueError(
                f"engine.offload=nvme with {stage}: only ZeRO-3 can; use engine.zero_stage=3 or "
                "engine.offload=cpu"
            )
        if (self.offload == "nvme") != (self.nvme_path is not None):
            raise ValueError(
                f"engine.offload={self.offload} and engine.nvme_path={self.nvme_path}: the path is for "
                "offload=nvme, which needs it"
            )


def check(config: EngineConfig, world_size: int, encoder: nn.Module, with_target: bool) -> None:
    """Raise UserError if these ranks, or this encoder (on the meta device), are not for the engine."""
    if config.shard is not None and world_size % config.shard:
        divisors = [str(n) for n in range(1, world_size + 1) if world_size % n == 0]
        raise UserError(
            f"engine.shard={config.shard} does not divide {world_size} ranks; use {', '.join(divisors)}"
        )
    if config.kind == "fsdp" and (names := [n for n, p in encoder.named_parameters() if p.ndim == 0]):
        raise UserError(
            f"engine.kind=fsdp cannot shard parameters without dimensions, such as the encoder's {names[0]}; "
            "use engine.kind=ddp or deepspeed"
        )
    if config.packed and (reason := unfit(encoder)):
        raise UserError(
            f"engine.packed=true: {reason}, whose tokens could be one sequence; use engine.packed=false"
        )
    if config.offload == "nvme" and with_target:
        raise UserError("engine.offload=nvme: a target network has to stay in memory; use engine.offload=cpu")
    if config.activation_checkpointing != "none" and has_batch_norm(encoder):
        raise UserError(
            f"engine.activation_checkpointing={config.activation_checkpointing}: recomputing a block would "
            "update its batch norm's statistics twice; use none, or an encoder without batch norm"
        )
    if world_size > 1 and (names := unsynchronized(encoder)):
        kind = type(encoder.get_submodule(names[0])).__name__
        raise UserError(
            f"the encoder's {names[0]} is a {kind}, whose statistics would be of one rank's images alone on "
            f"{world_size} ranks; use one process, or an encoder with BatchNorm2d or without batch norm"
        )
    if drawn := [name for name, module in encoder.named_modules() if _is_random(module)]:
        raise UserError(
            f"the encoder's dropout ({drawn[0]}) draws from a generator's state, so that no step could be "
            "repeated; use drop_path_rate in encoder.kwargs instead"
        )


def _is_random(module: nn.Module) -> bool:
    """Whether a module is a dropout at work; drop-path is drawn from keys."""
    probability: Any = getattr(module, "p", getattr(module, "prob", 0))
    return "Drop" in type(module).__name__ and "Path" not in type(module).__name__ and bool(probability)
