"""Truncated Taylor series as tensors: the rule of each operation for x(t) = Σ c_i tⁱ, up to t⁴.

Linear operations act on each coefficient, products follow Leibniz' rule, and elementwise functions are
composed by Horner's scheme (Griewank & Walther, Evaluating Derivatives, 2008, ch. 13). Operations that are
constant almost everywhere, such as comparisons and argmax, return an ordinary tensor. At a kink the
derivative is torch's own.

The one library of this kind that was found for torch, jet-for-pytorch, calls itself a research prototype with
gaps and is not on PyPI, so the rules are written here; `jets.jets` says how fast they are.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import get_decompositions
from torch.utils._pytree import tree_leaves, tree_map_only

from isotorus.errors import UserError
from pretrain.geometry.jets.elementary import ELEMENTARY, power

aten = torch.ops.aten
Coefficients = list[Tensor | None]


class Series(torch.Tensor):
    """A tensor c_0 + c_1 t + … + c_k tᵏ; None stands for a coefficient that is zero.

    The first coefficient is always a tensor.
    """

    coefficients: Coefficients

    @staticmethod
    def __new__(cls, coefficients: Coefficients) -> "Series":
        first = coefficients[0]
        assert first is not None
        return torch.Tensor._make_wrapper_subclass(
            cls, first.shape, strides=first.stride(), dtype=first.dtype, device=first.device
        )

    def __init__(self, coefficients: Coefficients) -> None:
        self.coefficients = coefficients

    def __repr__(self, *, tensor_contents: Any = None) -> Any:  # type: ignore[override]
        return f"Series({self.coefficients})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet in RULES:
            return RULES[packet](func, *args, **kwargs)
        if packet in ELEMENTARY:
            return compose(ELEMENTARY[packet], *args, **kwargs)
        if packet in CONSTANT:
            return func(*tree_map_only(Series, value, args), **tree_map_only(Series, value, kwargs))
        if decomposition := get_decompositions([func]).get(func):
            return decomposition(*args, **kwargs)
        if (decomposed := func.decompose(*args, **kwargs)) is not NotImplemented:
            return decomposed
        raise UserError(
            f"jet: {func} has no Taylor rule; leave it out of the function, or add a rule for it to "
            "pretrain/geometry/jets/taylor.py"
        )


def value(x: Tensor) -> Tensor:
    """Return c_0 of a series, and any other tensor as it is."""
    first = x.coefficients[0] if isinstance(x, Series) else x
    assert first is not None
    return first


def coefficients(x: Any, order: int) -> Coefficients:
    """Return the coefficients of a series or of a constant."""
    return x.coefficients if isinstance(x, Series) else [x, *[None] * order]


def order_of(*args: Any) -> int:
    """Return k of the first series among the arguments."""
    return next(len(x.coefficients) for x in tree_leaves(args) if isinstance(x, Series)) - 1


def compose(taylor: Callable[..., list[Tensor]], x: Series, *args: Any, **kwargs: Any) -> Series:
    """Return f(x(t)), where `taylor(c_0, order, …)` returns f⁽ⁿ⁾(c_0)/n! for n = 0 … order."""
    order = order_of(x)
    outer = taylor(value(x), order, *args, **kwargs)
    rise: Coefficients = [None, *x.coefficients[1:]]
    result: Coefficients = [outer[order], *[None] * order]
    for n in reversed(range(order)):
        result = _multiply(torch.mul, rise, result)
        result[0] = outer[n]
    return Series(result)


def _multiply(op: Callable[..., Tensor], a: Coefficients, b: Coefficients) -> Coefficients:
    """Return Σ_{i+j=n} op(a_i, b_j) for each n (Leibniz' rule)."""
    result: Coefficients = []
    for n in range(len(a)):
        pairs = zip(a[: n + 1], reversed(b[: n + 1]), strict=True)
        terms = [op(x, y) for x, y in pairs if x is not None and y is not None]
        result.append(sum(terms[1:], terms[0]) if terms else None)
    return result


def _product(func: Any, a: Any, b: Any) -> Series:
    order = order_of(a, b)
    return Series(_multiply(func, coefficients(a, order), coefficients(b, order)))


def _add(func: Any, a: Any, b: Any, alpha: float = 1, sign: float = 1) -> Series:
    order, factor = order_of(a, b), sign * alpha
    shape = torch.broadcast_shapes(*(x.shape for x in (a, b) if isinstance(x, Tensor)))
    result: Coefficients = []
    for x, y in zip(coefficients(a, order), coefficients(b, order), strict=True):
        if y is not None and factor != 1:
            y = y * factor
        total = x + y if x is not None and y is not None else y if x is None else x
        result.append(None if total is None else total.expand(shape))
    return Series(result)


def _subtract(func: Any, a: Any, b: Any, alpha: float = 1) -> Series:
    return _add(func, a, b, alpha, sign=-1)


def _subtract_from(func: Any, a: Any, b: Any, alpha: float = 1) -> Any:
    return b - a * alpha


def _divide(func: Any, a: Any, b: Any, **kwargs: Any) -> Any:
    if kwargs.get("rounding_mode"):
        return func(value(a), value(b), **kwargs)
    if isinstance(b, Series):
        return a * compose(power, b, -1)
    return Series([None if x is None else x / b for x in a.coefficients])


def _power(func: Any, x: Any, exponent: Any) -> Any:
    if isinstance(exponent, (int, float)):
        return compose(power, x, exponent)
    log = torch.log(torch.as_tensor(x, dtype=exponent.dtype, device=exponent.device))
    return torch.exp(exponent * log)


def _linear(*places: int) -> Callable[..., Any]:
    """Return the rule for an operation that is linear in its arguments at `places` taken together.

    The other arguments must not be series.
    """

    def rule(func: Any, *args: Any, **kwargs: Any) -> Any:
        held = [x for place, x in enumerate(args) if place not in places]
        assert not any(isinstance(x, Series) for x in tree_leaves([held, kwargs])), func
        varying = [args[place] for place in places]
        results: list[Any] = []
        for n in range(order_of(varying) + 1):
            if all(coefficients(x, n)[n] is None for x in tree_leaves(varying)):
                results.append(None)
                continue
            given = list(args)
            for place, x in zip(places, varying, strict=True):
                given[place] = [_term(y, n) for y in x] if isinstance(x, (list, tuple)) else _term(x, n)
            results.append(func(*given, **kwargs))
        if isinstance(results[0], Tensor):
            return Series(results) if results[0].is_floating_point() else results[0]
        return [Series([r and r[i] for r in results]) for i in range(len(results[0]))]

    return rule


def _term(x: Any, n: int) -> Any:
    """Return c_n, and zeros where it is None."""
    if not isinstance(x, Tensor):
        return x if n == 0 else 0
    c = coefficients(x, n)[n]
    return torch.zeros_like(value(x)) if c is None else c


def _reshape(func: Any, x: Series, shape: Sequence[int]) -> Series:
    """Reshape each coefficient.

    A view is not always possible, as coefficients may have other strides than the first one.
    """
    return Series([None if c is None else c.reshape(shape) for c in x.coefficients])


def _pad(func: Any, x: Series, pad: Sequence[int], fill: float = 0.0) -> Series:
    higher = (None if c is None else func(c, pad, 0.0) for c in x.coefficients[1:])
    return Series([func(value(x), pad, fill), *higher])


def _squeeze(func: Any, x: Series, *dims: int) -> Any:
    """Squeeze into a new series.

    torch's own decompositions squeeze their last result in place, and use only what that returns.
    """
    return torch.squeeze(x, *dims)


def _detach(func: Any, x: Series) -> Tensor:
    return value(x)


def _addmm(func: Any, bias: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    product = torch.bmm(a, b) if a.ndim == 3 else torch.mm(a, b)
    return product * alpha + bias * beta if (alpha, beta) != (1, 1) else product + bias


def _convolution(func: Any, x: Any, weight: Any, bias: Any, *geometry: Any) -> Any:
    order = order_of(x, weight, bias)
    parts = _multiply(
        lambda a, b: func(a, b, None, *geometry), coefficients(x, order), coefficients(weight, order)
    )
    if bias is not None:
        return Series(parts) + bias.reshape(-1, *[1] * (x.ndim - 2))
    return Series(parts)


def _gelu(func: Any, x: Series, *, approximate: str = "none") -> Any:
    if approximate == "tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    return 0.5 * x * (1 + torch.erf(x * math.sqrt(0.5)))


def _silu(func: Any, x: Series) -> Any:
    return x * torch.sigmoid(x)


def _softmax(func: Any, x: Series, dim: int, *_: Any) -> Any:
    top = value(x).amax(dim, keepdim=True)
    # A row in which everything is masked becomes zeros, as in _safe_softmax.
    risen = torch.exp(x - torch.where(top.isinf(), 0, top))
    total = risen.sum(dim, keepdim=True)
    return risen / torch.where(value(total) == 0, torch.ones_like(value(total)), total)


def _log_softmax(func: Any, x: Series, dim: int, *_: Any) -> Any:
    shifted = x - value(x).amax(dim, keepdim=True)
    return shifted - torch.log(torch.exp(shifted).sum(dim, keepdim=True))


def _layer_norm(func: Any, x: Any, shape: Sequence[int], weight: Any, bias: Any, eps: float) -> Any:
    dims = list(range(-len(shape), 0))
    mean = x.mean(dims, keepdim=True)
    centred = x - mean
    scale = torch.rsqrt((centred * centred).mean(dims, keepdim=True) + eps)
    normal = centred * scale
    normal = normal if weight is None else normal * weight
    return (normal if bias is None else normal + bias), mean, scale


def _batch_norm(func: Any, x: Any, weight: Any, bias: Any, mean: Any, variance: Any, *rest: Any) -> Any:
    training, eps = (rest[0], rest[2]) if len(rest) == 3 else (False, rest[1])
    if training:
        raise UserError("jet: batch norm mixes the images of a batch while it trains; call .eval() first")
    shape = (1, -1, *[1] * (x.ndim - 2))
    scale = torch.rsqrt(variance + eps)
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    return x * scale.reshape(shape) + shift.reshape(shape), mean, variance


def _variance(
    func: Any, x: Series, dim: Any = None, *, correction: float | None = 1, keepdim: bool = False
) -> Any:
    dims = list(range(x.ndim)) if dim is None else list(dim)
    count = math.prod(x.shape[d] for d in dims)
    mean = x.mean(dims, keepdim=True)
    centred = x - mean
    freedom = count - (1 if correction is None else correction)
    variance = (centred * centred).sum(dims, keepdim=keepdim) / freedom
    if "var_mean" in str(func):
        return variance, mean if keepdim else x.mean(dims)
    return torch.sqrt(variance) if "std" in str(func) else variance


def _relu(func: Any, x: Series) -> Any:
    return torch.where(value(x) > 0, x, torch.zeros_like(value(x)))


def _absolute(func: Any, x: Series) -> Any:
    return x * value(x).sign()


def _maximum(func: Any, a: Any, b: Any) -> Any:
    a, b = torch.broadcast_tensors(a, b)
    chosen = func(value(a), value(b))
    return torch.where(chosen == value(a), a, b)


def _clamp(func: Any, x: Series, low: Any = None, high: Any = None) -> Any:
    inside = torch.ones_like(value(x), dtype=torch.bool)
    inside = inside if low is None else inside & (value(x) >= low)
    inside = inside if high is None else inside & (value(x) <= high)
    return torch.where(inside, x, torch.clamp(value(x), low, high))


def _max_pool(func: Any, x: Series, *args: Any, **kwargs: Any) -> Any:
    pooled, places = func(value(x), *args, **kwargs)
    higher = (
        None if c is None else c.flatten(-2).gather(-1, places.flatten(-2)).view(places.shape)
        for c in x.coefficients[1:]
    )
    return Series([pooled, *higher]), places


def _largest(func: Any, x: Any, dim: Any = (), keepdim: bool = False) -> Any:
    if dim == () and not keepdim:
        x, dim = x.flatten(), 0
    dims = [dim] if isinstance(dim, int) else list(dim)
    if len(dims) != 1:
        raise UserError(f"jet: {func} over {len(dims)} dimensions has no Taylor rule; reduce one at a time")
    search = torch.argmin if "min" in str(func) else torch.argmax
    places = search(value(x), dims[0], keepdim=True)
    largest = torch.gather(x, dims[0], places)
    largest = largest if keepdim else largest.squeeze(dims[0])
    return (largest, places if keepdim else places.squeeze(dims[0])) if ".dim" in str(func) else largest


_of_first = dict.fromkeys(
    [
        aten.transpose, aten.t, aten.permute, aten.expand, aten.cat, aten.stack, aten.unbind,
        aten.split, aten.split_with_sizes, aten.slice, aten.select, aten.unsqueeze, aten.squeeze, aten.clone,
        aten.alias, aten.sum, aten.mean, aten.neg, aten.index, aten.gather, aten.index_select, aten.roll,
        aten.flip, aten.cumsum, aten.avg_pool2d, aten._adaptive_avg_pool2d, aten.upsample_bilinear2d,
        aten._upsample_bilinear2d_aa, aten.upsample_bicubic2d, aten._upsample_bicubic2d_aa,
        aten.upsample_nearest2d, aten._to_copy, aten.repeat, aten.diagonal, aten.tril, aten.triu,
        aten.lift_fresh, aten.reflection_pad2d, aten.replication_pad2d, aten.im2col, aten.diag_embed,
        aten.trace, aten.unfold,
    ],
    _linear(0),
)  # fmt: skip
_of_two = dict.fromkeys(
    [aten.slice_scatter, aten.select_scatter, aten.copy, aten.diagonal_scatter], _linear(0, 1)
)

RULES: dict[Any, Callable[..., Any]] = {
    **_of_first,
    **_of_two,
    aten.where: _linear(1, 2),
    aten.view: _reshape,
    aten._unsafe_view: _reshape,
    aten.constant_pad_nd: _pad,
    aten.squeeze_: _squeeze,
    aten.detach: _detach,
    aten.add: _add,
    aten.sub: _subtract,
    aten.rsub: _subtract_from,
    aten.mul: _product,
    aten.mm: _product,
    aten.bmm: _product,
    aten.dot: _product,
    aten.mv: _product,
    aten.div: _divide,
    aten.pow: _power,
    aten.addmm: _addmm,
    aten.baddbmm: _addmm,
    aten.convolution: _convolution,
    aten.gelu: _gelu,
    aten.silu: _silu,
    aten._softmax: _softmax,
    aten._safe_softmax: _softmax,
    aten._log_softmax: _log_softmax,
    aten.native_layer_norm: _layer_norm,
    aten.native_batch_norm: _batch_norm,
    aten.cudnn_batch_norm: _batch_norm,
    aten._native_batch_norm_legit: _batch_norm,
    aten._native_batch_norm_legit_no_training: _batch_norm,
    aten.var: _variance,
    aten.var_mean: _variance,
    aten.std: _variance,
    aten.relu: _relu,
    aten.abs: _absolute,
    aten.maximum: _maximum,
    aten.minimum: _maximum,
    aten.clamp: _clamp,
    aten.max_pool2d_with_indices: _max_pool,
    aten.amax: _largest,
    aten.amin: _largest,
    aten.max: _largest,
    aten.min: _largest,
}

CONSTANT = {
    aten.gt, aten.ge, aten.lt, aten.le, aten.eq, aten.ne, aten.sign, aten.floor, aten.ceil, aten.round,
    aten.trunc, aten.argmax, aten.argmin, aten.argsort, aten.isnan, aten.isinf, aten.isfinite,
    aten.logical_not, aten.zeros_like, aten.ones_like, aten.full_like, aten.empty_like, aten.new_zeros,
    aten.new_ones, aten.new_full, aten.new_empty, aten.new_empty_strided,
}  # fmt: skip
"""Operations that are constant almost everywhere, or use the shape alone."""
