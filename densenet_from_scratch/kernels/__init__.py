"""The work of a dense block between its 3×3 convolutions: one interface, several ways (chapter 10).

It is done on matrices with a pixel in each row and a channel in each column
(:mod:`~densenet_from_scratch.kernels.layout`). Four chains of elementwise operations:

    normalise           x̂ = (x - μ)/σ of new maps, with the mean and the variance
    activate            ReLU(γ x̂ + β), what a layer reads
    activate_backward   back through that: the sums for γ and β, and Ĝ
    combine             BatchNorm's backward pass once the sums are known

And what is made of chains with something between them, the 1×1 convolution or a pooling:

    project             a bottleneck as far as its 3×3 convolution; again and back, too
    pool                ReLU(γ x̂ + β), averaged; and back

``reference`` does the chains in PyTorch's operations, one pass over memory for each; ``cpu`` in one
pass for each chain, in C; ``gpu`` in Triton. The functions here choose for the tensors at hand. To
add a way, write a module whose ``kernels_for`` returns an object with the four chains, or None
where it is not to be used, and add the module to ``WAYS``: the tests compare all that stand there
with ``reference``.

The object may have the functions of the second group, too. Where it has not, the chains and
PyTorch's product do it here, on a CPU some rows at a time: what one has made of them is still in
the cache when the next one reads it. A GPU works on all rows at once, so there it pays to put the
chains into the product.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from densenet_from_scratch.kernels import cpu, gpu, reference
from densenet_from_scratch.kernels.layout import (
    Scratch,
    as_maps,
    as_matrix,
    images_in_pieces,
    in_pieces,
)

WAYS: tuple[Any, ...] = (cpu, gpu)
"""Modules whose ``kernels_for`` is asked, in this order; ``reference`` works where none is."""


class Statistics(NamedTuple):
    """Of some channels over the batch, (C,) each."""

    mean: Tensor
    variance: Tensor
    """With the divisor n - 1, as running statistics want it."""
    inverse: Tensor
    """1/σ, where σ is the root of the variance with the divisor n, plus eps."""


class Projection(NamedTuple):
    """What norm1 and conv1 of a bottleneck layer do with X̂: ReLU(γ x̂ + β) Wᵀ."""

    scale: Tensor
    """γ, (C,)"""
    shift: Tensor
    """β, (C,)"""
    matrix: Tensor
    """W, (outputs, C)"""


class Combination(NamedTuple):
    """What BatchNorm's backward pass makes of g and x: scale · g + slope · x + shift."""

    scale: Tensor
    slope: Tensor
    shift: Tensor


def _way(*tensors: Tensor) -> Any:
    for module in WAYS:
        if way := module.kernels_for(*tensors):
            return way
    return reference


def _fused(name: str, *tensors: Tensor) -> Callable[..., Any] | None:
    """Return a way's own function of the second group, or None: then the chains do it."""
    return getattr(_way(*tensors), name, None)


# --- The chains ----------------------------------------------------------------------------------


def normalise(
    maps: Tensor,
    eps: float,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Statistics]:
    """Return x̂ of maps (N, C, H, W), or with γ and β ReLU(γ x̂ + β), and the statistics.

    The result is a matrix (NHW, C): ``out``, if given.
    """
    matrix = as_matrix(maps)
    way = _way(matrix, *([] if out is None else [out]))
    result, *statistics = way.normalise(maps, matrix, eps, weight, bias, out)
    return result, Statistics(*statistics)


def activate(x: Tensor, scale: Tensor, shift: Tensor, out: Tensor) -> Tensor:
    """Return ReLU(scale · x + shift) of a matrix (NHW, C), in ``out``, which may be ``x``."""
    return _way(x, scale, shift, out).activate(x, scale, shift, out)


def activate_backward(
    gradient: Tensor,
    a: Tensor,
    x: Tensor,
    sums: Tensor,
    weight: Tensor | None = None,
    total: Tensor | None = None,
) -> None:
    """Take the gradient back through a = ReLU(γ x + β): g is ``gradient`` where a > 0, and else 0.

    Σ g x and Σ g of each column, the gradients of γ and β, are added to ``sums`` (2, C), and
    weight · g to ``total``. Without a total, g is left in ``gradient``, which is overwritten in any
    case.
    """
    others = [tensor for tensor in (weight, total) if tensor is not None]
    _way(gradient, a, x, sums, *others).activate_backward(gradient, a, x, sums, weight, total)


def combine(
    gradient: Tensor, x: Tensor, scale: Tensor, slope: Tensor, shift: Tensor, out: Tensor
) -> Tensor:
    """Return scale · g + slope · x + shift of matrices, in ``out``, which may be ``gradient``."""
    return _way(gradient, x, scale, slope, shift, out).combine(
        gradient, x, scale, slope, shift, out
    )


def add_sums(gradient: Tensor, x: Tensor, sums: Tensor) -> None:
    """Add Σ g x and Σ g of each column to ``sums`` (2, C)."""
    add = _fused("add_sums", gradient, x, sums) or reference.add_sums
    add(gradient, x, sums)


# --- A bottleneck --------------------------------------------------------------------------------


