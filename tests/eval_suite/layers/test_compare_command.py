"""`python -m eval_suite compare A B` says which layers of two encoders are alike."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from eval_suite.layers.compare.conclusion import conclude
from eval_suite.layers.compare.pairs import paired
from pretrain.models.encoder import build_encoder
from tests.eval_suite.eval_samples import CLASSES, KWARGS, Outcome, pack, run_command, save_checkpoint

DEEPER = {**KWARGS, "depth": 3, "embed_dim": 32}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("compared") / "data", [*CLASSES] * 32, seed=3)


def change(checkpoint: Path, changed: str, seed: int = 5) -> Path:
    """Draw the weights whose names begin with `changed` anew."""
    weights = load_file(checkpoint / "encoder.safetensors")
    generator = torch.Generator().manual_seed(seed)
    for name, x in weights.items():
        if name.startswith(changed):
            weights[name] = 0.3 * torch.randn(x.shape, generator=generator)
    save_file(weights, checkpoint / "encoder.safetensors")
    return checkpoint


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs whose encoders differ in the last block alone."""
    folder = tmp_path_factory.mktemp("pair")
    for name in "ab":
        save_checkpoint(folder / name / "checkpoints" / "step_00000007")
    change(folder / "b" / "checkpoints" / "step_00000007", "blocks.1")
    return folder / "a", folder / "b"


@pytest.fixture(scope="module")
def compared(pair: tuple[Path, Path], data: Path) -> tuple[Outcome, dict[str, Any], str]:
    outcome = run_command("compare", *pair, "--data", data)
    assert outcome.code == 0, outcome.err
    folder = pair[0] / "eval" / "7" / "compare" / "b-7"
    return outcome, json.loads((folder / "compare.json").read_text()), (folder / "compare.html").read_text()


def test_the_block_that_differs_is_named(compared: tuple[Outcome, dict[str, Any], str]):
    outcome, found, page = compared
    assert [row["a"] for row in found["pairs"]] == ["blocks.0", "blocks.1", "embedding"]
    equal, changed, embedding = found["pairs"]
    assert equal["cka"]["value"] == pytest.approx(1)
    assert equal["procrustes"]["value"] == pytest.approx(0, abs=1e-3)
    assert equal["neighbours"]["value"] == 1
    for row in (changed, embedding):
        assert row["cka"]["high"] < 0.9 and row["procrustes"]["low"] > 0.1 and row["neighbours"]["high"] < 0.9
    assert found["conclusion"].startswith("The first block is alike (CKA 1.00), the last block ")
    assert found["conclusion"] in " ".join(outcome.out.split()) and found["conclusion"] in page
    assert "next: isotorus eval " in outcome.out and page.count("<svg") == 1


def test_levels_stand_beside_every_value(compared: tuple[Outcome, dict[str, Any], str]):
    _, found, _ = compared
    for row in found["pairs"]:
        assert abs(row["cka"]["shuffled"]) < 0.2
        assert row["neighbours"]["shuffled"] == pytest.approx(10 / 63, abs=0.08)
        # The untrained encoders have two different initialisations, though both runs had one seed.
        assert row["cka"]["shuffled"] + 0.1 < row["cka"]["untrained"] < 1
        assert 0.05 < row["procrustes"]["untrained"] < row["procrustes"]["shuffled"]


def test_features_are_kept_for_the_next_call(
    compared: object, pair: tuple[Path, Path], data: Path, monkeypatch: pytest.MonkeyPatch
):
    kept = list((pair[0] / "eval" / "cache").glob("*.npz"))
    assert len(kept) == 4

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("images were embedded again")

    monkeypatch.setattr("eval_suite.features.embed._compute", refuse)
    assert run_command("compare", *pair, "--data", data, "--json").code == 0


def test_encoders_of_different_depth_are_compared_in_all_pairs(
    pair: tuple[Path, Path], data: Path, tmp_path: Path
):
    other = save_checkpoint(tmp_path / "deeper", kwargs=DEEPER, embedding_width=32, image_size=32, seed=4)
    encoder = build_encoder("vit_tiny_patch16_224", DEEPER, 3)
    save_file(encoder.state_dict(), other / "encoder.safetensors")
    out = tmp_path / "out"
    outcome = run_command("compare", pair[0], other, "--data", data, "--out", out, "--images", 50)
    assert outcome.code == 0, outcome.err
    found = json.loads((out / "compare.json").read_text())
    assert [(row["a"], row["b"]) for row in found["pairs"]] == [
        *((f"blocks.{i}", f"blocks.{j}") for i in range(2) for j in range(3)),
        ("embedding", "embedding"),
    ]
    assert found["conclusion"].startswith("The encoders differ in depth; most alike are blocks.")
    assert found["inputs"]["images"] == 50 and (out / "cache").is_dir()
    assert "block of A" in (out / "compare.html").read_text()


