"""Every way of running a dense block in less memory gives what the plain block gives.

All comparisons are in float64: outputs, gradients, running statistics, dropout and the state of
the random numbers afterwards. Networks that somebody has changed are in test_as_built.py.
"""

import copy
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from networks import cumulative_average, draw_norms, norms_of
from torch import Tensor, nn

from densenet_from_scratch import DenseBlock, DenseNet
from densenet_from_scratch.efficient import BLOCK_TYPES, checkpointed_stem, shared
from densenet_from_scratch.kernels import cpu as fused
from densenet_from_scratch.kernels import layout
from densenet_from_scratch.measure import growth_exponent, saved_bytes, saved_tensors
from densenet_from_scratch.stem import ImageNetStem

WAYS = {block_type: way for way, block_type in BLOCK_TYPES.items() if way is not False}
ways = pytest.mark.parametrize("way", WAYS.values())
layer_types = pytest.mark.parametrize("bottleneck", [True, False], ids=["bottleneck", "basic"])


@pytest.fixture(autouse=True, scope="module")
def fused_kernels_whatever_the_size():
    """Where there is a compiler, all tests but one of this file run the fused kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "SMALL", 0)
        yield


def freeze(*endings: str) -> Callable[[nn.Module], None]:
    """Return what turns off the gradients of the parameters whose names end so."""

    def prepare(block: nn.Module) -> None:
        for name, parameter in block.named_parameters():
            parameter.requires_grad_(not name.endswith(endings))

    return prepare


def norms_in_evaluation(block: nn.Module) -> None:
    """Fine-tuning's habit: the statistics stay while the rest trains."""
    for norm in norms_of(block):
        norm.eval()


@dataclass(frozen=True)
class Situation:
    """How a block is used; by default, in training, with everything trainable."""

    training: bool = True
    drop_rate: float = 0.0
    count: int = 3
    input_gradient: bool = True
    prepare: Callable[[nn.Module], None] = lambda block: None
    switch: bool = False
    """Change to the other mode between the forward and the backward pass."""


SITUATIONS = {
    "training": Situation(),
    "evaluation": Situation(training=False),
    "dropout": Situation(drop_rate=0.4),
    "batch of one": Situation(count=1),
    "input without gradient": Situation(input_gradient=False),
    "frozen norms": Situation(prepare=freeze("norm1.weight", "norm1.bias")),
    "frozen convolutions": Situation(prepare=freeze("conv1.weight", "conv2.weight")),
    "only the input's gradient": Situation(prepare=freeze("weight", "bias")),
    "norms in evaluation mode": Situation(prepare=norms_in_evaluation),
    "cumulative average": Situation(prepare=cumulative_average),
    "evaluation before backward": Situation(drop_rate=0.4, switch=True),
    "training before backward": Situation(training=False, switch=True),
}


def outcome(block: DenseBlock, situation: Situation) -> dict[str, Tensor]:
    """Run two forward passes, then their backward passes; return all that can be observed."""
    block.train(situation.training)
    situation.prepare(block)
    torch.manual_seed(0)
    inputs = [torch.randn(situation.count, 4, 5, 6, dtype=torch.float64) for _ in range(2)]
    for x in inputs:
        x.requires_grad_(situation.input_gradient)
    outputs = [block(x) for x in inputs]
    if situation.switch:
        block.train(not situation.training)
    for y in reversed(outputs):
        (y * torch.randn_like(y)).sum().backward()
    return {
        **{f"output {number}": y.detach() for number, y in enumerate(outputs)},
        **{f"gradient of input {n}": x.grad for n, x in enumerate(inputs) if x.grad is not None},
        **{f"gradient of {n}": p.grad for n, p in block.named_parameters() if p.grad is not None},
        **dict(block.named_buffers()),
        "random state": torch.get_rng_state(),
    }


