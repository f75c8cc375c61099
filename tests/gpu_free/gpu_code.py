"""The Triton code that Inductor writes for an H100, on a machine without one.

A graph is traced on the CPU, by the same passes as a real `torch.compile`. Its tensors are then said to be on
a GPU, and Inductor, which knows the GPU from a few numbers alone, writes code for it. Nothing is run.
"""

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._dynamo.device_interface import CudaInterface
from torch._inductor import compile_fx, config
from torch._inductor.debug import DebugContext
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

GPU = torch.device("cuda", 0)
H100 = SimpleNamespace(
    name="H100",
    major=9,
    minor=0,
    multi_processor_count=132,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    total_memory=80 * 2**30,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    L2_cache_size=50 * 2**20,
    gcnArchName="",
)


def code_of(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[str, str]:
    """Return the Python modules that Inductor writes for the forward and the backward pass."""
    written: dict[bool, str] = {}

    def write(graph: torch.fx.GraphModule, inputs: list[Any], **options: Any) -> Callable[..., list[Any]]:
        outputs = [
            x.meta["val"] if isinstance(x, torch.fx.Node) else x for x in graph.graph.output_node().args[0]
        ]
        written[options.get("is_backward", False)] = _code(graph, inputs, options)

        def made_up(_: list[Any]) -> list[Any]:
            shaped = [torch.zeros(x.shape, dtype=x.dtype) if isinstance(x, Tensor) else x for x in outputs]
            return [
                x.as_strided(y.shape, y.stride()) if isinstance(y, Tensor) else y
                for x, y in zip(shaped, outputs, strict=True)
            ]

        made_up._boxed_call = True  # type: ignore[attr-defined]
        return made_up

    torch._dynamo.reset()
    backend = functools.partial(compile_fx.compile_fx, inner_compile=write)
    with config.patch(fx_graph_cache=False, compile_threads=1):
        torch.compile(function, dynamic=False, backend=backend)(x).sum().backward()
    torch._dynamo.reset()
    return written[False], written[True]


def _code(graph: torch.fx.GraphModule, inputs: list[Any], options: dict[str, Any]) -> str:
    """Return Inductor's code of a traced graph, with all tensors on the GPU."""
    fake = torch._guards.detect_fake_mode(inputs)
    for node in graph.graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = node.kwargs | {"device": GPU}
    graph.recompile()
    with _h100(), V.set_fake_mode(fake), V.set_debug_handler(DebugContext()):
        with fake:
            there = [
                torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=GPU)
                if isinstance(x, Tensor)
                else x
                for x in inputs
            ]
        compile_fx.view_to_reshape(graph)
        FakeTensorProp(graph, fake).propagate_dont_convert_inputs(*there)
        compile_fx.record_original_output_strides(graph)
        inference = options.get("is_inference", False)
        compile_fx._recursive_post_grad_passes(graph, inference)
        backward = options.get("is_backward", False)
        lowered = GraphLowering(graph, example_inputs=there, is_backward=backward, is_inference=inference)
        with V.set_graph_handler(lowered):
            lowered.run(*there)
            code = lowered.codegen()[0]
    return getattr(code, "value", code)


@contextmanager
def _h100() -> Iterator[None]:
    """Answer Inductor's and Triton's questions about the GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver

    active = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_current_device=lambda: 0,
        get_active_torch_device=lambda: GPU,
    )
    with (
        mock.patch("torch.cuda.get_device_properties", lambda *_: H100),
        mock.patch("torch.cuda.get_device_capability", lambda *_: (9, 0)),
        mock.patch("torch.cuda.current_device", lambda: 0),
        mock.patch.object(CudaInterface, "get_device_properties", staticmethod(lambda *_: H100)),
        mock.patch.object(
            CudaInterface, "get_multi_processor_count", staticmethod(lambda *_: 132), create=True
        ),
        mock.patch.object(driver, "_active", active),
        mock.patch.object(CudaInterface.Worker, "get_device_properties", staticmethod(lambda *_: H100)),
        mock.patch.object(CudaInterface, "get_compute_capability", staticmethod(lambda *_: 90)),
        mock.patch.object(CudaInterface, "is_available", staticmethod(lambda: True)),
    ):
        yield


def kernels(code: str) -> list[str]:
    """Return the names of a module's Triton kernels, which say what they compute."""
    return re.findall(r"^(triton_\w+) = async_compile", code, re.MULTILINE)
