"""Training with labels, part by part: loss, mixed images, learning rates, frozen blocks, the score on val."""

import numpy as np
import pytest
import timm
import torch
from sklearn.metrics import balanced_accuracy_score, log_loss

from isotorus.errors import UserError
from pretrain.engines.config import OptimizerConfig
from pretrain.engines.optimizer import build_optimizer, update
from pretrain.methods.config import SupervisedConfig
from pretrain.methods.supervised import SupervisedHead
from pretrain.models.config import MLPConfig
from pretrain.models.encoder import ViewEncoder
from pretrain.models.frozen import check_frozen, freeze
from pretrain.models.projector import build_mlp
from pretrain.supervised.mixing import mix
from pretrain.supervised.validation import score


def config(**changes: object) -> SupervisedConfig:
    return SupervisedConfig.model_validate({"kind": "supervised", "outputs": 3, "val": "val"} | changes)


def vit() -> torch.nn.Module:
    tiny = {"img_size": 16, "patch_size": 8, "depth": 3, "embed_dim": 8, "num_heads": 2, "num_classes": 0}
    return timm.create_model("vit_tiny_patch16_224", **tiny)


def test_the_loss_is_the_weighted_cross_entropy_of_images_with_a_label():
    head = SupervisedHead(5, config(), seed=0)
    head.class_weight.copy_(torch.tensor([1.0, 2.0, 0.5]))
    x = torch.randn(1, 8, 5, generator=torch.Generator().manual_seed(0))
    labels = np.array([0, 1, 2, 1, 0, 2, 2, 0])
    targets = torch.eye(3)[labels][None]
    targets[0, 6:] = torch.nan
    output = head(x, 0, targets)
    probabilities = output.projections[0, :6].double().softmax(-1).numpy()
    weights = head.class_weight.numpy()[labels[:6]]
    expected = log_loss(labels[:6], probabilities, sample_weight=weights, labels=[0, 1, 2])
    assert output.parts["loss"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("task", "wanted"), [("multilabel", 0.7231), ("regression", 0.29)])
def test_losses_of_labels_and_numbers(task: str, wanted: float):
    """With weights of 0 all logits are the bias b = 0.1: the losses have a closed form."""
    head = SupervisedHead(4, config(task=task, outputs=2), seed=0)
    torch.nn.init.zeros_(head.projector[0].weight)
    torch.nn.init.constant_(head.projector[0].bias, 0.1)
    targets = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    if task == "regression":
        targets = targets * 0 + torch.tensor([0.8, 0.4])  # (0.7² + 0.3²) / 2
    loss = head(torch.randn(1, 2, 4), 0, targets).parts["loss"].item()
    closed = np.log1p(np.exp(0.1)) - 0.05 if task == "multilabel" else wanted
    assert loss == pytest.approx(closed, abs=1e-5)


@pytest.mark.parametrize("kinds", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_mixing_does_not_depend_on_how_a_batch_is_shared(kinds: dict[str, float]):
    objective = config(**kinds)
    shades = torch.arange(8.0)
    images, targets = shades[:, None, None, None].expand(8, 1, 6, 6), torch.eye(8)
    whole, shares = mix(images, targets, objective, seed=3, step=5, first=0)
    parts = [mix(images[a:b], targets[a:b], objective, 3, 5, a) for a, b in ((0, 2), (2, 8))]
    assert torch.equal(whole, torch.cat([part[0] for part in parts]))
    assert torch.equal(shares, torch.cat([part[1] for part in parts]))
    # An image of one shade says by its mean how much of each of the two there is.
    torch.testing.assert_close(whole.mean((1, 2, 3)), shares @ shades)
    torch.testing.assert_close(shares.sum(1), torch.ones(8))
    assert not torch.equal(shares, mix(images, targets, objective, 3, 6, 0)[1])


def test_learning_rates_fall_towards_the_input_and_frozen_blocks_stay():
    encoder = ViewEncoder(vit())
    freeze(encoder.encoder, 1)
    head = build_mlp(8, MLPConfig(layers=1), 3, seed=0)
    optimizer = build_optimizer(encoder, head, OptimizerConfig(layer_decay=0.5))
    names = {id(p): name for name, p in [*encoder.named_parameters(), *head.named_parameters()]}
    scales = {names[id(p)]: group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    assert scales["0.weight"] == scales["encoder.norm.weight"] == 1
    assert scales["encoder.blocks.2.mlp.fc1.weight"] == 1
    assert scales["encoder.blocks.1.attn.qkv.bias"] == 0.5
    assert not [name for name in scales if "blocks.0" in name or "embed" in name or "token" in name]
    before = {name: p.detach().clone() for name, p in encoder.named_parameters()}
    embeddings = encoder([torch.randn(1, 4, 3, 16, 16)], torch.zeros(1, 4, dtype=torch.int64))
    head(embeddings).square().sum().backward()
    update(optimizer, 1e-2, 1e9)
    moved = {name for name, p in encoder.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(scales) - {"0.weight", "0.bias"}


def test_what_cannot_be_frozen_is_refused():
    with pytest.raises(UserError, match="has 3 blocks"):
        check_frozen(3, vit())
    with pytest.raises(UserError, match="batch norm"):
        check_frozen(1, timm.create_model("resnet18", num_classes=0))


def test_the_score_on_val_is_that_of_scikit_learn():
    random = np.random.default_rng(0)
    y, predicted = random.choice([0, 1, 3], 50), random.normal(size=(50, 4))
    expected = balanced_accuracy_score(y, np.where(predicted.argmax(1) == 2, -1, predicted.argmax(1)))
    assert score("multiclass", y, predicted) == pytest.approx(expected)
    labels = np.stack([np.arange(50) % 2, np.zeros(50, int)], 1)
    assert score("multilabel", labels, np.stack([labels[:, 0] - 0.5, random.normal(size=50)], 1)) == 1.0
    numbers = random.normal(size=(50, 1))
    assert score("regression", numbers, numbers) == 1.0
