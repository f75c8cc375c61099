"""Runs SIGReg's Triton kernels under Triton's interpreter, and compares them with the plain form in float64.

Run by test_triton.py in a process of its own, because TRITON_INTERPRET is read when Triton is imported.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

from pretrain.objectives import characteristic_sums_triton as kernels
from pretrain.objectives.characteristic_sums import characteristic_sums, reference
from tests.pretrain.objectives.test_sigreg_paths import curvature

SPACING, KNOTS = 3 / 16, 17
WHERE_32_BITS_END = 2**31


def inputs() -> dict[str, Tensor]:
    """Return projections (rows, samples) of many sizes and layouts."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        **{f"{n} samples": normal(9, n) for n in (1, 5, 513, 4096)},
        "far from the origin": 40 * normal(3, 600),
        "samples one below the other": normal(70, 11).T,
        "every third sample": normal(5, 2100)[:, ::3],
        "every other row, from the second on": normal(20, 37)[1::2],
        "rows that overlap": normal(300).unfold(0, 100, 50),
        "one row for all": normal(1, 30).expand(6, 30),
    }


def compare(name: str, x: Tensor) -> None:
    """Assert that sums and gradient are those of the plain form in float64, to float32's precision."""
    exact = x.double().requires_grad_()
    truth = reference(exact, SPACING, KNOTS)
    cotangent = torch.linspace(-1, 1, truth.numel(), dtype=torch.float64).view_as(truth)
    truth.backward(cotangent)
    sums = kernels.forward(x, SPACING, KNOTS)
    gradient = kernels.backward(x, cotangent.float(), SPACING)
    # A phase of 40 · 3 radians has itself an error of 1e-5 in float32.
    bound = 2e-6 * max(1.0, x.abs().max().item() / 4)
    error = (sums - truth).abs().max().item() / x.shape[1]
    assert error < bound, f"{name}: the sums differ by {error:.1e} a sample"
    assert exact.grad is not None
    error = ((gradient - exact.grad).abs().max() / exact.grad.abs().max()).item()
    assert error < 3 * bound, f"{name}: the gradient differs by {error:.1e}"


def beyond_32_bits(folder: Path) -> Tensor:
    """Return rows whose elements lie more than 2³¹ elements apart, in a file that is nearly all hole."""
    row, sample = WHERE_32_BITS_END + 12_345, WHERE_32_BITS_END // 2 + 7
    size = row + 2 * sample + 1
    memory = torch.from_file(str(folder / "sparse"), shared=True, size=size, dtype=torch.float32)
    x = memory.as_strided((2, 3), (row, sample))
    x.copy_(torch.tensor([[0.3, -1.2, 2.2], [1.7, 0.1, -0.4]]))
    return x


def main() -> None:
    for name, x in inputs().items():
        compare(name, x)
    compare("beyond 32 bits", beyond_32_bits(Path(sys.argv[1])))
    z = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(curvature("triton", z), curvature("eager", z), rtol=1e-4, atol=1e-5)
    assert characteristic_sums(torch.zeros(3, 0), 0.1, 5, "triton").abs().sum() == 0
    try:
        characteristic_sums(torch.zeros(2, 3, dtype=torch.float64), 0.1, 5, "triton")
    except ValueError as error:
        assert "float32" in str(error)
    else:
        raise AssertionError("float64 was taken")


if __name__ == "__main__":
    main()
