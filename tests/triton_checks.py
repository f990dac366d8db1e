"""What must hold of the kernels in Triton: on a CPU, slowly, and on a GPU at real sizes.

``test_triton.py`` runs this file in a process of its own whose ``TRITON_INTERPRET`` has Triton
interpret the kernels on a CPU; that must be said before Triton is imported. Where there is a GPU,
``test_cuda.py`` runs the same tests there.
"""

import os
import random

import pytest
import torch
from chains import CHAINS, OUTPUTS, Draw, project, results
from torch import nn
from torch.nn import functional as F

from densenet_from_scratch import DenseBlock, DenseNet, kernels
from densenet_from_scratch.efficient import BLOCK_TYPES
from densenet_from_scratch.kernels import gpu

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
SMALL = [(2, 1), (131, 37), (300, 70)]  # not as many as a tile has, or as several tiles have
REAL = [(64 * 32 * 32, columns) for columns in (24, 132, 340)]
RANDOM = random.Random(0)
SHAPES = SMALL + [(RANDOM.randrange(3, 200), RANDOM.randrange(2, 90)) for _ in range(3)]
# The interpreter cuts digits off where a GPU rounds to bfloat16; a GPU has more rows to sum.
ERRORS = {torch.float32: 2e-6 if INTERPRETED else 1e-5, torch.float16: 2e-3}
ERRORS[torch.bfloat16] = 2e-2 if INTERPRETED else 1e-2

chains = pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
halves = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
efficient = pytest.mark.parametrize("way", ["shared", "shared-recompute"])


@pytest.fixture(autouse=True)
def only_triton(monkeypatch):
    """No other way may do the work, nor convolutions of float32 be rounded."""
    monkeypatch.setattr(gpu, "DEVICES", (DEVICE,))
    monkeypatch.setattr(kernels, "WAYS", (gpu,))
    convolutions = torch.backends.cudnn.conv
    before, convolutions.fp32_precision = convolutions.fp32_precision, "ieee"
    yield
    convolutions.fp32_precision = before


@pytest.fixture
def launched(monkeypatch):
    """The names of the kernels that have run."""
    names, launch = set(), gpu.launch

    def noting(kernel, *arguments, **settings):
        names.add(kernel.__name__)
        launch(kernel, *arguments, **settings)

    monkeypatch.setattr(gpu, "launch", noting)
    return names


def compare(chain, shape: tuple[int, int], dtype: torch.dtype, mean: float = 0.0) -> None:
    """Compare with the reference in float64, in units of the largest number of each result."""
    found = results(chain, (gpu,), Draw(shape, dtype, DEVICE, mean=mean))
    exact = results(chain, (), Draw(shape, dtype, DEVICE, mean=mean, exact=True))
    assert len(found) == len(exact)
    for value, right in zip(found, exact, strict=True):
        assert value.shape == right.shape and value.dtype in (dtype, torch.float32)
        error = (value.double() - right).abs().max() if right.numel() else torch.tensor(0.0)
        most = right.abs().max() if right.numel() else 0.0
        assert error <= ERRORS[dtype] * (1 + mean) * most, f"{error:.2g} of {most:.2g}"


@chains
@pytest.mark.parametrize("shape", SHAPES if INTERPRETED else SHAPES + REAL)
def test_a_kernel_gives_what_the_reference_gives(chain, shape):
    compare(chain, shape, torch.float32)


@chains
@halves
@pytest.mark.parametrize("shape", SHAPES[-2:] if INTERPRETED else SHAPES + REAL)
def test_it_does_so_in_16_bits(chain, dtype, shape):
    compare(chain, shape, dtype)


@pytest.mark.parametrize("name", [name for name in CHAINS if "normalise" not in name])
def test_there_may_be_one_pixel(name):
    """Nothing to learn from it about the deviation; the reference says so with NaN."""
    chain = CHAINS[name]
    compare((lambda d: chain(d)[:2]) if name == "project" else chain, (1, 19), torch.float32)


