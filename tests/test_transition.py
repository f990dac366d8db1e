"""Transitions: how many maps leave, how large they are, and what is in them."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torchvision.models.densenet import _Transition

from densenet_from_scratch import Transition


@given(
    in_channels=st.integers(1, 40),
    sixteenths=st.integers(1, 16),
    size=st.tuples(st.integers(1, 3), st.integers(2, 9), st.integers(2, 9)),
)
def test_compression_and_pooling_round_down(in_channels, sixteenths, size):
    leaving = in_channels * sixteenths // 16  # ⌊θm⌋ in whole numbers
    if leaving == 0:
        with pytest.raises(ValueError, match="compression must leave at least one"):
            Transition(in_channels, sixteenths / 16)
        return
    transition = Transition(in_channels, sixteenths / 16).eval()
    assert transition.out_channels == leaving
    count, height, width = size
    y = transition(torch.randn(count, in_channels, height, width))
    assert y.shape == (count, leaving, height // 2, width // 2)


@pytest.mark.parametrize("theta, m, leaving", [(0.7, 90, 63), (0.29, 100, 29), (3 / 7, 7, 3)])
def test_rounding_down_is_that_of_theta_as_it_is_written(theta, m, leaving):
    """In floating point, 0.7 · 90 is a little less than 63."""
    assert Transition(m, theta).out_channels == leaving


def test_hundredths_round_down_as_whole_numbers_do():
    with torch.device("meta"):
        for m in range(100, 500, 30):
            for hundredths in range(1, 101):
                assert Transition(m, hundredths / 100).out_channels == m * hundredths // 100


def test_it_is_bn_relu_conv1x1_and_the_mean_of_each_square():
    transition = Transition(6, 0.5)
    torch.nn.init.normal_(transition.norm.bias)
    x = torch.randn(2, 6, 4, 4)
    weight, bias = transition.norm.weight, transition.norm.bias
    maps = F.relu(F.batch_norm(x, None, None, weight, bias, training=True))
    maps = F.conv2d(maps, transition.conv.weight)
    squares = [maps[:, :, i::2, j::2] for i, j in product((0, 1), repeat=2)]
    torch.testing.assert_close(transition(x), torch.stack(squares).mean(0))


@pytest.mark.parametrize("training", [True, False])
def test_it_equals_torchvisions(training):
    ours, theirs = Transition(7, 3 / 7).double(), _Transition(7, 3).double()
    theirs.load_state_dict(ours.state_dict())
    results = []
    for module in (ours.train(training), theirs.train(training)):
        torch.manual_seed(0)
        x = torch.randn(3, 7, 5, 6, dtype=torch.float64, requires_grad=True)
        y = module(x)
        y.square().sum().backward()
        gradients = [p.grad for p in module.parameters()]
        results.append([y, x.grad, *gradients, *module.buffers()])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_dropout_between_convolution_and_pooling():
    transition, x = Transition(6, drop_rate=0.5), torch.randn(8, 6, 32, 32)
    torch.nn.init.constant_(transition.norm.bias, 9.0)  # so that the ReLU makes no zeros
    dropped = (transition(x) == 0).float().mean().item()  # all four pixels of a window
    assert dropped == pytest.approx(0.5**4, abs=0.01)
    plain = Transition(6)
    plain.load_state_dict(transition.state_dict())
    torch.testing.assert_close(transition.eval()(x), plain.eval()(x), rtol=0, atol=0)
