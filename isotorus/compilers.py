"""The C compiler that Triton calls, and with it torch.compile on GPUs."""

import os
import shutil

COMPILER_REMEDY = "install one (apt install gcc, or dnf install gcc), or set CC to its path"


def c_compiler() -> str | None:
    """Return the path of the C compiler: that in CC, otherwise gcc or clang; None if there is none.

    Triton looks in the same places (`triton.runtime.build`). It links what it launches kernels with.
    """
    named = os.environ.get("CC", "").split()
    return next((path for name in named[:1] or ("gcc", "clang") if (path := shutil.which(name))), None)
