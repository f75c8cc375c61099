"""Convert ZeRO's state to tensors under the networks' own names, and back.

So a checkpoint contains none of DeepSpeed's partitions. Parameters are converted one by one: no rank holds
more than one whole tensor besides its share, which lies in CPU memory as an even shard, as FSDP's would.
"""

from typing import Any

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from pretrain.distributed import rank
from pretrain.engines.networks import Networks

MOMENTS = ("exp_avg", "exp_avg_sq")


def collect(networks: Networks, zero: Any, mesh: DeviceMesh) -> dict[str, Any]:
    """Return `Engine.state` for stages 1 to 3, as a copy.

    `zero` is DeepSpeed's optimizer, `mesh` the CPUs of all ranks.
    """
    step = step_counts(zero)[0].cpu()
    model: dict[str, Tensor] = {
        name: _shard(whole(value), mesh) if isinstance(value, nn.Parameter) else value
        for name, value in networks.state_dict(keep_vars=True).items()
    }
    moments = {
        name: {"step": step}
        | {key: _shard(safe_get_full_optimizer_state(parameter, key), mesh) for key in MOMENTS}
        for name, parameter in networks.online_parameters()
    }
    return {"model": model, "optimizer": {"state": moments}}


@torch.no_grad()
def distribute(networks: Networks, zero: Any, state: dict[str, Any]) -> None:
    """Copy the values that were loaded into the tensors of `collect` into ZeRO's partitions."""
    moments = state["optimizer"]["state"]
    for name, parameter in networks.named_parameters():
        values = {"": state["model"][name]} | {key: moments[name][key] for key in MOMENTS if name in moments}
        for key, value in values.items():
            full = value.full_tensor() if isinstance(value, DTensor) else value
            _put(parameter, full.to(parameter.device), key)
    step = next(iter(moments.values()))["step"]
    for own in step_counts(zero):
        own.fill_(step.item())
    if hasattr(zero, "update_lp_params"):  # stages 1 and 2 compute with a copy of what they update
        zero.update_lp_params()


def whole(parameter: nn.Parameter) -> Tensor:
    """Return a parameter in fp32, gathered from ZeRO's partitions on all ranks."""
    if parameter.requires_grad:
        return safe_get_full_fp32_param(parameter)
    with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
        return parameter.detach().clone()


def _put(parameter: nn.Parameter, full: Tensor, key: str) -> None:
    """Set a parameter (key "") or one of its moments from the whole tensor, which is equal on all ranks."""
    if not hasattr(parameter, "ds_id"):
        if not parameter.requires_grad:
            parameter.copy_(full)
        elif key:
            safe_set_full_optimizer_state(parameter, full, key)
        else:
            safe_set_full_fp32_param(parameter, full)
        return
    # In stage 3, DeepSpeed's own function for whole tensors fails if partitions are uneven.
    partition: Tensor = parameter.ds_tensor  # type: ignore[attr-defined]
    flat = full.new_zeros(partition.numel())
    mine = full.flatten()[rank() * len(flat) :][: len(flat)]
    flat[: len(mine)] = mine
    if not key:
        partition.copy_(flat)
    if key:
        safe_set_local_optimizer_state(parameter, flat, key)
    elif parameter.requires_grad:
        safe_set_local_fp32_param(parameter, flat)


def start_moments(zero: Any) -> None:
    """Make the moments that the first step would make.

    DeepSpeed links parameters to their moments once: in the first step, after its first group, when the
    moments of the other groups do not exist yet.
    """
    for flat in _partitions(zero):
        moments = {key: torch.zeros_like(flat) for key in MOMENTS}
        zero.optimizer.state[flat] = {"step": torch.zeros((), device=flat.device)} | moments
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._lazy_init_hp_params_optimizer_state()


def clear_gradients(zero: Any) -> None:
    """Clear gradients after a step.

    DeepSpeed overwrites those that the next step's first backward pass reaches, which are the head's. To the
    others it would add what this step left.
    """
    for name in ("grad_partitions_flat_buffer", "accumulated_grads_in_cpu"):
        left = getattr(zero, name, {})
        for buffer in left.values() if isinstance(left, dict) else [left]:
            buffer.zero_()


def step_counts(zero: Any) -> list[Tensor]:
    """Return the number of updates of each partition of this rank; all numbers are equal."""
    return [zero.optimizer.state[flat]["step"] for flat in _partitions(zero)]


def _partitions(zero: Any) -> list[Tensor]:
    """Return the tensors that this rank updates: one flat fp32 tensor for each parameter group."""
    return getattr(zero, "single_partition_of_fp32_groups", None) or zero.fp32_partitioned_groups_flat


def _shard(full: Tensor, mesh: DeviceMesh) -> Tensor:
    """Return this rank's even share of a tensor, on the CPU; all of a tensor without dimensions."""
    if full.ndim == 0:
        return full.cpu()
    chunks = full.chunk(mesh.size())
    mine = chunks[rank()] if rank() < len(chunks) else full[:0]
    local = torch.empty(mine.shape, dtype=mine.dtype).copy_(mine)
    return DTensor.from_local(
        local, mesh, [Shard(0)], run_check=False, shape=full.shape, stride=full.contiguous().stride()
    )
