"""SIGReg's Triton kernels without a GPU: compiled for three generations, and run by Triton's interpreter."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.objectives import characteristic_sums as paths
from pretrain.objectives.characteristic_sums import characteristic_sums
from tests.gpu_free import interpreted
from tests.gpu_free.kernels import (
    GENERATIONS,
    assert_no_register_is_spilled,
    assert_products_have_64_bits,
    compile_kernel,
    run_interpreted,
)

pytest.importorskip("triton")

POWERS = 16
POINTERS = {
    "_forward_kernel": ("x_ptr", "partial_ptr"),
    "_backward_kernel": ("x_ptr", "coefficient_ptr", "result_ptr"),
}


def compiled(kernel: str, samples: int, generation: int = 90, integers: str = "i32") -> Any:
    """Compile a kernel for rows of `samples` samples; sizes and strides have the type `integers`."""
    from pretrain.objectives import characteristic_sums_triton as kernels

    function = getattr(kernels, kernel)
    options = kernels._blocks(samples)
    constants = {"POWERS": POWERS, **{name: options.pop(name) for name in ("BLOCK_ROWS", "BLOCK_SAMPLES")}}
    types = dict.fromkeys(function.arg_names, integers) | {"spacing": "fp32"}
    types |= dict.fromkeys(POINTERS[kernel], "*fp32")
    return compile_kernel(function, types, constants, options, generation)


@pytest.mark.parametrize("generation", GENERATIONS.values(), ids=GENERATIONS)
@pytest.mark.parametrize("kernel", POINTERS)
def test_kernels_compile_and_no_register_is_spilled(kernel: str, generation: int, tmp_path: Path):
    for samples in (1, 4096) if generation == 90 else (4096,):
        assert_no_register_is_spilled(compiled(kernel, samples, generation), generation, tmp_path)


@pytest.mark.parametrize("kernel", POINTERS)
def test_offsets_are_computed_in_64_bits(kernel: str):
    """Also where all sizes and strides are below 2³¹, so that Triton passes them as 32-bit integers."""
    code = compiled(kernel, 4096, integers="i32")
    shifts = re.findall(r"tt\.addptr .*, (?:tensor<[\dx]+)?(i\d+)>? loc", code.asm["ttir"])
    assert len(shifts) > 2 and set(shifts) == {"i64"}
    assert_products_have_64_bits(code)


def test_kernels_equal_the_plain_form_under_the_interpreter(tmp_path: Path):
    run_interpreted(interpreted, tmp_path)


@pytest.mark.parametrize("samples", [7, 600])
def test_where_triton_does_not_work_the_plain_form_takes_over_with_one_warning(
    samples: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Triton launches nothing for tensors on a CPU; a node without a C compiler fails at the same place."""
    monkeypatch.setattr(paths, "_triton_broken", False)
    found = []
    for implementation in ("triton", "triton", "angle"):
        x = torch.linspace(-3, 3, 4 * samples).view(4, samples).requires_grad_()
        sums = characteristic_sums(x, 3 / 16, 17, implementation)  # type: ignore[arg-type]
        sums.square().sum().backward()
        found.append((sums.detach(), x.grad))
    for mine in found[:2]:
        torch.testing.assert_close(mine, found[2], rtol=0, atol=0)
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said.startswith("Triton failed (") and "install gcc, or set CC" in said and "\n" not in said
