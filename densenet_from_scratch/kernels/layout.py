"""How a dense block's maps lie in memory for its elementwise work (chapter 10).

Maps (N, C, H, W) are looked at as a matrix with a pixel in each row and a channel in each column.
Then BatchNorm's scale and shift are one number a column, a 1×1 convolution is the product with a
matrix of weights, and the maps of the earlier layers are the first columns. On a CPU a matrix is
worked on some rows at a time, few enough that what is computed of them stays in the cache.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

PIECE = 1 << 18  # numbers that a thread works on at a time on a CPU: 1 MiB in float32


def as_maps(matrix: Tensor, like: Tensor) -> Tensor:
    """View a matrix (NHW, C) as maps (N, C, H, W), with N, H and W those of ``like``."""
    n, _, h, w = like.shape
    return matrix.view(n, h, w, -1).permute(0, 3, 1, 2)


def as_matrix(maps: Tensor) -> Tensor:
    """Return maps (N, C, H, W) as a matrix (NHW, C): a view, if the memory is in that order."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def rows_at_once(matrix: Tensor, multiple: int = 1) -> int:
    """Return how many rows make about ``PIECE`` numbers for each thread; on a GPU all of them.

    On a CPU the number is a multiple of ``multiple``.
    """
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


def images_in_pieces(maps: Tensor) -> Iterator[slice]:
    """Cut a batch (N, C, H, W) into pieces of whole images."""
    pixels = maps.shape[2] * maps.shape[3]
    for rows in pieces(as_matrix(maps), pixels):
        yield slice(rows.start // pixels, rows.stop // pixels)


class Scratch:
    """Memory in which piece after piece is computed: the same each time, so it stays in the cache.

    Args:
        memory: some to begin with; where it is too small, more is taken.
    """

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory

    def __call__(self, like: Tensor) -> Tensor:
        """Return memory of the size of a matrix. What was in it is lost."""
        return self.take(like.numel()).view(like.shape)

    def take(self, count: int) -> Tensor:
        """Return memory for so many numbers. What was in it is lost."""
        if len(self.memory) < count:
            self.memory = self.memory.new_empty(count)
        return self.memory[:count]


def memory_format(maps: Tensor) -> torch.memory_format:
    """Return the order in which a convolution of such maps would leave its output."""
    if maps.is_contiguous() or not maps.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last
