"""Every way of running a dense block in less memory gives what the plain block gives.

All comparisons are in float64: outputs, gradients, running statistics, dropout and the state of
the random numbers afterwards.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from densenet_from_scratch import DenseBlock, DenseNet
from densenet_from_scratch.efficient import BLOCK_TYPES
from densenet_from_scratch.measure import saved_bytes

WAYS = {block_type: way for way, block_type in BLOCK_TYPES.items() if way is not False}
ways = pytest.mark.parametrize("way", WAYS.values())
layer_types = pytest.mark.parametrize("bottleneck", [True, False], ids=["bottleneck", "basic"])


def freeze(*endings: str) -> Callable[[nn.Module], None]:
    """Return what turns off the gradients of the parameters whose names end so."""

    def prepare(block: nn.Module) -> None:
        for name, parameter in block.named_parameters():
            parameter.requires_grad_(not name.endswith(endings))

    return prepare


def norms_in_evaluation(block: nn.Module) -> None:
    """Fine-tuning's habit: the statistics stay while the rest trains."""
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def cumulative_average(block: nn.Module) -> None:
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None


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
    for name, value in plain.state_dict().items():
        if "norm" in name and value.is_floating_point():
            value.uniform_(0.5, 2.0)  # fresh statistics and scales would hide mistakes
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
def test_mixed_precision_is_recomputed_as_it_was_computed(way):
    plain, other = pair(way, 2, 4, 2)
    gradients = []
    for block in (plain.float(), other.float()):
        torch.manual_seed(0)
        x = torch.randn(3, 4, 5, 6, requires_grad=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = block(x)
        y.float().square().sum().backward()
        gradients.append({"x": x.grad, **{n: p.grad for n, p in block.named_parameters()}})
    torch.testing.assert_close(gradients[1], gradients[0])


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
