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
time, few enough that what is computed of them stays in the cache, and where module ``fused`` has a
kernel, a chain of elementwise operations is one pass over them.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densenet_from_scratch.dense import BottleneckLayer, DenseLayer
from densenet_from_scratch.internals import has_memory
from densenet_from_scratch.kernels.cpu import kernels_for

PIECE = 1 << 18  # numbers that a thread works on at a time on a CPU: 1 MiB in float32

aten = torch.ops.aten


def as_maps(matrix: Tensor, like: Tensor) -> Tensor:
    """View a matrix (NHW, C) as maps (N, C, H, W), with N, H and W those of ``like``."""
    n, _, h, w = like.shape
    return matrix.view(n, h, w, -1).permute(0, 3, 1, 2)


def as_matrix(maps: Tensor) -> Tensor:
    """Return maps (N, C, H, W) as a matrix (NHW, C): a view, if the memory is in that order."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def rows_at_once(matrix: Tensor, multiple: int = 1) -> int:
    """Return how many rows make about ``PIECE`` numbers for each thread; on a GPU all of them."""
    rows, columns = matrix.shape
    if matrix.device.type != "cpu":
        return rows
    return max(1, torch.get_num_threads() * PIECE // (columns * multiple)) * multiple


def pieces(matrix: Tensor, multiple: int = 1) -> Iterator[slice]:
    """Cut the rows into pieces of :func:`rows_at_once`."""
    rows, step = len(matrix), rows_at_once(matrix, multiple)
    return (slice(start, start + step) for start in range(0, rows, step))


def in_pieces(*matrices: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut matrices into :func:`pieces` of the same rows, as many as suit the first one."""
    if rows_at_once(matrices[0]) >= len(matrices[0]):
        yield matrices  # uncut: for small maps, cutting takes a noticeable share of the time
        return
    for rows in pieces(matrices[0]):
        yield tuple(matrix[rows] for matrix in matrices)


class Scratch:
    """Memory for the piece at hand: taken once, it is in the cache each time."""

    def __init__(self, like: Tensor) -> None:
        self.memory = like.new_empty(0)

    def __call__(self, like: Tensor) -> Tensor:
        """Return memory of the size of a matrix. What was in it is lost."""
        return self.take(like.numel()).view(like.shape)

    def take(self, count: int) -> Tensor:
        """Return memory for so many numbers. What was in it is lost."""
        if len(self.memory) < count:
            self.memory = self.memory.new_empty(count)
        return self.memory[:count]


def parameters_of(layer: DenseLayer | BottleneckLayer) -> list[Tensor]:
    """Return a layer's parameters in the order in which they are used."""
    values = [layer.norm1.weight, layer.norm1.bias, layer.conv1.weight]
    if isinstance(layer, BottleneckLayer):
        values += [layer.norm2.weight, layer.norm2.bias, layer.conv2.weight]
    return values


# --- Normalise -----------------------------------------------------------------------------------


class Statistics(NamedTuple):
    """Of some channels over the batch, (C,) each."""

    mean: Tensor
    variance: Tensor
    """With the divisor n - 1, as running statistics want it."""
    inverse: Tensor
    """1/σ, where σ is the root of the variance with the divisor n, plus eps."""


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
    matrix, count = as_matrix(maps), maps.numel() // maps.shape[1]
    dtype = maps.dtype if maps.dtype.itemsize > 2 else torch.float32
    if kernels := kernels_for(matrix, *([] if out is None else [out])):
        mean, variance = kernels.moments(matrix)
        inverse = (variance + eps).rsqrt()
        scale = inverse if weight is None else inverse * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        out = torch.empty_like(matrix) if out is None else out
        kernels.affine(matrix, scale.to(dtype), shift.to(dtype), out, relu=weight is not None)
        found = (mean, variance * count / max(count - 1, 1), inverse)
        return out, Statistics(*(values.to(dtype, copy=True) for values in found))
    mean, variance = (maps.new_zeros(maps.shape[1], dtype=dtype) for _ in range(2))
    # With momentum 1 the "running" statistics are those of this batch.
    result, _, inverse = torch.native_batch_norm(maps, weight, bias, mean, variance, True, 1.0, eps)
    result = as_matrix(result if weight is None else result.relu_())
    return result if out is None else out.copy_(result), Statistics(mean, variance, inverse)


def normalise_backward(
    gradient: Tensor, x_hat: Tensor, inverse: Tensor, both_sums: Tensor
) -> Tensor:
    """Return (g - mean(g) - x̂ mean(g x̂)) / σ of some columns, given Σ g x̂ and Σ g (2, C)."""
    slope, shift = both_sums * inverse / -len(gradient)
    out = gradient.new_empty(gradient.shape)
    return combine(gradient, x_hat, inverse, slope, shift, out)


