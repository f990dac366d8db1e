"""The fused kernels give what PyTorch's operations give, or step aside."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from chains import CHAINS, Draw, results
from torch import Tensor

from densenet_from_scratch import kernels
from densenet_from_scratch.kernels import cpu as fused

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()
compiler = pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
types = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
# fewer rows than threads, one column, more columns than fit a vector, enough for all threads
shapes = pytest.mark.parametrize("shape", [(1, 3), (2, 1), (131, 37), (3000, 70)])


@pytest.fixture(autouse=True)
def kernels_whatever_the_size(monkeypatch):
    for way in kernels.WAYS:
        monkeypatch.setattr(way, "SMALL", 0, raising=False)


def matrix(*shape: int, dtype: torch.dtype) -> Tensor:
    """Random columns out of a wider matrix, as a layer reads them."""
    rows, columns = shape
    return torch.randn(rows, columns + 5, dtype=dtype)[:, 2 : columns + 2]


def same(actual: Tensor, expected: Tensor) -> None:
    relative = 1e-5 if actual.dtype == torch.float32 else 1e-12
    torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=relative, atol=relative)


@compiler
@types
@shapes
def test_affine(dtype, shape):
    x, (scale, shift) = matrix(*shape, dtype=dtype), torch.randn(2, shape[1], dtype=dtype)
    way = fused.kernels_for(x, scale, shift)
    for relu in (False, True):
        expected = x * scale + shift
        expected = expected.relu() if relu else expected
        out = matrix(*shape, dtype=dtype)
        same(way.affine(x, scale, shift, out, relu), expected)
        same(out, expected)
        twin = x.clone()
        same(way.affine(twin, scale, shift, twin, relu), expected)


@compiler
@types
@shapes
def test_combine(dtype, shape):
    gradient, x, out = (matrix(*shape, dtype=dtype) for _ in range(3))
    scale, slope, shift = torch.randn(3, shape[1], dtype=dtype)
    expected = scale * gradient + slope * x + shift
    way = fused.kernels_for(gradient, x, out)
    same(way.combine(gradient, x, scale, slope, shift, out), expected)
    same(way.combine(gradient, x, scale, slope, shift, gradient), expected)


@compiler
@types
@shapes
def test_moments(dtype, shape):
    x = matrix(*shape, dtype=dtype) + 1000  # a mean that dwarfs the deviation
    mean, variance = fused.kernels_for(x).moments(x)
    torch.testing.assert_close(mean, x.double().mean(0), rtol=1e-12, atol=0)
    expected = x.double().var(0, correction=0)
    torch.testing.assert_close(variance, expected, rtol=1e-9, atol=1e-12)


@compiler
@types
@shapes
@pytest.mark.parametrize("with_total", [True, False])
def test_activate_backward(dtype, shape, with_total):
    gradient, x, total = (matrix(*shape, dtype=dtype) for _ in range(3))
    a, weight = x.relu(), torch.randn(shape[1], dtype=dtype)
    sums = torch.randn(2, shape[1], dtype=dtype)
    g = torch.where(a > 0, gradient, 0).double()
    expected = sums + torch.stack(((g * x).sum(0), g.sum(0)))
    expected_total = total + weight * g if with_total else g
    added = (weight, total) if with_total else ()
    fused.kernels_for(gradient, a, x).activate_backward(gradient, a, x, sums, *added)
    same(sums, expected)
    same(total if with_total else gradient, expected_total)


def compare(way, chain, dtype: torch.dtype, shape: tuple[int, int], device: str) -> None:
    """Run a chain in a way, which must take these tensors, and as the reference; compare."""
    found, expected = (results(chain, ways, Draw(shape, dtype, device)) for ways in ((way,), ()))
    assert len(found) == len(expected)
    for value, other in zip(found, expected, strict=True):
        relative = 1e-3 if dtype == torch.float32 else 1e-9
        torch.testing.assert_close(value, other, rtol=relative, atol=relative)


@types
@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
@pytest.mark.parametrize("shape", [(2, 1), (131, 37), (3000, 70)])
@pytest.mark.parametrize(
    "way, device",
    [(way, d) for way in kernels.WAYS for d in DEVICES if d in getattr(way, "DEVICES", "cpu")],
    ids=lambda one: getattr(one, "__name__", one).rpartition(".")[2],
)
def test_every_way_gives_what_the_reference_gives(way, chain, dtype, shape, device):
    if way.kernels_for(matrix(*shape, dtype=dtype).to(device)) is None:
        assert (way, device) != (fused, "cpu") or not shutil.which("cc")
        pytest.skip(f"takes no {dtype} on {device} here")
    compare(way, chain, dtype, shape, device)


def test_a_way_that_forgets_a_term_does_not_pass():
    """What the test above would say of it, if it stood in ``WAYS``."""

    def forgetful(gradient, x, scale, slope, shift, out):
        return torch.mul(gradient, scale, out=out).addcmul_(x, slope)

    way = SimpleNamespace(**{**vars(kernels.reference), "combine": forgetful})
    module = SimpleNamespace(kernels_for=lambda *tensors: way)
    compare(module, CHAINS["activate"], torch.float64, (131, 37), "cpu")
    for chain in ("combine", "combine in place"):
        with pytest.raises(AssertionError, match="not close"):
            compare(module, CHAINS[chain], torch.float64, (131, 37), "cpu")


def test_every_module_that_offers_kernels_is_asked():
    folder = Path(kernels.__file__).parent
    names = {path.stem for path in folder.glob("*.py")} - {"__init__", "gpu_kernels"}
    modules = [importlib.import_module(f"{kernels.__name__}.{name}") for name in names]
    assert {m for m in modules if hasattr(m, "kernels_for")} == set(kernels.WAYS)


@compiler
def test_nan_stays_nan_as_in_pytorch():
    x, ones, zeros = torch.tensor([[float("nan"), -1.0, 1.0]]), torch.ones(3), torch.zeros(3)
    way = fused.kernels_for(x)
    same_nan = torch.testing.assert_close
    a = way.affine(x, ones, zeros, torch.empty_like(x), relu=True)
    same_nan(a, x.relu(), equal_nan=True)
    gradient, sums = torch.ones(1, 3), torch.zeros(2, 3)
    way.activate_backward(gradient, a, x, sums)
    same_nan(gradient, torch.tensor([[1.0, 0.0, 1.0]]))
    assert sums[0, 0].isnan() and way.moments(x)[:, 0].isnan().all()


@compiler
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_sums_are_the_same_each_time_on_any_number_of_threads(threads):
    gradient, x = torch.randn(2, 5000, 40)
    found, before = [], torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for _ in range(5):
            sums = torch.zeros(2, 40)
            fused.kernels_for(x).activate_backward(gradient.clone(), x.relu(), x, sums)
            found.append(sums)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(sums, found[0]) for sums in found)


def test_what_the_kernels_do_not_know_is_left_to_pytorch(monkeypatch):
    x = torch.randn(8, 4)
    assert fused.kernels_for(x.bfloat16()) is None
    assert fused.kernels_for(x.to("meta")) is None
    assert fused.kernels_for(x.T) is None, "a row's numbers are not side by side"
    assert fused.kernels_for(x, x.double()) is None, "two types"
    monkeypatch.setattr(fused, "SMALL", 33)
    assert fused.kernels_for(x) is None, "few numbers"


SCRIPT = """
import torch
from densenet_from_scratch import DenseNet
from densenet_from_scratch.kernels import cpu as fused
network = DenseNet(3, (2, 2), num_init_features=4, efficient=True)
network(torch.randn(8, 3, 48, 48)).sum().backward()
fused.SMALL = 0
network(torch.randn(2, 3, 8, 8)).sum().backward()
print(fused.kernels(torch.float32) is not None)
"""


def train_elsewhere(**settings: str) -> str:
    """Train a step in a fresh process; say whether it had fused kernels."""
    environment = {**os.environ, **settings}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
    )
    assert not done.stderr
    return done.stdout.strip()


@compiler
@pytest.mark.slow
def test_the_library_is_compiled_once_and_kept_in_the_cache(tmp_path):
    assert train_elsewhere(XDG_CACHE_HOME=str(tmp_path)) == "True"
    [library] = (tmp_path / "densenet_from_scratch").iterdir()
    made = library.stat().st_mtime_ns
    assert train_elsewhere(XDG_CACHE_HOME=str(tmp_path)) == "True"
    [library] = (tmp_path / "densenet_from_scratch").iterdir()
    assert library.stat().st_mtime_ns == made


@compiler
@pytest.mark.slow
def test_the_compiler_may_be_several_words(tmp_path):
    assert train_elsewhere(XDG_CACHE_HOME=str(tmp_path), CC="env cc") == "True"


@pytest.mark.slow
def test_without_a_compiler_or_a_place_pytorch_does_the_work(tmp_path):
    """Training goes on, without a word and with nothing half-written."""
    cache = tmp_path / "cache"
    broken = tmp_path / "broken-compiler"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    file = tmp_path / "file"
    file.write_text("")
    assert train_elsewhere(XDG_CACHE_HOME=str(cache), CC="no-such-compiler") == "False"
    assert train_elsewhere(XDG_CACHE_HOME=str(cache), DENSENET_FUSED="0") == "False"
    assert not cache.exists()
    assert train_elsewhere(XDG_CACHE_HOME=str(cache), CC=str(broken)) == "False"
    assert not list((cache / "densenet_from_scratch").iterdir())
    assert train_elsewhere(XDG_CACHE_HOME=str(file)) == "False", "the cache cannot be written"


@pytest.mark.slow
def test_a_compiler_that_cannot_be_read_or_a_user_without_a_home(tmp_path, monkeypatch):
    assert train_elsewhere(XDG_CACHE_HOME=str(tmp_path), CC="cc 'unclosed") == "False"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    fused.kernels.cache_clear()
    try:
        assert fused.kernels(torch.float32) is None
    finally:
        fused.kernels.cache_clear()


def test_a_cache_that_is_no_absolute_path_is_ignored(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/cache")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert fused.folder() == tmp_path / ".cache/densenet_from_scratch"


@compiler
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_the_default_device_does_not_matter_to_the_kernels(device):
    x = torch.randn(40, 6)
    torch.set_default_device(device)
    try:
        mean, variance = fused.kernels_for(x).moments(x)
    finally:
        torch.set_default_device(None)
    torch.testing.assert_close(mean, x.double().mean(0))
    torch.testing.assert_close(variance, x.double().var(0, unbiased=False))


@compiler
@pytest.mark.slow
def test_a_damaged_library_is_not_used(tmp_path):
    assert train_elsewhere(XDG_CACHE_HOME=str(tmp_path)) == "True"
    [library] = (tmp_path / "densenet_from_scratch").iterdir()
    library.write_bytes(library.read_bytes()[:100])
    assert train_elsewhere(XDG_CACHE_HOME=str(tmp_path)) == "False"


def test_the_source_is_part_of_the_package():
    assert fused.SOURCE.parent == Path(fused.__file__).parent
    assert fused.SOURCE.exists()
