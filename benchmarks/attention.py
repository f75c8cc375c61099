"""Compare winding attention with dense scaled dot-product attention, forward and backward, by token count.

Prints rows for the table in RESULTS.md: milliseconds, bytes at the peak beside the inputs, and the share of
all pairs that are computed. Both get the same queries, keys and values; classes are those of random tokens at
initialisation. On a CPU, winding attention sorts tokens and keeps the weights of its pairs for the backward
pass, which dense attention's fused kernel does not. On a GPU it is FlexAttention, whose masks are made anew
each time, as in training. Times are the least of `--turns`; on a CPU they are CPU time of the process.
"""

import argparse
import functools
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.cost.activation_memory import LiveBytes
from pretrain.models.winding_attention import Address, attend_in_blocks, attend_sorted

WIDTH, HEADS = 384, 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 1024, 4096, 16384])
    parser.add_argument("--classes", type=int, nargs="+", default=[4, 8, 32])
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    device = torch.device(given.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {given.images} images, {dtype}")
    print("| tokens | classes | pairs | dense ms | winding ms | faster | dense MB | winding MB |")
    print("|---|---|---|---|---|---|---|---|")
    for tokens in given.tokens:
        torch.manual_seed(0)
        x = torch.randn(given.images, tokens, WIDTH, device=device)
        q, k, v = torch.randn(3, given.images, tokens, HEADS, WIDTH // HEADS, device=device, dtype=dtype)
        leaves = [t.requires_grad_() for t in (q, k, v)]
        slow, much = measure(dense, leaves, device, given.turns)
        for classes in given.classes:
            address = Address(WIDTH, classes).to(device)
            attend = attend_in_blocks if device.type == "cuda" else functools.partial(attend_sorted, classes)

            def winding(
                q: Tensor, k: Tensor, v: Tensor, attend: Callable[..., Tensor] = attend, address=address, x=x
            ) -> Tensor:
                return attend(q * q.shape[-1] ** -0.5, k, v, address(x))

            fast, little = measure(winding, leaves, device, given.turns)
            counts = torch.stack([torch.bincount(c, minlength=classes) for c in address(x).classes])
            pairs = (counts / tokens).square().sum(1).mean().item()
            print(
                f"| {tokens} | {classes} | {pairs:.3f} | {slow * 1e3:.1f} | {fast * 1e3:.1f} | "
                f"**{slow / fast:.2f}×** | {much / 1e6:.0f} | {little / 1e6:.0f} |",
                flush=True,
            )


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def measure(
    attend: Callable[..., Tensor], leaves: list[Tensor], device: torch.device, turns: int
) -> tuple[float, float]:
    """Return seconds and bytes of a forward and backward pass."""
    seconds = []
    for turn in range(turns + 1):
        began = _now(device)
        out = attend(*leaves)
        torch.autograd.grad(out, leaves, torch.ones_like(out))
        if turn:
            seconds.append(_now(device) - began)
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        out = attend(*leaves)
        torch.autograd.grad(out, leaves, torch.ones_like(out))
        return min(seconds), torch.cuda.max_memory_allocated() - before
    with LiveBytes(leaves) as live:
        out = attend(*leaves)
        torch.autograd.grad(out, leaves, torch.ones_like(out))
    return min(seconds), live.peaks[""].total()


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


if __name__ == "__main__":
    main()
