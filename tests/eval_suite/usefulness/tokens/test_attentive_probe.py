"""The attentive probe attends as torch does, and finds what the mean of the tokens hides."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from eval_suite.attempts import Unmeasurable
from eval_suite.usefulness.probe import linear_probe
from eval_suite.usefulness.regression import ridge_probe
from eval_suite.usefulness.tokens.attentive_probe import (
    Images,
    Probe,
    Protocol,
    attend,
    attentive_probe,
    logits_of,
    moments,
)

SHORT = Protocol(l2=(1e-3, 1e-1), min_steps=150, heads=2)


def test_attention_is_that_of_torch_for_every_strength_and_head():
    torch.manual_seed(0)
    x, queries = torch.randn(5, 7, 6), torch.randn(3, 2, 6)
    of_torch = F.scaled_dot_product_attention(
        queries.view(1, 1, 6, 6).expand(5, -1, -1, -1), x[:, None], x[:, None]
    )[:, 0]
    torch.testing.assert_close(attend(queries.view(6, 6), x), of_torch)
    weight, bias = torch.randn(3, 12, 4), torch.randn(3, 1, 4)
    logits = logits_of(Probe(queries, weight, bias), x)
    for strength in range(3):
        heads = of_torch[:, 2 * strength : 2 * strength + 2].flatten(1)
        torch.testing.assert_close(logits[strength], heads @ weight[strength] + bias[strength])


def test_a_query_of_multi_head_attention_is_a_special_case():
    torch.manual_seed(0)
    width, heads, x, query = 6, 2, torch.randn(4, 5, 6), torch.randn(1, 1, 6)
    module = torch.nn.MultiheadAttention(width, heads, bias=False, batch_first=True)
    expected = module(query.expand(4, -1, -1), x, x, need_weights=False)[0][:, 0]
    q, k, v = module.in_proj_weight.detach().view(3, heads, width // heads, width)
    ours = torch.einsum("hod,d,hoe->he", q, query[0, 0], k) * (width / (width // heads)) ** 0.5
    pooled = attend(ours, x)  # (n, heads, width)
    values = torch.einsum("nhd,hod->nho", pooled, v).flatten(1)
    torch.testing.assert_close(values @ module.out_proj.weight.T, expected)


def _one_token_tells(n: int, seed: int, kind: str = "multiclass") -> Images:
    """Return noise tokens, of which one, marked in the first dimension, has the target in the second."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, 9, 8)).astype(np.float16)
    y, place = random.integers(0, 2, n), random.integers(0, 9, n)
    told = random.normal(size=n) if kind == "regression" else 2.0 * y - 1
    x[np.arange(n), place, 0], x[np.arange(n), place, 1] = 6, 3 * told
    targets = {"multiclass": y, "multilabel": np.stack([y, 1 - y], axis=1), "regression": told[:, None]}
    return Images(x, targets[kind])


def _means(*splits: Images) -> list[np.ndarray]:
    return [part for of in splits for part in (of.x.astype(np.float32).mean(axis=1), of.y)]


def test_a_label_in_one_token_of_many_is_found_where_the_mean_hides_it():
    splits = [_one_token_tells(n, seed) for seed, n in enumerate((250, 100, 200))]
    found = attentive_probe(*splits, "multiclass", protocol=SHORT, classes=2)
    assert found["test_balanced_accuracy"] > 0.97
    assert linear_probe(*_means(*splits))["test_balanced_accuracy"] < 0.9
    assert {row["l2"] for row in found["val"]} == {1e-3, 1e-1}
    again = attentive_probe(*splits, "multiclass", protocol=SHORT, classes=2)
    np.testing.assert_array_equal(found["test_scores"], again["test_scores"])


def test_several_labels_and_numbers_are_found_too():
    splits = [_one_token_tells(n, seed, "multilabel") for seed, n in enumerate((250, 100, 200))]
    found = attentive_probe(*splits, "multilabel", protocol=SHORT, classes=2)
    assert found["test_auroc"] > 0.97
    splits = [_one_token_tells(n, seed, "regression") for seed, n in enumerate((250, 100, 200))]
    found = attentive_probe(*splits, "regression", protocol=SHORT, classes=1)
    assert found["test_r2"] > ridge_probe(*_means(*splits))["test_r2"] + 0.1


def test_a_strength_is_trained_as_if_it_were_alone():
    splits = [_one_token_tells(n, seed) for seed, n in enumerate((60, 30, 30))]
    few = {"min_steps": 20, "epochs": 1, "heads": 2}
    both = attentive_probe(*splits, "multiclass", protocol=Protocol(l2=(1e-3, 1.0), **few), classes=2)
    for row in both["val"]:
        alone = attentive_probe(*splits, "multiclass", protocol=Protocol(l2=(row["l2"],), **few), classes=2)
        assert alone["val"][0] == pytest.approx(row, abs=1e-4)


def test_moments_are_those_of_all_tokens():
    x = np.random.default_rng(0).normal(3, 2, (300, 4, 5)).astype(np.float16)
    x[..., 4] = 7
    mean, std = moments(Images(x, np.zeros(300)))
    flat = x.reshape(-1, 5).astype(np.float64)
    np.testing.assert_allclose(mean, flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(std, [*flat.std(0)[:4], 1], rtol=1e-4)


def test_a_single_class_cannot_be_probed():
    images = Images(np.zeros((4, 2, 3), np.float16), np.zeros(4, np.int64))
    with pytest.raises(Unmeasurable, match="two classes or more"):
        attentive_probe(images, images, images, "multiclass", classes=1)
