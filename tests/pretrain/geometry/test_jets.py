"""Jets against closed forms and nested differentiation, through real encoders, and what has none."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from isotorus.errors import UserError
from pretrain.geometry.jets import directional_curvature, hvp, jet, jvp, vjp

F64 = torch.float64


def nested(f, x: Tensor, v: Tensor, order: int) -> list[Tensor]:
    """The same derivatives by reverse mode through reverse mode, of a sum with random weights."""
    t = torch.zeros((), dtype=x.dtype, requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH):
        y = f(x + t * v)
    weights = torch.randn(y.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(5))
    values = [(y * weights).sum()]
    for _ in range(order):
        (derivative,) = torch.autograd.grad(values[-1], t, create_graph=True)
        values.append(derivative)
    found = [(y * weights).sum() for y in jet(f, x, v, order)]
    torch.testing.assert_close(found, [y.detach() for y in values], rtol=1e-10, atol=1e-10)
    return found


def test_a_polynomial_s_jet_is_its_coefficients():
    x = torch.tensor([0.0, -1.5, 2.0], dtype=F64)
    found = jet(lambda x: 3 * x**4 - x**3 + 2 * x - 7, x, torch.ones(3, dtype=F64), 4)
    closed = [3 * x**4 - x**3 + 2 * x - 7, 12 * x**3 - 3 * x**2 + 2, 36 * x**2 - 6 * x, 72 * x - 6]
    torch.testing.assert_close(list(found), [*closed, torch.full((3,), 72.0, dtype=F64)])
    assert all(torch.equal(a, b) for a, b in zip(found, jet(lambda x: x * 1, found[0], x, 0), strict=False))


def test_derivatives_of_the_sine_go_round():
    x, v = torch.randn(2, 7, dtype=F64)
    for n, y in enumerate(jet(torch.sin, x, v, 4)):
        torch.testing.assert_close(y, v**n * torch.sin(x + n * math.pi / 2))


def test_order_one_is_the_product_of_dual_numbers():
    """(a + bε)(c + dε) = ac + (ad + bc)ε, by two functions of t in one tensor."""
    (a, b), (c, d) = (2.0, 3.0), (5.0, 7.0)
    value, dual = jet(lambda x: x[0] * x[1], torch.tensor([a, c]), torch.tensor([b, d]), 1)
    assert (value.item(), dual.item()) == (a * c, a * d + b * c)


SMOOTH = {
    "exp, log": lambda x: torch.log(1 + torch.exp(x)) + torch.expm1(x) * torch.log1p(x * x),
    "circular": lambda x: torch.sin(x) * torch.cos(x) + torch.tan(x / 3) + torch.atan(x),
    "hyperbolic": lambda x: torch.tanh(x) + torch.sinh(x) / torch.cosh(x / 2),
    "erf, sigmoid": lambda x: torch.erf(x) * torch.sigmoid(x),
    "roots": lambda x: torch.sqrt(1 + x * x) + torch.rsqrt(2 + x) + (3 + x) ** 1.7 + 1 / (4 + x) + 2**x,
    "quotient": lambda x: (x + 1) / (2 + x.square()).pow(x),
    "activations": lambda x: F.gelu(x) + F.gelu(x, approximate="tanh") * F.silu(x) + F.softplus(x),
    "mish": F.mish,
    "softmax": lambda x: F.softmax(x, -1) * F.log_softmax(x, 0),
    "kinks": lambda x: x**3 * torch.where(x > 0, x, 2 * x) + F.relu(x) * F.leaky_relu(x) * x.abs(),
    "clamp": lambda x: x.clamp(-1, 0.5) ** 3 * torch.minimum(x, x.sin()),
    "choices": lambda x: x.max() * x.amax(-1) ** 3 + torch.maximum(x[:, 0], x[:, 1]) ** 3 * x.max(1).values,
    "rows": lambda x: torch.cat([x[:, 1:], x.flip(1)], 1).cumsum(0).roll(1, 0).exp() * x.mean(),
    "matrices": lambda x: (x @ x.mT @ x + torch.einsum("ij,kj,kl->il", x, x, x)) * x[0, 0].sin(),
    "statistics": lambda x: x / x.norm(dim=0) + x.var(0) * x.std(1, keepdim=True) * x.logsumexp(0),
    "images": lambda x: F.max_pool2d(F.conv2d(x[None, None], x[None, None, :2, :2]), 2) ** 2
    * F.interpolate(x[None, None], scale_factor=2.0, mode="bilinear")[..., :1, :1],
}  # fmt: skip


@pytest.mark.parametrize("kind", SMOOTH)
def test_operations_agree_with_nested_autograd(kind: str):
    generator = torch.Generator().manual_seed(1)
    x, v = torch.randn(2, 4, 5, dtype=F64, generator=generator)
    assert abs(nested(SMOOTH[kind], x, v, 4)[2]) > 1e-6


def test_changes_in_place_are_seen_through_views():
    def f(x: Tensor) -> Tensor:
        y = x * x
        seen = y.view(-1)
        y.sin_()
        y[0] = x[1]
        return seen * x.view(-1)

    x, v = torch.randn(2, 3, 2, dtype=F64)
    nested(f, x, v, 4)


def composed_layer_norm(x: Tensor, shape, weight=None, bias=None, eps: float = 1e-5) -> Tensor:
    """By its definition: torch's fused one has no right third derivative to compare with."""
    centred = x - x.mean(-1, keepdim=True)
    return centred * (centred.square().mean(-1, keepdim=True) + eps).rsqrt() * weight + bias


