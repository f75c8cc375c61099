"""Warm start: take an encoder's first weights from a file and fit them to the encoder that the run asks for.

Any safetensors file with timm's names will do, and so will a checkpoint or run of ours. Position embeddings
and patches of another size are resampled, input channels are adapted, a classifier is left out; all else must
fit. Nothing is random, so all ranks and engines get the same weights.
"""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from isotorus import foreign_files
from isotorus.errors import UserError, from_os_error
from pretrain.checkpoint.folders import latest
from pretrain.models.channel_embedding import EMBEDDING
from pretrain.models.description import beside
from pretrain.models.encoder import build_encoder, create

State = dict[str, Tensor]
NAMES = ("encoder.safetensors", "model.safetensors")
"""Names of the file with the weights: in a checkpoint of ours, and in a timm model folder."""


class WarmStart(NamedTuple):
    """The file that an encoder's first weights come from."""

    file: str
    sha256: str
    """The file's SHA-256, as sha256sum prints it."""


def find_weights(given: Path, asked: str) -> WarmStart:
    """Find the weights of a file or of a checkpoint, run or timm model folder; UserError without any.

    `asked` is how the user named it, for the error.
    """
    checkpoints = given / "checkpoints"
    folders = [given, latest(checkpoints) or checkpoints / "latest"]
    candidates = [given] if given.is_file() else [folder / name for folder in folders for name in NAMES]
    file = next((path for path in candidates if path.is_file()), None)
    if file is None:
        problem = f"holds none of {' or '.join(NAMES)}" if given.is_dir() else "does not exist"
        raise UserError(
            f"{asked} {problem}; name a .safetensors file, or the folder of a run, a checkpoint or a timm "
            "model"
        )
    if file.suffix != ".safetensors":
        raise UserError(
            f"{asked} is no .safetensors file, and others can run code when they are opened; "
            "convert it with safetensors.torch.save_file"
        )
    try:
        # Resolved, because the name may be a link that will point to another checkpoint.
        place = foreign_files.inside(file, file.parent if given.is_file() else given)
        with foreign_files.open_binary(place) as stream:
            return WarmStart(str(place), hashlib.file_digest(stream, "sha256").hexdigest())
    except OSError as error:
        raise from_os_error(error, "reading weights") from error


def initial_state(name: str, kwargs: dict[str, Any], seed: int, weights: str | None) -> State:
    """Return the encoder's first state dict, on the CPU: from the file `weights`, or drawn from `seed`."""
    if weights is None:
        return build_encoder(name, kwargs, seed).state_dict()
    with torch.device("meta"):
        encoder = create(name, kwargs)
    return fit(_read(weights, "cpu"), encoder, name, weights)


def check_fit(name: str, encoder: nn.Module, weights: str) -> None:
    """Raise UserError unless the file fits `encoder`; reads only names and shapes."""
    fit(_read(weights, "meta"), encoder, name, weights)


def refuse_other_channels(names: list[str] | None, weights: str) -> None:
    """Raise UserError if the weights are of an encoder that finds other channels by name than `names`."""
    described = beside(Path(weights))
    if described is None or not described.finds_by_name or described.channel_names == names:
        return
    theirs = ",".join(described.channel_names or [])
    raise UserError(
        f"encoder.weights: {weights} was trained on the channels {theirs}, which are found by name; use "
        f"data.channels=[{theirs}], or export it for some of them (isotorus export --channels) and name the "
        "folder of the export"
    )


def silent_difference(encoder: nn.Module, weights: str) -> str:
    """Say how `encoder` differs from the one that made the weights, where no tensor's shape shows it.

    Compares the heads and activations that both have, by the description beside the file. Returns an empty
    string where all agree, and without a description that timm can build.
    """
    try:
        files = [Path(weights).with_name(name) for name in ("encoder.json", "config.json")]
        file = next(file for file in files if file.is_file())
        described = foreign_files.read_json(file)
        name = described.get("name") or described["architecture"]
        with torch.device("meta"):
            source = create(name, described.get("kwargs") or described.get("model_args") or {})
    except (StopIteration, OSError, ValueError, KeyError, AttributeError, TypeError, UserError):
        return ""
    theirs = _traits(source)
    for place, trait in _traits(encoder).items():
        if place in theirs and theirs[place] != trait:
            return (
                f"{place} has {trait}, and {theirs[place]} in the encoder that they come from ({file}); use "
                "the same encoder.kwargs to continue what was learnt"
            )
    return ""


def _traits(encoder: nn.Module) -> dict[str, str]:
    """Return what attention and activations compute with the same weights, by module."""
    heads = {n: f"num_heads={m.num_heads}" for n, m in encoder.named_modules() if hasattr(m, "num_heads")}
    kinds = {n: type(m).__name__ for n, m in encoder.named_modules() if n.rpartition(".")[2] == "act"}
    return heads | kinds


