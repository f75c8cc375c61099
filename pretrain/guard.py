"""Says which view on which rank brought a NaN or an infinity, when a step was refused for one."""

import torch
import torch.distributed as dist
from torch import Tensor


class Guard:
    """Counts refused steps and broken views on the device; looks at them only at logged steps."""

    def __init__(self, device: torch.device) -> None:
        self._refused = torch.zeros((), device=device)
        self._broken: Tensor | None = None
        self.skipped = 0

    def watch(self, grad_norm: Tensor, projections: Tensor) -> None:
        """After a step: its gradient norm and this rank's projections (V, N, K)."""
        self._refused += ~grad_norm.isfinite()
        broken = (~projections.isfinite()).flatten(1).any(1)
        self._broken = broken if self._broken is None else self._broken | broken

    def report(self) -> tuple[int, str]:
        """Refused steps since the last report, and where they came from; called on all ranks alike."""
        refused, self._refused = int(self._refused.item()), torch.zeros_like(self._refused)
        if not refused:
            return 0, ""
        self.skipped += refused
        assert self._broken is not None
        views = torch.nonzero(self._broken).flatten().tolist()
        gathered: list[list[int]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(gathered, views)
        self._broken = None
        places = [f"view {view} on rank {rank}" for rank, views in enumerate(gathered) for view in views]
        source = (
            f"NaN or infinity in the projections of {', '.join(places)}" if places else "a gradient overflow"
        )
        return refused, source
