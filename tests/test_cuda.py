"""On a GPU: the kernels in Triton at real sizes, and every way of running a block in less memory.

The tests of the kernels are those of ``triton_checks.py``, which also run without a GPU, in
Triton's interpreter (``test_triton.py``).
"""

import pytest
import torch
from test_efficient import SITUATIONS, layer_types, outcome, pair, ways
from torch.nn import functional as F

from densenet_from_scratch import DenseNet, densenet_cifar, kernels
from densenet_from_scratch.kernels import gpu

if torch.cuda.is_available():
    pytest.importorskip("triton")
    from triton_checks import *  # noqa: F403

DEVICE = "cuda"
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]


@ways
@layer_types
@pytest.mark.parametrize("situation", SITUATIONS.values(), ids=SITUATIONS)
def test_it_gives_what_the_plain_block_gives(way, bottleneck, situation):
    """In float64, with the numbers that the GPU draws for dropout."""
    found = []
    with torch.device(DEVICE):
        for block in pair(way, 3, 4, 2, bottleneck, drop_rate=situation.drop_rate):
            found.append(outcome(block, situation) | {"of the GPU": torch.cuda.get_rng_state()})
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


@ways
def test_a_step_in_mixed_precision_is_as_close_to_the_truth_as_the_plain_one(way):
    """A network of 40 layers on real maps; what is measured is the gradient of all weights."""
    torch.manual_seed(0)
    truth = densenet_cifar(40, 12).to(DEVICE, torch.float64)
    images, labels = torch.randn(64, 3, 32, 32, device=DEVICE), torch.arange(64, device=DEVICE) % 10

    def gradient(network: DenseNet, dtype: torch.dtype) -> torch.Tensor:
        network.load_state_dict(truth.state_dict())
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=dtype == torch.float32):
            logits = network(images.to(dtype))
        F.cross_entropy(logits.to(dtype), labels).backward()
        return torch.cat([p.grad.double().flatten() for p in network.parameters()])

    right = gradient(densenet_cifar(40, 12).to(DEVICE, torch.float64), torch.float64)
    plain, error = (
        (gradient(densenet_cifar(40, 12, efficient=e).to(DEVICE), torch.float32) - right).norm()
        for e in (False, way)
    )
    assert error < 1.3 * plain < 0.5 * right.norm()


def test_a_place_in_a_matrix_may_need_64_bits():
    """Rows so far apart that the last ones begin behind 2³¹ numbers."""
    rows, columns, stride = 3, 40, 1 << 30
    if torch.cuda.mem_get_info()[0] < 3 * 2 * rows * stride:
        pytest.skip("a matrix takes 6 GB")
    whole = torch.empty(rows * stride, dtype=torch.bfloat16, device=DEVICE)
    far = whole.as_strided((rows, columns), (stride, 1))
    near = torch.randn(rows, columns, device=DEVICE).bfloat16()
    far.copy_(near)
    scale, shift = torch.rand(2, columns, device=DEVICE)
    expected = kernels.activate(near, scale, shift, torch.empty_like(near))
    torch.testing.assert_close(kernels.activate(far, scale, shift, far), expected, rtol=0, atol=0)


def test_a_network_learns_on_the_gpu_as_on_the_cpu():
    """And the kernels are what a user gets without asking."""
    used = set()
    launch = gpu.launch

    def noting(kernel, *arguments, **settings):
        used.add(kernel.__name__)
        launch(kernel, *arguments, **settings)

    losses = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "launch", noting)
        for device in ("cpu", DEVICE):
            torch.manual_seed(0)
            network = DenseNet(6, (3, 3), num_init_features=8, num_classes=4, efficient=True)
            optimizer = torch.optim.SGD(network.to(device).parameters(), lr=0.5, momentum=0.9)
            images, labels = torch.randn(16, 3, 16, 16).to(device), torch.arange(16).to(device) % 4
            for _ in range(10):
                loss = F.cross_entropy(network(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            losses.append(loss.detach().cpu())
    assert {"project", "project_again", "project_backward", "project_weights"} <= used
    assert losses[1] < 1  # from ln 4
    torch.testing.assert_close(losses[1], losses[0], rtol=0.05, atol=0.02)