ENCODERS = {
    "vit_tiny_patch16_224": {"img_size": 32, "depth": 2, "embed_dim": 24, "num_heads": 2, "init_values": 0.5},
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 24)},
    "swin_tiny_patch4_window7_224": {
        "img_size": 56, "embed_dim": 12, "depths": (2, 1), "num_heads": (1, 2), "window_size": 7,
    },
    "resnet18": {},
    "mobilenetv3_small_100": {},
}  # fmt: skip


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_go_through(name: str, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    encoder = timm.create_model(name, num_classes=0, **ENCODERS[name]).double().eval().requires_grad_(False)
    size = ENCODERS[name].get("img_size", 32)
    x, v = torch.randn(2, 2, 3, size, size, dtype=F64)
    found = jet(encoder, x, v, 3)
    torch.testing.assert_close(found[:2], jvp(encoder, x, v), rtol=1e-9, atol=1e-12)
    if name not in ("resnet18", "mobilenetv3_small_100"):  # whose kinks torch differentiates once or twice
        monkeypatch.setattr(F, "layer_norm", composed_layer_norm)
        nested(encoder, x, v, 3)
        torch.testing.assert_close(found, jet(encoder, x, v, 3))
    elif name == "resnet18":
        assert not found[2].any(), "piecewise linear"


def test_products_with_jacobian_and_hessian():
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(6, 6, dtype=F64, generator=generator)
    x, v, u = torch.randn(3, 6, dtype=F64, generator=generator)
    jacobian = a * torch.cos(a @ x)[:, None]
    torch.testing.assert_close(jvp(lambda x: torch.sin(a @ x), x, v), (torch.sin(a @ x), jacobian @ v))
    torch.testing.assert_close(vjp(lambda x: torch.sin(a @ x), x, u), (torch.sin(a @ x), u @ jacobian))
    hessian = a + a.T

    def quadratic(x: Tensor) -> Tensor:
        return x @ a @ x

    torch.testing.assert_close(hvp(quadratic, x, v), hessian @ v)
    torch.testing.assert_close(directional_curvature(quadratic, x, v), v @ hessian @ v / (v @ v))
    assert not hvp(lambda x: x.sum(), x, v).any()


def test_curvature_of_a_network_is_that_of_its_hessian():
    torch.manual_seed(0)
    encoder = timm.create_model("vit_tiny_patch16_224", num_classes=0, **ENCODERS["vit_tiny_patch16_224"])
    encoder = encoder.double().eval()
    x, v = torch.randn(2, 1, 3, 32, 32, dtype=F64)

    def loss(x: Tensor) -> Tensor:
        return encoder(x).square().mean()

    expected = (hvp(loss, x, v) * v).sum() / v.square().sum()
    torch.testing.assert_close(directional_curvature(loss, x, v), expected, rtol=1e-9, atol=0)


X = torch.linspace(-1, 1, 4)
CUT = {
    "argmax": lambda x: F.one_hot(x.argmax(), 4).float(),
    "round": torch.round,
    "detach": lambda x: x.detach() * 2,
}


@pytest.mark.parametrize("kind", CUT)
def test_what_has_no_derivative_is_refused(kind: str):
    calls = [lambda: jet(CUT[kind], X, X, 2)]
    if kind != "round":  # to torch a constant of derivative 0
        calls += [lambda: jvp(CUT[kind], X, X), lambda: vjp(CUT[kind], X, X), lambda: hvp(
            lambda x: CUT[kind](x).sum(), X, X)]  # fmt: skip
    for call in calls:
        with pytest.raises(UserError, match="is not differentiable: its output does not depend") as error:
            call()
        assert "\n" not in str(error.value)


def test_mistakes():
    with pytest.raises(UserError, match="order=5: jets go from order 0 to 4"):
        jet(torch.sin, X, X, 5)
    with pytest.raises(UserError, match=r"erf_?inv.* has no Taylor rule; leave it out"):
        jet(torch.erfinv, X / 2, X, 2)
    with pytest.raises(UserError, match=r"call \.eval\(\) first"):
        jet(nn.BatchNorm1d(4), X.expand(2, 4), X.expand(2, 4), 1)
    with pytest.raises(ValueError, match="a direction of its shape"):
        jet(torch.sin, X, X[:2], 1)
    with pytest.raises(ValueError, match="a function with one value"):
        hvp(torch.sin, X, X)