@pytest.mark.parametrize("name", [name for name in CHAINS if "pool" not in name])
def test_there_may_be_none(name):
    """The sums of nothing are 0, and what they are added to stays. Of nothing there is no mean."""
    if name == "project" or "normalise" in name:
        found = results(CHAINS[name], (gpu,), Draw((0, 19), torch.float32, DEVICE))
        assert all(one.numel() == 0 or one.isnan().all() for one in found)
    else:
        compare(CHAINS[name], (0, 19), torch.float32)


@pytest.mark.parametrize("name", ["normalise", "normalise into", "project"])
@pytest.mark.parametrize("shape", [(5, 3), (700, 20)])
def test_a_large_mean_leaves_the_variance_its_digits(name, shape):
    compare(CHAINS[name], shape, torch.float32, mean=1000.0)


@pytest.mark.parametrize("outputs", [1, 16, 48, 130, 200])
def test_a_bottleneck_may_have_any_width(outputs, monkeypatch):
    monkeypatch.setattr("chains.OUTPUTS", outputs)
    for name in ("project", "project again", "centre", "project backward"):
        compare(CHAINS[name], (150, 40), torch.float32)


def test_many_rows_are_worked_on_bit_by_bit(monkeypatch):
    """Parts of a gradient of weights have many blocks of rows, and moments come from many more."""
    monkeypatch.setattr(gpu, "PARTS", 4)
    monkeypatch.setattr(gpu, "MERGED", 2)
    for name in ("project backward", "project", "normalise"):
        compare(CHAINS[name], (1100, 5), torch.float32)


@efficient
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_is_as_close_to_the_truth_as_the_plain_block(way, dtype, launched):
    torch.manual_seed(0)
    truth = DenseBlock(3, 8, 4).double()
    x, weights = (torch.randn(4, c, 9, 9, dtype=torch.float64) for c in (8, 20))

    def gradients(kind, maps, autocast: bool) -> torch.Tensor:
        block = kind(3, 8, 4).to(maps.dtype if maps.dtype.itemsize > 2 else torch.float32)
        block.load_state_dict(truth.state_dict())
        block, maps = block.to(DEVICE), maps.detach().to(DEVICE).requires_grad_()
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=autocast):
            y = block(maps)
        (y.double() * weights.to(DEVICE)).sum().backward()
        found = [maps.grad, *(p.grad for p in block.parameters()), *block.buffers()]
        return torch.cat([one.double().flatten().cpu() for one in found])

    right = gradients(DenseBlock, x, False)
    kinds, mixed = (DenseBlock, BLOCK_TYPES[way]), dtype == torch.bfloat16
    plain, error = ((gradients(kind, x.to(dtype), mixed) - right).norm() for kind in kinds)
    assert launched
    assert error < (1.3 if mixed and not INTERPRETED else 3) * plain < 0.2 * right.norm()


