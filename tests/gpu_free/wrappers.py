"""DDP and FSDP on torch's meta device, in a group whose messages go nowhere.

Their own code runs as on a GPU: buckets, gathered and scattered buffers, hooks of the backward pass. Four
things that the meta device has not are put in their place: parameters that can be compared between ranks when
a module is wrapped, parameters with values, streams, and the result of a message. HSDP does not run here: it
waits for an event of a stream, which the streams in their place do not have. It is counted in
test_collectives.py.
"""

import importlib
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from benchmarks.collectives import average
from pretrain.config import Config
from pretrain.engines.ddp import DDPEngine
from pretrain.engines.fsdp import FSDPEngine
from pretrain.engines.networks import Networks
from pretrain.engines.torch_engine import TorchEngine

DEVICE = torch.device("meta")
FSDP = "torch.distributed.fsdp._fully_shard"


def allow_meta(patch: pytest.MonkeyPatch) -> None:
    """Let torch's wrappers and fused optimizers take the meta device for one that computes."""
    # Fused kernels have shapes on the meta device, but the optimizer does not know of it.
    optimizer = importlib.import_module("torch.optim.optimizer")
    patch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: ["cpu", "meta"])
    patch.setattr("torch.nn.parallel.distributed._verify_param_shape_across_processes", lambda *_, **__: None)
    # FSDP asks the module torch.<device> for streams; those of torch.cpu do nothing.
    streams = {name: getattr(torch.cpu, name) for name in dir(torch.cpu)}
    patch.setattr(torch, "meta", SimpleNamespace(**streams), raising=False)
    for module in ("_fsdp_init", "_fully_shard"):
        patch.setattr(f"{FSDP}.{module}._get_device_from_mesh", lambda mesh: DEVICE)
    collectives = importlib.import_module(f"{FSDP}._fsdp_collectives")
    patch.setattr(collectives, "record_grad_output_stream", lambda *_, **__: None, raising=False)
    patch.setattr(f"{FSDP}._fsdp_param_group.FSDPParamGroup._validate_no_meta_params", lambda group: None)


def wrap(networks: Networks, config: Config) -> TorchEngine:
    """Build the engine of a configuration around networks on the meta device, which get no weights."""
    kind = {"ddp": DDPEngine, "fsdp": FSDPEngine}[config.engine.kind]
    with mock.patch(f"{kind.__module__}.materialize"):
        engine = kind(networks, torch.nn.Module, config.engine, config.optimizer, DEVICE)
    for module in vars(engine).values():
        if isinstance(module, DistributedDataParallel):
            module.register_comm_hook(None, average)
    return engine
