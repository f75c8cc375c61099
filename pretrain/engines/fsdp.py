"""FSDP2: parameters, gradients and moments in shards over ranks, gathered block by block while in use.

Zhao et al. 2023, arXiv:2304.11277, in the form of `torch.distributed.fsdp.fully_shard`. Where one sharded
model takes fewer than all ranks, its replicas average their gradients (HSDP).
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from pretrain.distributed import world_size
from pretrain.engines.blocks import blocks
from pretrain.engines.config import EngineConfig
from pretrain.engines.networks import Networks, materialize, uses_bf16
from pretrain.engines.optimizer import OptimizerConfig
from pretrain.engines.torch_engine import TorchEngine


class FSDPEngine(TorchEngine):
    """An engine that shards encoder, head and target separately, because each is called by itself."""

    def __init__(
        self,
        networks: Networks,
        encoder: Callable[[], nn.Module],
        config: EngineConfig,
        optimizer: OptimizerConfig,
        device: torch.device,
    ) -> None:
        mesh = _mesh(config, device)
        bf16 = uses_bf16(config, device)
        for copy in networks.encoders():
            # Parameters that stay gathered after the forward pass are sharded again by the backward pass. The
            # target has no backward pass, so its parameters are always sharded after the forward pass.
            trained = copy is networks.encoder
            for block in blocks(copy.get_submodule("encoder")):
                _shard(block, mesh, config.reshard_after_forward or not trained, bf16)
            _shard(copy, mesh, not trained, bf16)
        _shard(networks.head, mesh, False, bf16)
        if networks.has_target:
            _shard(networks.target.projector, mesh, True, bf16)
        materialize(networks, encoder, device)
        super().__init__(networks, networks.encoder, networks.head, config, optimizer, device)

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Do not average gradients over replicas inside this context."""
        self._set_sync(False)
        try:
            yield
        finally:
            self._set_sync(True)

    def _set_sync(self, sync: bool) -> None:
        """Say whether the next backward pass is the last one of the step."""
        for module in (self._encoder, self._head):
            assert isinstance(module, FSDPModule)
            module.set_is_last_backward(sync)
            if self.config.reshard_after_forward:
                # To save memory, each micro-batch's gradients are summed into shards at once; only the sum
                # over replicas waits for the last micro-batch.
                module.set_requires_all_reduce(sync)
            else:
                module.set_requires_gradient_sync(sync)


def _mesh(config: EngineConfig, device: torch.device) -> DeviceMesh:
    """Return the mesh of ranks: shards, or replicas × shards."""
    ranks = world_size()
    if config.shard in (None, ranks):
        return init_device_mesh(device.type, (ranks,), mesh_dim_names=("shard",))
    assert config.shard is not None
    return init_device_mesh(
        device.type, (ranks // config.shard, config.shard), mesh_dim_names=("replica", "shard")
    )


def _shard(module: nn.Module, mesh: DeviceMesh, reshard_after_forward: bool, bf16: bool) -> None:
    """Shard the parameters of a module that are not sharded yet.

    With bf16, matrices are gathered in bf16. Norms, batch norms and everything else that autocast computes in
    fp32 stay fp32. Gradients are summed in fp32.
    """
    options: dict[str, Any] = {"reduce_dtype": torch.float32, "cast_forward_inputs": False}
    # Before torch 2.15 a block has one type for all its parameters; it is fp32 then.
    if bf16 and hasattr(MixedPrecisionPolicy, "param_dtype_override_fn"):
        options |= {"param_dtype": torch.bfloat16, "param_dtype_override_fn": _gathered_dtype}
    policy = MixedPrecisionPolicy(**options)
    fully_shard(module, mesh=mesh, reshard_after_forward=reshard_after_forward, mp_policy=policy)


def _gathered_dtype(parameter: nn.Parameter) -> torch.dtype | None:
    """Return None for matrices and convolutions, which are gathered in bf16, and fp32 for the others."""
    return None if parameter.ndim in (2, 4) else torch.float32