@efficient
@pytest.mark.parametrize("bottleneck", [True, False])
def test_training_a_network_gives_the_same_weights(way, bottleneck, launched):
    torch.manual_seed(0)
    options = {"num_init_features": 5, "num_classes": 3, "bottleneck": bottleneck}
    plain = DenseNet(3, (2, 2), **options).double()
    draw_norms = [norm for norm in plain.modules() if isinstance(norm, nn.BatchNorm2d)]
    for norm in draw_norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
    other = DenseNet(3, (2, 2), **options, efficient=way)
    other.load_state_dict(plain.state_dict())
    other = other.to(DEVICE)
    images, labels = torch.randn(2, 4, 3, 9, 7, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    for network in (plain, other):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        for batch in images:
            batch = batch.to(next(network.parameters()))
            optimizer.zero_grad()
            F.cross_entropy(network(batch), labels.to(batch.device)).backward()
            optimizer.step()
    for (name, value), right in zip(
        other.state_dict().items(), plain.state_dict().values(), strict=True
    ):
        message = f"{name}: {{}}".format
        torch.testing.assert_close(
            value.cpu().to(right.dtype), right, rtol=1e-3, atol=1e-4, msg=message
        )
    every = {
        "add_sums",
        "moments",
        "merge",
        "affine",
        "combine",
        "activate_backward",
        "pool",
        "pool_backward",
    }
    of_bottleneck = {"project", "project_weights", "project_backward"}
    of_bottleneck |= {"centre" if way == "shared" else "project_again"}
    assert launched == every | (of_bottleneck if bottleneck else set())


@chains
def test_a_kernel_gives_the_same_each_time(chain):
    shape = (150, 40) if INTERPRETED else REAL[-1]
    first, second = (results(chain, (gpu,), Draw(shape, torch.float32, DEVICE)) for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_nan_stays_nan_as_in_pytorch():
    x = torch.tensor([[float("nan"), -1.0, 1.0]], device=DEVICE)
    ones, zeros = torch.ones(3, device=DEVICE), torch.zeros(3, device=DEVICE)
    nan = {"rtol": 0, "atol": 0, "equal_nan": True}
    a = kernels.activate(x, ones, zeros, torch.empty_like(x))
    torch.testing.assert_close(a, x.relu(), **nan)
    gradient, sums = torch.ones(1, 3, device=DEVICE), torch.zeros(2, 3, device=DEVICE)
    kernels.activate_backward(gradient, a, x, sums)
    torch.testing.assert_close(gradient, torch.tensor([[1.0, 0.0, 1.0]], device=DEVICE))
    assert sums[0, 0].isnan()
    assert kernels.normalise(x[:, :, None, None], 1e-5)[0][0].isnan().tolist() == [
        True,
        False,
        False,
    ]
    d = Draw((50, 4), torch.float32, DEVICE)
    matrix = d.matrix()
    matrix[7, 2] = float("nan")
    d.matrix = lambda *args, **kwargs: (
        matrix if not (args or kwargs) else Draw.matrix(d, *args, **kwargs)
    )
    middle, h, *_ = project(d)
    assert middle.isnan().any(1).nonzero().flatten().tolist() == [7] and h.isnan().all()


def test_what_the_kernels_do_not_know_is_left_to_pytorch(monkeypatch):
    x = torch.randn(8, 4, device=DEVICE)
    assert gpu.kernels_for(x) is gpu.kernels_for(x.half(), x.bfloat16()) is not None
    assert gpu.kernels_for(x.double()) is None
    assert gpu.kernels_for(x, x.double()) is None
    assert gpu.kernels_for(x.T) is None, "a row's numbers are not side by side"
    assert gpu.kernels_for(x, x.to("meta")) is None, "two devices"
    monkeypatch.setattr(gpu, "DEVICES", ("meta",))
    assert gpu.kernels_for(x) is None


def test_the_kernels_can_be_switched_off(monkeypatch):
    gpu.kernels.cache_clear()
    monkeypatch.setenv("DENSENET_FUSED", "0")
    try:
        assert gpu.kernels_for(torch.randn(8, 4, device=DEVICE)) is None
    finally:
        gpu.kernels.cache_clear()


def test_where_a_launch_fails_pytorch_does_the_work(monkeypatch):
    """As without a C compiler."""

    def fail(*arguments, **settings):
        raise RuntimeError("Failed to find C compiler.")

    gpu.kernels.cache_clear()
    monkeypatch.setattr(gpu, "launch", fail)
    try:
        assert gpu.kernels_for(torch.randn(8, 4, device=DEVICE)) is None
        network = DenseNet(3, (1, 1), num_init_features=4, efficient=True).to(DEVICE)
        network(torch.randn(2, 3, 4, 4, device=DEVICE)).sum().backward()
    finally:
        gpu.kernels.cache_clear()


def test_products_are_as_precise_as_pytorchs():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        for setting, precision in (("ieee", "ieee"), ("tf32", "tf32")):
            matmul.fp32_precision = setting
            assert gpu.precision() == precision
    finally:
        matmul.fp32_precision = before
    assert gpu.precision() == "ieee", "PyTorch's own default"


def test_every_size_of_a_tile_is_a_power_of_two():
    """And reaches over all columns, or is as large as it may be."""
    for columns in range(1, 300):
        for tile in (
            gpu.tiles(columns),
            gpu.product_tiles(columns),
            gpu.backward_tiles(columns),
            gpu.weight_tiles(columns),
        ):
            assert all(size & (size - 1) == 0 and 16 <= size <= 256 for size in tile.values())


assert OUTPUTS > 16, "a bottleneck that fills no block"
