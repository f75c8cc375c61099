"""DDP: a replica on every rank, gradients averaged in buckets while the backward pass produces them."""

import contextlib
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pretrain.distributed import world_size
from pretrain.engines.config import EngineConfig, OptimizerConfig
from pretrain.engines.networks import Networks, materialize
from pretrain.engines.torch_engine import TorchEngine


class DDPEngine(TorchEngine):
    """An engine that wraps encoder and head separately: with accumulation the head runs once a step."""

    def __init__(
        self,
        networks: Networks,
        encoder: Callable[[], nn.Module],
        config: EngineConfig,
        optimizer: OptimizerConfig,
        device: torch.device,
    ) -> None:
        materialize(networks, encoder, device)
        replicas = _replicate(networks.encoder, device), _replicate(networks.head, device)
        super().__init__(networks, *replicas, config, optimizer, device)

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Do not average gradients inside this context."""
        with contextlib.ExitStack() as stack:
            for module in (self._encoder, self._head):
                if isinstance(module, DistributedDataParallel):
                    stack.enter_context(module.no_sync())
            yield


def _replicate(module: nn.Module, device: torch.device) -> nn.Module:
    """Wrap a module with DDP, where there are several ranks."""
    if world_size() == 1:
        return module
    with warnings.catch_warnings():
        # Newer versions of torch have another name for broadcast_buffers, which torch 2.11 does not know.
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(
            module,
            device_ids=[device.index] if device.type == "cuda" else None,
            # Buffers are batch-norm statistics of the global batch, so they are equal on all ranks already.
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )
