"""Which environment variables travel to other nodes, and which of them nobody may read on the way."""

import os
import re
from collections.abc import Iterable, Mapping

from isotorus import secrets
from isotorus.errors import UserError
from isotorus.secrets import MASK

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
    "TMPDIR",
)
OF_ONE_PROCESS = re.compile(r"TORCHELASTIC_.*|CUDA_VISIBLE_DEVICES|DS_ENV_FILE")
"""Not passed on unless asked for: what a launcher sets for its own children."""
SECRETS = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH|SIGNATURE|COOKIE", re.IGNORECASE)
"""Wider than in the program's own text: of variables that others named, and that travel."""


def passed_on(asked: Iterable[str] = (), environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that ranks on other nodes need: those of the libraries, and those `asked` for.

    `asked` holds names, whose values are this process's own. Raises UserError for a name that is not set.
    """
    asked = list(asked)
    for name in asked:
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
        if name in asked
        or ((name.startswith(PREFIXES) or name.upper() in NAMES) and not OF_ONE_PROCESS.fullmatch(name))
    }


def hidden(name: str) -> bool:
    """Whether the value of a variable, or of a dotted key, is a secret by its name."""
    return bool(SECRETS.search(name))


def shown(environment: Mapping[str, str]) -> dict[str, str]:
    """The same variables as they may be printed: *** in place of secrets, and of passwords in URLs."""
    return {name: MASK if hidden(name) else masked(value) for name, value in environment.items()}


def masked(text: str) -> str:
    """Text with *** for secrets: those of URLs and of this process's variables, and of `NAME=value` and
    `--name value` in a command."""
    return _GIVEN.sub(lambda found: found[1] + MASK, secrets.masked(text))


_GIVEN = re.compile(
    rf"((?:--?)?[\w.-]*(?:{SECRETS.pattern})[\w.-]*=|--[\w.-]*(?:{SECRETS.pattern})[\w.-]*\s+)"
    r"('[^']*'|\"[^\"]*\"|[^\s'\"]+)",
    re.IGNORECASE,
)
