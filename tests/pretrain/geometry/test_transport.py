"""Holonomy between tokens and over inputs: closed forms, invariances, and claims that do not hold."""

import math

import pytest
import timm
import torch
from torch import Tensor, nn

from isotorus.errors import UserError
from pretrain.geometry.jets.transport import (
    holonomy,
    holonomy_map,
    polar,
    representation_holonomy,
    token_blocks,
    token_jacobian,
    token_jacobians,
)

F64 = torch.float64


def rotation(angle: float) -> Tensor:
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, -s], [s, c]], dtype=F64)


def linear_block(blocks: Tensor):
    """out_i = Σ_j blocks[i, j] · in_j, for blocks (T, T, d, d)."""
    return lambda x: torch.einsum("ijab,njb->nia", blocks, x)


def orthogonal(*shape: int) -> Tensor:
    return torch.linalg.qr(torch.randn(*shape, shape[-1], dtype=F64)).Q


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    torch.manual_seed(0)
    kwargs = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 12, "num_heads": 2, "num_classes": 0}
    encoder = timm.create_model("vit_tiny_patch16_224", **kwargs).double().eval()
    for p in encoder.parameters():
        nn.init.normal_(p, std=0.4)
    return encoder


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(17, 12, dtype=F64, generator=torch.Generator().manual_seed(1))


def test_blocks_are_the_jacobian_s(vit: nn.Module, tokens: Tensor):
    block = vit.blocks[0]
    whole = torch.autograd.functional.jacobian(lambda x: block(x[None])[0], tokens)
    torch.testing.assert_close(token_jacobians(block, tokens, 3, chunk=5), whole[:, :, 3])
    torch.testing.assert_close(token_jacobian(block, tokens, 7, 2), whole[7, :, 2])


def test_rotations_add_up_around_a_loop():
    angles = torch.randn(4, 4, dtype=F64)
    block = linear_block(torch.stack([torch.stack([rotation(float(a)) for a in row]) for row in angles]))
    for loop in ([0, 1, 2], [0, 3, 1, 2]):
        total = sum(float(angles[i, j]) for j, i in zip(loop, [*loop[1:], loop[0]], strict=True))
        found = holonomy(block, torch.randn(4, 2, dtype=F64), loop)
        torch.testing.assert_close(found.matrix, rotation(total))
        assert found.defect == pytest.approx(2 * abs(math.sin(total / 2)))
        expected = abs(math.remainder(total, 2 * math.pi))
        assert found.angles.tolist() == pytest.approx([-expected, expected])
        assert found.rank == 2 and found.cut is None


def test_scale_is_no_turn_and_polar_factors_are_unique():
    q, scales = orthogonal(6), torch.rand(6, dtype=F64) + 0.1
    symmetric = q @ torch.diag(scales) @ q.T
    torch.testing.assert_close(polar(symmetric), torch.eye(6, dtype=F64))
    g = orthogonal(6)
    torch.testing.assert_close(polar(g @ symmetric), g)
    lost = symmetric @ (torch.eye(6, dtype=F64) - torch.outer(q[:, 0], q[:, 0]))
    torch.testing.assert_close(polar(g @ lost), g @ polar(lost))
    assert torch.linalg.matrix_rank(polar(lost)) == 5


def test_gauge_invariance(vit: nn.Module, tokens: Tensor):
    """Another orthonormal basis in each token changes neither defect nor angles."""
    g = orthogonal(17, 12)
    block = vit.blocks[1]

    def in_other_bases(y: Tensor) -> Tensor:
        return torch.einsum("tab,ntb->nta", g, block(torch.einsum("tba,ntb->nta", g, y)))

    turned = torch.einsum("tab,tb->ta", g, tokens)
    for loop in ([1, 2, 6], [3, 9, 5, 14]):
        plain, other = holonomy(block, tokens, loop), holonomy(in_other_bases, turned, loop)
        assert plain.defect > 0.1
        assert other.defect == pytest.approx(plain.defect, rel=1e-6) and other.rank == plain.rank
        torch.testing.assert_close(other.angles, plain.angles, rtol=1e-5, atol=1e-5)
        start = g[loop[0]]
        torch.testing.assert_close(other.matrix, start @ plain.matrix @ start.T, rtol=1e-6, atol=1e-6)


def test_layer_norm_takes_directions_away(vit: nn.Module, tokens: Tensor):
    """Between tokens a pre-norm block carries d − 2: neither the mean nor (but for eps) the length."""
    jacobian = token_jacobian(vit.blocks[0], tokens, 1, 2)
    assert torch.linalg.matrix_rank(jacobian, rtol=1e-4) == 10
    assert holonomy(vit.blocks[0], tokens, [1, 2, 3]).rank <= 10


def test_averaging_over_tokens_has_none():
    """x_i → Σ_j m_ij·W·x_j + b with m > 0 and W symmetric positive definite: zero, whatever the input."""
    m, b = torch.rand(5, 5, dtype=F64) + 0.1, torch.randn(4, dtype=F64)
    w = torch.randn(4, 4, dtype=F64)
    block = linear_block(m[:, :, None, None] * (w @ w.T + torch.eye(4, dtype=F64)))
    found = holonomy(lambda x: block(x) + b, torch.randn(5, 4, dtype=F64), [0, 2, 1, 4])
    assert found.defect < 1e-12 and found.angles.abs().max() < 1e-7


