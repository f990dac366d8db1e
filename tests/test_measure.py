"""What is counted is compared with counts by hand."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from densenet_from_scratch import DenseBlock, DenseNet, PlainNet, ResidualNet, measure
from densenet_from_scratch.measure import (
    Row,
    Stored,
    architecture,
    connection_strengths,
    connections,
    count_macs,
    count_parameters,
    gradient_norms,
    growth_exponent,
    peak_bytes,
    record_outputs,
    saved_bytes,
    saved_tensors,
    seconds_side_by_side,
    stored_by_layer,
    strength_by_source,
)

FLOAT = 4  # bytes of a 32-bit number


def test_parameters():
    module = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Linear(5, 2))
    assert count_parameters(module) == (3 * 5 * 9 + 5) + (5 + 5) + (5 * 2 + 2)
    module[0].requires_grad_(False)
    assert count_parameters(module, trainable_only=True) == (5 + 5) + (5 * 2 + 2)


@pytest.mark.parametrize(
    "module, input_shape, macs",
    [
        # Each output number is a sum over the input channels and the kernel.
        (nn.Conv2d(3, 5, 3, padding=1), (1, 3, 8, 6), 5 * 8 * 6 * 3 * 9),
        (nn.Conv2d(3, 5, 3), (2, 3, 8, 6), 2 * 5 * 6 * 4 * 3 * 9),
        (nn.Conv2d(3, 4, 7, stride=2, padding=3), (1, 3, 8, 8), 4 * 4 * 4 * 3 * 49),
        (nn.Conv2d(4, 6, 1, groups=2), (1, 4, 5, 5), 6 * 5 * 5 * 2),
        (nn.Linear(7, 3), (4, 7), 4 * 7 * 3),
        (nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), nn.AvgPool2d(2)), (1, 2, 4, 4), 0),
        (nn.Conv2d(1, 1, 1).double(), (1, 1, 2, 2), 4),
    ],
    ids=["padded", "valid, two images", "strided", "grouped", "linear", "uncounted", "float64"],
)
def test_macs(module, input_shape, macs):
    assert count_macs(module, input_shape) == macs


def test_counting_macs_leaves_the_network_alone():
    network = PlainNet(1, channels=2).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    count_macs(network, (1, 1, 8, 8))
    architecture(network, (1, 1, 8, 8))
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_architecture():
    network = PlainNet(2, channels=4, in_channels=3, num_classes=7)
    pixels = 8 * 6
    layer = 8 + 4 * 4 * 9
    assert architecture(network, (2, 3, 8, 6)) == [
        Row("stem", (2, 4, 8, 6), 3 * 4 * 9, 2 * pixels * 3 * 4 * 9),
        Row("layers.0", (2, 4, 8, 6), layer, 2 * pixels * 4 * 4 * 9),
        Row("layers.1", (2, 4, 8, 6), layer, 2 * pixels * 4 * 4 * 9),
        Row("norm", (2, 4, 8, 6), 8, 0),
        Row("classifier", (2, 7), 4 * 7 + 7, 2 * 4 * 7),
    ]
    rows = architecture(network, (2, 3, 8, 6), ["layers.1.conv", "stem"])
    assert [row.name for row in rows] == ["stem", "layers.1.conv"]  # in the order they run


def test_gradient_norms():
    network = PlainNet(2, channels=2)
    with pytest.raises(ValueError, match=r"module must have gradients: .*backward\(\).*\(stem\)"):
        gradient_norms(network)
    network(torch.randn(4, 1, 8, 8)).sum().backward()
    norms = gradient_norms(network)
    assert list(norms) == ["stem", "layers.0.conv", "layers.1.conv", "classifier"]
    weight = network.layers[1].conv.weight
    assert norms["layers.1.conv"] == pytest.approx(weight.grad.square().sum().sqrt().item())


def test_bytes_saved_by_single_operations():
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    maps = x.numel() * FLOAT
    assert saved_bytes(nn.ReLU(), x) == maps  # its output
    assert saved_bytes(nn.Conv2d(3, 5, 3), x) == maps  # its input
    assert saved_bytes(nn.BatchNorm2d(3), x) == maps + 2 * 3 * FLOAT  # input, mean, deviation
    # A ReLU's output is the convolution's input: one tensor, counted once.
    assert saved_bytes(nn.Sequential(nn.ReLU(), nn.Conv2d(3, 5, 3)), x) == maps
    assert saved_bytes(nn.Flatten(), x) == 0
    with torch.no_grad():
        assert saved_bytes(nn.ReLU(), x) == 0


def test_bytes_saved_by_a_dense_block():
    """Two basic layers, k_0 = 3 and k = 2: counted by hand, tensor by tensor."""
    x = torch.randn(2, 3, 4, 4)
    channels = [
        3,  # layer 1: [x_0], norm1's input
        3,  # relu(norm1([x_0])), conv1's input
        5,  # layer 2: [x_0, x_1], norm1's input
        5,  # relu(norm1([x_0, x_1])), conv1's input
    ]
    moments = 2 * 3 + 2 * 5  # a mean and a deviation for each map that is normalised
    expected = (sum(channels) * 2 * 4 * 4 + moments) * FLOAT
    block = DenseBlock(2, 3, 2, bottleneck=False)
    assert saved_bytes(block, x) == expected


def test_measuring_saved_bytes_moves_no_running_statistics():
    block = DenseBlock(1, 3, 2)
    before = {key: value.clone() for key, value in block.state_dict().items()}
    saved_bytes(block.train(), torch.randn(2, 3, 4, 4))
    assert all(torch.equal(value, before[key]) for key, value in block.state_dict().items())


def test_saved_tensors_leave_out_what_exists_anyway():
    conv, x = nn.Conv2d(3, 5, 3), torch.randn(2, 3, 4, 4, requires_grad=True)
    with saved_tensors() as everything:
        conv(x)
    with saved_tensors(conv) as activations:
        conv(x)
    assert sorted(tuple(tensor.shape) for tensor in everything) == [(2, 3, 4, 4), (5, 3, 3, 3)]
    assert [tuple(tensor.shape) for tensor in activations] == [(2, 3, 4, 4)]
    assert torch.equal(activations[0], x)


def layer_maps(network: nn.Module) -> dict[str, torch.Tensor]:
    """x_0 to x_L of a plain or residual network, in training mode."""
    modules = {"x0": network.stem} | {f"x{n}": m for n, m in enumerate(network.layers, start=1)}
    _, maps = record_outputs(modules, lambda: network(torch.randn(2, 1, 8, 8)))
    return maps


def block_maps(num_layers: int) -> dict[str, torch.Tensor]:
    """x_0 to x_L of a dense block."""
    block = DenseBlock(num_layers, 3, 2)
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    modules = {f"x{n}": layer for n, layer in enumerate(block.layers, start=1)}
    _, maps = record_outputs(modules, lambda: block(x))
    return {"x0": x} | maps


@pytest.mark.parametrize("num_layers", [1, 2, 5])
def test_connections(num_layers):
    chain = [(f"x{n - 1}", f"x{n}") for n in range(1, num_layers + 1)]
    assert connections(layer_maps(PlainNet(num_layers, channels=2))) == chain
    assert connections(layer_maps(ResidualNet(num_layers, channels=2))) == chain
    dense = connections(block_maps(num_layers))
    assert dense == [(f"x{m}", f"x{n}") for n in range(1, num_layers + 1) for m in range(n)]
    assert len(dense) == num_layers * (num_layers + 1) // 2


def test_connections_of_a_tensor_without_a_graph():
    x = torch.zeros(1)
    with pytest.raises(ValueError, match=r"maps\['x0'\] must be part of an autograd graph"):
        connections({"x0": x})


def test_record_outputs():
    network = PlainNet(1, channels=2)
    x = torch.randn(2, 1, 8, 8)
    logits, outputs = record_outputs({"head": network.classifier}, lambda: network(x))
    assert outputs == {"head": logits}
    with pytest.raises(ZeroDivisionError):
        record_outputs({"head": network.classifier}, lambda: 1 / 0)
    assert not network.classifier._forward_hooks, "hooks are taken off, after an error too"


def test_strength_by_source_by_hand():
    weight = torch.tensor([[1.0, -3, 2, 0, 0, -1], [-1, 1, 4, 2, 2, 1]])
    expected = torch.tensor([1.5, 3.0, 1.0])  # of 2, 1 and 3 maps
    torch.testing.assert_close(strength_by_source(weight, (2, 1, 3)), expected)
    kernel = torch.stack([weight, 3 * weight], dim=-1).reshape(2, 6, 1, 2)
    torch.testing.assert_close(strength_by_source(kernel, (2, 1, 3)), 2 * expected)
    gamma = torch.tensor([1.0, -3, 0.5, 1, 1, 1])
    expected = torch.tensor([(1 + 3 * 2) / 2, 1.5, 1.0])
    torch.testing.assert_close(strength_by_source(weight, (2, 1, 3), gamma), expected)


def test_widths_that_do_not_add_up():
    with pytest.raises(
        ValueError, match=r"widths must add up to the layer's 6 inputs, got \[2, 3\]"
    ):
        strength_by_source(torch.zeros(2, 6), (2, 3))


@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("gamma", [False, True])
def test_connection_strengths_find_the_one_source_that_was_scaled(bottleneck, gamma):
    """Set every weight to 1, then make one connection of each kind stand out."""
    network = DenseNet(2, (3, 2), 0.5, 5, bottleneck=bottleneck)
    for part in network.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.ones_(part.weight)
    with torch.no_grad():
        network.blocks[0].layers[2].conv1.weight[:, 5:7] = -4  # x_1 for layer 3
        network.transitions[0].conv.weight[:, 9:11] = 6  # x_3 for the transition
        network.blocks[1].layers[0].norm1.weight[:] = -3  # x_0 for layer 1, in BN alone
        network.classifier.weight[:, :5] = 0  # x_0 for the classifier
    first, second = connection_strengths(network, gamma)
    nan = torch.nan
    expected = torch.tensor([[1, 1, 1, 1], [nan, 1, 4, 1], [nan, nan, 1, 1], [nan, nan, nan, 6]])
    torch.testing.assert_close(first, expected, equal_nan=True)
    one = 3 if gamma else 1
    expected = torch.tensor([[one, 1, 0], [nan, 1, 1], [nan, nan, 1]])
    torch.testing.assert_close(second, expected, equal_nan=True)


def test_connection_strengths_leave_the_network_alone():
    """Negative weights stay so, and no graph holds the network."""
    network = DenseNet(2, (2, 1), in_channels=1)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.constant_(norm.weight, -2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for gamma in (False, True):
        assert all(not matrix.requires_grad for matrix in connection_strengths(network, gamma))
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)


def other_classifier(classifier: nn.Module) -> DenseNet:
    network = DenseNet(2, (2, 1))
    network.classifier = classifier
    return network


@pytest.mark.parametrize(
    "network, message",
    [
        (None, "network must be a DenseNet, got a NoneType"),
        (PlainNet(1), "network must be a DenseNet, got a PlainNet"),
        (DenseNet(2, (2, 1)).frozen(), "network must be a DenseNet, got a FrozenDenseNet"),
        (other_classifier(nn.Identity()), "network must be .* a linear classifier, got one with a"),
        (other_classifier(nn.Linear(3, 2)), r"network must be .* read \[14, 3\]"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_connection_strengths_of_something_else(network, message):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        connection_strengths(network)
    assert "\n" not in str(caught.value)


def test_connection_strengths_without_gamma():
    network = DenseNet(2, (2, 1))
    network.norm = nn.BatchNorm2d(network.norm.num_features, affine=False)
    assert len(connection_strengths(network)) == 2
    with pytest.raises(ValueError, match=r"^gamma must be False where a norm has no γ, got True"):
        connection_strengths(network, gamma=True)


def test_seconds_side_by_side_runs_in_turn_and_leaves_out_the_first_round(monkeypatch):
    """By a clock that stands still but for what the functions add to it."""
    clock, calls = [100.0], []

    def make(name: str, times: list[float]):
        def run() -> None:
            calls.append(name)
            clock[0] += times.pop(0)

        return run

    monkeypatch.setattr(measure.timing, "perf_counter", lambda: clock[0])
    runs = {"a": make("a", [50.0, 1.0, 2.0, 3.0]), "b": make("b", [60.0, 4.0, 5.0, 6.0])}
    seconds = seconds_side_by_side(runs, rounds=3)
    assert calls == list("abababab")
    assert seconds == {"a": [1, 2, 3], "b": [4, 5, 6]}
    with pytest.raises(ValueError, match="rounds must be an integer of at least 1, got 0"):
        seconds_side_by_side(runs, rounds=0)


def test_stored_by_layer_names_the_module_that_stored_it():
    network = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.ReLU())
    x = torch.randn(4, 2, 5, 5)
    maps = 4 * 5 * 5 * FLOAT
    assert stored_by_layer(network, x) == [
        Stored("0", "Conv2d", 2 * maps),  # its input
        Stored("1", "BatchNorm2d", 3 * maps + 2 * 3 * FLOAT),  # its input, mean, deviation
        Stored("2", "ReLU", 3 * maps),  # its output
    ]
    assert int(network[1].num_batches_tracked) == 0, "a copy ran"


def test_the_parts_of_a_densenet_add_up_to_it():
    network = DenseNet(4, (3, 2), num_init_features=6)
    rows = architecture(network, (1, 3, 8, 8))
    names = ["stem", "blocks.0", "transitions.0", "blocks.1", "norm", "classifier"]
    assert [row.name for row in rows] == names
    assert sum(row.parameters for row in rows) == count_parameters(network)
    assert sum(row.macs for row in rows) == count_macs(network, (1, 3, 8, 8))


def test_stored_by_layer_adds_up():
    network = DenseNet(4, (3, 2), num_init_features=6)
    images = torch.randn(2, 3, 8, 8)
    rows = stored_by_layer(network, images)
    assert sum(row.bytes for row in rows) == saved_bytes(network, images)
    assert len({row.layer for row in rows}) == len(rows)


@pytest.mark.parametrize("efficient", ["checkpoint", "shared-recompute"])
def test_stored_by_layer_does_not_tell_of_modules_that_are_gone_round(efficient):
    """Watched, they run, and store what the plain network stores."""
    network = DenseNet(4, (3, 2), num_init_features=6, efficient=efficient)
    message = r"module must .* stores [\d,]+ bytes alone and [\d,]+ while its parts are watched$"
    with pytest.raises(ValueError, match=message):
        stored_by_layer(network, torch.randn(2, 3, 8, 8))


def test_peak_bytes_is_the_most_that_was_held_at_once():
    numbers = 10_000

    def run():
        one = torch.ones(numbers)
        both = [one, torch.ones(2 * numbers)]
        del both, one
        torch.ones(numbers)

    assert peak_bytes(run) == 3 * numbers * FLOAT
    assert peak_bytes(lambda: None) == 0

    def step():
        """A convolution that keeps its size: x is there before, y and its gradient are made."""
        conv.zero_grad(set_to_none=True)
        conv(x).sum().backward()

    conv, x = nn.Conv2d(1, 1, 1, bias=False), torch.ones(1, 1, 100, 100)
    step()
    assert numbers * FLOAT <= peak_bytes(step) < 2.2 * numbers * FLOAT


def trace_of(*events: dict):
    """Stand in for the profiler's export: a trace with these events."""
    return lambda self, path: Path(path).write_text(json.dumps({"traceEvents": events}))