def pair(way: bool | str, *arguments: Any, **options: Any) -> tuple[DenseBlock, DenseBlock]:
    """A plain block and one that runs in another way, with the same weights and statistics."""
    plain = DenseBlock(*arguments, **options).double()
    draw_norms(plain)
    other = BLOCK_TYPES[way](*arguments, **options).double()
    other.load_state_dict(plain.state_dict())
    return plain, other


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@ways
@layer_types
@pytest.mark.parametrize("situation", SITUATIONS.values(), ids=SITUATIONS)
def test_it_gives_what_the_plain_block_gives(way, bottleneck, situation):
    plain, other = pair(way, 3, 4, 2, bottleneck, drop_rate=situation.drop_rate)
    assert_equal(outcome(other, situation), outcome(plain, situation))


@pytest.mark.parametrize("way", ["shared", "shared-recompute"])
@layer_types
@pytest.mark.parametrize("situation", SITUATIONS.values(), ids=SITUATIONS)
def test_it_does_so_without_a_compiler(way, bottleneck, situation, monkeypatch):
    monkeypatch.setattr(fused, "kernels_for", lambda *tensors: None)
    plain, other = pair(way, 3, 4, 2, bottleneck, drop_rate=situation.drop_rate)
    assert_equal(outcome(other, situation), outcome(plain, situation))


@ways
def test_a_frozen_block_of_an_input_without_gradient_needs_no_backward_pass(way):
    plain, other = pair(way, 2, 4, 2)
    x = torch.randn(3, 4, 5, 6, dtype=torch.float64)
    for block in (plain, other):
        block.requires_grad_(False)
    with torch.no_grad():
        expected = plain(x)
    y = other(x)
    assert not y.requires_grad
    assert_equal(
        {"output": y, **dict(other.named_buffers())},
        {"output": expected, **dict(plain.named_buffers())},
    )


