"""Recognise that a step did not fit into memory, and say what needs less, by the estimates of `plan`."""

import os
import re
import resource
import socket
import subprocess
import sys
import traceback

import psutil
import torch
from pydantic import BaseModel, ValidationError

from isotorus.errors import DEAD_READER, UserError
from pretrain.config import Config
from pretrain.cost.memory_estimate import count_parameters, rank_memory
from pretrain.cost.plan import remedies
from pretrain.distributed import rank, world_size
from pretrain.engines.automatic import decide
from pretrain.engines.config import EngineConfig
from pretrain.preflight.model import check_model

GIB = 2**30
_WANTED = re.compile(r"[Tt]ried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)")
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_LONGEST = 120  # seconds for the estimate, as the other ranks wait meanwhile


def explain(error: Exception, config: Config, device: torch.device) -> UserError:
    """Return an error that names the rank, what it asked for, and the changes that need less memory.

    Frees what the failed step held, because the estimate needs memory too.
    """
    said = str(error)
    traceback.clear_frames(error.__traceback__)
    if DEAD_READER in said:
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
        f"{_gib(_capacity(device))} that {where} has; {_advice(config, device.type)}; isotorus "
        f"plan --gpus {world_size()} --gpu {kind} says more, and the same command with the change goes on "
        "from the newest checkpoint"
    )


class Question(BaseModel):
    """Question to a separate process, which has memory left and is in no process group."""

    config: Config
    ranks: int
    device: str
    """cuda or cpu."""


def _advice(config: Config, device: str) -> str:
    """Ask a separate process for remedies; without an answer, name the usual ones."""
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
    """Return the first remedy of each kind with the memory that a rank then needs.

    The kinds are sharding, recomputing and more passes.
    """
    engine = question.config.engine.on(question.config.data.batch_size, question.ranks)
    config = question.config.model_copy(update={"engine": engine})
    now = _estimate(question, engine)
    by_kind: dict[tuple[str, ...], str] = {}
    for changes, ranks in remedies(config, question.ranks):
        if ranks != question.ranks or tuple(changes) in by_kind:
            continue
        try:
            size = _estimate(question, EngineConfig.model_validate(engine.model_dump() | changes))
        except (ValidationError, UserError):  # settings that cannot be combined
            continue
        if size < now:
            arguments = " ".join(f"engine.{key}={value}" for key, value in changes.items())
            by_kind[tuple(changes)] = f"{arguments} ({_gib(size)})"
    if not by_kind:
        return f"plan's estimate is {_gib(now)} a rank, and no engine needs less: use more ranks"
    return f"plan's estimate is {_gib(now)} a rank; less need {', '.join(by_kind.values())}"


def _estimate(question: Question, engine: EngineConfig) -> float:
    """Return the bytes of one rank at the peak of a step."""
    config = question.config.model_copy(update={"engine": engine})
    model = check_model(config, question.ranks)
    node = int(os.environ.get("LOCAL_WORLD_SIZE", question.ranks))
    config = config.model_copy(update={"engine": decide(engine, model.encoder, node).config})
    parameters = count_parameters(config, model)
    return sum(rank_memory(config, model, parameters, question.ranks, question.device).values())


def _capacity(device: torch.device) -> float:
    """Return the bytes that this process may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    total = float(psutil.virtual_memory().total)
    return total if limit == resource.RLIM_INFINITY else min(total, limit)


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size > GIB / 10 else f"{size / 2**20:.2g} MiB"


if __name__ == "__main__":
    print(answer(Question.model_validate_json(sys.stdin.read())))