def memory(time: float, size: int) -> dict:
    return {"name": "[memory]", "ts": time, "args": {"Bytes": size}}


def test_peak_bytes_follows_the_time_and_says_when_nothing_is_recorded(monkeypatch):
    first, other = [memory(1.25, 4), memory(1.5, -4)], {"name": "aten::ones", "ts": 2}
    late = [memory(9, -30), memory(8, 20), memory(3, 10), memory(4, -10), memory(7, 25)]
    monkeypatch.setattr(
        torch.profiler.profile, "export_chrome_trace", trace_of(*late, other, *first)
    )
    assert peak_bytes(lambda: None) == 45
    monkeypatch.setattr(torch.profiler.profile, "export_chrome_trace", trace_of(other))
    with pytest.raises(RuntimeError, match="the profiler's trace must tell of memory"):
        peak_bytes(lambda: torch.ones(8))


def test_growth_exponent():
    sizes = (10, 20, 50)
    assert growth_exponent(sizes, [3 * size**1.5 for size in sizes]) == pytest.approx(1.5)
    assert growth_exponent(sizes, [7, 7, 7]) == pytest.approx(0)


@pytest.mark.parametrize(
    ("sizes", "amounts"),
    [
        ("ab", [1, 2]),
        (3, 4),
        ([1], [1]),
        ([2, 2], [1, 3]),
        ([1, 2], [1]),
        ([1, 2], [0, 3]),
        ([], []),
    ],
)
def test_growth_exponent_needs_two_positive_sizes(sizes, amounts):
    with pytest.raises(ValueError, match="sizes and amounts must be equally many positive numbers"):
        growth_exponent(sizes, amounts)
