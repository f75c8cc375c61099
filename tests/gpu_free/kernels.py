"""Triton kernels on a machine without a GPU: compiled for one, or run by Triton's interpreter."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

GENERATIONS = {"A100": 80, "H100 and H200": 90, "B200": 100}


def compile_kernel(
    function: Any, types: dict[str, str], constants: dict[str, Any], options: dict[str, Any], generation: int
) -> Any:
    """Compile a kernel for a generation of GPUs; `types` are those of all arguments but the constants."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {name: "constexpr" if name in constants else types[name] for name in function.arg_names}
    source = ASTSource(function, types, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", generation, 32), options=options)


def assert_no_register_is_spilled(compiled: Any, generation: int, folder: Path) -> None:
    """Ask NVIDIA's assembler."""
    from triton.backends.nvidia.compiler import get_ptxas

    ptx = folder / "kernel.ptx"
    ptx.write_text(compiled.asm["ptx"])
    target = re.search(r"\.target (\w+)", ptx.read_text()).group(1)  # type: ignore[union-attr]
    command = [get_ptxas(generation).path, "-v", f"--gpu-name={target}", ptx, "-o", folder / "out"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in said, said


def assert_products_have_64_bits(compiled: Any) -> None:
    assert not (narrow := re.findall(r"\n.* = arith\.muli .*i32>? loc", compiled.asm["ttir"])), narrow


def run_interpreted(module: ModuleType, *arguments: Path) -> None:
    """Run a module's `main` in a process in which Triton interprets its kernels."""
    root = Path(__file__).parents[2]
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join([str(root), *sys.path]),
    }
    command = [sys.executable, str(module.__file__), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
