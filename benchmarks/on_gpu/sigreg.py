"""SIGReg's characteristic sums by Triton: against float64, against the plain form, and without a compiler."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.on_gpu.report import Report, Setting
from benchmarks.on_gpu.runs import difference, peak_bytes, seconds, start
from pretrain.objectives.characteristic_sums import Implementation, characteristic_sums, reference
from pretrain.objectives.sigreg import SIGReg

SPACING, KNOTS = 3 / 16, 17


def sigreg(setting: Setting, report: Report) -> None:
    """Compare values and gradients, then time and memory of a forward and backward pass of all of SIGReg.

    The floor is what no implementation can avoid: the projection, its gradient, and a read and a write of
    the projections.
    """
    device = start(setting)
    ours: Implementation = "triton" if setting.device == "cuda" else "angle"
    for shape in setting.size([(3, 5)], [(1024, 1), (1024, 513), (2048, 4096)]):
        x = torch.randn(*shape, device=device, generator=torch.Generator(device).manual_seed(0))
        mine, truth = (_sums(x.to(kind), ours if kind == torch.float32 else None) for kind in
                       (torch.float32, torch.float64))  # fmt: skip
        apart = [difference(a, b) for a, b in zip(mine, truth, strict=True)]
        report.note(**{f"error of {shape}": {"sums": apart[0], "gradient": apart[1]}})
        report.check(max(apart) < 1e-5, f"x of {shape}: sums and gradient differ from float64 by {apart}")

    samples, width, slices = setting.size((32, 8, 16), (4096, 512, 4096))
    z = torch.randn(1, samples, width, device=device).requires_grad_()
    directions = SIGReg(slices).directions(width, 0).to(device)

    def step(implementation: Implementation) -> Callable[[], None]:
        module = SIGReg(slices, implementation=implementation)

        def forward_and_backward() -> None:
            z.grad = None
            module(z, 0, directions).backward()

        return forward_and_backward

    projections = torch.randn(samples, slices, device=device)
    result = torch.empty_like(projections)

    def floor() -> None:
        z.detach()[0] @ directions
        result.copy_(projections)
        projections @ directions.T

    works = {ours: step(ours), "eager": step("eager"), "floor": floor}
    times = {name: seconds(work, device, repeats=setting.size(1, 10)) for name, work in works.items()}
    report.note(milliseconds={name: 1e3 * taken for name, taken in times.items()})
    report.note(faster=times["eager"] / times[ours], share_of_floor=times["floor"] / times[ours])
    report.note(peak_bytes={name: peak_bytes(works[name], device) for name in (ours, "eager")})
    if setting.device == "cpu":
        report.skip("Triton needs a GPU; the plain tiled form was compared in its place")


def _sums(x: Tensor, implementation: Implementation | None) -> tuple[Tensor, Tensor]:
    """Return the sums and the gradient of a function of them; without a name, by the plain form."""
    x = x.clone().requires_grad_()
    sums = (
        characteristic_sums(x, SPACING, KNOTS, implementation)
        if implementation
        else reference(x, SPACING, KNOTS)
    )
    sums.backward(torch.linspace(-1, 1, sums.numel(), device=x.device, dtype=x.dtype).view_as(sums))
    assert x.grad is not None
    return sums.detach(), x.grad


WITHOUT_COMPILER = """
import logging, torch
from pretrain.objectives.characteristic_sums import characteristic_sums
logging.basicConfig(level=logging.WARNING, format="%(message)s")
x = torch.randn(9, 600, device="{device}", requires_grad=True)
mine, truth = (characteristic_sums(x, 3 / 16, 17, way) for way in ("triton", "eager"))
torch.testing.assert_close(mine, truth, rtol=1e-3, atol=1e-2)
mine.sum().backward()
assert x.grad.isfinite().all()
"""


def no_compiler(setting: Setting, report: Report) -> None:
    """Run SIGReg in a process that finds no C compiler and no kernels of earlier processes."""
    with tempfile.TemporaryDirectory() as empty:
        environment = os.environ | {"CC": f"{empty}/cc", "PATH": empty, "TRITON_CACHE_DIR": empty}
        code = WITHOUT_COMPILER.format(device=setting.device)
        root = Path(__file__).parents[2]
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True
        )
    lines = [line for line in done.stderr.splitlines() if line.strip()] or [""]
    report.note(said=lines[-1])
    report.check(done.returncode == 0, f"it ended with {lines[-1]}")
    report.check("install gcc" in done.stderr, "no line says what to install")
    if setting.device == "cpu":
        report.skip("Triton starts nothing for a CPU, so the compiler was not what was missing")
