"""What an engine cannot do with the encoder and the number of ranks of a run."""

from torch import nn

from isotorus.errors import UserError
from pretrain.engines.config import EngineConfig
from pretrain.models.batch_norm import has_batch_norm, unsynchronized
from pretrain.models.several_sizes import unfit


def check_engine(config: EngineConfig, world_size: int, encoder: nn.Module, followed: bool) -> None:
    """Raise `UserError` if the engine cannot run on this number of ranks, or with this encoder.

    The encoder is on the meta device. `followed` says that there is a target network or an average.
    """
    if isinstance(config.shard, int) and world_size % config.shard:
        divisors = ", ".join(str(n) for n in range(1, world_size + 1) if world_size % n == 0)
        raise UserError(
            f"engine.shard={config.shard} does not divide {world_size} ranks; use {divisors} or node"
        )
    if config.kind == "fsdp" and (names := [n for n, p in encoder.named_parameters() if p.ndim == 0]):
        raise UserError(
            f"engine.kind=fsdp cannot shard parameters without dimensions, such as the encoder's {names[0]}; "
            "use engine.kind=ddp or deepspeed"
        )
    if config.packed is True and (reason := unfit(encoder)):
        raise UserError(
            f"engine.packed=true: {reason}, whose tokens could be one sequence; use engine.packed=false"
        )
    if config.offload == "nvme" and followed:
        raise UserError(
            "engine.offload=nvme: a target network and averaged weights have to stay in memory; use "
            "engine.offload=cpu"
        )
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
