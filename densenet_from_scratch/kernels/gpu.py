"""A dense block's chains in Triton, and the 1×1 convolution with the chains around it (chapter 10).

A GPU multiplies much faster than it reads, so what a dense block costs is how often its maps go
through memory. Each chain is one kernel, as in cpu.c. But ReLU(γ x̂ + β), which the 1×1 convolution
reads, is as large as X̂ for every layer anew: computed in a kernel of its own it is written once
and read once, more than all else that the layer does. So here the product itself does the work
of its neighbours. It activates each tile of X̂ that it has read, multiplies it at once, and while
the result is still in registers takes its mean and variance; on the way back it combines norm2's
gradient as it reads it, masks its result, sums it for γ and β and adds it to Ĝ. In numbers a pixel,
with C columns of X̂ and 4k maps in the bottleneck:

                    chains and product     fused
    forward              3C + 4·4k        C + 3·4k
    again                3C + 3·4k        C + 2·4k
    backward             9C + 5·4k       4C + 4·4k

``gpu_kernels`` holds the kernels; this module says where they run, on tiles of which size, and adds
up what they have left in parts. They take float32, bfloat16 and float16, and sum in float32;
products of float32 are rounded to TensorFloat-32 only where PyTorch's would be. Float64 is left to
PyTorch's operations, and so is everything where Triton is missing or finds no C compiler. PyTorch
brings it on Linux. It compiles each kernel at its first use, in seconds, and keeps the result in
the user's cache.

The environment variable ``DENSENET_FUSED=0`` switches the kernels off.
"""

import logging
import os
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from densenet_from_scratch.kernels.layout import as_maps, as_matrix

DEVICES = ("cuda",)  # where they run; the tests have Triton's interpreter run them on a CPU
TYPES = (torch.float32, torch.bfloat16, torch.float16)
OLDEST = (8, 0)  # compute capability: before it, nothing multiplies bfloat16
MERGED = 128  # blocks of rows whose moments are merged at a time
PARTS = 512  # programs among which the rows of X̂ are shared for a gradient of weights, at least


class Tiles(dict[str, int]):
    """Sizes of blocks, by the names that the kernels give them."""

    def over(self, rows: int, columns: int, block: str = "BLOCK_C") -> int:
        """Return how many tiles cover a matrix."""
        return cdiv(rows, self["BLOCK_R"]) * cdiv(columns, self[block])


