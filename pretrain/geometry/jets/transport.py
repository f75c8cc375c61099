"""Transport of vectors between the tokens of a block, and holonomy: what a vector becomes around a loop.

Γ_{i←j} = ∂out_i/∂in_j carries a change of token j to token i. These matrices are neither orthogonal nor of
full rank (layer norm removes two directions), so each is replaced by its polar factor, the partial isometry
UVᵀ of its singular vectors. The holonomy H of a loop j → i → k → j is the product of the polar factors. A
change of orthonormal basis in every token turns H into gHgᵀ, so its defect and its angles do not depend on
the bases.

Holonomy vanishes where every Γ is a positive multiple of one symmetric positive map, such as a fixed average
over tokens with a residual. It does not vanish for every affine map; there H is merely the same for all
inputs. `representation_holonomy`, for paths of inputs, follows arXiv:2601.21653.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from isotorus.errors import UserError
from pretrain.geometry.jets.jets import jvp
from pretrain.models.blocks import token_blocks as token_blocks

Block = Callable[[Tensor], Tensor]
"""A block maps (N, T, d) to (N, T, d), each image independently, as those of a ViT do in eval mode."""
Place = tuple[int, int]


class Holonomy(NamedTuple):
    """The change of a vector that is carried around a loop."""

    matrix: Tensor
    """H (d, d)."""
    defect: float
    """‖H − P‖_F / √rank, where P projects onto the directions that H keeps; ‖H − I‖_F / √d at full rank. It
    is 0 if vectors come back unchanged, √2 for a random rotation, 2 for −I, and NaN if the loop is cut."""
    angles: Tensor
    """Arguments of the `rank` largest eigenvalues of H, (rank,), ascending, in radians."""
    rank: int
    """Number of directions that come back around the loop."""
    cut: Place | None
    """The first (i, j) where out_i does not depend on in_j, or None. Causal attention has one in every loop.
    H is then exactly 0 and says nothing about curvature."""


def token_jacobian(block: Block, tokens: Tensor, i: int, j: int) -> Tensor:
    """Return Γ_{i←j} = ∂out_i/∂in_j (d, d) at tokens (T, d)."""
    return token_jacobians(block, tokens, j)[i]


def token_jacobians(block: Block, tokens: Tensor, j: int, chunk: int | None = 64) -> Tensor:
    """Return ∂out_i/∂in_j for all i, (T, d, d), by d Jacobian-vector products, `chunk` at a time.

    Raises `UserError` for fewer than 3 tokens and for a block without a derivative.
    """
    if tokens.ndim != 2 or not -len(tokens) <= j < len(tokens):
        raise ValueError(f"expected tokens (T, d) and one of them, got {tuple(tokens.shape)} and {j}")
    if len(tokens) < 3:
        raise UserError(
            f"{len(tokens)} tokens: a loop needs at least 3; use larger images or smaller patches"
        )

    def once(x: Tensor) -> Tensor:
        out = block(x[None])[0]
        if out.shape != x.shape:
            raise ValueError(
                f"the block maps tokens {tuple(x.shape)} to {tuple(out.shape)}, expected the same"
            )
        return out

    jvp(once, tokens, tokens)
    width = tokens.shape[1]
    basis = tokens.new_zeros(width, *tokens.shape)
    basis[:, j] = torch.eye(width, dtype=tokens.dtype, device=tokens.device)
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        push = torch.func.vmap(lambda v: torch.func.jvp(once, (tokens,), (v,))[1], chunk_size=chunk)
        columns = push(basis)
    if not columns.any():
        raise UserError(
            f"the block has no derivative with respect to token {j}: its Jacobian is zero everywhere, as of "
            "rounding or hard choices; choose a differentiable block"
        )
    return columns.permute(1, 2, 0)


def polar(jacobian: Tensor, tolerance: float = 1e-4) -> Tensor:
    """Return the partial isometry UVᵀ of the polar decomposition of (…, d, d): orthogonal at full rank.

    Singular values up to `tolerance` times the largest count as zero, because rounding decides their
    directions. The result is unique, and g·J·hᵀ has g·polar(J)·hᵀ for orthogonal g and h.
    """
    u, s, vt = torch.linalg.svd(jacobian)
    kept = (s > tolerance * s[..., :1]).to(s.dtype)
    return (u * kept[..., None, :]) @ vt


def holonomy(block: Block, tokens: Tensor, loop: Sequence[int], tolerance: float = 1e-4) -> Holonomy:
    """Return the holonomy of the loop loop[0] → loop[1] → … → loop[0] through tokens (T, d).

    The loop has three or more different tokens. Raises what `token_jacobians` does, and `UserError` for a
    shorter loop.
    """
    if len(loop) < 3 or len(set(loop)) < len(loop):
        raise UserError(f"the loop {list(loop)} is none: name at least 3 different tokens")
    edges = list(pairwise([*loop, loop[0]]))
    return around({(i, j): token_jacobian(block, tokens, i, j) for j, i in edges}, loop, tolerance)


def around(jacobians: dict[Place, Tensor], loop: Sequence[int], tolerance: float = 1e-4) -> Holonomy:
    """Return the holonomy of a loop, given Γ_{i←j} by (i, j)."""
    steps = [(i, j) for j, i in pairwise([*loop, loop[0]])]
    cut = next((step for step in steps if not jacobians[step].any()), None)
    first = jacobians[steps[0]]
    matrix = torch.eye(len(first), dtype=first.dtype, device=first.device)
    for step in steps:
        matrix = polar(jacobians[step], tolerance) @ matrix
    return _summary(matrix, cut)


def _summary(matrix: Tensor, cut: Place | None) -> Holonomy:
    """Return the holonomy of a matrix H."""
    _, s, vt = torch.linalg.svd(matrix)
    rank = int((s > 1e-3).sum())
    if not rank:
        return Holonomy(torch.zeros_like(matrix), torch.nan, matrix.new_zeros(0), 0, cut)
    support = vt[:rank].T @ vt[:rank]
    eigenvalues = torch.linalg.eigvals(matrix)
    largest = eigenvalues[eigenvalues.abs().argsort(descending=True)[:rank]]
    defect = (matrix - support).norm().item() / rank**0.5
    return Holonomy(matrix, defect, largest.angle().sort().values, rank, cut)


def holonomy_map(
    block: Block,
    tokens: Tensor,
    grid: tuple[int, int],
    places: Sequence[Place] | None = None,
    tolerance: float = 1e-4,
) -> Tensor:
    """Return for each patch of an image the mean defect of the triangles around it: (rows, columns).

    The triangles are the at most four that a patch makes with a neighbour in its row and one in its column.
    `tokens` (T, d) end with the rows × columns patches of `grid`. Each patch and its neighbours take d
    Jacobian-vector products of the block; with `places`, (row, column), only those patches are computed. The
    others, and patches whose triangles are all cut, are NaN. Raises what `holonomy` does.
    """
    rows, columns = grid
    prefix = len(tokens) - rows * columns
    if prefix < 0:
        raise ValueError(f"{len(tokens)} tokens are fewer than the {rows}×{columns} patches")
    if min(rows, columns) < 2:
        raise UserError(f"a grid of {rows}×{columns} patches has no triangles; use larger images")

    def token(row: int, column: int) -> int:
        return prefix + row * columns + column

    def neighbours(row: int, column: int) -> list[list[int]]:
        around_it = [(row, column + 1), (row + 1, column), (row, column - 1), (row - 1, column)]
        pairs = pairwise([*around_it, around_it[0]])
        inside = [p for p in pairs if all(0 <= r < rows and 0 <= c < columns for r, c in p)]
        return [[token(row, column), token(*a), token(*b)] for a, b in inside]

    wanted = places if places is not None else [(r, c) for r in range(rows) for c in range(columns)]
    triangles = {place: neighbours(*place) for place in wanted}
    steps = {(i, j) for loops in triangles.values() for loop in loops for j, i in pairwise([*loop, loop[0]])}
    factors: dict[Place, Tensor] = {}
    for source in sorted({j for _, j in steps}):
        targets = sorted(i for i, j in steps if j == source)
        isometries = polar(token_jacobians(block, tokens, source)[targets], tolerance)
        factors |= {(i, source): factor for i, factor in zip(targets, isometries, strict=True)}
    result = torch.full(grid, torch.nan, dtype=tokens.dtype)
    for place, loops in triangles.items():
        defects = torch.tensor([around(factors, loop, tolerance).defect for loop in loops])
        result[place] = defects.nanmean()
    return result


def representation_holonomy(loop: Tensor, pool: Tensor, neighbors: int = 96, subspace: int = 64) -> Holonomy:
    """Return how features turn along a closed path of inputs, from features alone (arXiv:2601.21653).

    `loop` (L, p) are the features of the path's L ≥ 3 points in order, `pool` (N, p) those of many inputs.
    Both are whitened by the pool's covariance, so an invertible affine map of the features changes nothing.
    For each step of the path, the `neighbors` of the pool nearest to its middle are centred softly on either
    point, and the one set is rotated onto the other (Procrustes, determinant 1) within their `subspace`
    principal directions. H is the product of these rotations. The published figure is half the defect. Raises
    `UserError` for fewer than three points and for a pool that is too small.
    """
    if loop.ndim != 2 or pool.ndim != 2 or loop.shape[1] != pool.shape[1]:
        raise ValueError(f"expected (L, p) and (N, p), got {tuple(loop.shape)} and {tuple(pool.shape)}")
    if len(loop) < 3:
        raise UserError(f"a path of {len(loop)} points is no loop; give at least 3")
    if len(pool) <= neighbors:
        raise UserError(f"a pool of {len(pool)} inputs has no {neighbors} neighbours; give more inputs")
    mean, whitening = _whitening(pool.double())
    points, cloud = (loop.double() - mean) @ whitening, (pool.double() - mean) @ whitening
    matrix = torch.eye(cloud.shape[1], dtype=torch.float64, device=cloud.device)
    for a, b in pairwise([*points, points[0]]):
        nearest = torch.cdist((a + b)[None] / 2, cloud)[0].topk(neighbors, largest=False).indices
        near = cloud[nearest]
        matrix = _rotation(near - _soft_centre(near, a), near - _soft_centre(near, b), subspace) @ matrix
    return _summary(matrix, None)


def _whitening(pool: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (p,) and a map (p, rank) after which the pool has unit covariance."""
    mean = pool.mean(0)
    _, s, vt = torch.linalg.svd(pool - mean, full_matrices=False)
    kept = s > 1e-6 * s[0]
    return mean, vt[kept].T / s[kept] * (len(pool) - 1) ** 0.5


def _soft_centre(near: Tensor, point: Tensor) -> Tensor:
    """Return the mean with weights e^{−distance / median distance}."""
    distance = torch.cdist(point[None], near)[0]
    return torch.softmax(-distance / distance.median(), 0) @ near


def _rotation(source: Tensor, target: Tensor, subspace: int) -> Tensor:
    """Return the rotation R of column vectors with R·source ≈ target.

    Directions outside the leading principal ones of both sets of points stay unchanged.
    """
    both = torch.cat([source, target])
    _, _, vt = torch.linalg.svd(both - both.mean(0), full_matrices=False)
    basis = vt[: min(subspace, len(source) - 1)].T
    u, _, wt = torch.linalg.svd((target @ basis).T @ (source @ basis))
    u[:, -1] *= torch.sign(torch.linalg.det(u @ wt))
    identity = torch.eye(len(basis), dtype=basis.dtype, device=basis.device)
    return basis @ (u @ wt) @ basis.T + identity - basis @ basis.T
