"""Quantities of single blocks agree with closed forms and with independent implementations."""

import math

import numpy as np
import pytest
import timm
import torch
from torch import nn

from eval_suite.layers import derivatives, rings, units, weights
from eval_suite.layers.blocks import calls_of, measurable, observe
from eval_suite.layers.images import turned
from isotorus.errors import UserError
from pretrain.models.blocks import depth_blocks


def circle(n: int, noise: float = 0.0) -> np.ndarray:
    random = np.random.default_rng(n)
    angle = random.uniform(0, 2 * np.pi, n)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) + noise * random.standard_normal((n, 2))


def share_on_a_line(offset: float) -> float:
    """Return the share of the unit circle within 0.1 √E(cos θ + c)² of the line cos θ = -c; c is `offset`."""
    width = 0.1 * math.sqrt(0.5 + offset**2)
    low, high = (min(max(-offset + side * width, -1), 1) for side in (-1, 1))
    return (math.acos(low) - math.acos(high)) / math.pi


class TestRings:
    def test_mixture_index_of_a_circle_is_its_closed_form(self):
        expected = max(share_on_a_line(c) for c in np.linspace(0, 1.2, 2401))
        assert rings.mixture_index(circle(20_000)) == pytest.approx(expected, abs=0.012)

    def test_a_feature_that_is_mostly_absent_is_a_mixture(self):
        plane = circle(1000)
        plane[:900] = 0.001 * plane[:900]
        assert rings.mixture_index(plane) >= 0.9

    def test_a_circle_does_not_come_apart_and_independent_features_do(self):
        assert rings.separability_index(circle(2000, 0.05)) > 0.7
        random = np.random.default_rng(0)
        corner = np.array([[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]])
        for independent in (random.standard_normal((2000, 2)), random.uniform(-1, 1, (2000, 2)) @ corner):
            assert rings.separability_index(independent) < 0.03

    def test_the_plane_of_a_ring_is_found_among_others(self):
        random = np.random.default_rng(1)
        x = 0.1 * random.standard_normal((1000, 12))
        x[:, 3:5] += circle(1000)
        x[:, 0] *= 15
        assert rings.most_ring_like(x @ np.linalg.qr(random.standard_normal((12, 12)))[0]).separability > 0.2

    def test_angles_are_read_where_they_are_and_not_where_they_are_not(self):
        random = np.random.default_rng(2)
        angles = random.uniform(0, 2 * np.pi, 600)
        noise = random.standard_normal((600, 8))
        features = np.concatenate([noise, np.cos(angles)[:, None], np.sin(angles)[:, None]], axis=1)
        assert rings.angle_error(features, angles) < 3
        assert rings.angle_error(noise, angles) == pytest.approx(90, abs=8)
        # These features are equal for opposite angles, so the error is that of chance.
        even = np.stack([np.cos(2 * angles), np.sin(2 * angles)], axis=1)
        assert rings.angle_error(even, angles) == pytest.approx(90, abs=8)


class TestMaps:
    def test_stretch_of_a_matrix_is_its_largest_singular_value(self):
        matrix = torch.diag(torch.tensor([3.0, 1.0, 0.5, 0.1])) @ torch.linalg.qr(torch.randn(4, 4))[0]
        found = derivatives.spectral_norm(lambda x: x @ matrix.T, torch.randn(5, 4))
        assert found == pytest.approx(torch.full((5,), 3.0), rel=1e-4)

    def test_stretch_is_local(self):
        x = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
        found = derivatives.spectral_norm(torch.sin, x, iterations=40)
        assert found == pytest.approx(torch.tensor([1.0, max(math.cos(1.0), -math.cos(2.0))]), rel=1e-4)

    def test_stretch_of_a_vit_block_is_that_of_its_whole_jacobian(self):
        torch.manual_seed(0)
        block = timm.create_model("test_vit", num_classes=0).eval().blocks[0]
        x = torch.randn(2, 4, 64)
        found = derivatives.spectral_norm(block, x, iterations=150)
        for i in range(2):
            whole = torch.autograd.functional.jacobian(lambda t: block(t[None])[0], x[i]).reshape(256, 256)
            assert float(found[i]) == pytest.approx(float(torch.linalg.svdvals(whole)[0]), rel=1e-3)

    def test_response_of_a_rotation_is_one_and_of_a_matrix_its_mean_singular_value(self):
        rotation = torch.linalg.qr(torch.randn(64, 64, dtype=torch.float64))[0]
        x = torch.randn(6, 64, dtype=torch.float64)
        assert derivatives.stability(lambda t: t @ rotation, x) == pytest.approx(
            torch.ones(6).double(), rel=1e-6
        )
        matrix = torch.randn(64, 64, dtype=torch.float64)
        found = derivatives.stability(lambda t: t @ matrix.T, x, draws=400).mean()
        assert float(found) == pytest.approx(float(matrix.norm()) / 8, rel=0.02)

    def test_a_collapsed_block_has_the_smallest_residual(self):
        """A small residual is no sign of a good encoder: zero weights give the smallest one."""
        torch.manual_seed(0)
        encoder = timm.create_model("test_vit", num_classes=0).eval()
        last = depth_blocks(encoder)[-1]
        for parameter in last.module.parameters():
            parameter.data.zero_()
        seen = observe(encoder, depth_blocks(encoder), iter([torch.randn(3, 3, 160, 160)]))
        assert seen[-1].residual == 0 < seen[0].residual


