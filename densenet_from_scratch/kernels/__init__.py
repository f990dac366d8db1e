"""The elementwise work of a dense block: one interface, several ways to do it (chapter 10).

Between its convolutions a dense block does four chains of elementwise operations, on matrices with
a pixel in each row and a channel in each column (:mod:`~densenet_from_scratch.kernels.layout`):

    normalise           x̂ = (x - μ)/σ of new maps, with the mean and the variance
    activate            ReLU(γ x̂ + β), what a layer reads
    activate_backward   back through that: the sums for γ and β, and Ĝ
    combine             BatchNorm's backward pass once the sums are known

``reference`` does them in PyTorch's operations, one pass over memory for each; ``cpu`` in one
pass for each chain, in C. The functions here choose for the tensors at hand. To add a way, write a
module whose ``kernels_for`` returns an object with these four functions, or None where it is not
to be used, and add the module to ``WAYS``: the tests compare all that stand there with
``reference``.
"""

from typing import Any, NamedTuple

from torch import Tensor

from densenet_from_scratch.kernels import cpu, reference
from densenet_from_scratch.kernels.layout import as_matrix

WAYS: tuple[Any, ...] = (cpu,)
"""Modules whose ``kernels_for`` is asked, in this order; ``reference`` works where none is."""


class Statistics(NamedTuple):
    """Of some channels over the batch, (C,) each."""

    mean: Tensor
    variance: Tensor
    """With the divisor n - 1, as running statistics want it."""
    inverse: Tensor
    """1/σ, where σ is the root of the variance with the divisor n, plus eps."""


def _way(*tensors: Tensor) -> Any:
    for module in WAYS:
        if way := module.kernels_for(*tensors):
            return way
    return reference


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
