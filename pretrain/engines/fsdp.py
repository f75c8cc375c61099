"""FSDP2: parameters, gradients and moments in shards over ranks, gathered block by block while in use.

Zhao et al. 2023, arXiv:2304.11277, in the form of `torch.distributed.fsdp.fully_shard`. With fewer ranks
a shard than there are, replicas of the sharded model average their gradients (HSDP).
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
    """Encoder, head and target are sharded apart: each is called by itself."""

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
            # The backward pass, which the target does not have, reshards what the forward pass does not.
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
        self._set_sync(False)
        try:
            yield
        finally:
            self._set_sync(True)

    def _set_sync(self, sync: bool) -> None:
        for module in (self._encoder, self._head):
            assert isinstance(module, FSDPModule)
            module.set_is_last_backward(sync)
            if self.config.reshard_after_forward:
                # Memory comes first: gradients are sharded at once, and only replicas wait for the last.
                module.set_requires_all_reduce(sync)
            else:
                module.set_requires_gradient_sync(sync)


def _mesh(config: EngineConfig, device: torch.device) -> DeviceMesh:
    ranks = world_size()
    if config.shard in (None, ranks):
        return init_device_mesh(device.type, (ranks,), mesh_dim_names=("shard",))
    assert config.shard is not None
    return init_device_mesh(
        device.type, (ranks // config.shard, config.shard), mesh_dim_names=("replica", "shard")
    )


def _shard(module: nn.Module, mesh: DeviceMesh, reshard_after_forward: bool, bf16: bool) -> None:
    """Shard what is not sharded yet of a module.

    With bf16, matrices are gathered in it; norms, batch norm's too, and all else that autocast computes
    with in fp32 stay fp32. Gradients are summed in fp32.
    """
    options: dict[str, Any] = {"reduce_dtype": torch.float32, "cast_forward_inputs": False}
    # torch before 2.15 has one type for all of a block's parameters: then it gathers them in fp32.
    if bf16 and hasattr(MixedPrecisionPolicy, "param_dtype_override_fn"):
        options |= {"param_dtype": torch.bfloat16, "param_dtype_override_fn": _gathered_dtype}
    policy = MixedPrecisionPolicy(**options)
    fully_shard(module, mesh=mesh, reshard_after_forward=reshard_after_forward, mp_policy=policy)


def _gathered_dtype(parameter: nn.Parameter) -> torch.dtype | None:
    return None if parameter.ndim in (2, 4) else torch.float32
