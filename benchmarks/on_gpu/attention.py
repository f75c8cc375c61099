"""Attention: one call for views of all sizes against a call for each, and winding attention."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.on_gpu.report import Report, Setting
from benchmarks.on_gpu.runs import difference, peak_bytes, seconds, start
from pretrain.models.several_sizes import Layout, _in_one_call, unpack
from pretrain.models.winding_attention import Address, attend_in_blocks, attend_sorted

BF16_BOUND = 2e-2


def packed(setting: Setting, report: Report) -> None:
    """Compare results, gradients and time of both ways, with the tokens of ViT-g/14's views."""
    device = start(setting)
    images = setting.size(1, 16)
    sizes = ((2 * images, setting.size(5, 257)), (6 * images, setting.size(3, 50)))
    lengths = torch.tensor([tokens for count, tokens in sizes for _ in range(count)], dtype=torch.int32)
    layout = Layout(sizes, F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0)).to(device))
    dtype = torch.bfloat16 if setting.device == "cuda" else torch.float32
    for width in (64, 104):
        shape = (3, int(lengths.sum()), setting.size(2, 24), width)
        qkv = torch.randn(shape, device=device, dtype=dtype).requires_grad_()

        def one_call(qkv: Tensor) -> Tensor:
            # The kernel exists for CUDA alone; on a CPU the other way is taken twice.
            return _in_one_call(*qkv, layout) if setting.device == "cuda" else by_size(qkv)

        def by_size(qkv: Tensor) -> Tensor:
            groups = zip(*(unpack(x, layout) for x in qkv), strict=True)
            attended = [
                F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in group)).transpose(1, 2)
                for group in groups
            ]
            return torch.cat([x.flatten(0, 1) for x in attended])

        found, times = {}, {}
        for name, attend in (("one call", one_call), ("by size", by_size)):

            def work(attend=attend, qkv=qkv) -> Tensor:  # type: ignore[no-untyped-def]
                qkv.grad = None
                out = attend(qkv)
                out.float().square().sum().backward()
                return out

            found[name] = (work(), qkv.grad)
            times[name] = 1e3 * seconds(work, device, repeats=setting.size(1, 10))
        apart = [difference(a, b) for a, b in zip(found["one call"], found["by size"], strict=True)]
        report.note(
            **{f"head dim {width}": {"milliseconds": times, "result": apart[0], "gradient": apart[1]}}
        )
        report.check(max(apart) < BF16_BOUND, f"head dim {width}: result and gradient differ by {apart}")
    if setting.device == "cpu":
        report.skip("the variable-length kernel needs a GPU; attention by size was run")


def winding(setting: Setting, report: Report) -> None:
    """Compare FlexAttention with attention over sorted tokens: results, gradients, time and memory."""
    device, classes = start(setting), 8
    tokens, heads = setting.size((160, 2), (1024, 6))
    torch.manual_seed(0)
    x = torch.randn(2, tokens, 64 * heads, device=device)
    address = Address(64 * heads, classes).to(device)
    # FlexAttention has no backward pass on CPUs.
    qkv = torch.randn(3, 2, tokens, heads, 64, device=device, requires_grad=setting.device == "cuda")
    found = {}
    for name, attend in (("blocks", attend_in_blocks), ("sorted", functools.partial(attend_sorted, classes))):

        def work(attend=attend) -> Tensor:  # type: ignore[no-untyped-def]
            qkv.grad = None
            with torch.set_grad_enabled(qkv.requires_grad):
                out = attend(qkv[0] / 8, qkv[1], qkv[2], address(x))
            if qkv.requires_grad:
                out.square().sum().backward()
            return out

        found[name] = [each for each in (work(), qkv.grad) if each is not None]
        taken = 1e3 * seconds(work, device, repeats=setting.size(1, 5))
        report.note(**{name: {"milliseconds": taken, "peak_bytes": peak_bytes(work, device)}})
    apart = [difference(a, b) for a, b in zip(found["blocks"], found["sorted"], strict=True)]
    report.note(differ_by=apart)
    report.check(max(apart) < 1e-3, f"result and gradient differ by {apart}")
    if setting.device == "cpu":
        report.skip("FlexAttention has no backward pass on CPUs; the forward pass was compared")