def load_exactly(file: str, encoder: nn.Module, name: str) -> State:
    """Read the file's tensors; raises UserError unless names and shapes are exactly those of `encoder`."""
    state = _read(file, "cpu")
    if misfits := _misfits(encoder.state_dict(), state):
        raise UserError(
            f"{file} is not of {name}: {'; '.join(misfits)}; put the files of one checkpoint together"
        )
    return state


def fit(state: State, encoder: nn.Module, name: str, file: str) -> State:
    """Turn `state` into a complete state dict of `encoder`, on the device of `state`.

    `encoder` may be on the meta device. Raises UserError, naming tensors, if some are missing, unknown or
    of a shape that cannot be resampled.
    """
    expected, failure = encoder.state_dict(), ""
    try:
        fitted = _timm_filter(encoder)(dict(state), encoder)
    except (RuntimeError, ValueError, KeyError, AssertionError, AttributeError) as error:
        fitted, failure = dict(state), (str(error) or type(error).__name__).splitlines()[0]
    for layer in _names(encoder, "classifier"):
        fitted = {k: x for k, x in fitted.items() if k in expected or not k.startswith(f"{layer}.")}
    for layer in _names(encoder, "first_conv"):
        if (key := f"{layer}.weight") in fitted and key in expected:
            fitted[key] = adapt_channels(fitted[key], expected[key].shape)
        if (key := f"{layer}.{EMBEDDING}") in expected:  # weights of plain encoders have none
            fitted.setdefault(key, torch.zeros(expected[key].shape, device=fitted[f"{layer}.weight"].device))
        elif key in fitted:
            raise UserError(
                f"{file} is of an encoder that finds channels by name; export it for the channels of these "
                "images (isotorus export --channels), and name the folder of the export"
            )
    misfits = _misfits(expected, fitted) or [failure]
    if misfits[0]:
        raise UserError(
            f"{file} does not fit {name}: {'; '.join(misfits)}; choose the encoder.name and encoder.kwargs "
            "that the file was made with"
        )
    return {key: fitted[key].to(tensor.dtype) for key, tensor in expected.items()}


def adapt_channels(weight: Tensor, shape: torch.Size) -> Tensor:
    """Adapt a convolution's weight (O, I, h, w) to the input channels of `shape`; return others unchanged.

    For one channel the weights are summed, so that grey images give what grey RGB images gave. For more
    channels they are repeated, and scaled to keep the size of the output (timm's rule).
    """
    if weight.ndim != 4 or len(shape) != 4 or weight.shape[1] == shape[1]:
        return weight
    if shape[1] == 1:
        return weight.sum(1, keepdim=True)
    channels = torch.arange(shape[1], device=weight.device) % weight.shape[1]
    return weight[:, channels] * (weight.shape[1] / shape[1])


def _read(file: str, device: str) -> State:
    """Read the tensors of a safetensors file; on the meta device only their shapes."""
    try:
        with safe_open(file, framework="pt") as stream:
            if device != "meta":
                return {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
            shapes = {name: stream.get_slice(name).get_shape() for name in stream.keys()}  # noqa: SIM118
            return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    except OSError as error:
        raise from_os_error(error, "reading weights") from error
    except SafetensorError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{file} is not a whole safetensors file ({reason}); copy or convert it again"
        ) from None


def _timm_filter(encoder: nn.Module) -> Callable[[State, nn.Module], State]:
    """Return timm's function that fits pretrained weights to this family; it stands in the class's module."""
    module = sys.modules[type(encoder).__module__]
    return getattr(module, "checkpoint_filter_fn", lambda state, _: state)


def _names(encoder: nn.Module, key: str) -> tuple[str, ...]:
    names: str | tuple[str, ...] | None = getattr(encoder, "pretrained_cfg", {}).get(key)
    return (names,) if isinstance(names, str) else tuple(names or ())


def _misfits(expected: State, read: State) -> list[str]:
    """List tensors that are missing, unknown or of another shape: a count and the first name of each."""
    missing = [f"{k} {_shape(x)}" for k, x in expected.items() if k not in read]
    extra = [f"{k} {_shape(x)}" for k, x in read.items() if k not in expected]
    other = [
        f"{k} is {_shape(read[k])} in the file, {_shape(x)} in the model"
        for k, x in expected.items()
        if k in read and read[k].shape != x.shape
    ]
    kinds = {"missing in the file": missing, "unknown to the model": extra, "of another shape": other}
    return [f"{len(names)} {kind} (first: {names[0]})" for kind, names in kinds.items() if names]


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"
