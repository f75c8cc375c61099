"""Gradients with and without recomputation, compiled and not: they are equal, at less memory."""

import torch

from benchmarks.on_gpu.report import Report, Setting
from benchmarks.on_gpu.runs import batch_of, difference, engine_of, peak_bytes, recipe, seconds, start
from pretrain.engines.step import accumulated_backward

BOUND = {"fp32": 1e-4, "bf16": 3e-2}


def recomputation(setting: Setting, report: Report) -> None:
    """Compute one gradient in each of six ways, and compare it with the plain one."""
    device = start(setting)
    precision = "fp32" if setting.device == "cpu" else "bf16"
    truth = None
    for compiled in (False, True):
        for mode in ("none", "selective", "full"):
            config = recipe(
                setting, "lejepa_vits14", f"data.batch_size={setting.size(4, 32)}",
                f"engine.activation_checkpointing={mode}", f"engine.compile={compiled}",
                f"engine.precision={precision}", "engine.packed=false",
            )  # fmt: skip
            engine = engine_of(config, device, weights_on="cpu")
            batch = batch_of(config, device)

            def work(engine=engine, batch=batch) -> None:  # type: ignore[no-untyped-def]
                for parameter in engine.networks.parameters():
                    parameter.grad = None
                accumulated_backward(engine, [batch], 0)

            peak = peak_bytes(work, device)
            gradient = torch.cat(
                [p.grad.flatten().cpu() for _, p in engine.networks.online_parameters() if p.grad is not None]
            )
            truth = gradient if truth is None else truth
            apart, name = difference(gradient, truth), f"{mode}, {'compiled' if compiled else 'eager'}"
            taken = 1e3 * seconds(work, device, repeats=setting.size(1, 3), warm_up=1)
            report.note(**{name: {"differs by": apart, "milliseconds": taken, "peak_bytes": peak}})
            report.check(apart < BOUND[precision], f"{name}: the gradient differs by {apart:.1e}")
