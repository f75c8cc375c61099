"""Ten steps in fp32 on the CPU and on the GPU, and the same bits twice."""

import torch

from benchmarks.on_gpu.report import Report, Setting
from benchmarks.on_gpu.runs import TINY, TINY_ENCODER, batch_of, engine_of, recipe, start
from pretrain.engines.step import train_step

STEPS = 10
SMALL = [*TINY, TINY_ENCODER, "data.batch_size=16", "engine.precision=fp32"]
Curve = list[tuple[float, float]]


def fp32(setting: Setting, report: Report) -> None:
    """Compare loss and gradient norm of ten steps of a small ViT; all engines start with equal weights."""
    device, host = start(setting), torch.device("cpu")
    truth = _steps(setting, host, "ddp")
    for kind in ("ddp", "fsdp"):
        for tf32 in (False, True):
            mine = _steps(setting, device, kind, tf32)
            loss, norm = (
                max(abs(a[i] / b[i] - 1) for a, b in zip(mine, truth, strict=True)) for i in range(2)
            )
            report.note(**{f"{kind}, TF32 {'on' if tf32 else 'off'}": {"loss": loss, "gradient norm": norm}})
            report.check(
                tf32 or (loss < 1e-4 and norm < 1e-3),
                f"{kind}: ten fp32 steps differ from the CPU's by {loss:.1e} (loss) and {norm:.1e} (norm)",
            )
    if setting.device == "cpu":
        report.skip("there is no GPU to compare with; the steps were taken on the CPU")


def _steps(setting: Setting, device: torch.device, kind: str, tf32: bool = False) -> Curve:
    config = recipe(setting, "lejepa_vits14", *SMALL, f"engine.kind={kind}")
    engine = engine_of(config, device)  # turns TF32 off
    if tf32:
        torch.backends.cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("high")
    curve = []
    for step in range(STEPS):
        parts = train_step(engine, batch_of(config, device, step), step, lr=1e-4 * (step + 1)).parts
        curve.append((parts["loss"].item(), parts["grad_norm"].item()))
    return curve


def deterministic(setting: Setting, report: Report) -> None:
    """Take three steps twice with engine.deterministic=true, and compare every bit of the parameters."""
    device = start(setting)
    config = recipe(
        setting, "lejepa_vits14", "engine.deterministic=true", f"data.batch_size={setting.size(4, 16)}"
    )
    ends = []
    for _ in range(2):
        engine = engine_of(config, device)
        for step in range(3):
            train_step(engine, batch_of(config, device, step), step, lr=1e-3)
        ends.append({name: p.detach().clone() for name, p in engine.networks.online_parameters()})
    changed = [name for name in ends[0] if not torch.equal(ends[0][name], ends[1][name])]
    report.note(parameters=len(ends[0]), different=len(changed))
    report.check(not changed, f"{len(changed)} parameters differ, the first is {changed[:1]}")
