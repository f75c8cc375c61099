"""All ways of computing SIGReg's sums give the same values and derivatives."""

import logging

import pytest
import torch

from pretrain.objectives import characteristic_sums as paths
from pretrain.objectives.characteristic_sums import characteristic_sums
from pretrain.objectives.sigreg import SIGReg


def sums_and_gradient(implementation, x, knots=17, device="cpu"):
    x = x.clone().requires_grad_()
    sums = characteristic_sums(x.to(device), 3 / (knots - 1), knots, implementation).cpu()
    (sums * torch.linspace(-1, 1, sums.numel()).view_as(sums)).sum().backward()
    return sums.detach() / x.shape[1], x.grad


def curvature(implementation, x, knots=9, chunk=None):
    """Return the product of the Hessian of SIGReg with a fixed vector, at embeddings `x` (views, N, K)."""
    x = x.clone().requires_grad_()
    loss = SIGReg(16, knots=knots, chunk=chunk, implementation=implementation)(x, 0)
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    vector = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)
    return torch.autograd.grad((gradient * vector).sum(), x)[0]


def inputs():
    generator = torch.Generator().manual_seed(0)
    # Partial tiles, several tiles, and an input whose samples are not contiguous.
    yield torch.randn(10, 37, generator=generator)
    yield torch.randn(20, 1100, generator=generator) * 4
    yield torch.randn(70, 40, generator=generator).T


def test_angle_addition_equals_the_plain_form():
    for x in inputs():
        torch.testing.assert_close(
            sums_and_gradient("angle", x), sums_and_gradient("eager", x), rtol=1e-5, atol=1e-5
        )


def test_compiled_equals_the_plain_form():
    # Few knots: compiling takes seconds for each, and all have the same code.
    x = next(inputs())
    torch.testing.assert_close(
        sums_and_gradient("compiled", x, 5), sums_and_gradient("eager", x, 5), rtol=1e-5, atol=1e-5
    )
    assert not paths._compiler_broken


@pytest.mark.parametrize("implementation", ["eager", "angle", "compiled", "auto"])
@pytest.mark.parametrize("chunk", [None, 5])
def test_second_derivatives_are_those_of_finite_differences(implementation, chunk):
    x = torch.randn(2, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    vector = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)

    def gradient(z):
        z = z.clone().requires_grad_()
        return torch.autograd.grad(SIGReg(16, knots=9, implementation="eager")(z, 0), z)[0]

    differences = (gradient(x + 1e-5 * vector) - gradient(x - 1e-5 * vector)) / 2e-5
    torch.testing.assert_close(curvature(implementation, x, chunk=chunk), differences, rtol=1e-6, atol=1e-8)


def test_without_a_compiler_the_angle_path_takes_over_with_one_line(monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    paths.compiler_available.cache_clear()
    x = next(inputs())
    with caplog.at_level(logging.INFO):
        got = sums_and_gradient("compiled", x)
    paths.compiler_available.cache_clear()
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("no C++ compiler: SIGReg runs uncompiled; install one")
    torch.testing.assert_close(got, sums_and_gradient("angle", x), rtol=0, atol=0)


def test_empty_rank_gives_zero_sums():
    for implementation in ("eager", "angle", "compiled"):
        sums = characteristic_sums(torch.zeros(3, 0, requires_grad=True), 0.1, 5, implementation)
        assert sums.shape == (2, 4, 3)
        assert sums.abs().sum() == 0
        sums.sum().backward()


def test_memory_does_not_hold_samples_by_slices_by_knots():
    """What autograd keeps for the backward pass: the projections, and nothing times the knots."""
    z = torch.randn(1, 256, 16, requires_grad=True)
    kept = []

    def record(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        SIGReg(512, implementation="angle")(z, 0)
    assert max(kept) == 256 * 512
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        SIGReg(512, implementation="angle", chunk=32)(z, 0)
    assert max(kept) < 256 * 512 / 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_triton_kernels_equal_the_plain_form_on_cuda():
    for x in inputs():
        got = sums_and_gradient("triton", x, device="cuda")
        torch.testing.assert_close(got, sums_and_gradient("eager", x), rtol=1e-5, atol=1e-5)
