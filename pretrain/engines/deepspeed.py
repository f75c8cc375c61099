"""DeepSpeed's ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054), stages 0 to 3, with offload.

Parameters stay fp32 and autocast computes in bf16 as with the other engines, so that the step is the same.
"""

import contextlib
import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

# DeepSpeed reads both when it is imported. A launcher sets the second one; a single process has none.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
os.environ.setdefault("LOCAL_RANK", "0")
import deepspeed
from deepspeed.utils import logger

from isotorus.device import to_device
from pretrain.distributed import world_size
from pretrain.engines import zero_state
from pretrain.engines.config import LIVE_BUCKETS, ZERO_BUCKET, EngineConfig, OptimizerConfig
from pretrain.engines.networks import Networks, Weights, materialize, tensors
from pretrain.engines.optimizer import accepts, build_optimizer, optimizer_state, update
from pretrain.methods.base import HeadOutput


class DeepSpeedEngine:
    """An engine (see `pretrain.engines.Engine`) that calls all networks through DeepSpeed's one module."""

    def __init__(
        self,
        networks: Networks,
        encoder: Callable[[], nn.Module],
        config: EngineConfig,
        optimizer: OptimizerConfig,
        device: torch.device,
    ) -> None:
        self.networks, self.config, self.device = networks, config, device
        self.mesh = init_device_mesh("cpu", (world_size(),))
        self.stage, self.clip_grad = config.zero_stage, optimizer.clip_grad
        settings = _settings(config, optimizer.clip_grad, device)
        _prepare_deepspeed()
        if self.stage == 3:
            _partition(networks, encoder, settings, device)
        else:
            materialize(networks, encoder, device)
        self.optimizer = build_optimizer(networks.encoder, networks.head, optimizer)
        self.zero, *_ = deepspeed.initialize(
            model=networks, optimizer=self.optimizer, config=settings, dist_init_required=False
        )
        self._limit: Tensor | None = None
        if self.stage:
            self.optimizer.register_step_pre_hook(self._judge)
            zero_state.start_moments(self.zero.optimizer)

    def encode(self, views: list[Tensor], keys: Tensor) -> Tensor:
        return self.zero("encoder", views, keys)

    @torch.no_grad()
    def target(self, batches: list[list[Tensor]], keys: list[Tensor]) -> Tensor | None:
        return self.zero("target", batches, keys) if self.networks.has_target else None

    def head(self, embeddings: Tensor, step: int, beside: Tensor | None) -> HeadOutput:
        return self.zero("head", embeddings, step, *([] if beside is None else [beside]))

    def backward(self, loss: Tensor, gradient: Tensor | None = None) -> None:
        # DeepSpeed needs a scalar; this one has the same gradient.
        self.zero.backward(loss if gradient is None else (loss * gradient).sum(), scale_wrt_gas=False)

    def no_sync(self) -> contextlib.AbstractContextManager[None]:
        """Return an empty context: gradients are summed until `step` anyway, in shards from stage 2 on."""
        return contextlib.nullcontext()

    def step(self, lr: float, momentum: float = 1.0, limit: Tensor | None = None) -> Tensor:
        if self.stage == 0:
            self.zero.buffered_allreduce_fallback()
            norm = update(self.optimizer, lr, self.clip_grad, limit)
        else:
            for group in self.optimizer.param_groups:
                group["lr"] = lr * group["lr_scale"]
            self._limit = limit
            self.zero.step()
            norm = torch.as_tensor(self.zero.get_global_grad_norm(), dtype=torch.float32)
            norm = to_device(norm, self.device)
            zero_state.clear_gradients(self.zero.optimizer)
        self.networks.follow(momentum, accepts(norm, limit))
        return norm

    def _judge(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Refuse an update before the optimizer makes it. All ranks see the same global gradient norm.

        DeepSpeed itself skips a step whose norm is not finite, so such a norm does not arrive here.
        """
        norm = self.zero.optimizer._global_grad_norm
        partition = next(p for group in optimizer.param_groups for p in group["params"])
        accepted = accepts(to_device(torch.as_tensor(norm), partition.device), self._limit)
        optimizer.found_inf = (~accepted).float()  # type: ignore[attr-defined]

    def state(self) -> dict[str, Any]:
        if self.stage:
            return zero_state.collect(self.networks, self.zero.optimizer, self.mesh)
        moments = optimizer_state(self.optimizer, self.networks.online_parameters())
        return {"model": self.networks.state_dict(), "optimizer": moments}

    def load(self, state: dict[str, Any]) -> None:
        if self.stage:
            zero_state.distribute(self.networks, self.zero.optimizer, state)


def _prepare_deepspeed() -> None:
    """Set up DeepSpeed's process group and silence what it would print."""
    logger.setLevel(logging.ERROR)
    # A C++ operator for inference on CPUs, which DeepSpeed would compile for a minute at the first start.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(auto_mpi_discovery=False, dist_init_required=False)


def _settings(config: EngineConfig, clip_grad: float, device: torch.device) -> dict[str, Any]:
    """Return DeepSpeed's configuration."""
    zero: dict[str, Any] = {
        "stage": config.zero_stage,
        "overlap_comm": config.zero_stage >= 2,
        "contiguous_gradients": True,
        "reduce_bucket_size": ZERO_BUCKET,
        "allgather_bucket_size": ZERO_BUCKET,
        "stage3_prefetch_bucket_size": ZERO_BUCKET,
        "stage3_max_live_parameters": LIVE_BUCKETS * ZERO_BUCKET,
        "stage3_max_reuse_distance": ZERO_BUCKET,
        # The target network is updated shard by shard, so every parameter has to be sharded.
        "stage3_param_persistence_threshold": 0,
        # If true, it would replace torch's linear function in the whole process.
        "memory_efficient_linear": False,
    }
    if config.offload != "none":
        where: dict[str, Any] = {"device": config.offload, "pin_memory": device.type == "cuda"}
        if config.nvme_path:
            where["nvme_path"] = config.nvme_path
        zero["offload_optimizer"] = where
        if config.zero_stage == 3:
            zero["offload_param"] = where
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # `step` ends the accumulation. DeepSpeed cannot tell where it ends, because the backward passes of a
        # step reach different parameters.
        "managed_gradient_accumulation": False,
        "gradient_clipping": clip_grad if config.zero_stage else 0.0,
        "steps_per_print": None,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
    }


def _partition(
    networks: Networks, encoder: Callable[[], nn.Module], settings: dict[str, Any], device: torch.device
) -> None:
    """Do what `materialize` does, but partition each layer before the next one takes memory."""
    networks.head.to(device)
    deepspeed.zero.Init(module=networks.head, config_dict_or_path=settings)
    convert = next(networks.head.parameters()).convert_to_zero_parameters  # type: ignore[attr-defined]
    for follower in networks.followers():
        follower.projector.to(device)
        convert(param_list=list(follower.projector.parameters()))
    for name, buffer in networks.named_buffers(recurse=False):
        setattr(networks, name, buffer.to(device))
    weights = Weights(encoder)
    layers = [dict(copy.named_modules()) for copy in networks.encoders()]
    for name, *copies in zip(layers[0], *(each.values() for each in layers), strict=True):
        for layer in copies:
            layer.to_empty(device=device, recurse=False)
        own = [tensors(layer, recurse=False) for layer in copies]
        for key, like in own[0].items():
            whole = weights.take(f"{name}.{key}".removeprefix("."), like, device)
            assert not whole.isnan().any()
            for each in own:
                each[key].data.copy_(whole)
        for layer in copies:
            convert(param_list=list(layer.parameters(recurse=False)))