class TestUnits:
    def test_silent_units_are_dormant(self):
        magnitude = np.array([1.0, 2.0, 0.0, 0.01, 1.0])
        assert units.dormant(magnitude) == pytest.approx(2 / 5)
        assert units.dormant(np.zeros(4)) == 1

    def test_fair_coins_are_at_the_null(self):
        coins = np.random.default_rng(0).random((500, 300)) < 0.5
        assert units.patterns(coins) == pytest.approx(1, abs=0.02)
        assert units.expected_patterns(1, 10) == pytest.approx(1)
        assert units.expected_patterns(10_000, 3) == pytest.approx(8)

    def test_images_in_one_cell_are_one_pattern(self):
        assert units.patterns(np.ones((500, 300), bool)) == pytest.approx(
            1 / units.expected_patterns(500, 10)
        )

    def test_drift(self):
        before = np.random.default_rng(1).random((400, 200)) < 0.5
        after = before.copy()
        after[:, :50] ^= True
        assert units.drift(before, before) == 0
        assert units.drift(before, after) == 0.25


class TestWeights:
    def test_rotation_of_every_neuron_by_an_angle(self):
        plane = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
        turn = math.radians(10)
        matrix = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
        turned_weights = {"w": 5 * plane @ matrix.double().T}
        assert weights.rotation({"w": plane}, turned_weights) == pytest.approx(10, abs=1e-6)
        assert weights.rotation({"w": plane}, {"w": plane}) == 0
        draws = [{"w": torch.randn(200, 300).double()} for _ in range(2)]
        assert weights.rotation(*draws) == pytest.approx(90, abs=1)

    @pytest.mark.parametrize("alpha", [1.8, 2.5, 4.0])
    def test_tail_of_a_pareto_sample(self, alpha: float):
        x = (1 - np.random.default_rng(3).random(4000)) ** (-1 / (alpha - 1))
        assert weights.tail_exponent(x) == pytest.approx(alpha, rel=0.1)

    def test_a_random_square_matrix_looks_well_trained(self):
        """Before any training the exponent is in the range that has been called a sign of good training."""
        random = np.random.default_rng(0)
        square, tall = random.standard_normal((192, 192)), random.standard_normal((768, 192))
        assert 2 < weights.tail_exponent(np.linalg.svd(square, compute_uv=False) ** 2) < 4
        assert weights.tail_exponent(np.linalg.svd(tall, compute_uv=False) ** 2) > 4

    def test_too_few_eigenvalues_have_no_tail(self):
        assert math.isnan(weights.tail_exponent(np.arange(1.0, 20.0)))
        assert math.isnan(weights.heavy_tail(nn.Linear(8, 8)))


class TestHessian:
    def test_ends_of_a_known_spectrum(self):
        values = torch.linspace(-2, 7, 40, dtype=torch.float64)
        basis = torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64))[0]
        matrix = basis @ torch.diag(values) @ basis.T
        x = torch.randn(40, dtype=torch.float64, requires_grad=True)
        found = derivatives.curvatures(lambda: x @ matrix @ x / 2, [x], iterations=40)
        assert found == pytest.approx((-2, 7), abs=1e-8)
        rough = derivatives.curvatures(lambda: x @ matrix @ x / 2, [x], iterations=6)
        assert -2 <= rough.smallest < 0 < rough.largest <= 7

    def test_ends_are_those_of_the_dense_hessian_of_a_network(self):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        x, y = torch.randn(20, 3, dtype=torch.float64), torch.randn(20, 2, dtype=torch.float64)
        parameters = list(net.parameters())

        def loss_of(flat: torch.Tensor) -> torch.Tensor:
            parts = flat.split([p.numel() for p in parameters])
            named = {n: part.view_as(p) for (n, p), part in zip(net.named_parameters(), parts, strict=True)}
            return nn.functional.mse_loss(torch.func.functional_call(net, named, (x,)), y)

        flat = torch.cat([p.detach().flatten() for p in parameters])
        dense = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss_of, flat))
        found = derivatives.curvatures(
            lambda: nn.functional.mse_loss(net(x), y), parameters, iterations=len(flat)
        )
        assert found == pytest.approx((float(dense[0]), float(dense[-1])), abs=1e-8)
        assert found.smallest < 0

    def test_parameters_that_the_loss_does_not_touch_are_flat(self):
        used, unused = (torch.ones(3, requires_grad=True) for _ in range(2))
        assert derivatives.curvatures(lambda: used.square().sum(), [used, unused]) == pytest.approx(
            (0, 2), abs=1e-5
        )


