"""The sections `engine` and `optimizer` of a recipe, and the combinations of fields that are refused."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from isotorus.section import Section

# Elements of DeepSpeed's communication buffers, 200 MB in fp32.
ZERO_BUCKET = 50_000_000
# Buckets of parameters that ZeRO-3 may keep gathered at once.
LIVE_BUCKETS = 4
# Fields that belong to one engine alone.
OPTIONS = {
    "fsdp": ("reshard_after_forward", "shard"),
    "deepspeed": ("zero_stage", "offload", "nvme_path"),
}


Switch = Literal[True, False, "auto"]
"""A setting that can be left to `pretrain.engines.automatic`."""


class EngineConfig(Section):
    """Settings of the engine."""

    kind: Literal["ddp", "fsdp", "deepspeed"] = "ddp"
    """ddp: all parameters on each rank; fsdp: parameters, gradients and moments sharded by torch's FSDP2;
    deepspeed: sharded by DeepSpeed's ZeRO."""
    precision: Literal["auto", "fp32", "bf16", "fp8"] = "auto"
    """Precision of encoder and projector. auto: bf16 on GPUs and CPUs that compute in it, else fp32. fp8:
    bf16, but fp8 in the linear layers of the encoder's blocks, on GPUs that have it; best with compile=true.
    Statistics, parameters, gradients summed over ranks, and moments are always fp32."""
    deterministic: bool = False
    """Give the same bits in every run on the same machines; costs some speed."""
    accumulation: PositiveInt = 1
    """Micro-batches into which a rank's share of the batch is divided, to save memory."""
    micro_batch: PositiveInt | None = None
    """Most images that a rank holds at once. Give it instead of `accumulation`, which then follows from the
    rank's share of the batch: with fewer ranks, more micro-batches and no more memory."""
    accumulate: Literal["exact", "microbatch"] = "exact"
    """exact: loss and gradient of the whole batch, at the cost of a second forward pass (a third more time);
    microbatch: mean of the losses of the micro-batches, which is another objective where the loss has
    statistics of the batch."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """Activations of a block that are recomputed in the backward pass, to save memory. selective: all but the
    outputs of linear layers, convolutions and fused attention; full: all but the block's input."""
    compile: Switch = False
    """Compile each block of the encoder with torch.compile: the first step is slow, the others faster. auto:
    plain ViTs on GPUs, where there is a C compiler, and not with ZeRO-3."""
    packed: Switch = False
    """Put the tokens of views of all sizes into one sequence, with attention within each view (plain ViTs
    only). Layers then see one large matrix, and fsdp and ZeRO-3 gather parameters once instead of once for
    each size. auto: for plain ViTs."""
    reshard_after_forward: bool = True
    """fsdp: free the gathered parameters of a block after its forward pass, gather them again in the backward
    pass, and reduce gradients in each micro-batch and after the views of each size. false keeps both whole
    until the update: less traffic, more memory."""
    shard: Literal["node"] | PositiveInt | None = None
    """fsdp: number of ranks over which one replica is sharded; gradients are averaged over replicas (HSDP).
    node: the ranks of a node, or all where each node has one; other engines ignore it. Default: all ranks."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """deepspeed: what is sharded. 0: nothing; 1: moments; 2: gradients too; 3: parameters too."""
    offload: Literal["none", "cpu", "nvme"] = "none"
    """deepspeed: where moments (zero_stage 1 and 2) and parameters (3) are kept while not in use."""
    nvme_path: str | None = None
    """deepspeed: folder on a local NVMe disk, for offload=nvme."""

    @model_validator(mode="after")
    def _possible(self) -> "EngineConfig":
        for kind, options in OPTIONS.items():
            for name in options:
                value = getattr(self, name)
                default = type(self).model_fields[name].default
                if kind != self.kind and value not in (default, "node"):
                    raise ValueError(
                        f"engine.{name}={value} is an option of engine.kind={kind}, which {self.kind} does "
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

    @property
    def ranks_of_replica(self) -> int | None:
        """The value of `shard` after `pretrain.engines.automatic` has decided what `node` is."""
        assert self.shard != "node"
        return self.shard

    def passes(self, batch_size: int, world_size: int) -> int:
        """Return the number of micro-batches in a step, equal on all ranks, as they communicate in each.

        With `micro_batch`, that is as many as the largest share of the batch needs. If micro_batch=1 and the
        shares differ by one image, that would be more micro-batches than the smallest share has images; then
        the largest share has one micro-batch of two images.
        """
        if self.micro_batch is None:
            return self.accumulation
        return min(-(-batch_size // (world_size * self.micro_batch)), batch_size // world_size)

    def on(self, batch_size: int, world_size: int) -> "EngineConfig":
        """Return the same settings for `world_size` ranks, with `accumulation` instead of `micro_batch`."""
        passes = self.passes(batch_size, world_size)
        return self.model_copy(update={"accumulation": passes, "micro_batch": None})

    def _zero_possible(self) -> None:
        """Raise `ValueError` for settings that DeepSpeed cannot combine."""
        stage = f"engine.zero_stage={self.zero_stage}"
        if self.precision == "fp8":
            raise ValueError(
                "engine.precision=fp8 has not been tried with engine.kind=deepspeed; use engine.kind=ddp or "
                "fsdp, or engine.precision=bf16"
            )
        if self.compile is True and self.zero_stage == 3:
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


def reduces_by_size(config: EngineConfig) -> bool:
    """Return whether gradients of views of one size are reduced before those of the next are computed.

    FSDP does so where it also shards parameters again after use. Packed, all sizes are one pass.
    """
    return config.kind == "fsdp" and config.reshard_after_forward and not config.packed


class OptimizerConfig(Section):
    """Settings of the optimizer."""

    lr: PositiveFloat = 5e-4
    """Peak learning rate of AdamW."""
    weight_decay: NonNegativeFloat = 5e-2
    """Decoupled weight decay, on matrices only."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay rate of the first moment."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """Decay rate of the second moment."""
    eps: PositiveFloat = 1e-8
    """ε in AdamW's update m̂ / (√v̂ + ε): gradients much smaller than ε hardly move a parameter."""
    warmup_steps: NonNegativeInt = 500
    """Steps of linear warm-up before the cosine decay."""
    final_lr_ratio: float = Field(1e-3, ge=0, le=1)
    """Learning rate of the last step, as a share of the peak."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Factor by which the learning rate falls from each layer of the encoder to the one before it, for
    fine-tuning (Clark et al. 2020, arXiv:2003.10555); 0.65 to 0.75 is usual. 1: the same rate everywhere."""
    clip_grad: PositiveFloat = 1.0
    """Largest global norm of the gradients; larger ones are scaled down to it."""
