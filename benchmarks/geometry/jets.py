"""Compare one Taylor pass for the k-jet of an encoder with nested torch.func.jvp, k = 1 … 4.

Prints rows for the table in RESULTS.md. Nested forward mode gets a layer norm made of elementary operations,
as torch's own rule for the fused one is wrong from the second derivative on; then the results are compared.
Times are the least of `--turns`; on a CPU they are CPU time, which other work disturbs less. Memory is the
peak on a GPU.
"""

import argparse
import time
from collections.abc import Callable

import timm
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pretrain.geometry.jets import jet

Call = Callable[[], list[Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--encoder", default="vit_tiny_patch16_224")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    device = torch.device(given.device)
    torch.manual_seed(0)
    encoder = timm.create_model(given.encoder, num_classes=0).to(device).eval().requires_grad_(False)
    x, v = torch.randn(2, given.batch, 3, given.size, given.size, device=device)
    fused = F.layer_norm

    def nested(order: int) -> list[Tensor]:
        F.layer_norm = _composed_layer_norm
        try:
            with sdpa_kernel(SDPBackend.MATH):
                return _nested(lambda t: encoder(x + t * v), torch.zeros((), device=device), order)
        finally:
            F.layer_norm = fused

    def plain() -> list[Tensor]:
        with torch.no_grad():
            return [encoder(x)]

    once, _, _ = _measure(plain, device, given.turns)
    print(f"one forward pass: {once * 1e3:.0f} ms; {torch.get_num_threads()} threads, {torch.__version__}")
    print("| k | nested, in forward passes | Taylor | faster | nested GB | Taylor GB | difference |")
    print("|---|---|---|---|---|---|---|")
    for order in range(1, 5):
        slow, much, expected = _measure(lambda k=order: nested(k), device, given.turns)
        fast, little, found = _measure(lambda k=order: list(jet(encoder, x, v, k)), device, given.turns)
        difference = (found[-1] - expected[-1]).norm() / expected[-1].norm()
        print(
            f"| {order} | {slow / once:.1f} | {fast / once:.1f} | **{slow / fast:.1f}×** | {much} | {little} "
            f"| {difference:.0e} |",
            flush=True,
        )


def _nested(f: Callable[[Tensor], Tensor], t: Tensor, order: int) -> list[Tensor]:
    """Return f and its derivatives at t, from forward modes nested in each other."""
    if order == 0:
        return [f(t)]
    lower, higher = torch.func.jvp(lambda s: tuple(_nested(f, s, order - 1)), (t,), (torch.ones_like(t),))
    return [*lower, higher[-1]]


def _composed_layer_norm(x: Tensor, shape: list[int], weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred * (centred.square().mean(-1, keepdim=True) + eps).rsqrt() * weight + bias


def _measure(call: Call, device: torch.device, turns: int) -> tuple[float, str, list[Tensor]]:
    """Return seconds, gigabytes at the peak beside what was there before, and the result."""
    result, seconds = call(), []
    for _ in range(turns):
        before = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        began = _now(device)
        result = call()
        seconds.append(_now(device) - began)
    if device.type != "cuda":
        return min(seconds), "", result
    return min(seconds), f"{(torch.cuda.max_memory_allocated() - before) / 1e9:.2f}", result


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


if __name__ == "__main__":
    main()
