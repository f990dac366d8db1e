"""Shared normalisation: the arithmetic of a dense block that normalises each map once (chapter 10).

In training, BatchNorm subtracts a map's mean over the batch and divides by its deviation. Both
belong to the map, not to the layer that reads it: every later layer of the block computes the same
normalised map x̂ and differs only in its own γ and β. So x̂ is computed once, when the map is made,
and kept in one matrix with a pixel in each row and a channel in each column:

    X̂ = [x̂_0, x̂_1, ..., x̂_L]             (pixels, k_0 + kL), pixels = N·H·W

    layer l reads  a = ReLU(γ_l x̂ + β_l)  of the first k_0 + k(l - 1) columns

X̂ is all of the block's maps that the backward pass needs; the rest is quickly computed again. It
goes back from the last layer. With g the gradient of γ_l x̂ + β_l, where the ReLU let it pass:

    (1)  ∂ℓ/∂γ_l = Σ g x̂,  ∂ℓ/∂β_l = Σ g         of each column that layer l reads
    (2)  Ĝ = Σ_l γ_l g                           the gradient of X̂, a term from each reader
    (3)  ∂ℓ/∂x = (Ĝ - mean(Ĝ) - x̂ · mean(Ĝ x̂)) / σ       BatchNorm's, once for each map
    (4)  Σ Ĝ x̂ = Σ_l γ_l ∂ℓ/∂γ_l,  Σ Ĝ = Σ_l γ_l ∂ℓ/∂β_l   so (3) needs no sums of its own

The functions of torch.autograd here compute, and change nothing: running statistics are the
business of module ``blocks``.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from densenet_from_scratch.dense import BottleneckLayer, DenseLayer
from densenet_from_scratch.internals import has_memory
from densenet_from_scratch.kernels import (
    Combination,
    Projection,
    activate,
    activate_backward,
    add_sums,
    centre,
    combine,
    normalise,
    pool,
    pool_backward,
    project,
    project_again,
    project_backward,
)
from densenet_from_scratch.kernels.layout import (
    Scratch,
    as_maps,
    as_matrix,
    memory_format,
    pieces,
    rows_at_once,
)

aten = torch.ops.aten


def parameters_of(layer: DenseLayer | BottleneckLayer) -> list[Tensor]:
    """Return a layer's parameters in the order in which they are used."""
    values = [layer.norm1.weight, layer.norm1.bias, layer.conv1.weight]
    if isinstance(layer, BottleneckLayer):
        values += [layer.norm2.weight, layer.norm2.bias, layer.conv2.weight]
    return values


class Plan(NamedTuple):
    """What :class:`SharedNormalisation` must know of a block besides its tensors."""

    eps: float
    """Of all norms that read the block's maps."""
    eps_middle: tuple[float, ...]
    """Of each layer's norm2; none for basic layers."""
    drop_rates: tuple[float, ...]
    """Of each layer; 0 where dropout is off."""
    keep_bottleneck: bool
    """Whether the bottlenecks' maps are stored, or computed again."""
    with_maps: bool
    """Whether the block's maps are wanted besides X̂."""


def split_by_layer(
    parameters: Sequence[Tensor], layers: int, dtype: torch.dtype
) -> list[list[Tensor]]:
    """Return each layer's parameters; convolutions in the type of the maps."""
    each = len(parameters) // layers
    typed = [p.to(dtype) if p.dim() > 1 else p for p in parameters]
    return [typed[start : start + each] for start in range(0, len(typed), each)]


class Stored(NamedTuple):
    """What a layer stores for its backward pass, besides its columns of X̂."""

    mean: Tensor | None = None
    """Of the bottleneck's maps."""
    inverse: Tensor | None = None
    bottleneck: Tensor | None = None
    """The bottleneck's maps, unless they are to be computed again."""
    dropout: Tensor | None = None
    """True where dropout let a value pass."""


# --- One layer, forward and backward -------------------------------------------------------------


def basic(x_hat: Tensor, like: Tensor, values: Sequence[Tensor]) -> Tensor:
    """Run ReLU and conv3×3 of a basic layer on its columns of X̂; return the new maps."""
    norm_weight, norm_bias, conv = values
    a = activate(x_hat, norm_weight, norm_bias, torch.empty_like(x_hat))
    return F.conv2d(as_maps(a, like), conv, padding=1)


