"""The compilers that torch.compile and Triton call."""

import os
import shutil
import sys

COMPILER_REMEDY = "install one (apt install g++, or dnf install gcc-c++), or set CC and CXX to their paths"


def c_compiler() -> str | None:
    """Return the C compiler that Triton calls, which is $CC, or else gcc or clang; without one, None.

    It looks in the same places as `triton.runtime.build`.
    """
    return _first("CC", "gcc", "clang")


def cxx_compiler() -> str | None:
    """Return the C++ compiler that torch.compile calls for CPUs: $CXX, otherwise g++, on macOS clang++."""
    return _first("CXX", "clang++" if sys.platform == "darwin" else "g++")


def _first(variable: str, *names: str) -> str | None:
    """Return the path of the program that a variable names, or else of the first of `names` that there is."""
    named = os.environ.get(variable, "").split()[:1]
    return next((path for name in named or names if (path := shutil.which(name))), None)
