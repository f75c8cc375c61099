"""The graph of nearest neighbours of a million rows, by FAISS on the GPU."""

import time

import torch

from benchmarks.on_gpu.report import Report, Setting
from eval_suite.geometry import graph, nearest


def knn_graph(setting: Setting, report: Report) -> None:
    """Build the graph of 15 neighbours of noisy points on a 3-torus, and measure its recall."""
    import faiss

    report.note(faiss=faiss.__version__, gpus=faiss.get_num_gpus())
    if setting.device == "cuda" and not faiss.get_num_gpus():
        report.skip("this FAISS finds no GPU; install faiss-gpu")
        return
    rows, width = setting.size((2000, 16), (1_000_000, 768))
    generator = torch.Generator(setting.device).manual_seed(0)
    angles = 2 * torch.pi * torch.rand(rows, 3, device=setting.device, generator=generator)
    turn = torch.randn(6, width, device=setting.device, generator=generator)
    x = torch.cat([angles.cos(), angles.sin()], 1) @ turn / width**0.5
    x += 0.01 * torch.randn(x.shape, device=setting.device, generator=generator)
    host = x.cpu().numpy()
    del x, angles
    if setting.device == "cuda":
        torch.cuda.empty_cache()  # FAISS has an allocator of its own
    began = time.perf_counter()
    found = nearest.neighbours(host, 15)
    searched = time.perf_counter()
    edges = graph.from_neighbours(found.ids).nnz
    report.note(rows=rows, width=width, edges=edges, recall=found.recall, precision=found.precision)
    report.note(seconds_search=searched - began, seconds_graph=time.perf_counter() - searched)
    report.check(found.recall >= nearest.RECALL, f"only {found.recall:.2%} of the neighbours were found")
