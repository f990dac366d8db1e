"""The four chains in C: one pass over memory where separate operations take several (chapter 10).

An operation of PyTorch reads its operands from memory and writes its result back, so a chain of
five goes through the maps five times, and that, not the arithmetic, is what it costs. cpu.c does
each chain in one pass. Where a C compiler is at hand, it is compiled for this machine at the first
use, in a second, and kept in the user's cache. Without one, for other types and on a GPU,
PyTorch's operations run: the results are the same up to rounding.

The environment variable ``DENSENET_FUSED=0`` switches the kernels off.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SOURCE = Path(__file__).with_name("cpu.c")
REALS = {torch.float32: "float", torch.float64: "double"}
OPTIONS = ("-O3", "-march=native", "-fopenmp", "-fPIC", "-std=c99")
SECONDS = 60  # patience with the compiler
SMALL = 1 << 17  # numbers below which a call takes longer than the work


def folder() -> Path:
    """Return where compiled kernels are kept: the user's cache, by the XDG convention.

    Raises:
        RuntimeError: the user has no home.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))  # to be ignored unless absolute
    return (root if root.is_absolute() else Path.home() / ".cache") / "densenet_from_scratch"


class Kernels:
    """The functions of cpu.c for one type of numbers, as operations on tensors.

    Matrices are (rows, columns), the numbers of a row side by side in memory. Scales, shifts,
    slopes and weights have one number for each column.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        number: Any = ctypes.c_long
        pointer: Any = ctypes.c_void_p
        size, matrix = [number] * 3, [pointer, number]
        self._library = library
        library.affine.argtypes = [*size, *matrix, pointer, pointer, *matrix, ctypes.c_int]
        library.combine.argtypes = [*size, *matrix * 2, *[pointer] * 3, *matrix]
        library.moments.argtypes = [*size, *matrix, pointer, pointer]
        library.mask_and_sum.argtypes = [*size, *matrix * 3, pointer, *matrix, pointer]
        for function in (library.affine, library.combine, library.moments, library.mask_and_sum):
            function.restype = None

    def affine(self, x: Tensor, scale: Tensor, shift: Tensor, out: Tensor, relu: bool) -> Tensor:
        """Return scale · x + shift, or ReLU of it, in ``out``, which may be ``x``."""
        rows = (scale.data_ptr(), shift.data_ptr())
        self._library.affine(*_size(x), *_matrix(x), *rows, *_matrix(out), relu)
        return out

    def combine(
        self, gradient: Tensor, x: Tensor, scale: Tensor, slope: Tensor, shift: Tensor, out: Tensor
    ) -> Tensor:
        """Return scale · gradient + slope · x + shift, in ``out``, which may be ``gradient``."""
        rows = (scale.data_ptr(), slope.data_ptr(), shift.data_ptr())
        matrices = (*_matrix(gradient), *_matrix(x))
        self._library.combine(*_size(x), *matrices, *rows, *_matrix(out))
        return out

    def moments(self, x: Tensor) -> Tensor:
        """Return mean and variance, with the divisor n, of each column: (2, columns), float64."""
        result = torch.empty(2, x.shape[1], dtype=torch.float64, device=x.device)
        self._library.moments(*_size(x), *_matrix(x), result[0].data_ptr(), result[1].data_ptr())
        return result

    def activate(self, x: Tensor, scale: Tensor, shift: Tensor, out: Tensor) -> Tensor:
        """Return ReLU(scale · x + shift), in ``out``."""
        return self.affine(x, scale, shift, out, relu=True)

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
        count, dtype = len(matrix), matrix.dtype
        mean, variance = self.moments(matrix)
        inverse = (variance + eps).rsqrt()
        scale = inverse if weight is None else inverse * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        out = torch.empty_like(matrix) if out is None else out
        self.affine(matrix, scale.to(dtype), shift.to(dtype), out, relu=weight is not None)
        variance = variance * count / max(count - 1, 1)
        return out, mean.to(dtype, copy=True), variance.to(dtype), inverse.to(dtype)

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
        with_total: tuple[int | None, ...] = (None, None, 0)
        if weight is not None and total is not None:
            with_total = (weight.data_ptr(), *_matrix(total))
        matrices = (*_matrix(gradient), *_matrix(a), *_matrix(x))
        self._library.mask_and_sum(*_size(x), *matrices, *with_total, sums.data_ptr())


def _size(matrix: Tensor) -> tuple[int, int, int]:
    return torch.get_num_threads(), *matrix.shape


def _matrix(matrix: Tensor) -> tuple[int, int]:
    return matrix.data_ptr(), matrix.stride(0)


def kernels_for(*tensors: Tensor) -> Kernels | None:
    """Return the kernels for these matrices and rows, or None where PyTorch is to do the work.

    That is where the kernels do not know the type or the device, where the numbers of a row are not
    side by side, and where the first tensor, which must be the largest, has so few numbers that
    calling takes longer than computing.
    """
    dtype = tensors[0].dtype
    if tensors[0].numel() < SMALL or dtype not in REALS:
        return None
    for tensor in tensors:
        if type(tensor) not in (Tensor, nn.Parameter) or not tensor.is_cpu:
            return None
        if tensor.dtype != dtype or tensor.stride(-1) != 1:
            return None
    return kernels(dtype)


@cache
def kernels(dtype: torch.dtype) -> Kernels | None:
    """Return the kernels of a type, compiled if need be, or None if that cannot be done here."""
    if os.environ.get("DENSENET_FUSED") == "0":
        return None
    options = (*OPTIONS, f"-DREAL={REALS[dtype]}")
    try:
        compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]  # ValueError: open quotes
        if not shutil.which(compiler[0]):
            return None
        recipe = "\n".join((SOURCE.read_text(), *compiler, *options, _processor()))
        library = folder() / f"fused-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.so"
        if not library.exists():
            _compile(compiler, options, library)
        return Kernels(ctypes.CDLL(str(library)))
    except (OSError, ValueError, RuntimeError, subprocess.SubprocessError) as error:
        logging.getLogger(__name__).info("PyTorch's operations run, not cpu.c: %s", error)
        return None


def _compile(compiler: list[str], options: tuple[str, ...], library: Path) -> None:
    """Compile cpu.c; the finished library appears at once or not at all."""
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as work:
        # OpenMP is used but not linked: its threads are to be PyTorch's, whose library is loaded.
        half, whole = Path(work, "cpu.o"), Path(work, library.name)
        for step in (
            [*compiler, *options, "-c", str(SOURCE), "-o", str(half)],
            [*compiler, "-shared", str(half), "-o", str(whole)],
        ):
            subprocess.run(step, check=True, capture_output=True, timeout=SECONDS)
        os.replace(whole, library)


def _processor() -> str:
    """Describe the processor: a home directory may be shared by machines with different ones."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))
