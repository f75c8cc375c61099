"""What ranks tell each other of themselves at logged steps: who is slow, who needs most memory."""

import resource

import torch
import torch.distributed as dist

from pretrain.distributed import rank, world_size


def compare(seconds: float, data_wait: float) -> dict[str, float]:
    """The slowest rank, the longest wait for data and the memory peak; called on all ranks alike.

    `seconds` is what this rank spent a step without waiting for the others (`StepTimer`'s `alone`), as
    whole steps take equally long on all of them; `data_wait` is its share of the step in which it waited for
    data, which the others then wait for. GiB.
    """
    everyone = torch.zeros(world_size(), 3, dtype=torch.float64)
    everyone[rank()] = torch.tensor([seconds, _peak_memory() / 2**30, data_wait], dtype=torch.float64)
    if world_size() > 1:
        dist.all_reduce(everyone)
    alone, memory, waited = everyone.T
    return {
        "slowest_rank": alone.argmax().item(),
        "slowest_rank_seconds": alone.max().item(),
        "median_rank_seconds": alone.median().item(),
        "data_wait": waited.max().item(),
        "memory_gib": memory.max().item(),
    }


def _peak_memory() -> int:
    """Bytes: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