def basic_backward(
    gradient: Tensor, x_hat: Tensor, total: Tensor, values: Sequence[Tensor]
) -> list[Tensor]:
    """Add to Ĝ, ``total``; return the gradients of a basic layer's parameters."""
    norm_weight, norm_bias, conv = values
    a = activate(x_hat, norm_weight, norm_bias, torch.empty_like(x_hat))
    grad_a, grad_conv = conv3x3_backward(gradient, as_maps(a, gradient), conv)
    sums = norm_weight.new_zeros(2, len(norm_weight))
    activate_backward(as_matrix(grad_a), a, x_hat, sums, norm_weight, total)  # (1) and (2)
    return [*sums, grad_conv]


def bottleneck(
    x_hat: Tensor, like: Tensor, eps: float, values: Sequence[Tensor], scratch: Scratch
) -> tuple[Tensor, Stored, Tensor]:
    """Run a bottleneck layer on its columns of X̂.

    Returns:
        The new maps, what to store, and the variance that norm2 has seen.
    """
    norm1_weight, norm1_bias, conv1, *norm2, conv2 = values
    projection = Projection(norm1_weight, norm1_bias, conv1.flatten(1))
    middle, h, statistics = project(x_hat, projection, like, eps, norm2, scratch)
    new = F.conv2d(as_maps(h, like), conv2, padding=1)
    stored = Stored(statistics.mean, statistics.inverse, as_maps(middle, like))
    return new, stored, statistics.variance


class Again:
    """What a bottleneck layer's backward pass needs of its forward pass, computed again.

    Args:
        x_hat: the columns of X̂ that the layer reads.
        values: the layer's parameters.
        stored: what it has stored.
        scratch: memory for the piece at hand.
    """

    def __init__(
        self, x_hat: Tensor, values: Sequence[Tensor], stored: Stored, scratch: Scratch
    ) -> None:
        assert stored.mean is not None and stored.inverse is not None
        self.x_hat, self.scratch = x_hat, scratch
        self.bottleneck = None if stored.bottleneck is None else as_matrix(stored.bottleneck)
        norm1_weight, norm1_bias, conv1, norm2_weight, self.norm2_bias, self.conv2 = values
        self.projection = Projection(norm1_weight, norm1_bias, conv1.flatten(1))
        self.mean, self.inverse = stored.mean, stored.inverse
        self.scale = norm2_weight * self.inverse
        self.z = x_hat.new_empty(len(x_hat), len(conv1))
        """The bottleneck's maps less their means."""
        self.h = torch.empty_like(self.z)
        """What conv2 has read."""

    def compute(self, rows: slice) -> None:
        """Compute some rows of z and h."""
        of_z = self.mean, self.scale, self.norm2_bias, self.z[rows], self.h[rows]
        if self.bottleneck is None:
            project_again(self.x_hat[rows], self.projection, *of_z, self.scratch)
        else:
            centre(self.bottleneck[rows], *of_z)


def bottleneck_backward(
    gradient: Tensor,
    total: Tensor,
    again: Again,
    previous: Again | None,
    scratch: Sequence[Scratch],
) -> list[Tensor]:
    """Add to Ĝ, ``total``; return the gradients of a bottleneck layer's parameters.

    ``previous``, of the layer before, is computed along the way, while X̂ is in the cache.
    """
    projection, x_hat, z, h, scale = again.projection, again.x_hat, again.z, again.h, again.scale
    grad_maps, grad_conv2 = conv3x3_backward(gradient, as_maps(h, gradient), again.conv2)
    grad_h = as_matrix(grad_maps)

    norm2, norm1 = (row.new_zeros(2, len(row)) for row in (scale, projection.scale))
    for rows in pieces(z):
        activate_backward(grad_h[rows], h[rows], z[rows], norm2)  # (1) of norm2, but for 1/σ
    norm2[0] *= again.inverse
    # (3) of norm2, whose only reader is conv2: γ/σ (g - mean(g) - x̂ mean(g x̂)), with x̂ = z/σ
    slope, shift = scale * norm2 / -len(z)
    slope *= again.inverse
    combination = Combination(scale, slope, shift)

    grad_conv1 = torch.zeros_like(projection.matrix)
    for rows in pieces(x_hat):
        there, here = (grad_h[rows], z[rows], combination), (x_hat[rows], projection)
        # (1) and (2) of norm1
        project_backward(*there, *here, grad_conv1, norm1, total[rows], scratch)
        if previous is not None:
            previous.compute(rows)
    return [*norm1, grad_conv1[:, :, None, None], *norm2, grad_conv2]