def project(
    x: Tensor,
    projection: Projection,
    like: Tensor,
    eps: float,
    norm: Sequence[Tensor],
    scratch: Scratch,
) -> tuple[Tensor, Tensor, Statistics]:
    """Return m = ReLU(γ x + β) Wᵀ of a matrix, h = ReLU(γ' m̂ + β'), and the statistics of m.

    ``norm`` has γ' and β'; m and h are matrices of pixels in the order of the maps ``like``.
    """
    if fused := _fused("project", x, *projection, *norm):
        middle, h, *statistics = fused(x, *projection, eps, *norm)
        return middle, h, Statistics(*statistics)
    middle = x.new_empty(len(x), len(projection.matrix))
    for part, out in in_pieces(x, middle):
        a = activate(part, projection.scale, projection.shift, scratch(part))
        torch.mm(a, projection.matrix.T, out=out)
    return middle, *normalise(as_maps(middle, like), eps, *norm)


def project_again(
    x: Tensor,
    projection: Projection,
    mean: Tensor,
    scale: Tensor,
    shift: Tensor,
    z: Tensor,
    h: Tensor,
    scratch: Scratch,
) -> None:
    """Compute z = ReLU(γ x + β) Wᵀ - mean and h = ReLU(scale · z + shift)."""
    if fused := _fused("project_again", x, *projection, mean, scale, shift, z, h):
        fused(x, *projection, mean, scale, shift, z, h)
        return
    a = activate(x, projection.scale, projection.shift, scratch(x))
    torch.addmm(mean.to(a.dtype), a, projection.matrix.T, beta=-1, out=z)
    activate(z, scale, shift, h)


def centre(m: Tensor, mean: Tensor, scale: Tensor, shift: Tensor, z: Tensor, h: Tensor) -> None:
    """Compute z = m - mean and h = ReLU(scale · z + shift), where the product m was stored."""
    if fused := _fused("centre", m, mean, scale, shift, z, h):
        fused(m, mean, scale, shift, z, h)
        return
    z.copy_(m - mean)
    activate(z, scale, shift, h)


def project_backward(
    gradient: Tensor,
    z: Tensor,
    combination: Combination,
    x: Tensor,
    projection: Projection,
    grad_matrix: Tensor,
    sums: Tensor,
    total: Tensor,
    scratch: Sequence[Scratch],
) -> None:
    """Go back from norm2 to X̂: through its combination with z, the product and the activation.

    Added are: the gradient of W to ``grad_matrix``, those of γ and β to ``sums`` (2, C), and a term
    to Ĝ, ``total``. ``gradient`` is overwritten.
    """
    scale, shift, matrix = projection
    tensors = (x, *projection, gradient, z, *combination, grad_matrix, sums, total)
    if fused := _fused("project_backward", *tensors):
        fused(gradient, z, *combination, x, *projection, grad_matrix, sums, total)
        return
    grad_z = combine(gradient, z, *combination, out=gradient)
    a = activate(x, scale, shift, scratch[0](x))
    grad_matrix.addmm_(grad_z.T, a)
    grad_a = torch.mm(grad_z, matrix, out=scratch[1](a))
    activate_backward(grad_a, a, x, sums, scale, total)


# --- A pooling -----------------------------------------------------------------------------------


def pool(maps: Tensor, weight: Tensor, bias: Tensor, size: int) -> Tensor:
    """Return the averages of ReLU(γ x + β) of maps (N, C, H, W) over windows of size×size pixels.

    With size 0 the window is the whole map, and the result (N, C).
    """
    if fused := _fused("pool", x := as_matrix(maps), weight, bias):
        return fused(maps, x, weight, bias, size)
    scratch, parts = Scratch(maps.new_empty(0)), []
    for images in images_in_pieces(maps):
        part = as_matrix(maps[images])
        a = activate(part, weight, bias, scratch(part))
        a_maps = as_maps(a, maps[images])
        parts.append(F.avg_pool2d(a_maps, size) if size else a_maps.mean(dim=(2, 3)))
    return torch.cat(parts)


def pool_backward(
    gradient: Tensor, maps: Tensor, weight: Tensor, bias: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Return the gradient of the maps, in their order of memory, and those of γ and β, (2, C)."""
    sums = torch.zeros(2, len(weight), dtype=weight.dtype, device=weight.device)
    if fused := _fused("pool_backward", x := as_matrix(maps), weight, bias, sums):
        return as_maps(fused(gradient, maps, x, weight, bias, size, sums), maps), sums
    total = torch.zeros_like(maps)
    scratch = Scratch(maps.new_empty(0)), Scratch(maps.new_empty(0))
    for images in images_in_pieces(maps):
        like = maps[images]
        part, out = as_matrix(like), as_matrix(total[images])
        a = activate(part, weight, bias, scratch[0](part))
        grad_a = average_backward(gradient[images], like, size, scratch[1])
        activate_backward(grad_a, a, part, sums, weight, out)
    return total, sums


def average_backward(gradient: Tensor, maps: Tensor, size: int, scratch: Scratch) -> Tensor:
    """Return the gradient (NHW, C) of maps whose windows of size×size were averaged.

    With size 0 the window is the whole map. Pixels outside all windows have gradient 0.
    """
    n, c, h, w = maps.shape
    height, width = (size, size) if size else (h, w)
    down, across = h // height, w // width
    result = scratch(as_matrix(maps))
    if (down * height, across * width) != (h, w):
        result.zero_()
    windows = result.view(n, h, w, c)[:, : down * height, : across * width]
    windows = windows.unflatten(2, (across, width)).unflatten(1, (down, height))
    share = (gradient / (height * width)).view(n, c, down, 1, across, 1)
    windows.copy_(share.permute(0, 2, 3, 4, 5, 1))
    return result
