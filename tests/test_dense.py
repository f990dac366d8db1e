"""Dense layers and blocks: what each layer reads, computes and adds."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import bn_relu
from torch.nn import functional as F

from densenet_from_scratch import BottleneckLayer, DenseBlock, DenseLayer
from densenet_from_scratch.dense import DROP_AFTER


def test_basic_layer_is_bn_relu_conv3x3():
    layer = DenseLayer(5, 3)
    torch.nn.init.normal_(layer.norm1.bias)
    x = torch.randn(2, 5, 4, 6)
    expected = F.conv2d(bn_relu(layer.norm1, x), layer.conv1.weight, padding=1)
    torch.testing.assert_close(layer(x), expected)
    assert layer.conv1.weight.shape == (3, 5, 3, 3)


@pytest.mark.parametrize("bn_size", [4, 2])
def test_bottleneck_layer_is_bn_relu_conv1x1_bn_relu_conv3x3(bn_size):
    layer = BottleneckLayer(5, 3, bn_size)
    for norm in (layer.norm1, layer.norm2):
        torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 5, 4, 6)
    narrow = F.conv2d(bn_relu(layer.norm1, x), layer.conv1.weight)
    assert narrow.shape[1] == bn_size * 3
    expected = F.conv2d(bn_relu(layer.norm2, narrow), layer.conv2.weight, padding=1)
    torch.testing.assert_close(layer(x), expected)


@given(
    num_layers=st.integers(1, 4),
    in_channels=st.integers(1, 5),
    growth_rate=st.integers(1, 4),
    bottleneck=st.booleans(),
    size=st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(1, 4)),
)
def test_a_block_keeps_its_input_and_adds_k_maps_a_layer(
    num_layers, in_channels, growth_rate, bottleneck, size
):
    """Layer l reads the first k_0 + k(l - 1) maps of the block's output and makes the next k."""
    block = DenseBlock(num_layers, in_channels, growth_rate, bottleneck, bn_size=2).eval()
    count, height, width = size
    x = torch.randn(count, in_channels, height, width)
    with torch.no_grad():
        y = block(x)
        assert y.shape == (count, in_channels + num_layers * growth_rate, height, width)
        assert block.out_channels == y.shape[1]
        assert torch.equal(y[:, :in_channels], x)
        for number, layer in enumerate(block.layers):
            reads = in_channels + growth_rate * number
            assert layer.norm1.num_features == reads
            new = y[:, reads : reads + growth_rate]
            torch.testing.assert_close(new, layer(y[:, :reads]))


@pytest.mark.parametrize("layer_type", [DenseLayer, BottleneckLayer])
def test_dropout_zeroes_a_share_of_the_new_maps_in_training(layer_type):
    torch.manual_seed(0)
    layer, x = layer_type(5, 8, drop_rate=0.25), torch.randn(8, 5, 16, 16)
    dropped = layer(x)
    layer.drop_rate = 0.0
    kept = layer(x) / 0.75  # so that the mean stays
    zero = dropped == 0
    assert zero.float().mean().item() == pytest.approx(0.25, abs=0.02)
    torch.testing.assert_close(dropped, kept.masked_fill(zero, 0.0))
    layer.drop_rate = 0.25
    assert not (layer.eval()(x) == 0).any()


def test_dropout_reaches_every_layer_of_a_block():
    for bottleneck in (True, False):
        block = DenseBlock(3, 4, 2, bottleneck, drop_rate=0.3)
        assert [layer.drop_rate for layer in block.layers] == [0.3] * 3


def test_dropout_after_every_convolution():
    """The paper's place for it (section 4.2): behind the bottleneck's convolution, too."""
    once, twice = (BottleneckLayer(5, 8, drop_rate=0.5, drop_after=w) for w in DROP_AFTER)
    x = torch.randn(8, 5, 16, 16)
    for layer, share in ((once, 0.0), (twice, 0.5)):
        for norm in (layer.norm1, layer.norm2):
            torch.nn.init.constant_(norm.bias, 9.0)  # so that no ReLU makes zeros of its own
        zeros = (layer.through_conv1(x) == 0).float().mean().item()
        assert zeros == pytest.approx(share, abs=0.01)
        assert (layer(x) == 0).float().mean().item() == pytest.approx(0.5, abs=0.01)
        layer.eval()
        assert (layer(x) != 0).all()
    twice.load_state_dict(once.state_dict())
    torch.testing.assert_close(twice(x), once(x), rtol=0, atol=0)


def test_what_is_built_by_default():
    """Bottlenecks of 4k maps, without dropout; convolutions without bias, since BN follows."""
    block = DenseBlock(2, 5, 3)
    assert [type(layer) for layer in block.layers] == [BottleneckLayer] * 2
    for layer in (*block.layers, BottleneckLayer(5, 3)):
        assert (layer.conv1.out_channels, layer.conv2.out_channels) == (12, 3)
        assert (layer.drop_rate, layer.bottleneck_drop_rate) == (0, 0)
    basic = DenseBlock(2, 5, 3, bottleneck=False)
    assert [type(layer) for layer in basic.layers] == [DenseLayer] * 2
    for name, _ in (*block.named_parameters(), *basic.named_parameters()):
        assert not (name.endswith("bias") and "conv" in name)
