"""What `auto` and `node` in the engine's settings mean for this encoder, on these ranks and machines.

All ranks decide the same: if one machine has no compiler, no machine compiles.
"""

import importlib.util
import os
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from isotorus.compilers import COMPILER_REMEDY, c_compiler, cxx_compiler
from isotorus.errors import UserError
from pretrain.distributed import rank, world_size
from pretrain.engines.config import EngineConfig
from pretrain.engines.networks import uses_bf16
from pretrain.models.several_sizes import unfit


class Decided(NamedTuple):
    """Settings without `auto` and `node`."""

    config: EngineConfig
    reasons: dict[str, str]
    """By field, why `auto` left it off or why `node` has no effect."""


def decide(config: EngineConfig, encoder: nn.Module, node: int, why_not_compile: str = "") -> Decided:
    """Decide `packed`, `compile` and `shard` for a timm model and `node` ranks on each node.

    `why_not_compile` says why these machines should not compile, or is empty.
    """
    values: dict[str, bool | int | None] = {}
    reasons: dict[str, str] = {}
    odd = unfit(encoder) or ""
    if config.packed == "auto":
        values["packed"], reasons["packed"] = not odd, odd
    if config.compile == "auto":
        zero_3 = config.kind == "deepspeed" and config.zero_stage == 3
        reason = "ZeRO-3's hooks break compiled graphs" if zero_3 else odd or why_not_compile
        values["compile"], reasons["compile"] = not reason, reason
    if config.shard == "node":
        # Over one rank, nothing would be sharded, so the run shards over all ranks instead.
        values["shard"] = node if config.kind == "fsdp" and node > 1 else None
        reasons["shard"] = (
            "" if config.kind == "fsdp" else f"engine.kind={config.kind} has no shards to place"
        )
    return Decided(config.model_copy(update=values), {name: why for name, why in reasons.items() if why})


def in_words(given: EngineConfig, decided: EngineConfig, reasons: dict[str, str] | None = None) -> list[str]:
    """Return a phrase for each setting that was `auto` or `node`, such as "engine.packed=auto is true"."""
    said = []
    for name, value in given.model_dump().items():
        if value in ("auto", "node"):
            found = getattr(decided, name)
            shown = str(found).lower() if found is not None else "all ranks"
            why = (reasons or {}).get(name)
            said.append(f"engine.{name}={value} is {shown}" + (f" ({why})" if why else ""))
    return said


def decide_here(config: EngineConfig, encoder: nn.Module, device: torch.device) -> Decided:
    """Decide for the ranks and machines of this run, the precision too; all ranks call it.

    Raises `UserError` if engine.compile=true lacks a compiler on this machine, or engine.shard=node finds
    nodes that differ.
    """
    if config.precision == "auto":
        bf16 = uses_bf16(config, device)
        config = config.model_copy(update={"precision": "bf16" if bf16 else "fp32"})
    reason = cannot_compile(device.type)
    if config.compile is True and reason:
        raise UserError(f"engine.compile=true cannot compile here: {reason}, or use engine.compile=false")
    if config.compile == "auto" and device.type == "cpu":
        reason = "auto compiles for GPUs alone"
    asks = config.compile == "auto" or (config.shard == "node" and config.kind == "fsdp")
    if not asks or world_size() == 1:
        return decide(config, encoder, 1, reason)
    local = [int(os.environ.get(name, "-1")) for name in ("LOCAL_WORLD_SIZE", "LOCAL_RANK")]
    everyone = torch.zeros(world_size(), 3, dtype=torch.int64)
    everyone[rank()] = torch.tensor([*local, bool(reason)])
    dist.all_reduce(everyone)
    sizes, places, without = everyone.T.tolist()
    if any(without):
        reason = reason or f"the machine of rank {without.index(1)} cannot compile"
    asked = config.shard == "node" and config.kind == "fsdp"
    return decide(config, encoder, ranks_of_node(sizes, places) if asked else 1, reason)


def ranks_of_node(sizes: list[int], places: list[int]) -> int:
    """Return the number of ranks on each node.

    `sizes` and `places` are LOCAL_WORLD_SIZE and LOCAL_RANK of all ranks in order, -1 where they are not set.
    Raises `UserError` if nodes have different numbers of ranks, or a node's ranks are not consecutive.
    """
    remedy = "leave it out to shard over all ranks"
    if min(sizes) < 1:
        lacks = f"rank {sizes.index(min(sizes))} has no LOCAL_WORLD_SIZE"
        raise UserError(
            f"engine.shard=node: {lacks}, which launchers set; "
            f"start the run with torchrun or isotorus launch, or {remedy}"
        )
    if len(set(sizes)) > 1:
        counts = " and ".join(str(size) for size in sorted(set(sizes)))
        raise UserError(
            f"engine.shard=node needs as many ranks on each node, these have {counts}; use the same number "
            f"everywhere, give engine.shard as a number that divides {len(sizes)}, or {remedy}"
        )
    if places != [number % sizes[0] for number in range(len(sizes))]:
        raise UserError(
            "engine.shard=node needs consecutive ranks on each node, and here they alternate between nodes; "
            f"use srun --distribution=block, or {remedy}"
        )
    return sizes[0]


def cannot_compile(device: str) -> str:
    """Return why torch.compile cannot work for "cuda" or "cpu" on this machine; an empty string if it can."""
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        return "Triton is not installed; pip install triton"
    if (c_compiler if device == "cuda" else cxx_compiler)() is None:
        return f"there is no {'C' if device == 'cuda' else 'C++'} compiler; {COMPILER_REMEDY}"
    return ""
