"""A compiled step in fp8 against one in bf16."""

from benchmarks.on_gpu.report import Report, Setting
from benchmarks.on_gpu.runs import batch_of, engine_of, recipe, seconds, start
from isotorus.errors import UserError
from pretrain.engines.step import train_step


def fp8(setting: Setting, report: Report) -> None:
    """Take steps of a ViT-L with both precisions, from equal weights."""
    device = start(setting)
    losses = {}
    for precision in ("bf16", "fp8"):
        config = recipe(
            setting, "lejepa_vitl14", f"data.batch_size={setting.size(2, 32)}", "engine.kind=ddp",
            f"engine.precision={precision}", "engine.compile=true",
        )  # fmt: skip
        try:
            engine = engine_of(config, device, weights_on=setting.device)
            if precision == "fp8" and setting.device == "cpu":
                raise UserError("fp8 needs a GPU of compute capability 8.9 or more; bf16 was run")
        except UserError as error:
            report.skip(str(error))
            return
        batch = batch_of(config, device)
        curve = [train_step(engine, batch, step, 1e-4).parts["loss"].item() for step in range(3)]
        taken = seconds(
            lambda e=engine, b=batch: train_step(e, b, 3, 0.0), device, repeats=setting.size(1, 5)
        )
        report.note(**{precision: {"losses": curve, "milliseconds": 1e3 * taken}})
        losses[precision] = curve
    apart = max(abs(a / b - 1) for a, b in zip(losses["fp8"], losses["bf16"], strict=True))
    report.note(loss_differs_by=apart)
    report.check(apart < 0.05, f"the losses of three steps differ by {apart:.1%}")
