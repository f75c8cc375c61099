"""The minibatch probe: heads trained together against heads trained alone and torch's optimizers."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data_pipeline.order import sample_index
from eval_suite.attempts import Unmeasurable
from eval_suite.usefulness.minibatch_probe import Protocol, minibatch_probe, train

N, D, CLASSES = 300, 20, 4
SHORT = Protocol(learning_rates=(1e-3, 1e-2, 0.3), batch_size=64, epochs=1, min_steps=30, weight_decay=0.1)


@pytest.fixture(scope="module")
def sets() -> tuple[torch.Tensor, torch.Tensor]:
    """Make two feature sets (2, N, D) in float64, and labels (N,)."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(CLASSES, (N,), generator=generator)
    centres = torch.randn(2, CLASSES, D, generator=generator, dtype=torch.float64)
    return centres[:, y] + torch.randn(2, N, D, generator=generator, dtype=torch.float64), y


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_all_heads_together_equal_each_alone(sets, optimizer: str):
    x, y = sets
    protocol = SHORT.model_copy(update={"optimizer": optimizer})
    together = train(x, y, CLASSES, protocol)
    assert together.shape == (2, 3, CLASSES, D + 1)
    for i, rate in enumerate(protocol.learning_rates):
        for s in range(2):
            alone = train(x[s : s + 1], y, CLASSES, protocol.model_copy(update={"learning_rates": (rate,)}))
            torch.testing.assert_close(together[s, i], alone[0, 0], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_head_is_what_torch_trains(sets, optimizer: str, labels: bool):
    x, y = sets[0][0], sets[1]
    target = F.one_hot(y, CLASSES) | F.one_hot((y * 3 + 1) % CLASSES, CLASSES) if labels else y
    protocol = SHORT.model_copy(
        update={"optimizer": optimizer, "weight_decay": 0.1 if optimizer == "adamw" else 0, "seed": 5}
    )
    ours = train(x[None], target, CLASSES, protocol)[0]
    steps, size = protocol.steps(N), protocol.batch_size
    assert steps == 30
    for i, rate in enumerate(protocol.learning_rates):
        head = torch.nn.Linear(D, CLASSES, dtype=torch.float64)
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
        peak = rate * size / 256
        if optimizer == "adamw":
            torch_optimizer = torch.optim.AdamW(head.parameters(), lr=peak, weight_decay=0.1)
        else:
            torch_optimizer = torch.optim.SGD(head.parameters(), lr=peak, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(torch_optimizer, steps)
        for step in range(steps):
            rows = sample_index(np.arange(step * size, (step + 1) * size), N, 5)
            torch_optimizer.zero_grad()
            logits = head(x[rows])
            if labels:
                loss = F.binary_cross_entropy_with_logits(logits, target[rows].double()) * CLASSES
            else:
                loss = F.cross_entropy(logits, target[rows])
            loss.backward()
            torch_optimizer.step()
            schedule.step()
        expected = torch.cat([head.weight, head.bias[:, None]], dim=1).detach()
        torch.testing.assert_close(ours[i], expected, rtol=1e-5, atol=1e-7)


def test_val_chooses_feature_set_and_rate_for_any_widths(sets):
    y = sets[1].numpy()
    random = np.random.default_rng(0)
    good = sets[0][0].numpy().astype(np.float32)
    features = {
        "noise": random.normal(size=(N, D)),
        "good": good,
        "wide noise": random.normal(size=(N, 33)),
    }
    parts = [{name: x[part] for name, x in features.items()} for part in np.split(np.arange(N), [150, 220])]
    labels = np.split(y, [150, 220])
    rows = [value for pair in zip(parts, labels, strict=True) for value in pair]
    found = minibatch_probe(*rows, protocol=SHORT)
    assert found["feature_set"] == "good"
    assert len(found["val"]) == 9
    best = max(row["balanced_accuracy"] for row in found["val"])
    chosen = {"feature_set": "good", "learning_rate": found["learning_rate"]}
    assert any(row["balanced_accuracy"] == best and row.items() >= chosen.items() for row in found["val"])
    assert found["test_accuracy"] > 0.8
    np.testing.assert_allclose(found["test_scores"].sum(axis=1), 1, atol=1e-6)
    rows[-1] = (rows[-1] + 1) % CLASSES  # the choice does not depend on the labels of test
    assert minibatch_probe(*rows, protocol=SHORT)["val"] == found["val"]
    rows[1] = 0 * rows[1]
    with pytest.raises(Unmeasurable, match="two classes"):
        minibatch_probe(*rows, protocol=SHORT)


def test_layer_norm_ignores_the_scale_of_a_sample(sets):
    x, y = sets[0][0].numpy(), sets[1].numpy()
    scaled = x * np.random.default_rng(1).uniform(1, 9, size=(N, 1))
    protocol = SHORT.model_copy(update={"features": "layer_norm"})
    one, two = (minibatch_probe(f, y, f, y, f, y, protocol=protocol)["test_scores"] for f in (x, scaled))
    np.testing.assert_allclose(one, two, atol=2e-3)
