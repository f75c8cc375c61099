"""A step of ViT-g/14 on 16 images: its share of the peak, and its memory against what `plan` says."""

import torch

from benchmarks.on_gpu.report import Report, Setting
from benchmarks.on_gpu.runs import batch_of, engine_of, peak_bytes, recipe, seconds, start
from pretrain.cost.accelerators import accelerator, detect
from pretrain.cost.flops import step_flops
from pretrain.cost.memory_estimate import count_parameters, rank_memory
from pretrain.engines.step import train_step
from pretrain.preflight.model import check_model

IMAGES = 16
THIN = "encoder.kwargs={init_values: 0.1, depth: 2, embed_dim: 32, num_heads: 2}"


def eager(setting: Setting, report: Report) -> None:
    _step(setting, report, compiled=False, packed=False)


def packed(setting: Setting, report: Report) -> None:
    _step(setting, report, compiled=False, packed=True)


def compiled(setting: Setting, report: Report) -> None:
    _step(setting, report, compiled=True, packed=False)


def compiled_packed(setting: Setting, report: Report) -> None:
    _step(setting, report, compiled=True, packed=True)


def _step(setting: Setting, report: Report, compiled: bool, packed: bool) -> None:
    """Train on random images by ddp on one rank, so that nothing but the step itself is measured."""
    device = start(setting)
    config = recipe(
        setting, "lejepa_vitg14", f"data.batch_size={setting.size(2, IMAGES)}", *setting.size([THIN], []),
        "engine={kind: ddp, precision: bf16}", f"engine.compile={compiled}", f"engine.packed={packed}",
    )  # fmt: skip
    model = check_model(config, 1)
    planned = rank_memory(config, model, count_parameters(config, model), 1, setting.device)
    engine = engine_of(config, device, weights_on=setting.device)
    batch = batch_of(config, device)

    def step() -> None:
        train_step(engine, batch, 0, 1e-4)

    first = seconds(step, device, repeats=1, warm_up=0)
    taken = seconds(step, device, repeats=setting.size(1, 5))
    flops = step_flops(config, model.kwargs, model.width).model * config.data.batch_size
    known = detect(torch.cuda.get_device_name()) if setting.device == "cuda" else accelerator("cpu", 1)
    report.note(seconds_first_step=first, seconds_step=taken, tflops_a_second=flops / taken / 1e12)
    report.note(mfu=flops / taken / known.peak("bf16") if known else None)
    stays = torch.cuda.memory_allocated() if setting.device == "cuda" else 0
    if (more := peak_bytes(step, device)) is not None:
        plan = sum(size for part, size in planned.items() if part != "reserve")
        report.note(
            gib=(stays + more) / 2**30, planned_gib=plan / 2**30, plan_over_measured=plan / (stays + more)
        )
    else:
        report.skip("memory is measured on a GPU alone; the step was taken")
