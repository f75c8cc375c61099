"""Tokens on disk are those that timm gives, in the order of the grid."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

from eval_suite.attempts import Unmeasurable
from eval_suite.features.feature_sets import FeatureSets
from eval_suite.features.token_maps import TokenMap
from tests.eval_suite.eval_samples import KWARGS

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def test_tokens_of_a_vit_are_its_last_patch_tokens_without_the_class_token():
    model = timm.create_model("vit_tiny_patch16_224", **KWARGS).eval()
    for stages in (1, 3):
        found = TokenMap(FeatureSets(model), stages)(IMAGES)["map"]
        torch.testing.assert_close(
            found.flatten(2).transpose(1, 2), model.forward_features(IMAGES)[:, 1:], atol=1e-5, rtol=1e-4
        )


@torch.inference_mode()
def test_maps_of_a_convnet_are_put_together_at_the_size_of_the_largest():
    small = {"dims": [8, 8, 16, 24], "depths": [1, 1, 1, 1], "patch_size": 2, "num_classes": 0}
    model = timm.create_model("convnext_atto", **small).eval()
    features = FeatureSets(model)
    last = TokenMap(features, 1)(IMAGES)["map"]
    torch.testing.assert_close(last, model.forward_features(IMAGES), atol=1e-5, rtol=1e-4)
    several = TokenMap(features, 3)(IMAGES)["map"]
    assert last.shape == (2, 24, 1, 1) and several.shape == (2, 48, 4, 4)
    stages = model.forward_intermediates(IMAGES, indices=3, intermediates_only=True)
    torch.testing.assert_close(several[:, :8], stages[0])


def test_raw_pixels_are_their_own_map_and_other_networks_have_none():
    torch.testing.assert_close(TokenMap(FeatureSets(nn.Flatten()), 1)(IMAGES)["map"], IMAGES)
    with pytest.raises(Unmeasurable, match="gives no patch tokens"):
        TokenMap(FeatureSets(nn.Conv2d(3, 4, 32)), 1)(IMAGES)


def test_masks_are_cropped_as_their_images():
    from data_pipeline.transforms.views import center_mask, center_view

    mask = np.random.default_rng(0).integers(0, 2, (9, 13)).astype(np.uint8)
    image = np.repeat(mask[..., None], 3, axis=2) * 255
    np.testing.assert_array_equal(center_mask(mask, 9), mask[:, 2:11])
    np.testing.assert_array_equal(center_mask(mask, 9), (center_view(image, 9)[0].numpy() > 127))
