"""FSDP2: parameters, gradients and moments in shards over ranks, gathered block by block while in use.

Zhao et al. 2023, arXiv:2304.11277, in the form of `torch.distributed.fsdp.fully_shard`. Where one sharded
model takes fewer than all ranks, its replicas average their gradients (HSDP).
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from pretrain.distributed import world_size
from pretrain.engines.blocks import blocks
from pretrain.engines.config import EngineConfig, OptimizerConfig, reduces_by_size
from pretrain.engines.networks import Networks, materialize, uses_bf16
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
        for follower in networks.followers():
            _shard(follower.projector, mesh, True, bf16)
        # torch 2.15 has it, 2.11 not. One NCCL communicator would let gradients wait until the next block's
        # parameters are gathered; on CPUs they wait anyway.
        if device.type == "cuda" and hasattr(FSDPModule, "set_separate_reduce_scatter_group"):
            cast(FSDPModule, networks.encoder).set_separate_reduce_scatter_group()
        materialize(networks, encoder, device)
        super().__init__(networks, networks.encoder, networks.head, config, optimizer, device)
        self._synchronizes = True

    def encode(self, views: list[Tensor], keys: Tensor) -> Tensor:
        """Encode each size by itself where gradients are to be reduced by size, see `_SizeBySize`."""
        apart = torch.is_grad_enabled() and len(views) > 1 and reduces_by_size(self.config)
        if not apart:
            return super().encode(views, keys)
        keys_of_sizes = keys.split([len(x) for x in views])
        sizes = [super(FSDPEngine, self).encode([x], k) for x, k in zip(views, keys_of_sizes, strict=True)]
        return _SizeBySize.apply(torch.empty(0, requires_grad=True), sizes, self.no_sync)

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Do not average gradients over replicas inside this context, which may be inside another one."""
        before = self._synchronizes
        self._set_sync(False)
        try:
            yield
        finally:
            self._set_sync(before)

    def _set_sync(self, sync: bool) -> None:
        """Say whether the next backward pass is the last one of the step."""
        self._synchronizes = sync
        for module in (self._encoder, self._head):
            assert isinstance(module, FSDPModule)
            module.set_is_last_backward(sync)
            if self.config.reshard_after_forward:
                # To save memory, each micro-batch's gradients are summed into shards at once; only the sum
                # over replicas waits for the last micro-batch.
                module.set_requires_all_reduce(sync)
            else:
                module.set_requires_gradient_sync(sync)


class _SizeBySize(torch.autograd.Function):
    """Joins the embeddings of views of all sizes, and goes backward through one size after the other.

    In one backward pass, torch would keep the first size's gradients of all parameters whole until the last
    size has gone backward too, and only then reduce the sums.
    """

    @staticmethod
    def forward(ctx: Any, _: Tensor, sizes: list[Tensor], no_sync: Callable[[], Any]) -> Tensor:
        """Return embeddings (V, N, D) of `sizes` (v, N, D), whose graphs are kept; `_` needs a gradient."""
        ctx.sizes, ctx.no_sync = sizes, no_sync
        return torch.cat([x.detach() for x in sizes])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        parts = gradients[0].split([len(x) for x in ctx.sizes])
        while len(ctx.sizes) > 1:
            with ctx.no_sync():
                torch.autograd.backward(ctx.sizes.pop(), parts[len(ctx.sizes)])
        torch.autograd.backward(ctx.sizes.pop(), parts[0])
        return None, None, None


def _mesh(config: EngineConfig, device: torch.device) -> DeviceMesh:
    """Return the mesh of ranks: shards, or replicas × shards."""
    ranks = world_size()
    shard = config.ranks_of_replica
    if shard is None or shard == ranks:
        return init_device_mesh(device.type, (ranks,), mesh_dim_names=("shard",))
    return init_device_mesh(device.type, (ranks // shard, shard), mesh_dim_names=("replica", "shard"))


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
