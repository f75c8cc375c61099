"""`auto` and `node` are on where engine, encoder and machines allow it, and say why where they are not."""

from typing import Any

import pytest
import timm
import torch

from isotorus.errors import UserError
from pretrain.engines.automatic import cannot_compile, decide, in_words, ranks_of_node
from pretrain.engines.config import EngineConfig

ALL = {"packed": "auto", "compile": "auto", "shard": "node"}
ZERO_3 = {"kind": "deepspeed", "zero_stage": 3}


def encoder(name: str) -> torch.nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, num_classes=0)


@pytest.mark.parametrize(
    ("name", "options", "lacks", "packed", "compiled", "shard"),
    [
        ("vit_tiny_patch16_224", {"kind": "fsdp"}, "", True, True, 4),
        ("vit_tiny_patch16_224", {"kind": "fsdp"}, "there is no C compiler", True, False, 4),
        ("vit_tiny_patch16_224", {"kind": "ddp"}, "", True, True, None),
        ("vit_tiny_patch16_224", ZERO_3, "", True, False, None),
        ("convnext_atto", {"kind": "fsdp"}, "", False, False, 4),
    ],
)
def test_on_where_it_can_be(
    name: str, options: dict[str, Any], lacks: str, packed: bool, compiled: bool, shard: int | None
):
    given = EngineConfig(**ALL, **options)
    decided, reasons = decide(given, encoder(name), 4, lacks)
    assert (decided.packed, decided.compile, decided.shard) == (packed, compiled, shard)
    off = {"packed": not packed, "compile": not compiled, "shard": shard is None}
    assert reasons.keys() == {field for field, is_off in off.items() if is_off}
    said = in_words(given, decided, reasons)
    assert f"engine.packed=auto is {str(packed).lower()}" in said[-2] or not packed
    assert not lacks or any(line.endswith(f"is false ({lacks})") for line in said)


def test_what_is_given_stays():
    given = EngineConfig(kind="fsdp", shard=2, packed=False, compile=True, precision="fp32")
    decided, reasons = decide(given, encoder("vit_tiny_patch16_224"), 8, "there is no C compiler")
    assert decided == given and not reasons and not in_words(given, decided)


def test_nodes_with_one_rank_share_one_replica():
    """Shards over one rank would be no shards, and a large model would not fit."""
    assert decide(EngineConfig(kind="fsdp", shard="node"), encoder("resnet18"), 1).config.shard is None


def test_ranks_of_a_node():
    assert ranks_of_node([2, 2, 2, 2], [0, 1, 0, 1]) == 2
    for sizes, places, said in (
        ([2, 2, 1], [0, 1, 0], "needs as many ranks on each node, these have 1 and 2; use"),
        ([2, 2, 2, 2], [0, 0, 1, 1], "consecutive ranks on each node"),
        ([2, -1], [0, -1], "rank 1 has no LOCAL_WORLD_SIZE"),
    ):
        with pytest.raises(UserError, match=f"engine.shard=node.*{said}"):
            ranks_of_node(sizes, places)


def test_compilers_are_looked_for_where_they_are_called(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cannot_compile("cuda").startswith("there is no C compiler; install one")
    assert cannot_compile("cpu").startswith("there is no C++ compiler; install one")
    for name in ("gcc", "g++"):
        (tmp_path / name).touch(0o755)
    assert cannot_compile("cuda") == cannot_compile("cpu") == ""
    monkeypatch.setenv("CC", "/nowhere/cc")
    assert "no C compiler" in cannot_compile("cuda")