def combine(
    gradient: Tensor, x: Tensor, scale: Tensor, slope: Tensor, shift: Tensor, out: Tensor
) -> Tensor:
    """Return scale · g + slope · x + shift, BatchNorm's backward pass, in ``out``."""
    if kernels := kernels_for(gradient, x, scale, slope, shift, out):
        return kernels.combine(gradient, x, scale, slope, shift, out)
    return torch.mul(gradient, scale, out=out).addcmul_(x, slope).add_(shift)


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
    if kernels := kernels_for(x_hat, weight, bias, out):
        return kernels.affine(x_hat, weight, bias, out, relu=True)
    return torch.addcmul(bias, x_hat, weight, out=out).relu_()


def activate_backward(
    gradient: Tensor,
    a: Tensor,
    x_hat: Tensor,
    sums: Tensor,
    weight: Tensor | None = None,
    total: Tensor | None = None,
) -> None:
    """Take g back through a = ReLU(γ x̂ + β), and add Σ g x̂ and Σ g to ``sums`` (2, C).

    Those are the gradients of γ and β. γ g is added to Ĝ, ``total``; without one, g is left in
    ``gradient``, which is overwritten in any case.
    """
    others = [tensor for tensor in (weight, total) if tensor is not None]
    if kernels := kernels_for(gradient, a, x_hat, sums, *others):
        return kernels.mask_and_sum(gradient, a, x_hat, sums, weight, total)
    aten.threshold_backward.grad_input(gradient, a, 0, grad_input=gradient)
    if weight is not None and total is not None:
        total.addcmul_(gradient, weight)
    add_sums(gradient, x_hat, sums)


def add_sums(gradient: Tensor, x_hat: Tensor, sums: Tensor) -> None:
    """Add Σ g x̂ and Σ g of each column to ``sums`` (2, C)."""
    sums[0] += (gradient * x_hat).sum(0, dtype=sums.dtype)
    sums[1] += gradient.sum(0, dtype=sums.dtype)


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
    sums = norm_weight.new_zeros(2, len(norm_weight))
    activate_backward(as_matrix(grad_a), a, x_hat, sums, norm_weight, total)
    return [*sums, grad_conv]


def bottleneck(
    x_hat: Tensor, like: Tensor, layer: BottleneckLayer, values: Sequence[Tensor], scratch: Scratch
) -> tuple[Tensor, Kept]:
    """Run a bottleneck layer on its columns of X̂; return the new maps and what to keep."""
    norm1_weight, norm1_bias, conv1, norm2_weight, norm2_bias, conv2 = values
    middle = x_hat.new_empty(len(x_hat), len(conv1))
    for part, out in in_pieces(x_hat, middle):
        a = activate(part, norm1_weight, norm1_bias, scratch(part))
        torch.mm(a, conv1.flatten(1).T, out=out)
    maps = as_maps(middle, like)
    normal, statistics = normalise(maps, layer.norm2.eps, norm2_weight, norm2_bias)
    update_statistics(layer.norm2, statistics.mean, statistics.variance)
    new = F.conv2d(as_maps(normal, like), conv2, padding=1)
    return new, Kept(statistics.mean, statistics.inverse, maps)


class Remade:
    """What a bottleneck layer's backward pass needs of its forward pass, made again.

    Args:
        x_hat: the columns of X̂ that the layer reads.
        values: the layer's parameters.
        kept: what it has kept.
        scratch: memory for the piece at hand.
    """

    def __init__(
        self, x_hat: Tensor, values: Sequence[Tensor], kept: Kept, scratch: Scratch
    ) -> None:
        assert kept.mean is not None and kept.inverse is not None
        self.x_hat, self.values, self.scratch = x_hat, values, scratch
        self.kept = None if kept.bottleneck is None else as_matrix(kept.bottleneck)
        _, _, conv1, norm2_weight, *_ = values
        self.mean, self.inverse = kept.mean, kept.inverse
        self.scale = norm2_weight * self.inverse
        self.z = x_hat.new_empty(len(x_hat), len(conv1))
        """The bottleneck's maps less their means."""
        self.h = torch.empty_like(self.z)
        """What conv2 has read."""

    def make(self, rows: slice) -> None:
        """Make some rows of z and h."""
        norm1_weight, norm1_bias, conv1, _, norm2_bias, _ = self.values
        x_hat, z = self.x_hat[rows], self.z[rows]
        if self.kept is None:
            a = activate(x_hat, norm1_weight, norm1_bias, self.scratch(x_hat))
            torch.addmm(self.mean.to(a.dtype), a, conv1.flatten(1).T, beta=-1, out=z)
        else:
            z.copy_(self.kept[rows] - self.mean)
        activate(z, self.scale, norm2_bias, self.h[rows])