def conv3x3_backward(gradient: Tensor, maps: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of the maps and of the weight of a 3×3 convolution with padding 1."""
    one = [1, 1]
    return aten.convolution_backward.default(
        gradient, maps, weight, None, one, one, one, False, [0, 0], 1, [True, True, False]
    )[:2]


# --- The block and its readers as autograd sees them ---------------------------------------------


class SharedNormalisation(torch.autograd.Function):
    """A dense block from its input to X̂, see the module's first lines.

    ``apply(plan, x, *parameters)`` takes a :class:`Plan`, the input (N, k_0, H, W), and
    :func:`parameters_of` every layer. It returns

    - X̂ as maps (N, k_0 + kL, H, W),
    - the mean and the variance of each of the block's channels, (2, k_0 + kL), and of each
      bottleneck's, (L, 2, 4k) or (0,), for the running statistics,
    - the block's maps (N, k_0 + kL, H, W), if wanted, or None.
    """

    @staticmethod
    def forward(
        ctx: Any, plan: Plan, x: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Compute the block; arguments and results as above."""
        layers = len(plan.drop_rates)
        growth = len(parameters[-1])  # k: the last convolution makes as many maps
        columns = x.shape[1] + growth * layers
        x_hat = x.new_empty(x.numel() // x.shape[1], columns)
        statistics = x.new_empty(3, columns, dtype=parameters[0].dtype)  # see kernels.Statistics
        maps, stored, seen, end, scratch = [x], [], [], 0, Scratch(x.new_empty(0))

        def add(new: Tensor) -> int:
            """Normalise new maps into the next columns; return where these end."""
            place = slice(end, end + new.shape[1])
            _, of_new = normalise(new, plan.eps, out=x_hat[:, place])
            statistics[:, place] = torch.stack(of_new)
            return place.stop

        end = add(x)
        for number, values in enumerate(split_by_layer(parameters, layers, x.dtype)):
            if plan.eps_middle:
                eps = plan.eps_middle[number]
                new, store, variance = bottleneck(x_hat[:, :end], x, eps, values, scratch)
                assert store.mean is not None
                seen.append(torch.stack((store.mean, variance)))
                store = store if plan.keep_bottleneck else store._replace(bottleneck=None)
            else:
                new, store = basic(x_hat[:, :end], x, values), Stored()
            if plan.drop_rates[number]:
                # Drawn in the memory order of the plain layer's maps, so these are its numbers.
                ones = torch.ones_like(new, memory_format=memory_format(x))
                noise = F.dropout(ones, plan.drop_rates[number])
                new, store = new * noise, store._replace(dropout=noise != 0)
            maps.append(new)
            stored.append(store)
            end = add(new)

        ctx.plan = plan
        ctx.set_materialize_grads(False)
        result, of_block = as_maps(x_hat, x), statistics[:2]
        of_middle = torch.stack(seen) if seen else x.new_empty(0)
        inverse = statistics[2].clone()
        ctx.save_for_backward(result, inverse, *parameters, *(t for s in stored for t in s))
        ctx.mark_non_differentiable(of_block, of_middle)
        return result, of_block, of_middle, torch.cat(maps, dim=1) if plan.with_maps else None

    @staticmethod
    def backward(
        ctx: Any, grad_x_hat: Tensor | None, _block: None, _middle: None, grad_maps: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of the input and of the parameters, in the order of ``apply``."""
        refuse_unknown_derivatives(grad_x_hat, grad_maps)
        plan, (maps, inverse, *saved) = ctx.plan, ctx.saved_tensors
        layers, each = len(plan.drop_rates), len(Stored._fields)
        parameters, stored_tensors = saved[: -each * layers], saved[-each * layers :]
        values = split_by_layer(parameters, layers, maps.dtype)
        stored = [Stored(*stored_tensors[i * each : (i + 1) * each]) for i in range(layers)]
        x_hat = as_matrix(maps)
        scratch = Scratch(maps.new_empty(0)), Scratch(maps.new_empty(0))

        total, total_sums = start_total(grad_x_hat, x_hat, inverse)

        def gradient(place: slice) -> Tensor:
            """Return the gradient of some maps, whose readers must all have added to Ĝ: (3)."""
            slope, shift = total_sums[:, place] * inverse[place] / -len(x_hat)
            out = total.new_empty(len(total), place.stop - place.start)
            parts = total[:, place], x_hat[:, place], inverse[place], slope, shift
            of_maps = as_maps(combine(*parts, out=out), maps)
            return of_maps if grad_maps is None else of_maps + grad_maps[:, place]

        def again(number: int, width: int) -> Again:
            return Again(x_hat[:, :width], values[number], stored[number], scratch[0])

        end = x_hat.shape[1]
        gradients: list[Tensor] = []
        current: Again | None = None
        for number in reversed(range(layers)):
            place = slice(end - len(values[number][-1]), end)
            grad_new, end = gradient(place), place.start
            grad_new = dropout_backward(grad_new, stored[number].dropout, plan.drop_rates[number])
            if plan.eps_middle:
                if current is None:
                    current = again(number, end)
                    for rows in pieces(current.x_hat):
                        current.compute(rows)
                previous = None
                if number > 0 and rows_at_once(current.x_hat) < len(x_hat):
                    previous = again(number - 1, end - len(values[number - 1][-1]))
                of_layer = bottleneck_backward(grad_new, total[:, :end], current, previous, scratch)
                current = previous
            else:
                of_layer = basic_backward(grad_new, x_hat[:, :end], total[:, :end], values[number])
            gradients[:0] = of_layer
            total_sums[:, :end] += values[number][0] * torch.stack(of_layer[:2])  # (4)
        return (
            None,
            gradient(slice(0, end)) if ctx.needs_input_grad[1] else None,
            *(g.to(p.dtype) for g, p in zip(gradients, parameters, strict=True)),
        )


def start_total(grad_x_hat: Tensor | None, x_hat: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Return Ĝ (pixels, C) before any layer has added to it, and Σ Ĝ x̂ and Σ Ĝ (2, C)."""
    sums = torch.zeros_like(inverse).repeat(2, 1)
    if grad_x_hat is None:
        return torch.zeros_like(x_hat), sums
    total = torch.empty_like(x_hat).copy_(as_matrix(grad_x_hat))
    for rows in pieces(x_hat):
        add_sums(total[rows], x_hat[rows], sums)
    return total, sums


def dropout_backward(gradient: Tensor, passed: Tensor | None, drop_rate: float) -> Tensor:
    """Return the gradient of maps before dropout, which let pass where ``passed`` is True."""
    if passed is None:
        return gradient
    share, mask = 1 - drop_rate, passed.to(gradient.dtype)
    # A rate that was set to 1 after the layer was built lets nothing pass, and mask is 0.
    return gradient * mask / share if share else mask


class ActivateAndPool(torch.autograd.Function):
    """ReLU(γ x̂ + β) and average pooling, for the BatchNorm that reads a finished block.

    ``apply(x_hat, weight, bias, size)`` pools windows of size×size pixels, or with size 0 the whole
    map, and keeps only X̂, which the block keeps anyway. Pooling before a 1×1 convolution instead
    of after it gives the same, since both are sums, with a quarter of the products.
    """

    @staticmethod
    def forward(ctx: Any, x_hat: Tensor, weight: Tensor, bias: Tensor, size: int) -> Tensor:
        """Map (N, C, H, W) to (N, C, ⌊H/size⌋, ⌊W/size⌋), or to (N, C)."""
        ctx.save_for_backward(x_hat, weight, bias)
        ctx.size = size
        return pool(x_hat, weight, bias, size)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of X̂, γ and β."""
        refuse_unknown_derivatives(gradient)
        x_hat, weight, bias = ctx.saved_tensors
        total, sums = pool_backward(gradient, x_hat, weight, bias, ctx.size)  # (1) and (2)
        return total, *sums, None


def refuse_unknown_derivatives(*gradients: Tensor | None) -> None:
    """Raise an error inside a backward pass whose own gradient, or a batch of which, is wanted."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "efficient dense blocks have no second derivative (create_graph=True): "
            "build the network with efficient=False"
        )
    if not all(has_memory(gradient) for gradient in gradients if gradient is not None):
        raise RuntimeError(
            "shared dense blocks have no batched gradients (is_grads_batched=True): "
            'build the network with efficient="checkpoint" or efficient=False'
        )
