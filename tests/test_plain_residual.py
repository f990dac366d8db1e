"""Plain and residual networks: each computes its equation."""

import pytest
import torch
import torch.fx
from networks import bn_relu
from torch import nn
from torch.nn import functional as F

from densenet_from_scratch import PlainLayer, PlainNet, ResidualLayer, ResidualNet, VoVNet
from densenet_from_scratch.measure import architecture, count_parameters
from densenet_from_scratch.residual import PreActivationBlock, ResNet

kinds = pytest.mark.parametrize("net_type", [PlainNet, ResidualNet, ResNet])


def draw_norms(module: nn.Module) -> None:
    """Give every BatchNorm a scale and a shift, so that leaving one out shows."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)


def test_layers_compute_their_equations():
    plain, residual = PlainLayer(4), ResidualLayer(4)
    draw_norms(plain)
    residual.load_state_dict(plain.state_dict())
    x = torch.randn(3, 4, 6, 5)
    branch = F.conv2d(bn_relu(plain.norm, x), plain.conv.weight, padding=1)
    assert branch.shape == x.shape
    torch.testing.assert_close(plain(x), branch)
    torch.testing.assert_close(residual(x), branch + x)


@pytest.mark.parametrize(
    "net_type, layer", [(PlainNet, PlainLayer(3)), (ResidualNet, ResidualLayer(3))]
)
def test_networks_chain_stem_layers_and_head(net_type, layer):
    network = net_type(2, channels=3, in_channels=2, num_classes=5)
    assert [type(part) for part in network.layers] == [type(layer)] * 2
    draw_norms(network)
    images = torch.randn(4, 2, 6, 6)
    x = F.conv2d(images, network.stem.weight, padding=1)
    x = network.layers[1](network.layers[0](x))
    x = bn_relu(network.norm, x).mean((2, 3))
    torch.testing.assert_close(network(images), network.classifier(x))


@pytest.mark.parametrize("num_layers, parameters", [(6, 14_362), (20, 47_066), (50, 117_146)])
def test_parameters(num_layers, parameters):
    """A layer's are its 3×3 convolution, 16·16·9, and a scale and a shift for each map, 2·16."""
    stem, layer, head = 16 * 9, 16 * 16 * 9 + 2 * 16, 2 * 16 + 16 * 10 + 10
    assert stem + num_layers * layer + head == parameters
    for net_type in (PlainNet, ResidualNet):
        assert count_parameters(net_type(num_layers)) == parameters


@kinds
def test_every_parameter_is_used(net_type):
    network = net_type(8, in_channels=3)
    network(torch.randn(2, 3, 8, 8)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in network.parameters())


def test_a_unit_of_the_full_size_network_computes_its_equation():
    same, other = PreActivationBlock(3, 3), PreActivationBlock(3, 5, stride=2)
    for block in (same, other):
        draw_norms(block)
    x = torch.randn(2, 3, 7, 6)
    for block, stride in ((same, 1), (other, 2)):
        activated = bn_relu(block.norm1, x)
        branch = F.conv2d(activated, block.conv1.weight, stride=stride, padding=1)
        branch = F.conv2d(bn_relu(block.norm2, branch), block.conv2.weight, padding=1)
        path = x if stride == 1 else F.conv2d(activated, block.shortcut.weight, stride=2)
        torch.testing.assert_close(block(x), branch + path)
    assert other(x).shape == (2, 5, 4, 3)
    assert same.shortcut is None


# Millions of parameters as He et al. print them (2016, "Deep Residual Learning", table 6).
@pytest.mark.parametrize("depth, millions", [(20, 0.27), (32, 0.46), (44, 0.66), (110, 1.7)])
def test_resnet_has_the_papers_size_and_depth(depth, millions):
    with torch.device("meta"):
        network = ResNet(depth)
    shortcuts = [unit.shortcut for unit in network.units if unit.shortcut is not None]
    assert len(shortcuts) == 2  # their table's networks pad with zeros there
    parameters = count_parameters(network) - sum(map(count_parameters, shortcuts))
    assert round(parameters / 1e6, 1 if millions > 1 else 2) == millions
    layers = [part for part in network.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    assert len(layers) - len(shortcuts) == depth


def test_resnet_halves_the_maps_twice():
    rows = architecture(ResNet(14, width=4, num_classes=7), (2, 3, 9, 8), ["units.1", "units.3"])
    assert [row.output_shape for row in rows] == [(2, 4, 9, 8), (2, 8, 5, 4)]
    assert ResNet(8, width=4, num_classes=7)(torch.randn(2, 3, 9, 8)).shape == (2, 7)


PEERS = {
    "plain": lambda: PlainNet(2, 4),
    "residual": lambda: ResidualNet(2, 4),
    "ResNet": lambda: ResNet(8, width=4, in_channels=1),
    "VoVNet": lambda: VoVNet((4,), (4, 4), (4, 4), (1, 1), 2, 10, small_inputs=True, in_channels=1),
}


@pytest.mark.parametrize("make", PEERS.values(), ids=PEERS)
def test_tracing_and_another_stem(make):
    """With weights for colour images one replaces the stem; a tracer hands on stand-ins."""
    network, x = make().eval(), torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(torch.fx.symbolic_trace(network)(x), network(x))
    with pytest.raises(ValueError, match=r"x must have shape \(N, 1, H, W\), got \(2, 3, 8, 8\)"):
        network(torch.randn(2, 3, 8, 8))
    network.stem = nn.Sequential(nn.Identity(), nn.Conv2d(3, 4, 3, padding=1))
    assert network(torch.randn(2, 3, 8, 8)).shape == (2, 10)
    network.stem = nn.Conv2d(2, 4, 3, padding=1)
    assert network(torch.randn(2, 2, 8, 8)).shape == (2, 10)
    with pytest.raises(ValueError, match=r"x must have shape \(N, 2, H, W\)"):
        network(x)