@ways
def test_training_a_whole_network_gives_the_same_weights(way):
    states = []
    for efficient in (False, way):
        torch.manual_seed(0)
        network = DenseNet(
            growth_rate=3,
            block_config=(2, 2),
            num_init_features=4,
            drop_rate=0.2,
            num_classes=3,
            efficient=efficient,
        ).double()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
            loss = nn.functional.cross_entropy(network(images), torch.tensor([0, 1, 2, 0]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        states.append(network.state_dict())
    assert_equal(states[1], states[0])
    assert int(states[1]["norm.num_batches_tracked"]) == 3


@ways
def test_in_mixed_precision_it_is_as_close_to_the_truth_as_the_plain_block(way):
    truth, other = pair(way, 3, 8, 4)
    plain = copy.deepcopy(truth)
    x, weights = (torch.randn(8, c, 9, 9, dtype=torch.float64) for c in (8, 20))

    def gradients(block: DenseBlock, maps: Tensor, autocast: bool) -> Tensor:
        maps = maps.detach().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            y = block(maps)
        (y.double() * weights).sum().backward()
        found = [maps.grad, *(p.grad for p in block.parameters())]
        return torch.cat([gradient.double().flatten() for gradient in found])

    right = gradients(truth, x, autocast=False)
    for dtype in (torch.float32, torch.bfloat16):
        plain_error, error = (
            ((gradients(copy.deepcopy(block).float(), x.to(dtype), autocast=True) - right).norm())
            for block in (plain, other)
        )
        assert error < 1.3 * plain_error < 0.2 * right.norm()


@ways
@layer_types
@pytest.mark.parametrize("drop_rate", [0.0, 0.4])
@pytest.mark.parametrize("layout", ["channels last", "every second column", "transposed"])
def test_the_order_of_the_input_in_memory_changes_nothing(way, bottleneck, drop_rate, layout):
    results = []
    for block in pair(way, 3, 4, 2, bottleneck, drop_rate=drop_rate):
        torch.manual_seed(0)
        x = torch.randn(3, 4, 6, 6, dtype=torch.float64)
        if layout == "channels last":
            x = x.contiguous(memory_format=torch.channels_last)
        elif layout == "every second column":
            x = torch.randn(3, 4, 6, 12, dtype=torch.float64)[..., ::2]
        else:
            x = x.transpose(2, 3)
        x.requires_grad_()
        y = block(x)
        (y * torch.randn(y.shape, dtype=y.dtype)).sum().backward()
        results.append(
            {
                "output": y.detach(),
                "gradient": x.grad,
                **{name: p.grad for name, p in block.named_parameters()},
                **dict(block.named_buffers()),
                "random state": torch.get_rng_state(),
            }
        )
    assert_equal(results[1], results[0])


IMAGENET = {"small_inputs": False, "num_init_features": 6}
CIFAR = {"drop_rate": 0.2, "num_init_features": 4}


def small_network(efficient: bool | str, **options: Any) -> DenseNet:
    torch.manual_seed(0)
    return DenseNet(
        growth_rate=3, block_config=(2, 3), num_classes=3, efficient=efficient, **options
    )


def gradients_of_a_step(
    network: nn.Module, dtype: torch.dtype = torch.float64, seed: int = 1
) -> dict[str, Tensor]:
    """Train one step on random images; return the logits, all gradients and the statistics."""
    torch.manual_seed(seed)
    network.zero_grad()
    images = torch.randn(4, 3, 13, 11, dtype=dtype)
    logits = network(images)
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
    return {
        "logits": logits.detach(),
        **{name: p.grad for name, p in network.named_parameters()},
        **dict(network.named_buffers()),
        "random state": torch.get_rng_state(),
    }


@ways
@pytest.mark.parametrize("options", [CIFAR, IMAGENET, CIFAR | {"bottleneck": False}])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_whole_network_gives_what_the_plain_one_gives(way, options, memory_format):
    """With stem, transitions (images of odd size) and head, in both orders of memory."""
    plain, other = (
        small_network(efficient, **options).double().to(memory_format=memory_format)
        for efficient in (False, way)
    )
    assert_equal(gradients_of_a_step(other), gradients_of_a_step(plain))


@pytest.mark.parametrize("way", ["shared", "shared-recompute"])
@pytest.mark.parametrize("options", [CIFAR, IMAGENET, CIFAR | {"bottleneck": False}])
@pytest.mark.parametrize("numbers", [1, 30, 100])
def test_the_size_of_the_pieces_changes_nothing(way, options, numbers, monkeypatch):
    """Large maps are worked on some rows at a time; here the rows of small ones."""
    plain, other = (small_network(efficient, **options).double() for efficient in (False, way))
    expected = gradients_of_a_step(plain)
    counted = []
    pieces = shared.pieces

    def counting(*arguments):
        rows = list(pieces(*arguments))
        counted.append(len(rows))
        return rows

    monkeypatch.setattr(layout, "PIECE", numbers)
    monkeypatch.setattr(shared, "pieces", counting)
    assert_equal(gradients_of_a_step(other), expected)
    assert max(counted) > 1


@ways
@pytest.mark.parametrize("options", [CIFAR, IMAGENET])
def test_evaluation_gives_what_the_plain_network_gives(way, options):
    plain = small_network(False, **options).double()
    gradients_of_a_step(plain)
    other = small_network(way, **options).double()
    other.load_state_dict(plain.state_dict())  # the ways exchange their weights
    assert_equal(gradients_of_a_step(other.eval()), gradients_of_a_step(plain.eval()))
    with torch.no_grad():
        images = torch.randn(2, 3, 13, 11, dtype=torch.float64)
        torch.testing.assert_close(other(images), plain(images))


@ways
def test_a_last_norm_of_its_own_kind_is_respected(way):
    """A transition's norm that differs from the layers' own cannot read their x̂."""
    plain, other = (small_network(efficient).double() for efficient in (False, way))
    for network in (plain, other):
        network.transitions[0].norm.eps = 1e-3
        network.blocks[1].layers[1].norm1.eps = 1e-2
    assert_equal(gradients_of_a_step(other), gradients_of_a_step(plain))


@pytest.mark.parametrize("way", BLOCK_TYPES)
@pytest.mark.parametrize(
    "reader", [lambda maps: maps.mean((2, 3)), nn.BatchNorm2d(8), nn.Sequential(nn.ReLU())]
)
def test_what_reads_a_block_may_be_anything_that_can_be_called(way, reader):
    block = BLOCK_TYPES[way](2, 4, 2)
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(block.read_by(reader, x), reader(block(x)))


@ways
@layer_types
def test_two_values_per_channel_are_enough(way, bottleneck):
    """The least there is: a variance with divisor 1 in the running statistics."""
    results = []
    for block in pair(way, 3, 4, 2, bottleneck):
        torch.manual_seed(0)
        y = block(torch.randn(2, 4, 1, 1, dtype=torch.float64))
        y.square().sum().backward()
        gradients = {name: p.grad for name, p in block.named_parameters()}
        results.append({"output": y.detach(), **gradients, **dict(block.named_buffers())})
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)


@ways
def test_one_value_per_channel_is_refused_in_training(way):
    block = BLOCK_TYPES[way](2, 4, 2)
    with pytest.raises(ValueError, match=r"more than (1|one) value per channel"):
        block(torch.randn(1, 4, 1, 1))


@ways
@pytest.mark.slow
def test_a_compiled_network_gives_the_same(way):
    """Efficient blocks break the graph, cleanly; backend "eager" needs no compiler."""
    plain, other = (small_network(efficient, **CIFAR).double() for efficient in (False, way))
    compiled = torch.compile(other, backend="eager")
    expected = gradients_of_a_step(plain)
    actual = gradients_of_a_step(compiled)
    assert_equal({n.removeprefix("_orig_mod."): v for n, v in actual.items()}, expected)


@pytest.mark.slow
def test_the_plain_network_compiles_to_one_graph():
    plain = small_network(False).double()
    compiled = torch.compile(plain, backend="eager", fullgraph=True)
    images = torch.randn(4, 3, 12, 12, dtype=torch.float64)
    torch.testing.assert_close(compiled(images), plain(images))


@ways
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))])
def test_copies_and_pickles_are_independent_and_equal(way, copied):
    network = small_network(way).double()
    twin = copied(network)
    result = gradients_of_a_step(network)
    assert int(twin.norm.num_batches_tracked) == 0
    assert_equal(gradients_of_a_step(twin), result)