def test_each_checkpoint_of_a_run_keeps_its_own_comparisons(
    pair: tuple[Path, Path], data: Path, tmp_path: Path
):
    checkpoint = save_checkpoint(tmp_path / "a" / "checkpoints" / "step_00000007")
    averaged = checkpoint / "encoder_average.safetensors"
    save_file(load_file(checkpoint / "encoder.safetensors"), averaged)
    later = save_checkpoint(tmp_path / "a" / "checkpoints" / "step_00000009")
    for one in (averaged, checkpoint, later):
        outcome = run_command("compare", one, pair[1], "--data", data)
        assert outcome.code == 0, outcome.err
    kept = (tmp_path / "a" / "eval").glob("*/compare/*/compare.json")
    assert sorted(path.parts[-4] for path in kept) == ["7", "7-average", "9"]


def test_a_collapsed_encoder_is_left_out_with_its_reason(pair: tuple[Path, Path], data: Path, tmp_path: Path):
    dead = save_checkpoint(tmp_path / "dead")
    weights = load_file(dead / "encoder.safetensors")
    weights["norm.weight"].zero_()
    save_file(weights, dead / "encoder.safetensors")
    outcome = run_command("compare", pair[0], dead, "--data", data, "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [row["a"] for row in found["pairs"]] == ["blocks.0", "blocks.1"]
    assert "the embedding has collapsed" in found["left_out"]["embedding of B"]
    assert "left out: embedding of B" in outcome.out


def test_what_cannot_be_compared_is_refused(
    pair: tuple[Path, Path], splits: dict, data: Path, tmp_path: Path
):
    four = save_checkpoint(tmp_path / "four", channels=4, kwargs={**KWARGS, "in_chans": 4})
    encoder = build_encoder("vit_tiny_patch16_224", {**KWARGS, "in_chans": 4}, 0)
    save_file(encoder.state_dict(), four / "encoder.safetensors")
    copy = save_checkpoint(tmp_path / "copy")
    for arguments, message in (
        ([pair[0], pair[0]], "have the same weights, so there is nothing to compare"),
        ([pair[0], copy], "have the same weights, so there is nothing to compare"),
        ([pair[0].parent, pair[1]], "stands for 2 checkpoints"),
        ([pair[0], four], "channels"),
        ([*pair, "--images", 20], "argument --images: 20: expected a whole number, 50 or more"),
        ([*pair, "--neighbours", 63], "has 64 images; to compare encoders, give 50 or more"),
    ):
        outcome = run_command("compare", *arguments, "--data", data, "--out", tmp_path / "out")
        assert outcome.code == 2 and message in outcome.err, (arguments, outcome.err)
        assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
        assert not (tmp_path / "out").exists()
    outcome = run_command("compare", *pair, "--data", splits["val"])
    assert outcome.code == 2 and "has 20 images; to compare encoders" in outcome.err


def row(name: str, cka: float, untrained: float = 0.7) -> dict[str, Any]:
    values = {"value": cka, "low": cka - 0.02, "high": cka + 0.02, "untrained": untrained, "shuffled": 0.03}
    return {"a": name, "b": name, "cka": values, "neighbours": values, "procrustes": values}


def test_the_conclusion_follows_the_depth():
    rows = [row(f"blocks.{i}", cka) for i, cka in enumerate((0.99, 0.97, 0.95, 0.8, 0.4, 0.3))]
    assert conclude([*rows, row("embedding", 0.2)], 10) == (
        "The first 3 blocks are alike (CKA 0.99 to 0.95), the next block is partly alike (CKA 0.80), "
        "the last 2 blocks differ (CKA 0.40 to 0.30), the embeddings differ (CKA 0.20). "
        "Beside two encoders that are not trained, they are more alike in 4 of 7 layers and less alike in 3. "
        "In the embeddings, 20 % of the 10 images nearest to an image are the same (3 % by chance)."
    )
    same = conclude([row("blocks.0", 0.99), row("blocks.1", 0.98), row("embedding", 0.97)], 10)
    assert same.startswith("Both blocks are alike (CKA 0.99 to 0.98), the embeddings are alike (CKA 0.97).")


def test_an_encoder_with_a_single_block_differs_in_depth_from_one_with_three():
    rows = [row(f"blocks.{i}", 0.5 + i / 10) | {"b": "stem"} for i in range(3)]
    assert conclude([*rows, row("embedding", 0.3)], 10).startswith(
        "The encoders differ in depth; most alike are blocks.2 of A and stem of B (CKA 0.70); the embeddings "
    )


def test_layers_are_paired_by_depth_or_all_with_all():
    assert paired(["x", "embedding"], ["y", "embedding"]) == [("x", "y"), ("embedding", "embedding")]
    assert paired(["x", "embedding"], ["embedding"]) == [("embedding", "embedding")]
    assert len(paired([*"abc", "embedding"], [*"de", "embedding"])) == 7