class TestBlocks:
    @pytest.mark.parametrize(
        ("name", "count", "first"),
        [
            ("test_vit", 6, "blocks.0"),
            ("resnet18", 8, "layer1.0"),
            ("test_convnext", 9, "stages.0.blocks.0"),
            ("efficientnet_b0", 16, "blocks.0.0"),
        ],
    )
    def test_blocks_of_encoders(self, name: str, count: int, first: str):
        encoder = timm.create_model(name, num_classes=0).eval()
        blocks = depth_blocks(encoder)
        assert (len(blocks), blocks[0].name) == (count, first)
        seen = observe(encoder, blocks, iter(torch.randn(2, 4, 3, 64, 64))) if name != "test_vit" else []
        for block, x in zip(blocks, seen, strict=False):
            assert len(x.vectors) == 8 and np.isfinite(x.vectors).all(), block.name
            assert x.positive is None or x.positive.shape == (8, len(x.magnitude))

    @pytest.mark.parametrize(
        ("name", "kwargs"),
        [
            ("pvt_v2_b0", {}),  # blocks take the size of the map
            ("twins_svt_small", {"img_size": 64}),
            ("mvitv2_tiny", {"img_size": 64}),  # and return it too
            ("mobilevit_xxs", {}),
            (
                "swinv2_tiny_window8_256",  # a nonlinearity of positions alone
                {"img_size": 64, "embed_dim": 24, "depths": (1, 1), "num_heads": (1, 2)},
            ),
        ],
    )
    def test_blocks_that_take_and_give_more_than_features(self, name: str, kwargs: dict):
        torch.manual_seed(0)
        encoder = timm.create_model(name, num_classes=0, **kwargs).eval()
        images = torch.randn(5, 3, 64, 64)
        blocks = measurable(encoder, depth_blocks(encoder), images[:2])
        seen = observe(encoder, blocks, iter(images.split(2)))
        calls = calls_of(encoder, blocks, images)
        for block, x, call in zip(blocks, seen, calls, strict=True):
            assert len(x.vectors) == 5 and np.isfinite(x.vectors).all(), block.name
            assert x.positive is None or x.positive.shape == (5, len(x.magnitude)), block.name
            with torch.no_grad():
                out = call(call.x)
            if out.shape == call.x.shape:
                change = (out - call.x).flatten(1).norm(dim=1) / call.x.flatten(1).norm(dim=1)
                assert x.residual == pytest.approx(float(change.mean()), rel=1e-3), block.name
        assert any(x.positive is not None for x in seen)
        assert derivatives.spectral_norm(calls[-1], calls[-1].x[:1], iterations=2).isfinite().all()

    def test_an_encoder_without_blocks_is_refused(self):
        with pytest.raises(UserError, match="keeps its blocks in none of"):
            depth_blocks(nn.Sequential(nn.Linear(3, 3)))

    def test_what_is_seen_is_what_the_blocks_do(self):
        torch.manual_seed(0)
        encoder = timm.create_model("test_vit", num_classes=0, global_pool="avg").eval()
        blocks, images = depth_blocks(encoder), torch.randn(5, 3, 160, 160)
        seen = observe(encoder, blocks, iter(images.split(2)))
        inputs = [call.x for call in calls_of(encoder, blocks, images)]
        with torch.no_grad():
            for block, x, found in zip(blocks, inputs, seen, strict=True):
                out = block.module(x)
                change = (out - x).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)
                assert found.residual == pytest.approx(float(change.mean()), rel=1e-4)
                pooled = out[:, encoder.num_prefix_tokens :].mean(1)
                np.testing.assert_allclose(found.vectors, pooled.numpy(), rtol=1e-3, atol=1e-4)

    def test_images_are_turned(self):
        images = torch.randn(2, 1, 32, 32)
        quarter = turned(images, torch.tensor([0.0, math.pi / 2]))
        along = (torch.arange(32) + 0.5) / 16 - 1
        disc = (along[:, None] ** 2 + along**2) <= 1
        torch.testing.assert_close(quarter[0], images[0] * disc, atol=1e-5, rtol=0)
        torch.testing.assert_close(quarter[1], torch.rot90(images[1], 1, (1, 2)) * disc, atol=1e-4, rtol=0)
