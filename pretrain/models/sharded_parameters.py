"""Parameters that are sharded over ranks, by FSDP2 or by DeepSpeed's ZeRO-3."""

from torch import Tensor
from torch.distributed.tensor import DTensor


def own_part(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor, in the same memory: a shard of FSDP or ZeRO-3, or all of it."""
    if isinstance(tensor, DTensor):
        return tensor.to_local().detach()
    return getattr(tensor, "ds_tensor", tensor).detach()
