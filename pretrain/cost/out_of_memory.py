"""A step that does not fit into memory: told from other errors, and what by `plan` needs less."""

import errno
import re
import resource
import socket
import subprocess
import sys
import traceback

import psutil
import torch
from pydantic import BaseModel, ValidationError

from isotorus.errors import UserError
from pretrain.config import Config
from pretrain.cost.memory_estimate import count_parameters, rank_memory
from pretrain.cost.plan import remedies
from pretrain.distributed import rank, world_size
from pretrain.engines.config import EngineConfig
from pretrain.preflight import check_model

GIB = 2**30
_SAID = re.compile(
    r"can't allocate memory|not enough memory|out of memory|Cannot allocate memory|bad_alloc|ALLOC_FAILED"
)
_READER = "DataLoader worker (pid"
_WANTED = re.compile(r"[Tt]ried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)")
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_LONGEST = 120  # seconds for the estimate, while the other ranks wait


def is_out_of_memory(error: BaseException) -> bool:
    """Of the GPU, of the CPU (which torch reports as a RuntimeError), or in a process that reads data."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and bool(_SAID.search(str(error)) or _READER in str(error))


def explain(error: Exception, config: Config, device: torch.device) -> UserError:
    """Which rank it was, what it asked for, and which changes need how much by `plan`'s estimate.

    Lets go of what the failed step held, as the estimate takes some memory too.
    """
    said = str(error)
    traceback.clear_frames(error.__traceback__)
    if _READER in said:
        return UserError(
            f"a process that reads data for rank {rank()} ({socket.gethostname()}) was killed, perhaps for "
            "want of memory, or of shared memory (/dev/shm); use less data.workers or a node with more, and "
            "run the same command again"
        )
    wanted = _WANTED.search(said)
    asked = (
        f"it asked for {_gib(float(wanted[1]) * _UNITS[wanted[2]])} more" if wanted else "it asked for more"
    )
    kind, where = ("cpu", "memory") if device.type == "cpu" else ("…", "its GPU")
    return UserError(
        f"rank {rank()} ({socket.gethostname()}) has no memory left for this step: {asked}, of "
        f"{_gib(_capacity(device))} that {where} has; {_advice(config, device.type)}; python -m pretrain "
        f"plan --gpus {world_size()} --gpu {kind} says more, and the same command with the change goes on "
        "from the newest checkpoint"
    )


class Question(BaseModel):
    """What a process of its own is asked, which has room, and no process group that other ranks are in."""

    config: Config
    ranks: int
    device: str
    """cuda or cpu."""


def _advice(config: Config, device: str) -> str:
    question = Question(config=config, ranks=world_size(), device=device).model_dump_json()
    command = [sys.executable, "-m", "pretrain.cost.out_of_memory"]
    try:
        done = subprocess.run(command, input=question, capture_output=True, text=True, timeout=_LONGEST)
        answer = done.stdout.strip() if done.returncode == 0 else ""
    except (OSError, MemoryError, subprocess.TimeoutExpired):
        answer = ""
    return answer or (
        "less need engine.kind=fsdp, engine.activation_checkpointing=full or a larger engine.accumulation"
    )


def answer(question: Question) -> str:
    """The first remedy of each kind (sharding, recomputing, more passes), and how much a rank then needs."""
    config, engine = question.config, question.config.engine
    now = _estimate(question, engine)
    found: dict[tuple[str, ...], str] = {}
    for changes, ranks in remedies(config, question.ranks):
        if ranks != question.ranks or tuple(changes) in found:
            continue
        try:
            size = _estimate(question, EngineConfig.model_validate(engine.model_dump() | changes))
        except (ValidationError, UserError):  # what cannot go together is no remedy
            continue
        if size < now:
            given = " ".join(f"engine.{key}={value}" for key, value in changes.items())
            found[tuple(changes)] = f"{given} ({_gib(size)})"
    if not found:
        return f"plan's estimate is {_gib(now)} a rank, and no engine needs less: use more ranks"
    return f"plan's estimate is {_gib(now)} a rank; less need {', '.join(found.values())}"


def _estimate(question: Question, engine: EngineConfig) -> float:
    """Bytes of one rank at the peak of a step."""
    config = question.config.model_copy(update={"engine": engine})
    model = check_model(config, question.ranks)
    parameters = count_parameters(config, model)
    return sum(rank_memory(config, model, parameters, question.ranks, question.device).values())


def _capacity(device: torch.device) -> float:
    """Bytes that this process may have."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    total = float(psutil.virtual_memory().total)
    return total if limit == resource.RLIM_INFINITY else min(total, limit)


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size > GIB / 10 else f"{size / 2**20:.2g} MiB"


if __name__ == "__main__":
    print(answer(Question.model_validate_json(sys.stdin.read())))