def cdiv(number: int, size: int) -> int:
    """Return how many blocks of a size cover a number."""
    return -(-number // size)


def block(columns: int, most: int) -> int:
    """Return a block for so many columns: a power of two, and 16 at least for a product's sake."""
    return min(max(16, 1 << (columns - 1).bit_length()), most)


def tiles(columns: int, numbers: int = 4096) -> Tiles:
    """Return the tile of a chain: some ten numbers for each thread."""
    width = block(columns, 64)
    return Tiles(BLOCK_R=numbers // width, BLOCK_C=width)


def product_tiles(outputs: int) -> Tiles:
    """Return the tile of a product. All of a bottleneck, if it can be, so that X̂ is read once."""
    width = block(outputs, 128)
    return Tiles(BLOCK_R=64 if width > 64 else 128, BLOCK_C=32, BLOCK_M=width)


def backward_tiles(outputs: int) -> Tiles:
    """Return the tile of a product on its way back: a sum over the outputs, in small steps."""
    return Tiles(BLOCK_R=64, BLOCK_C=64, BLOCK_M=block(outputs, 32))


def weight_tiles(outputs: int) -> Tiles:
    """Return the tile of a gradient of weights: a sum over the rows, in small steps."""
    return Tiles(BLOCK_R=32, BLOCK_C=64, BLOCK_M=block(outputs, 64))


def precision() -> str:
    """Return how float32 is multiplied: as PyTorch has been told to."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


class Kernels:
    """The kernels as operations on tensors, with the names and arguments of ``reference``.

    Matrices are (rows, columns), the numbers of a row side by side in memory. Scales, shifts,
    slopes and weights have one number for each column.
    """

    def __init__(self, triton_kernels: Any) -> None:
        self._jit = triton_kernels

    # --- The chains

    def activate(self, x: Tensor, scale: Tensor, shift: Tensor, out: Tensor) -> Tensor:
        """Return ReLU(scale · x + shift), in ``out``."""
        size = tiles(x.shape[1])
        rows = None, None, scale, shift
        launch(self._jit.affine, size.over(*x.shape), x, *rows, out, *x.shape, **size)
        return out

    def normalise(
        self,
        _maps: Tensor,
        matrix: Tensor,
        eps: float,
        weight: Tensor | None,
        bias: Tensor | None,
        out: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return x̂ of a matrix, or ReLU(γ x̂ + β); mean, variance (n - 1) and 1/σ."""
        size, shape = tiles(matrix.shape[1]), matrix.shape
        out = torch.empty_like(matrix) if out is None else out
        parts, count = _parts(matrix, size), size.over(*shape)
        launch(self._jit.moments, count, matrix, parts, *shape, **size)
        mean, variance, inverse = self._merge(parts, len(matrix), size, eps)
        rows = mean, inverse, weight, bias
        launch(self._jit.affine, count, matrix, *rows, out, *shape, **size)
        return out, mean, variance, inverse

    def _merge(self, parts: Tensor, rows: int, size: Tiles, eps: float) -> tuple[Tensor, ...]:
        """Return mean, variance (n - 1) and 1/σ from the moments of blocks of rows."""
        blocks, _, columns = parts.shape
        found = parts.new_full((3, columns), torch.nan).unbind()  # of no rows there is no mean
        count = cdiv(columns, 16) if rows else 0
        each = {"BLOCK_R": size["BLOCK_R"], "BLOCK_B": MERGED, "BLOCK_C": 16}
        launch(self._jit.merge, count, parts, *found, rows, columns, blocks, eps, **each)
        return found

    def combine(
        self, gradient: Tensor, x: Tensor, scale: Tensor, slope: Tensor, shift: Tensor, out: Tensor
    ) -> Tensor:
        """Return scale · gradient + slope · x + shift, in ``out``, which may be ``gradient``."""
        size = tiles(x.shape[1])
        tensors = gradient, x, scale, slope, shift, out
        launch(self._jit.combine, size.over(*x.shape), *tensors, *x.shape, **size)
        return out

    def activate_backward(
        self,
        gradient: Tensor,
        a: Tensor,
        x: Tensor,
        sums: Tensor,
        weight: Tensor | None = None,
        total: Tensor | None = None,
    ) -> None:
        """Mask g where a = 0; add Σ g x and Σ g to ``sums``, and weight · g to ``total``."""
        size = tiles(x.shape[1])
        parts, count = _parts(x, size), size.over(*x.shape)
        with_total = (None, None, 0) if total is None else (weight, total)
        tensors = gradient, a, x, *with_total, parts
        launch(self._jit.activate_backward, count, *tensors, *x.shape, **size)
        sums += parts.sum(0)

    def add_sums(self, gradient: Tensor, x: Tensor, sums: Tensor) -> None:
        """Add Σ g x and Σ g of each column to ``sums``."""
        size = tiles(x.shape[1])
        parts = _parts(x, size)
        launch(self._jit.add_sums, size.over(*x.shape), gradient, x, parts, *x.shape, **size)
        sums += parts.sum(0)

    # --- A bottleneck

    def project(
        self,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
        matrix: Tensor,
        eps: float,
        weight: Tensor,
        bias: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return m = ReLU(γ x + β) Wᵀ, ReLU(γ' m̂ + β'); m's mean, variance (n - 1) and 1/σ."""
        rows, outputs = len(x), len(matrix)
        size = product_tiles(outputs)
        middle = x.new_empty(rows, outputs)
        parts, count = _parts(middle, size), size.over(rows, outputs, "BLOCK_M")
        tensors = x, scale, shift, matrix, middle, parts
        launch(self._jit.project, count, *tensors, *x.shape, outputs, precision(), **size)
        mean, variance, inverse = self._merge(parts, rows, size, eps)

        size, h = tiles(outputs), torch.empty_like(middle)
        tensors = middle, mean, inverse, weight, bias, h
        launch(self._jit.affine, size.over(rows, outputs), *tensors, rows, outputs, **size)
        return middle, h, mean, variance, inverse

    def project_again(
        self,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
        matrix: Tensor,
        mean: Tensor,
        z_scale: Tensor,
        z_shift: Tensor,
        z: Tensor,
        h: Tensor,
    ) -> None:
        """Compute z = ReLU(γ x + β) Wᵀ - mean and h = ReLU(scale · z + shift)."""
        outputs = len(matrix)
        size = product_tiles(outputs)
        count = size.over(len(x), outputs, "BLOCK_M")
        tensors = x, scale, shift, matrix, mean, z_scale, z_shift, z, h
        launch(self._jit.project_again, count, *tensors, *x.shape, outputs, precision(), **size)

    def centre(
        self, m: Tensor, mean: Tensor, scale: Tensor, shift: Tensor, z: Tensor, h: Tensor
    ) -> None:
        """Compute z = m - mean and h = ReLU(scale · z + shift)."""
        size = tiles(m.shape[1])
        tensors = m, mean, scale, shift, z, h
        launch(self._jit.centre, size.over(*m.shape), *tensors, *m.shape, **size)

    def project_backward(
        self,
        gradient: Tensor,
        z: Tensor,
        z_scale: Tensor,
        z_slope: Tensor,
        z_shift: Tensor,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
        matrix: Tensor,
        grad_matrix: Tensor,
        sums: Tensor,
        total: Tensor,
    ) -> None:
        """Add the gradients of W, of γ and β, and a term to Ĝ, ``total``."""
        (rows, columns), outputs = x.shape, len(matrix)
        tensors = gradient, z, z_scale, z_slope, z_shift, x, scale, shift

        size = weight_tiles(outputs)
        places = cdiv(outputs, size["BLOCK_M"]) * cdiv(columns, size["BLOCK_C"])
        share = cdiv(rows, max(1, PARTS // places))
        share = max(256, cdiv(share, size["BLOCK_R"]) * size["BLOCK_R"])
        weights = x.new_empty(cdiv(rows, share), outputs, columns, dtype=torch.float32)
        sizes = rows, columns, outputs, share, precision()
        launch(self._jit.project_weights, (len(weights), places), *tensors, weights, *sizes, **size)
        grad_matrix += weights.sum(0)

        size = backward_tiles(outputs)
        parts, count = _parts(x, size), size.over(rows, columns)
        more = matrix, total, parts, rows, columns, outputs, precision()
        launch(self._jit.project_backward, count, *tensors, *more, **size)
        sums += parts.sum(0)

    # --- A pooling

    def pool(self, maps: Tensor, x: Tensor, weight: Tensor, bias: Tensor, size: int) -> Tensor:
        """Return averages of ReLU(γ x + β) over windows of size×size pixels, or of whole maps."""
        n, columns, *_ = maps.shape
        pixels = windows(maps, size)
        _, _, down, across, *_ = pixels
        out = x.new_empty(n * down * across, columns)
        tile = tiles(columns, 1024 if size else 256)
        count = tile.over(*out.shape)
        launch(self._jit.pool, count, x, weight, bias, out, *out.shape, *pixels, **tile)
        return as_maps(out, maps[:, :, :down, :across]) if size else out

    def pool_backward(
        self,
        gradient: Tensor,
        maps: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        size: int,
        sums: Tensor,
    ) -> Tensor:
        """Return the gradient of the maps as a matrix; add those of γ and β to ``sums``."""
        of_windows = as_matrix(gradient) if size else gradient
        if of_windows.stride(-1) != 1:
            of_windows = of_windows.contiguous()
        tile, out = tiles(x.shape[1]), x.new_empty(x.shape)
        parts, count = _parts(x, tile), tile.over(*x.shape)
        tensors, pixels = (of_windows, x, weight, bias, out, parts), windows(maps, size)
        launch(self._jit.pool_backward, count, *tensors, *x.shape, *pixels, **tile)
        sums += parts.sum(0)
        return out


def windows(maps: Tensor, size: int) -> tuple[int, ...]:
    """Return height and width of the maps, how many windows fit in, and those of a window."""
    height, width = maps.shape[2:]
    window = (size, size) if size else (height, width)
    return height, width, height // window[0], width // window[1], *window


def launch(kernel: Any, programs: int | tuple[int, int], *arguments: Any, **sizes: int) -> None:
    """Run as many programs of a kernel. A matrix is followed by its stride, as kernels want it."""
    flat: list[Any] = []
    for argument in arguments:
        flat.append(argument)
        if isinstance(argument, Tensor) and argument.dim() == 2:
            flat.append(argument.stride(0))
    grid = programs if isinstance(programs, tuple) else (programs,)
    if 0 not in grid:
        start(kernel, grid, *flat, **sizes)


def start(kernel: Any, grid: tuple[int, ...], *arguments: Any, **sizes: int) -> None:
    """Start a kernel on the device of its first argument."""
    device = arguments[0].device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[grid](*arguments, **sizes, enable_fp_fusion=True)


def _parts(matrix: Tensor, size: Tiles) -> Tensor:
    """Return room for two numbers of each block of rows and each column."""
    blocks = cdiv(len(matrix), size["BLOCK_R"])
    return matrix.new_empty(blocks, 2, matrix.shape[1], dtype=torch.float32)


def kernels_for(*tensors: Tensor) -> Kernels | None:
    """Return the kernels for these matrices and rows, or None where PyTorch is to do the work.

    That is where the kernels do not know a type or the device, and where the numbers of a row are
    not side by side.
    """
    device = tensors[0].device
    if device.type not in DEVICES:
        return None
    for tensor in tensors:
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.device != device:
            return None
        if tensor.dtype not in TYPES or tensor.stride(-1) != 1:
            return None
    return kernels(device)


@cache
def kernels(device: torch.device) -> Kernels | None:
    """Return the kernels of a device, or None if they are switched off or do not run there.

    Triton needs a C compiler, a GPU it knows and a place to write to. It says so at the first
    launch, in errors of many kinds: hence a trial.
    """
    if os.environ.get("DENSENET_FUSED") == "0":
        return None
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < OLDEST:
        return None
    try:
        from densenet_from_scratch.kernels import gpu_kernels

        found, one = Kernels(gpu_kernels), torch.ones(1, 1, device=device)
        found.activate(one, one[0], one[0], one)
    except Exception as error:
        logging.getLogger(__name__).info("PyTorch's operations run, not Triton: %s", error)
        return None
    return found
