"""Faults: a step with NaN changes nothing, and a step that does not fit says what to do."""

import torch
from torch import Tensor

from benchmarks.on_gpu.report import Report, Setting
from benchmarks.on_gpu.runs import batch_of, engine_of, recipe, start
from isotorus.errors import is_out_of_memory
from pretrain.cost.out_of_memory import explain
from pretrain.distributed import own_part
from pretrain.engines import Engine
from pretrain.engines.step import train_step


def nan(setting: Setting, report: Report) -> None:
    """Put NaN into one view of one image, for each engine, and compare parameters before and after."""
    device = start(setting)
    for kind in ("ddp", "fsdp", "deepspeed"):
        config = recipe(
            setting, "lejepa_vits14", f"engine.kind={kind}", f"data.batch_size={setting.size(4, 16)}"
        )
        try:
            engine = engine_of(config, device)
        except ModuleNotFoundError as error:
            report.note(**{kind: f"{error.name} is not installed"})
            continue
        train_step(engine, batch_of(config, device), 0, 1e-3)
        before = [x.clone() for x in _own(engine)]
        broken = batch_of(config, device, 1)
        broken.views[0][0, 0] = torch.nan
        norm = train_step(engine, broken, 1, 1e-3).parts["grad_norm"].item()
        changed = sum(not torch.equal(a, b) for a, b in zip(before, _own(engine), strict=True))
        report.note(**{kind: {"norm": str(norm), "changed": changed}})
        report.check(changed == 0, f"{kind}: {changed} parameters changed in a step with NaN")
        loss = train_step(engine, batch_of(config, device, 2), 2, 1e-3).parts["loss"].item()
        report.check(loss == loss, f"{kind}: the step after the one with NaN has no loss")


def _own(engine: Engine) -> list[Tensor]:
    """Return this rank's part of each parameter."""
    return [own_part(p) for _, p in engine.networks.online_parameters()]


def out_of_memory(setting: Setting, report: Report) -> None:
    """Ask for more memory than there is within a step, and read the line that a user would get."""
    device = start(setting)
    config = recipe(setting, "lejepa_vits14", f"data.batch_size={setting.size(4, 64)}")
    engine = engine_of(config, device)
    try:
        if setting.device == "cuda":
            torch.cuda.set_per_process_memory_fraction(0.01)
            train_step(engine, batch_of(config, device), 0, 1e-3)
        else:
            torch.empty(2**50)
        report.check(False, "the step fitted into a hundredth of the memory")
    except Exception as error:
        report.check(is_out_of_memory(error), f"not recognised: {type(error).__name__}: {error}"[:300])
        said = str(explain(error, config, device))
        report.note(said=said)
        report.check("engine." in said, f"no setting is named that needs less: {said}")
    if setting.device == "cuda":
        torch.cuda.set_per_process_memory_fraction(1.0)
    loss = train_step(engine, batch_of(config, device), 0, 1e-3).parts["loss"].item()
    report.check(loss == loss, "no step is possible after memory was freed")
