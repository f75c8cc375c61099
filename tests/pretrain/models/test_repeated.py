"""Encoders that can be examined with fewer blocks."""

from pretrain.models.repeated import with_few_blocks


def test_a_vit_repeats_its_blocks_and_other_encoders_stay_as_they_are():
    kwargs = {"num_classes": 0, "in_chans": 1}
    assert with_few_blocks("vit_tiny_patch16_224", kwargs) == kwargs | {"depth": 2}
    assert with_few_blocks("vit_tiny_patch16_224", kwargs | {"depth": 1}) == kwargs | {"depth": 1}
    # Only some of SAM's blocks attend to all tokens, so two blocks cannot stand for the others.
    for name in ("resnet18", "convnext_atto", "swin_tiny_patch4_window7_224", "samvit_base_patch16"):
        assert with_few_blocks(name, kwargs) == kwargs, name
