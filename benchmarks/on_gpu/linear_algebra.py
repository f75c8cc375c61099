"""Eigenvalues of a covariance matrix, which the monitor of collapse needs at logged steps."""

import torch

from benchmarks.on_gpu.report import Report, Setting
from benchmarks.on_gpu.runs import seconds, start


def eigvalsh(setting: Setting, report: Report) -> None:
    """Compare device and host for full and for low rank, where some versions of cuSOLVER have failed."""
    device = start(setting)
    width = setting.size(24, 1536)
    generator = torch.Generator().manual_seed(0)
    for rank in (width, width // 8, 1):
        factors = torch.randn(width, rank, generator=generator)
        matrix = factors @ factors.T / rank
        there = matrix.to(device)
        host = torch.linalg.eigvalsh(matrix.double())
        try:
            worst = ((torch.linalg.eigvalsh(there).cpu() - host).abs().max() / host.max()).item()
        except torch.linalg.LinAlgError as error:
            report.note(**{f"rank {rank}": str(error).split("\n")[0]})
            report.check(False, f"rank {rank}: the device fails: {error}")
            continue
        times = {
            "device": 1e3 * seconds(lambda x=there: torch.linalg.eigvalsh(x), device, repeats=3, warm_up=1),
            "host, float64": 1e3
            * seconds(
                lambda x=there: torch.linalg.eigvalsh(x.to("cpu", torch.float64)),
                device,
                repeats=3,
                warm_up=1,
            ),
        }
        report.note(**{f"rank {rank}": {"error": worst, "milliseconds": times}})
        report.check(worst < 1e-4, f"rank {rank}: eigenvalues differ by {worst:.1e} of the largest")