def bottleneck_backward(
    gradient: Tensor,
    total: Tensor,
    made: Remade,
    before: Remade | None,
    scratch: Sequence[Scratch],
) -> list[Tensor]:
    """Add to Ĝ; return the gradients of a bottleneck layer's parameters.

    ``before`` is to be made of the layer before, while X̂ is in the cache.
    """
    norm1_weight, norm1_bias, conv1, norm2_weight, _, conv2 = made.values
    x_hat, z, h, scale = made.x_hat, made.z, made.h, made.scale
    grad_maps, grad_conv2 = conv3x3_backward(gradient, as_maps(h, gradient), conv2)
    grad_h, matrix = as_matrix(grad_maps), conv1.flatten(1)

    # norm2's two sums, of g ẑ and of g, and then, piece by piece, all that is before conv2
    norm2, norm1 = (weight.new_zeros(2, len(weight)) for weight in (norm2_weight, norm1_weight))
    for rows in pieces(z):
        activate_backward(grad_h[rows], h[rows], z[rows], norm2)
    norm2[0] *= made.inverse
    slope, shift = scale * norm2 / -len(z)
    slope *= made.inverse

    grad_conv1 = torch.zeros_like(matrix)
    for rows in pieces(x_hat):
        x, g = x_hat[rows], grad_h[rows]
        grad_z = combine(g, z[rows], scale, slope, shift, out=g)
        a = activate(x, norm1_weight, norm1_bias, scratch[0](x))
        grad_conv1.addmm_(grad_z.T, a)
        grad_a = torch.mm(grad_z, matrix, out=scratch[1](a))
        activate_backward(grad_a, a, x, norm1, norm1_weight, total[rows])
        if before is not None:
            before.make(rows)
    return [*norm1, grad_conv1.view_as(conv1), *norm2, grad_conv2]


# --- The block and its readers as autograd sees them ---------------------------------------------


class SharedNormalisation(torch.autograd.Function):
    """A dense block from its input to X̂, see the module's first lines.

    ``apply(layers, keep_bottleneck, with_maps, x, *parameters)`` takes the block's layers, whether
    the bottlenecks' maps are kept or computed again, whether the block's maps are wanted besides
    X̂, the input (N, k_0, H, W), and :func:`parameters_of` every layer. It returns X̂ as maps
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
            _, found = normalise(new, layers[0].norm1.eps, out=x_hat[:, place])
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

        # As they are now: who changes a drop rate later does not mean this pass.
        ctx.layers, ctx.drop_rates = layers, [layer.drop_rate for layer in layers]
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
        refuse_what_is_not_there(grad_x_hat, grad_maps)
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
                add_sums(total[rows], x_hat[rows], both_sums)

        def gradient(place: slice) -> Tensor:
            """Return the gradient of some maps. Every reader must have added to their Ĝ."""
            parts = total[:, place], x_hat[:, place], inverse[place], both_sums[:, place]
            found = as_maps(normalise_backward(*parts), maps)
            return found if grad_maps is None else found + grad_maps[:, place]

        end = x_hat.shape[1]
        gradients: list[Tensor] = []
        values = by_layer(parameters, layers, maps.dtype)
        every_kept = [
            Kept(*kept[start : start + len(Kept._fields)])
            for start in range(0, len(kept), len(Kept._fields))
        ]

        def remade(number: int, width: int) -> Remade:
            return Remade(x_hat[:, :width], values[number], every_kept[number], scratch[0])

        made = None
        for number in reversed(range(len(layers))):
            layer, keep = layers[number], every_kept[number]
            place = slice(end - len(values[number][-1]), end)
            grad_new, end = gradient(place), place.start
            if keep.dropout is not None:
                kept_share = 1 - ctx.drop_rates[number]
                passed = keep.dropout.to(grad_new.dtype)
                grad_new = grad_new * passed / kept_share if kept_share else passed
            if isinstance(layer, BottleneckLayer):
                if made is None:
                    made = remade(number, end)
                    for rows in pieces(made.x_hat):
                        made.make(rows)
                before = None
                if number > 0 and rows_at_once(made.x_hat) < len(x_hat):
                    before = remade(number - 1, end - len(values[number - 1][-1]))
                found = bottleneck_backward(grad_new, total[:, :end], made, before, scratch)
                made = before
            else:
                found = basic_backward(grad_new, x_hat[:, :end], total[:, :end], values[number])
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
        refuse_what_is_not_there(gradient)
        x_hat, weight, bias = ctx.saved_tensors
        size, scratch = ctx.size, (Scratch(x_hat), Scratch(x_hat))
        total = torch.zeros_like(x_hat)
        grad_norm = torch.zeros(2, len(weight), dtype=weight.dtype, device=weight.device)
        for images in _images(x_hat):
            like = x_hat[images]
            part, out = as_matrix(like), as_matrix(total[images])
            a = activate(part, weight, bias, scratch[0](part))
            grad_a = average_backward(gradient[images], like, size, scratch[1])
            activate_backward(grad_a, a, part, grad_norm, weight, out)
        return total, *grad_norm, None


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


def refuse_what_is_not_there(*gradients: Tensor | None) -> None:
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
