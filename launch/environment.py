"""Choose the environment variables that travel to other nodes."""

import os
import re
from collections.abc import Iterable, Mapping

from isotorus.errors import UserError

PREFIXES = (
    "ACCELERATE_", "AWS_", "CUBLAS_", "CUDA_", "DS_", "FI_", "FSSPEC_", "GLOO_", "HF_", "ISOTORUS_", "KMP_",
    "MKL_", "MLFLOW_", "NCCL_", "NUMBA_", "OMP_", "PYTORCH_", "S3_", "TORCH", "TRITON_", "UCX_",
)  # fmt: skip
NAMES = (
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "NO_PROXY",
    "PATH",
    "PYTHONPATH",
    "PYTHONSAFEPATH",
    "TMPDIR",
)
OF_ONE_PROCESS = re.compile(r"TORCHELASTIC_.*|CUDA_VISIBLE_DEVICES|DS_ENV_FILE")
"""Variables that belong to one process, such as those that a launcher sets for its ranks. They travel only
when the user names them."""


def passed_on(names: Iterable[str] = (), environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables that ranks on other nodes need: those of the libraries, and those in `names`.

    Raise UserError for a name that is not set in `environment`.
    """
    names = list(names)
    for name in names:
        if "=" in name:
            key = name.partition("=")[0]
            raise UserError(
                f"--env {key}=…: give only the name, and set the variable in this shell: --env {key}"
            )
        if name not in environment:
            raise UserError(f"--env {name}: it is not set here; export {name} first")
    return {
        name: value
        for name, value in sorted(environment.items())
        if name in names
        or ((name.startswith(PREFIXES) or name.upper() in NAMES) and not OF_ONE_PROCESS.fullmatch(name))
    }
