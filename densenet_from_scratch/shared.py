"""Shared normalisation: the arithmetic of a dense block that normalises each map once (chapter 10).

In training, BatchNorm subtracts a map's mean over the batch and divides by its deviation. Both
belong to the map, not to the layer that reads it: every later layer of the block computes the same
normalised map x̂ and differs only in its own γ and β. So x̂ is computed once, when the map is made,
and kept in one matrix with a pixel in each row and a channel in each column:

    X̂ = [x̂_0, x̂_1, ..., x̂_L]             (pixels, k_0 + kL), pixels = N·H·W

    layer l reads  a = ReLU(γ_l x̂ + β_l)  of the first k_0 + k(l - 1) columns

X̂ is all that the backward pass needs; the rest is quickly computed again. Going back from the last
layer, Ĝ collects the gradient of X̂, a term from each reader of a column, and the gradient of a map
is BatchNorm's, once:

    ∂ℓ/∂x = (Ĝ - mean(Ĝ) - x̂ · mean(Ĝ x̂)) / σ

A 1×1 convolution is the product of such a matrix with the weights. On a CPU it takes some rows at a
time, few enough that what is computed of them stays in the cache.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densenet_from_scratch.dense import BottleneckLayer, DenseLayer

PIECE = 1 << 18  # numbers that a thread works on at a time on a CPU: 1 MiB in float32

aten = torch.ops.aten


def as_maps(matrix: Tensor, like: Tensor) -> Tensor:
    """View a matrix (NHW, C) as maps (N, C, H, W), with N, H and W those of ``like``."""
    n, _, h, w = like.shape
    return matrix.view(n, h, w, -1).permute(0, 3, 1, 2)


def as_matrix(maps: Tensor) -> Tensor:
    """Return maps (N, C, H, W) as a matrix (NHW, C): a view, if the memory is in that order."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def pieces(matrix: Tensor, multiple: int = 1) -> Iterator[slice]:
    """Cut the rows into pieces of about ``PIECE`` numbers for each thread, on a GPU into one."""
    rows, columns = matrix.shape
    step = rows
    if matrix.device.type == "cpu":
        step = max(1, torch.get_num_threads() * PIECE // (columns * multiple)) * multiple
    return (slice(start, start + step) for start in range(0, rows, step))


class Scratch:
    """Memory for the piece at hand: taken once, it is in the cache each time."""

    def __init__(self, like: Tensor) -> None:
        self.memory = like.new_empty(0)

    def __call__(self, like: Tensor) -> Tensor:
        """Return memory of the size of a matrix. What was in it is lost."""
        if self.memory.numel() < like.numel():
            self.memory = like.new_empty(like.numel())
        return self.memory[: like.numel()].view(like.shape)


# --- Normalise -----------------------------------------------------------------------------------


class Statistics(NamedTuple):
    """Of some channels over the batch, (C,) each."""

    mean: Tensor
    variance: Tensor
    """With the divisor n - 1, as running statistics want it."""
    inverse: Tensor
    """1/σ, where σ is the root of the variance with the divisor n, plus eps."""


def normalise(
    maps: Tensor, eps: float, weight: Tensor | None = None, bias: Tensor | None = None
) -> tuple[Tensor, Statistics]:
    """Return γ x̂ + β of maps (N, C, H, W), or x̂ without γ and β, and the statistics."""
    dtype = maps.dtype if maps.dtype.itemsize > 2 else torch.float32
    mean, variance = (maps.new_zeros(maps.shape[1], dtype=dtype) for _ in range(2))
    # With momentum 1 the "running" statistics are those of this batch.
    result, _, inverse = torch.native_batch_norm(maps, weight, bias, mean, variance, True, 1.0, eps)
    return result, Statistics(mean, variance, inverse)


def normalise_backward(
    gradient: Tensor, x_hat: Tensor, inverse: Tensor, both_sums: Tensor
) -> Tensor:
    """Return (g - mean(g) - x̂ mean(g x̂)) / σ of some columns, given Σ g x̂ and Σ g (2, C)."""
    slope, shift = both_sums * inverse / -len(gradient)
    return (gradient * inverse).addcmul_(x_hat, slope).add_(shift).to(x_hat.dtype)


@torch.no_grad()
def update_statistics(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    """Update the running statistics as ``norm`` would if it saw the batch, once."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1)
    share = norm.momentum if norm.momentum is not None else 1 / int(norm.num_batches_tracked)
    norm.running_mean.lerp_(mean, share)
    norm.running_var.lerp_(variance, share)


# --- Activate: ReLU(γ x̂ + β), and what a layer does with it ---------------------------------------


def activate(x_hat: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> Tensor:
    """Return ReLU(γ x̂ + β) of a matrix, in ``out``."""
    return torch.addcmul(bias, x_hat, weight, out=out).relu_()


def activate_backward(
    gradient: Tensor, a: Tensor, x_hat: Tensor, weight: Tensor, total: Tensor
) -> Tensor:
    """Add the gradient of X̂ to Ĝ, ``total``; return those of γ and β, (2, C).

    Overwrites ``gradient``.
    """
    aten.threshold_backward.grad_input(gradient, a, 0, grad_input=gradient)
    total.addcmul_(gradient, weight)
    return sums(gradient, x_hat, weight.dtype)


def sums(gradient: Tensor, x_hat: Tensor, dtype: torch.dtype) -> Tensor:
    """Return Σ g x̂ and Σ g of each column, (2, C). Overwrites ``gradient``."""
    plain = gradient.sum(0, dtype=dtype)
    return torch.stack((gradient.mul_(x_hat).sum(0, dtype=dtype), plain))


def conv3x3_backward(gradient: Tensor, maps: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of the maps and of the weight of a 3×3 convolution with padding 1."""
    one = [1, 1]
    return aten.convolution_backward.default(
        gradient, maps, weight, None, one, one, one, False, [0, 0], 1, [True, True, False]
    )[:2]


class Kept(NamedTuple):
    """What a layer keeps for its backward pass, besides its columns of X̂."""

    mean: Tensor | None = None
    """Of the bottleneck's maps."""
    inverse: Tensor | None = None
    bottleneck: Tensor | None = None
    """The bottleneck's maps, unless they are to be computed again."""
    dropout: Tensor | None = None
    """True where dropout let a value pass."""


def basic(x_hat: Tensor, like: Tensor, layer: DenseLayer, values: Sequence[Tensor]) -> Tensor:
    """Run ReLU and conv3×3 of a basic layer on its columns of X̂; return the new maps."""
    norm_weight, norm_bias, conv = values
    a = activate(x_hat, norm_weight, norm_bias, torch.empty_like(x_hat))
    return F.conv2d(as_maps(a, like), conv, padding=1)


def basic_backward(
    gradient: Tensor, x_hat: Tensor, total: Tensor, values: Sequence[Tensor]
) -> list[Tensor]:
    """Add to Ĝ; return the gradients of a basic layer's parameters."""
    norm_weight, norm_bias, conv = values
    a = activate(x_hat, norm_weight, norm_bias, torch.empty_like(x_hat))
    grad_a, grad_conv = conv3x3_backward(gradient, as_maps(a, gradient), conv)
    grad_norm = activate_backward(as_matrix(grad_a), a, x_hat, norm_weight, total)
    return [*grad_norm, grad_conv]


def through_conv1(
    x_hat: Tensor, values: Sequence[Tensor], scratch: Scratch, minus: Tensor | None = None
) -> Tensor:
    """Return a bottleneck layer's conv1 of its columns of X̂, (NHW, 4k), less a row if given."""
    norm_weight, norm_bias, conv, *_ = values
    out = x_hat.new_empty(len(x_hat), len(conv))
    for rows in pieces(x_hat):
        a = activate(x_hat[rows], norm_weight, norm_bias, scratch(x_hat[rows]))
        if minus is None:
            torch.mm(a, conv.flatten(1).T, out=out[rows])
        else:
            torch.addmm(minus.to(a.dtype), a, conv.flatten(1).T, beta=-1, out=out[rows])
    return out


def bottleneck(
    x_hat: Tensor, like: Tensor, layer: BottleneckLayer, values: Sequence[Tensor], scratch: Scratch
) -> tuple[Tensor, Kept]:
    """Run a bottleneck layer on its columns of X̂; return the new maps and what to keep."""
    middle = as_maps(through_conv1(x_hat, values, scratch), like)
    *_, norm_weight, norm_bias, conv = values
    normal, statistics = normalise(middle, layer.norm2.eps, norm_weight, norm_bias)
    update_statistics(layer.norm2, statistics.mean, statistics.variance)
    new = F.conv2d(normal.relu_(), conv, padding=1)
    return new, Kept(statistics.mean, statistics.inverse, middle)


def bottleneck_backward(
    gradient: Tensor,
    x_hat: Tensor,
    total: Tensor,
    values: Sequence[Tensor],
    kept: Kept,
    scratch: Sequence[Scratch],
) -> list[Tensor]:
    """Add to Ĝ; return the gradients of a bottleneck layer's parameters."""
    norm1_weight, norm1_bias, conv1, norm2_weight, norm2_bias, conv2 = values
    mean, inverse, middle, _ = kept
    assert mean is not None and inverse is not None
    if middle is None:
        z = through_conv1(x_hat, values, scratch[0], minus=mean)
    else:
        z = (as_matrix(middle) - mean).to(x_hat.dtype)
    scale = norm2_weight * inverse
    h = torch.empty_like(z)  # what conv2 has read
    for rows in pieces(z):
        activate(z[rows], scale, norm2_bias, h[rows])
    grad_maps, grad_conv2 = conv3x3_backward(gradient, as_maps(h, gradient), conv2)
    grad_h, matrix = as_matrix(grad_maps), conv1.flatten(1)

    # norm2's two sums, of g ẑ and of g, and then, piece by piece, all that is before conv2
    norm2 = norm2_weight.new_zeros(2, len(mean))
    for rows in pieces(z):
        g = aten.threshold_backward.grad_input(grad_h[rows], h[rows], 0, grad_input=grad_h[rows])
        norm2[1] += g.sum(0, dtype=norm2.dtype)
        norm2[0] += torch.mul(g, z[rows], out=scratch[0](g)).sum(0, dtype=norm2.dtype)
    norm2[0] *= inverse
    slope, shift = scale * norm2 / -len(z)
    slope *= inverse

    grad_conv1 = torch.zeros_like(matrix)
    norm1 = norm1_weight.new_zeros(2, len(norm1_weight))
    for rows in pieces(x_hat):
        grad_z = grad_h[rows].mul_(scale).addcmul_(z[rows], slope).add_(shift)
        a = activate(x_hat[rows], norm1_weight, norm1_bias, scratch[0](x_hat[rows]))
        grad_conv1.addmm_(grad_z.T, a)
        grad_a = torch.mm(grad_z, matrix, out=scratch[1](a))
        norm1 += activate_backward(grad_a, a, x_hat[rows], norm1_weight, total[rows])
    return [*norm1, grad_conv1.view_as(conv1), *norm2, grad_conv2]


# --- The block and its readers as autograd sees them ---------------------------------------------


class SharedNormalisation(torch.autograd.Function):
    """A dense block from its input to X̂, see the module's first lines.

    ``apply(layers, keep_bottleneck, with_maps, x, *parameters)`` takes the block's layers, whether
    the bottlenecks' maps are kept or computed again, whether the block's maps are wanted besides
    X̂, the input (N, k_0, H, W), and every parameter of the layers in order. It returns X̂ as maps
    (N, k_0 + kL, H, W), the mean and the variance of each channel, and the block's maps or None.
    The layers' running statistics are updated, once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        layers: Sequence[DenseLayer | BottleneckLayer],
        keep_bottleneck: bool,
        with_maps: bool,
        x: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        growth = len(parameters[-1])  # k: the last convolution makes as many maps
        columns = x.shape[1] + growth * len(layers)
        x_hat = x.new_empty(x.numel() // x.shape[1], columns)
        statistics = x.new_empty(3, columns, dtype=parameters[0].dtype)  # see Statistics
        maps, kept, end, scratch = [x], [], 0, Scratch(x)

        def add(new: Tensor) -> int:
            place = slice(end, end + new.shape[1])
            normal, found = normalise(new, layers[0].norm1.eps)
            x_hat[:, place] = as_matrix(normal)
            statistics[:, place] = torch.stack(found)
            return place.stop

        end = add(x)
        for layer, values in zip(layers, by_layer(parameters, layers, x.dtype), strict=True):
            update_statistics(layer.norm1, *statistics[:2, :end])
            if isinstance(layer, BottleneckLayer):
                new, keep = bottleneck(x_hat[:, :end], x, layer, values, scratch)
                keep = keep if keep_bottleneck else keep._replace(bottleneck=None)
            else:
                new, keep = basic(x_hat[:, :end], x, layer, values), Kept()
            if layer.drop_rate and layer.training:
                # Drawn in the memory order of the plain layer's maps, so these are its numbers.
                ones = torch.ones_like(new, memory_format=memory_format(x))
                noise = F.dropout(ones, layer.drop_rate)
                new, keep = new * noise, keep._replace(dropout=noise != 0)
            maps.append(new)
            kept.append(keep)
            end = add(new)

        ctx.layers = layers
        ctx.set_materialize_grads(False)
        result = as_maps(x_hat, x)
        mean, variance, inverse = statistics
        ctx.save_for_backward(result, inverse.clone(), *parameters, *(t for k in kept for t in k))
        ctx.mark_non_differentiable(mean, variance)
        return result, mean, variance, torch.cat(maps, dim=1) if with_maps else None

    @staticmethod
    def backward(
        ctx: Any, grad_x_hat: Tensor | None, _mean: None, _variance: None, grad_maps: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        layers, (maps, inverse, *saved) = ctx.layers, ctx.saved_tensors
        split = len(saved) - len(Kept._fields) * len(layers)
        parameters, kept = saved[:split], saved[split:]
        x_hat, scratch = as_matrix(maps), (Scratch(maps), Scratch(maps))
        both_sums = torch.zeros_like(inverse).repeat(2, 1)  # Σ Ĝ x̂ and Σ Ĝ
        if grad_x_hat is None:
            total = torch.zeros_like(x_hat)  # Ĝ
        else:
            total = torch.empty_like(x_hat).copy_(as_matrix(grad_x_hat))
            for rows in pieces(x_hat):
                g = scratch[0](total[rows]).copy_(total[rows])
                both_sums += sums(g, x_hat[rows], inverse.dtype)

        def gradient(place: slice) -> Tensor:
            """Return the gradient of some maps. Every reader must have added to their Ĝ."""
            parts = total[:, place], x_hat[:, place], inverse[place], both_sums[:, place]
            found = as_maps(normalise_backward(*parts), maps)
            return found if grad_maps is None else found + grad_maps[:, place]

        end = x_hat.shape[1]
        gradients: list[Tensor] = []
        values = by_layer(parameters, layers, maps.dtype)
        for number in reversed(range(len(layers))):
            place = slice(end - len(values[number][-1]), end)
            grad_new, end = gradient(place), place.start
            keep = Kept(*kept[len(Kept._fields) * number :][: len(Kept._fields)])
            if keep.dropout is not None:
                share = 1 - layers[number].drop_rate
                grad_new = grad_new * keep.dropout.to(grad_new.dtype) / share
            arguments = grad_new, x_hat[:, :end], total[:, :end], values[number]
            if isinstance(layers[number], BottleneckLayer):
                found = bottleneck_backward(*arguments, keep, scratch)
            else:
                found = basic_backward(*arguments)
            gradients[:0] = found
            # Σ γ g x̂ and Σ γ g are γ times the gradients of γ and β.
            both_sums[:, :end] += values[number][0] * torch.stack(found[:2])
        return (
            *(None, None, None),
            gradient(slice(0, end)) if ctx.needs_input_grad[3] else None,
            *(g.to(p.dtype) for g, p in zip(gradients, parameters, strict=True)),
        )


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
        scratch, parts = Scratch(x_hat), []
        for images in _images(x_hat):
            part = as_matrix(x_hat[images])
            a = activate(part, weight, bias, scratch(part))
            a_maps = as_maps(a, x_hat[images])
            parts.append(F.avg_pool2d(a_maps, size) if size else a_maps.mean(dim=(2, 3)))
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        (x_hat, weight, bias), size, scratch = (
            ctx.saved_tensors,
            ctx.size,
            Scratch(ctx.saved_tensors[0]),
        )
        total = torch.zeros_like(x_hat)
        grad_norm = torch.zeros(2, len(weight), dtype=weight.dtype, device=weight.device)
        for images in _images(x_hat):
            like, part = x_hat[images], gradient[images]
            a = activate(as_matrix(like), weight, bias, scratch(as_matrix(like)))
            if size:
                grad_a = aten.avg_pool2d_backward.default(
                    part, as_maps(a, like), [size, size], [], [0, 0], False, True, None
                )
            else:
                pixels = like.shape[2] * like.shape[3]
                grad_a = (part / pixels)[:, :, None, None].expand(like.shape)
            found = activate_backward(
                as_matrix(grad_a).contiguous(), a, as_matrix(like), weight, as_matrix(total[images])
            )
            grad_norm += found
        return total, *grad_norm, None


def _images(maps: Tensor) -> Iterator[slice]:
    """Cut a batch into pieces of whole images."""
    pixels = maps.shape[2] * maps.shape[3]
    for rows in pieces(as_matrix(maps), pixels):
        yield slice(rows.start // pixels, rows.stop // pixels)


def by_layer(
    parameters: Sequence[Tensor], layers: Sequence[nn.Module], dtype: torch.dtype
) -> list[list[Tensor]]:
    """Deal the parameters out to their layers; convolutions in the type of the maps."""
    each = len(parameters) // len(layers)
    typed = [p.to(dtype) if p.dim() > 1 else p for p in parameters]
    return [typed[start : start + each] for start in range(0, len(typed), each)]


def memory_format(maps: Tensor) -> torch.memory_format:
    """Return the order in which a convolution of such maps would leave its output."""
    if maps.is_contiguous() or not maps.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last


def refuse_double_backward() -> None:
    """Raise an error inside a backward pass whose own gradient is wanted."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "efficient dense blocks have no second derivative (create_graph=True): "
            "build the network with efficient=False"
        )