def test_zero_for_every_affine_map_is_not_so():
    """The holonomy of an affine map is the same for all inputs, but it need not vanish."""
    block = linear_block(torch.randn(4, 4, 3, 3, dtype=F64, generator=torch.Generator().manual_seed(2)))
    one, other = (holonomy(block, torch.randn(4, 3, dtype=F64), [0, 1, 2]) for _ in range(2))
    torch.testing.assert_close(one.matrix, other.matrix)
    assert one.defect > 0.5


def test_causal_attention_cuts_every_loop(vit: nn.Module, tokens: Tensor):
    """No token depends on later ones, so H is exactly 0; the loop is reported as cut, not as flat."""
    for loop in ([0, 1, 2], [2, 1, 0], [3, 9, 5, 14]):
        found = holonomy(lambda x: vit.blocks[0](x, is_causal=True), tokens, loop)
        assert not found.matrix.any() and math.isnan(found.defect) and found.rank == 0
        i, j = found.cut
        assert i < j, "out_i depends on in_j only up to i"
    heat = holonomy_map(lambda x: vit.blocks[0](x, is_causal=True), tokens, (4, 4), places=[(1, 1)])
    assert heat.isnan().all()


def test_map_is_the_mean_over_triangles(vit: nn.Module, tokens: Tensor):
    heat = holonomy_map(vit.blocks[0], tokens, (4, 4), places=[(0, 0), (1, 2)])
    assert heat.isfinite().nonzero().tolist() == [[0, 0], [1, 2]]
    assert heat[0, 0] == pytest.approx(holonomy(vit.blocks[0], tokens, [1, 2, 5]).defect)
    middle, right, below, left, above = 7, 8, 11, 6, 3
    triangles = [(right, below), (below, left), (left, above), (above, right)]
    expected = [holonomy(vit.blocks[0], tokens, [middle, *t]).defect for t in triangles]
    assert heat[1, 2] == pytest.approx(sum(expected) / 4, rel=1e-6)


def path(radius: float, points: int = 12, width: int = 8) -> Tensor:
    angle = torch.arange(points) * 2 * math.pi / points
    return radius * torch.stack([angle.cos(), angle.sin()], 1).double() @ torch.eye(2, width, dtype=F64)


@pytest.fixture
def pool() -> Tensor:
    return torch.randn(600, 8, dtype=F64, generator=torch.Generator().manual_seed(4))


def test_representation_holonomy_is_of_the_features_up_to_affine_maps(pool: Tensor):
    bend = lambda x: torch.cat([x, x[:, :2] ** 2], 1)  # noqa: E731
    plain = representation_holonomy(bend(path(1.0)), bend(pool), 64, 6)
    a, b = torch.randn(10, 10, dtype=F64), torch.randn(10, dtype=F64)
    mapped = representation_holonomy(bend(path(1.0)) @ a + b, bend(pool) @ a + b, 64, 6)
    assert plain.defect > 1e-3
    assert mapped.defect == pytest.approx(plain.defect, rel=1e-6)
    torch.testing.assert_close(mapped.angles.abs().sort().values, plain.angles.abs().sort().values)
    assert torch.linalg.det(plain.matrix) == pytest.approx(1)


def test_representation_holonomy_vanishes_with_the_loop(pool: Tensor):
    defects = [representation_holonomy(path(r), pool, 64, 6).defect for r in (1e-3, 1e-1)]
    assert defects[0] < 1e-2 * defects[1]
    still = representation_holonomy(path(0.0), pool, 64, 6)
    assert still.defect < 1e-9


def test_representation_holonomy_is_not_zero_for_linear_features(pool: Tensor):
    """The published linear null does not hold for the published estimator at a finite radius."""
    assert representation_holonomy(path(1.0), pool, 64, 6).defect > 1e-3


def test_what_has_no_loops(vit: nn.Module, tokens: Tensor):
    block = vit.blocks[0]
    with pytest.raises(UserError, match="2 tokens: a loop needs at least 3"):
        token_jacobian(block, tokens[:2], 0, 1)
    with pytest.raises(UserError, match=r"the loop \[1, 2\] is none: name at least 3"):
        holonomy(block, tokens, [1, 2])
    with pytest.raises(UserError, match="1×16 patches has no triangles"):
        holonomy_map(block, tokens, (1, 16))
    with pytest.raises(UserError, match="is not differentiable"):
        holonomy(lambda x: x.detach(), tokens, [0, 1, 2])
    with pytest.raises(UserError, match="Jacobian is zero everywhere"):
        holonomy(torch.round, tokens, [0, 1, 2])
    with pytest.raises(ValueError, match="expected the same"):
        holonomy(lambda x: x[..., :3], tokens, [0, 1, 2])
    with pytest.raises(UserError, match="a path of 2 points"):
        representation_holonomy(path(1.0, 2), torch.randn(200, 8))
    with pytest.raises(UserError, match="has no 96 neighbours"):
        representation_holonomy(path(1.0), torch.randn(50, 8))
    assert len(token_blocks(vit)) == 2
    for name in ("convnext_atto", "resnet18", "efficientnet_b0"):
        with torch.device("meta"):
            encoder = timm.create_model(name)
        with pytest.raises(UserError, match=r"has no sequence of tokens .*use a ViT") as error:
            token_blocks(encoder)
        assert "\n" not in str(error.value)
