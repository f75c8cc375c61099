"""Drop-path masks: the right share, and the same for a sample wherever it is computed."""

import timm
import torch

from pretrain.models.drop_path import draw_masks, key_drop_paths, sample_keys, uniform
from pretrain.models.encoder import ViewEncoder


def test_uniform_numbers_have_the_moments_of_uniform_numbers():
    keys = sample_keys(seed=0, step=1, first=0, count=100_000, views=3)[2]
    for layer in range(3):
        u = uniform(keys, layer)
        assert u.min() >= 0 and u.max() < 1
        assert abs(u.mean() - 0.5) < 0.005 and abs(u.var() - 1 / 12) < 0.002
        assert abs(torch.corrcoef(torch.stack([u, uniform(keys, layer + 1)]))[0, 1]) < 0.02
    again = sample_keys(seed=0, step=2, first=0, count=100_000, views=3)[2]
    assert abs(torch.corrcoef(torch.stack([uniform(keys, 0), uniform(again, 0)]))[0, 1]) < 0.02


def test_timm_drop_paths_are_all_keyed_and_keep_the_mean():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3, num_classes=0, drop_path_rate=0.5)
    modules = key_drop_paths(model)
    assert [round(m.probability, 2) for m in modules] == [0.25, 0.25, 0.5, 0.5]
    assert not any(isinstance(m, timm.layers.DropPath) for m in model.modules())
    module, x = modules[-1], torch.ones(20_000, 1)
    draw_masks(modules, sample_keys(0, 0, 0, len(x), views=1)[0])
    y = module(x)
    assert set(y.unique().tolist()) == {0.0, 2.0} and abs(y.mean() - 1) < 0.03
    assert torch.equal(module.eval()(x), x)


def test_a_sample_is_dropped_alike_in_any_batch():
    kwargs = {"img_size": 32, "depth": 2, "num_classes": 0, "drop_path_rate": 0.5, "patch_size": 8}
    encoder = ViewEncoder(timm.create_model("vit_tiny_patch16_224", **kwargs)).train()
    x = torch.randn(2, 6, 3, 32, 32)
    keys = sample_keys(0, 4, 10, 6, views=2)
    whole = encoder([x], keys)
    part_keys = sample_keys(0, 4, 13, 3, views=2)
    torch.testing.assert_close(encoder([x[:, 3:]], part_keys), whole[:, 3:], rtol=1e-4, atol=1e-5)
