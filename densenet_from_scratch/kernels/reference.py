"""The four chains of elementwise work in PyTorch's operations: what every kernel must give.

They run on any device and for any type of numbers.
"""

import torch
from torch import Tensor

from densenet_from_scratch.kernels.layout import as_matrix

aten = torch.ops.aten


def activate(x: Tensor, scale: Tensor, shift: Tensor, out: Tensor) -> Tensor:
    """Return ReLU(scale · x + shift) of a matrix, in ``out``."""
    return torch.addcmul(shift, x, scale, out=out).relu_()


def normalise(
    maps: Tensor,
    _matrix: Tensor,
    eps: float,
    weight: Tensor | None,
    bias: Tensor | None,
    out: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x̂ of maps, or ReLU(γ x̂ + β), as a matrix; mean, variance (n - 1) and 1/σ."""
    dtype = maps.dtype if maps.dtype.itemsize > 2 else torch.float32
    mean, variance = (maps.new_zeros(maps.shape[1], dtype=dtype) for _ in range(2))
    # With momentum 1 the "running" statistics are those of this batch.
    result, _, inverse = torch.native_batch_norm(maps, weight, bias, mean, variance, True, 1.0, eps)
    result = as_matrix(result if weight is None else result.relu_())
    return result if out is None else out.copy_(result), mean, variance, inverse


def combine(
    gradient: Tensor, x: Tensor, scale: Tensor, slope: Tensor, shift: Tensor, out: Tensor
) -> Tensor:
    """Return scale · g + slope · x + shift of matrices, in ``out``."""
    return torch.mul(gradient, scale, out=out).addcmul_(x, slope).add_(shift)


def activate_backward(
    gradient: Tensor,
    a: Tensor,
    x: Tensor,
    sums: Tensor,
    weight: Tensor | None = None,
    total: Tensor | None = None,
) -> None:
    """Mask g where a = 0; add Σ g x and Σ g to ``sums``, and weight · g to ``total``."""
    aten.threshold_backward.grad_input(gradient, a, 0, grad_input=gradient)
    if weight is not None and total is not None:
        total.addcmul_(gradient, weight)
    add_sums(gradient, x, sums)


def add_sums(gradient: Tensor, x: Tensor, sums: Tensor) -> None:
    """Add Σ g x and Σ g of each column to ``sums`` (2, C)."""
    sums[0] += (gradient * x).sum(0, dtype=sums.dtype)
    sums[1] += gradient.sum(0, dtype=sums.dtype)
