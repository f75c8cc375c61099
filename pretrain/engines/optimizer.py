"""AdamW with the usual groups.

Biases, norms, tokens, and embeddings of positions and channels have no weight decay.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from pretrain.distributed import own_part
from pretrain.engines.config import OptimizerConfig
from pretrain.models.channel_embedding import EMBEDDING


def build_optimizer(
    encoder: nn.Module, head: nn.Module, config: OptimizerConfig, fused: bool = True
) -> torch.optim.AdamW:
    """Build AdamW over encoder and head; the timm model is `encoder.encoder`.

    Frozen parameters are left out. Each group has `lr_scale`, by which its learning rate is multiplied.
    """
    tokens: set[str] = getattr(encoder.get_submodule("encoder"), "no_weight_decay", set)()
    spared = {f"encoder.{name}" for name in tokens}
    named = [*encoder.named_parameters(), *head.named_parameters()]
    named = [(name, p) for name, p in named if p.requires_grad]
    scales = _layer_scales(encoder.get_submodule("encoder"), config.layer_decay)
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, p in named:
        decayed = _is_matrix(p) and not name.endswith((".bias", f".{EMBEDDING}")) and name not in spared
        groups.setdefault((decayed, scales.get(id(p), 1.0)), []).append(p)
    return torch.optim.AdamW(
        [
            {
                "params": groups[decayed, scale],
                "weight_decay": config.weight_decay if decayed else 0.0,
                "lr_scale": scale,
            }
            for decayed, scale in sorted(groups, reverse=True)
        ],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=fused,
    )


def _layer_scales(model: nn.Module, decay: float) -> dict[int, float]:
    """Return the factor of the learning rate of each parameter of a timm model, by its `id`.

    The last layer has the factor 1, the one before it `decay`, and so on; timm knows its models' layers.
    """
    if decay == 1:
        return {}
    groups = param_groups_layer_decay(model, layer_decay=decay)
    return {id(p): group["lr_scale"] for group in groups for p in group["params"]}


def _is_matrix(parameter: nn.Parameter) -> bool:
    """Return whether a parameter has two or more dimensions; under ZeRO-3, `ds_shape` holds its shape."""
    return len(getattr(parameter, "ds_shape", parameter.shape)) > 1


def accepts(norm: Tensor, limit: Tensor | None) -> Tensor:
    """Return whether an update with this gradient norm is accepted; one that is not finite never is."""
    return norm.isfinite() if limit is None else norm <= limit.to(norm.device)


@torch.no_grad()
def update(optimizer: torch.optim.AdamW, lr: float, clip_grad: float, limit: Tensor | None = None) -> Tensor:
    """Clip gradients, update parameters and clear gradients; return the norm before clipping, a scalar.

    Tensors may be whole or sharded. A norm that is not finite, or above `limit`, refuses the update:
    parameters and moments stay as they are. The norm is global, so all ranks decide the same.

    All is computed on this rank's parts of tensors, with one sum over ranks for the norm: an operation on
    DTensors takes the host longer than the device.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    gradients = [own_part(p.grad) for p in parameters]
    norm = _norm_over_shards(gradients, parameters[0])
    torch._foreach_mul_(gradients, (clip_grad / (norm + 1e-6)).clamp(max=1))
    # The fused kernels read this flag on the device, so the host need not wait for the norm.
    refused = (~accepts(norm, limit)).float()
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
        _step(optimizer, group, refused)
    optimizer.zero_grad(set_to_none=True)
    return norm


def _norm_over_shards(tensors: list[Tensor], like: Tensor) -> Tensor:
    """Return the norm of all elements, from this rank's parts of tensors that are sharded as `like` is."""
    total = torch.stack(torch._foreach_norm(tensors)).double().square().sum()
    if isinstance(like, DTensor):
        for dim, placement in enumerate(like.placements):
            if placement.is_shard():
                dist.all_reduce(total, group=like.device_mesh.get_group(dim))
    return total.sqrt().float()


def _step(optimizer: torch.optim.AdamW, group: dict[str, Any], refused: Tensor) -> None:
    """Do what `optimizer.step()` does with one group of parameters, unless it is `refused` (0 or 1)."""
    parameters = [p for p in group["params"] if p.grad is not None]
    if not parameters:
        return
    moments = [_moments(optimizer, p) for p in parameters]
    adamw(
        [own_part(p) for p in parameters],
        [own_part(p.grad) for p in parameters],
        [own_part(moment["exp_avg"]) for moment in moments],
        [own_part(moment["exp_avg_sq"]) for moment in moments],
        [],
        [moment["step"] for moment in moments],
        fused=True,
        found_inf=refused,
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )


def optimizer_state(
    optimizer: torch.optim.AdamW, named: Iterable[tuple[str, nn.Parameter]]
) -> dict[str, dict[str, Any]]:
    """Return moments and step counts by parameter name: the optimizer's own tensors, not copies.

    Values that are loaded into them are used by the next step.
    """
    return {"state": {name: _moments(optimizer, parameter) for name, parameter in named}}


def _moments(optimizer: torch.optim.AdamW, parameter: nn.Parameter) -> dict[str, Any]:
    """Return a parameter's entry in the optimizer; before its first step, make one."""
    state = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros((), device=parameter.device)
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
    return state
