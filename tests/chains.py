"""Calls of all functions of the kernels, with random tensors: every way is compared on them."""

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from densenet_from_scratch import kernels
from densenet_from_scratch.kernels import Combination, Projection, Scratch, layout

OUTPUTS = 21  # maps of a bottleneck


class Draw:
    """Random matrices and rows, the same for each way.

    Args:
        shape: rows and columns of a matrix, where nothing else is asked for.
        dtype: of the matrices. Where it has 16 bits, rows have 32.
        device: where they are.
        exact: give the same numbers in float64, whatever the type.
        mean: of the matrices, whose deviation is 1.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        dtype: torch.dtype,
        device: str = "cpu",
        exact: bool = False,
        mean: float = 0.0,
    ) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device
        self.exact, self.mean, self.wider = exact, mean, 2
        self.generator = torch.Generator().manual_seed(1)
        self.wide = dtype if dtype.itemsize > 2 else torch.float32

    def numbers(self, function, *shape: int) -> Tensor:
        return function(*shape, generator=self.generator, dtype=self.wide, device="cpu")

    def matrix(self, columns: int | None = None, rows: int | None = None) -> Tensor:
        """Random columns out of a wider matrix, as a layer reads them; each time a wider one."""
        rows = self.shape[0] if rows is None else rows
        columns = self.shape[1] if columns is None else columns
        self.wider += 1
        whole = self.numbers(torch.randn, rows, columns + self.wider) + self.mean
        whole = whole.to(self.dtype)
        whole = whole.double() if self.exact else whole
        return whole.to(self.device)[:, 2 : columns + 2]

    def row(self, columns: int | None = None) -> Tensor:
        row = self.numbers(torch.rand, self.shape[1] if columns is None else columns) + 0.5
        return (row.double() if self.exact else row).to(self.device)

    def rows(self, count: int, columns: int | None = None) -> list[Tensor]:
        return [self.row(columns) for _ in range(count)]

    def maps(self) -> Tensor:
        """The pixels of images of 7×5, or of one image if they are few."""
        matrix = self.matrix()
        h, w = (7, 5) if len(matrix) > 70 else (len(matrix), 1)
        n = len(matrix) // (h * w)
        return layout.as_maps(matrix[: n * h * w], torch.empty(n, 0, h, w))

    def projection(self) -> Projection:
        scale, shift = self.rows(2)
        return Projection(scale, 1 - shift, self.matrix(rows=OUTPUTS))

    def scratch(self) -> Scratch:
        return Scratch(self.matrix(1, 1)[0])


def maps_of(matrix: Tensor) -> Tensor:
    return matrix[:, :, None, None]


def back(d: Draw, with_total: bool) -> tuple[Tensor, ...]:
    gradient, x, total, sums = d.matrix(), d.matrix(), d.matrix(), torch.stack(d.rows(2))
    others = (d.row(), total) if with_total else ()
    kernels.activate_backward(gradient, x.relu(), x, sums, *others)
    return total if with_total else gradient, sums


def sums_of(d: Draw) -> Tensor:
    sums = torch.stack(d.rows(2))
    kernels.add_sums(d.matrix(), d.matrix(), sums)
    return sums


def project(d: Draw) -> tuple[Tensor, ...]:
    x, rows = d.matrix(), d.rows(2, OUTPUTS)
    return kernels.project(x, d.projection(), maps_of(x), 1e-5, rows, d.scratch())


def again(d: Draw) -> tuple[Tensor, ...]:
    z, h = d.matrix(OUTPUTS), d.matrix(OUTPUTS)
    rows = d.rows(3, OUTPUTS)
    kernels.project_again(d.matrix(), d.projection(), *rows, z, h, d.scratch())
    return z, h


def centre(d: Draw) -> tuple[Tensor, ...]:
    z, h = d.matrix(OUTPUTS), d.matrix(OUTPUTS)
    kernels.centre(d.matrix(OUTPUTS), *d.rows(3, OUTPUTS), z, h)
    return z, h


def project_back(d: Draw) -> tuple[Tensor, ...]:
    gradient, z, x, total = d.matrix(OUTPUTS), d.matrix(OUTPUTS), d.matrix(), d.matrix()
    grad_matrix, sums = d.matrix(rows=OUTPUTS), torch.stack(d.rows(2))
    combination = Combination(*d.rows(3, OUTPUTS))
    into = grad_matrix, sums, total, (d.scratch(), d.scratch())
    kernels.project_backward(gradient, z, combination, x, d.projection(), *into)
    return grad_matrix, sums, total


def pools(d: Draw) -> list[Tensor]:
    maps, (weight, bias) = d.maps(), d.rows(2)
    sizes = [size for size in (2, 3, 0) if size <= min(maps.shape[2:])]
    return [kernels.pool(maps, weight, bias - 1, size) for size in sizes]


def pools_back(d: Draw) -> list[Tensor]:
    maps, (weight, bias) = d.maps(), d.rows(2)
    sizes = [size for size in (2, 3, 0) if size <= min(maps.shape[2:])]
    found = []
    for size in sizes:
        n, c, h, w = maps.shape
        h, w = (h // size, w // size) if size else (1, 1)
        gradient = d.matrix(c, n * h * w)
        gradient = layout.as_maps(gradient, torch.empty(n, 0, h, w)) if size else gradient
        found += kernels.pool_backward(gradient, maps, weight, bias - 1, size)
    return found


CHAINS = {
    "normalise": lambda d: kernels.normalise(maps_of(d.matrix()), 1e-5),
    "normalise and activate": lambda d: kernels.normalise(maps_of(d.matrix()), 1e-5, *d.rows(2)),
    "normalise into": lambda d: kernels.normalise(maps_of(d.matrix()), 1e-5, out=d.matrix()),
    "activate": lambda d: kernels.activate(d.matrix(), *d.rows(2), d.matrix()),
    "activate backward": lambda d: back(d, with_total=False),
    "activate backward, total": lambda d: back(d, with_total=True),
    "activate in place": lambda d: kernels.activate(x := d.matrix(), *d.rows(2), x),
    "combine": lambda d: kernels.combine(d.matrix(), d.matrix(), *d.rows(3), d.matrix()),
    "combine in place": lambda d: kernels.combine(g := d.matrix(), d.matrix(), *d.rows(3), g),
    "add sums": sums_of,
    "project": project,
    "project again": again,
    "centre": centre,
    "project backward": project_back,
    "pool": pools,
    "pool backward": pools_back,
}


def results(chain, ways: tuple, draw: Draw) -> list[Tensor]:
    """What a chain gives if only these ways may be chosen; without any, the reference works."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "WAYS", ways)
        return tree_flatten(chain(draw))[0]