@ways
def test_backward_twice_through_a_kept_graph_gives_twice_the_gradient(way):
    _, block = pair(way, 3, 4, 2)
    y = block(torch.randn(3, 4, 5, 6, dtype=torch.float64)).square().sum()
    y.backward(retain_graph=True)
    if way == "selective":
        with pytest.raises(RuntimeError, match="one backward pass for each forward pass"):
            y.backward()
        return
    once = {name: p.grad.clone() for name, p in block.named_parameters()}
    y.backward()
    assert_equal(
        {name: p.grad for name, p in block.named_parameters()},
        {name: 2 * gradient for name, gradient in once.items()},
    )


def second_derivative(block: DenseBlock) -> Tensor:
    torch.manual_seed(0)
    x = torch.randn(3, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    [gradient] = torch.autograd.grad(block(x).pow(3).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    return x.grad


@ways
def test_a_second_derivative_is_right_or_refused(way):
    refusals = {
        "selective": r"no second derivative: build the network with efficient=\"checkpoint\"",
        "shared": r"no second derivative .*efficient=False",
        "shared-recompute": r"no second derivative .*efficient=False",
    }
    plain, other = pair(way, 2, 4, 2)
    if way in refusals:
        with pytest.raises(RuntimeError, match=refusals[way]):
            second_derivative(other)
    else:
        torch.testing.assert_close(second_derivative(other), second_derivative(plain))


def train_in_parallel(_: int, port: int, folder: str, rank: int) -> None:
    """One of two processes: a step of DistributedDataParallel in every way; the first saves it."""
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    torch.set_num_threads(1)
    for way in (False, *WAYS.values()):
        network = nn.parallel.DistributedDataParallel(small_network(way).double())
        result = gradients_of_a_step(network, seed=rank)
        if rank == 0:
            plain_names = {name.removeprefix("module."): v for name, v in result.items()}
            torch.save(plain_names, f"{folder}/{way}")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def trained_in_parallel(tmp_path_factory) -> dict[bool | str, dict[str, Tensor]]:
    """This process is the first, and a fork of it the second: neither imports PyTorch again."""
    from helpers import free_ports  # which needs what notebooks need; a GPU machine has none

    folder, [port] = tmp_path_factory.mktemp("parallel"), free_ports(1)
    second = torch.multiprocessing.start_processes(
        train_in_parallel,
        (port, str(folder), 1),
        join=False,
        start_method="fork" if sys.platform == "linux" else "spawn",
    )
    threads = torch.get_num_threads()
    try:
        train_in_parallel(0, port, str(folder), 0)
        second.join()
    finally:
        torch.set_num_threads(threads)
        second.processes[0].kill()
    return {way: torch.load(folder / str(way)) for way in (False, *WAYS.values())}


@ways
def test_distributed_training_gives_the_mean_gradient(way, trained_in_parallel):
    assert_equal(trained_in_parallel[way], trained_in_parallel[False])


@ways
@layer_types
def test_it_stores_less(way, bottleneck):
    plain, other = pair(way, 8, 8, 4, bottleneck)
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    assert saved_bytes(other, x) < 0.7 * saved_bytes(plain, x)


def test_what_a_checkpointed_block_stores():
    """Counted by hand: only maps, in float64, of 2 images of 4×4 pixels."""
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    maps = x[:, 0].numel() * x.element_size()
    basic, bottleneck = (
        BLOCK_TYPES["checkpoint"](2, 3, 2, kind).double() for kind in (False, True)
    )
    assert saved_bytes(basic, x) == (3 + 2) * maps  # x_0 and x_1, which the last layer reads
    # A bottleneck layer also stores conv1's 4k maps, their ReLU, and a mean and deviation each.
    layer = (8 + 8) * maps + 2 * 8 * x.element_size()
    assert saved_bytes(bottleneck, x) == (3 + 2) * maps + 2 * layer


def test_what_a_shared_block_stores():
    """x̂ of every map, and the numbers that belong to channels; the bottlenecks if they are kept."""
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    maps = x[:, 0].numel() * x.element_size()
    layer = 2 * 8 * x.element_size()  # mean and 1/σ of 4k = 8 maps
    channels = (3 + 2 + 2) * x.element_size()  # 1/σ of each map
    recompute, keep, basic = (
        BLOCK_TYPES[way](2, 3, 2, kind).double()
        for way, kind in (("shared-recompute", True), ("shared", True), ("shared", False))
    )
    assert saved_bytes(basic, x) == (3 + 2 + 2) * maps + channels
    assert saved_bytes(recompute, x) == (3 + 2 + 2) * maps + channels + 2 * layer
    assert saved_bytes(keep, x) == saved_bytes(recompute, x) + 2 * 8 * maps


@ways
@pytest.mark.slow
def test_storage_grows_with_the_depth_not_with_its_square(way):
    depths = (24, 48, 96)

    def exponent(block_type: Callable[..., DenseBlock]) -> float:
        x = torch.randn(1, 8, 4, 4)
        return growth_exponent(depths, [saved_bytes(block_type(n, 8, 4), x) for n in depths])

    assert exponent(BLOCK_TYPES[False]) > 1.7
    assert exponent(BLOCK_TYPES[way]) < 1.1


def convolutions(block: DenseBlock, x: Tensor) -> int:
    """How many convolutions are computed forward in a training step, seen without a mode."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        block(x).sum().backward()
    return sum(event.name == "aten::_convolution" for event in profiler.events())


@layer_types
@pytest.mark.parametrize("way", ["checkpoint", "selective"])
def test_checkpointing_repeats_no_convolution(way, bottleneck):
    """The one kind keeps their results, and the other stops before it comes to conv1."""
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    plain, other = (convolutions(BLOCK_TYPES[w](3, 4, 2, bottleneck), x) for w in (False, way))
    assert other == plain == (6 if bottleneck else 3)


def test_the_stem_for_imagenet_stores_only_what_its_convolution_makes():
    stem, x = ImageNetStem(3, 4), torch.randn(2, 3, 16, 16)
    stored = []
    for run in (stem, lambda images: checkpointed_stem(stem, images)):
        with saved_tensors(stem) as tensors:
            y = run(x)
        stored.append(sum(tensor.numel() for tensor in tensors))
        del y
    assert stored[1] == x.numel() + 2 * 4 * 8 * 8 < stored[0]
