"""One-shot aggregation and VoVNet: the paper's sizes, timm's numbers, any valid configuration."""

import re

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import on_meta, outcome
from torch import Tensor, nn
from torch.nn import functional as F

from densenet_from_scratch import OSAModule, VoVNet, vovnet27_slim, vovnet39, vovnet57
from densenet_from_scratch.measure import architecture, connections, count_macs, count_parameters
from densenet_from_scratch.osa import ESE, ConvLayer

# --- The paper's networks ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, parameters, gmacs, depth",
    [
        (vovnet27_slim, 3_525_736, 2.177, 27),
        (vovnet39, 22_600_296, 7.072, 39),
        (vovnet57, 36_640_296, 8.930, 57),
    ],
)
def test_imagenet_networks(make, parameters, gmacs, depth):
    network = on_meta(make)
    assert count_parameters(network) == parameters
    assert round(count_macs(network, (1, 3, 224, 224)) / 1e9, 3) == gmacs
    # The names count convolutions: 3 + 6 a module, without the classifier.
    assert sum(isinstance(part, nn.Conv2d) for part in network.modules()) == depth


def test_table_1_sizes_of_the_feature_maps():
    rows = architecture(on_meta(vovnet39), (1, 3, 224, 224))
    names = ["stem", "stages.0", "stages.1", "stages.2", "stages.3", "classifier"]
    assert [row.name for row in rows] == names
    sizes = [(128, 56, 56), (256, 56, 56), (512, 28, 28), (768, 14, 14), (1024, 7, 7), (1000,)]
    assert [row.output_shape[1:] for row in rows] == sizes


# --- The same as timm ----------------------------------------------------------------------------


def from_timm(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of timm's VovNet to ours."""
    rules = (
        (r"\.bn\.", ".norm."),
        (r"^stages\.(\d+)\.blocks\.(\d+)\.", r"stages.\1.\2."),
        (r"\.conv_mid\.", ".layers."),
        (r"\.conv_concat\.", ".aggregate."),
        (r"\.attn\.fc\.", ".ese.conv."),
        (r"^head\.fc\.", "classifier."),
    )
    renamed = {}
    for key, value in weights.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, make, options",
    [
        ("vovnet39a", vovnet39, {}),
        ("vovnet57a", vovnet57, {}),
        ("ese_vovnet39b", vovnet39, {"identity": True, "ese": True}),
    ],
)
def test_timms_weights_give_timms_results(name, make, options):
    """In float64, in training and then in evaluation, on maps whose halves round."""
    theirs = timm.create_model(name, pretrained=False, num_classes=5).double()
    ours = make(5, **options).double()
    ours.load_state_dict(from_timm(theirs.state_dict()))
    images = torch.randn(2, 3, 45, 61, dtype=torch.float64)
    for training in (True, False):
        for network in (ours, theirs):
            network.train(training).zero_grad()
        expected = outcome(theirs, images, from_timm)
        torch.testing.assert_close(outcome(ours, images), expected, rtol=1e-9, atol=1e-11)


def test_the_slim_network_is_timms_class_at_the_papers_widths():
    """timm has no vovnet27_slim by name, but its class takes the table's numbers."""
    sizes = {
        "stage_conv_chs": [64, 80, 96, 112],
        "stage_out_chs": [128, 256, 384, 512],
        "block_per_stage": [1, 1, 1, 1],
    }
    with torch.device("meta"):
        theirs = timm.create_model("vovnet39a", pretrained=False, **sizes)
    ours = on_meta(vovnet27_slim)
    expected = {key: value.shape for key, value in from_timm(theirs.state_dict()).items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == expected


# --- The module ----------------------------------------------------------------------------------


def test_each_layer_reads_the_one_before_and_the_aggregation_all():
    module = OSAModule(3, 4, 6, num_layers=3)
    maps = {"x0": torch.randn(2, 3, 5, 5, requires_grad=True)}
    for index, layer in enumerate(module.layers):
        maps[f"x{index + 1}"] = layer(maps[f"x{index}"])
    maps["out"] = module.aggregate(torch.cat(list(maps.values()), dim=1))
    chain = [("x0", "x1"), ("x1", "x2"), ("x2", "x3")]
    assert connections(maps) == chain + [(f"x{index}", "out") for index in range(4)]
    torch.testing.assert_close(maps["out"], module.train()(maps["x0"]))


@given(
    sizes=st.tuples(*[st.integers(1, 6)] * 3),
    num_layers=st.integers(1, 4),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    ese=st.booleans(),
)
def test_any_module_keeps_the_size_of_its_maps(sizes, num_layers, height, width, ese):
    in_channels, channels, out_channels = sizes
    same = in_channels == out_channels
    module = OSAModule(in_channels, channels, out_channels, num_layers, identity=same, ese=ese)
    x = torch.randn(3, in_channels, height, width)
    assert module(x).shape == (3, out_channels, height, width)
    assert count_parameters(module) == (
        9 * channels * (in_channels + (num_layers - 1) * channels)
        + out_channels * (in_channels + num_layers * channels)
        + 2 * (num_layers * channels + out_channels)
        + ese * out_channels * (out_channels + 1)
    )


def test_identity_adds_the_input():
    plain, residual = OSAModule(5, 3, 5).eval(), OSAModule(5, 3, 5, identity=True).eval()
    residual.load_state_dict(plain.state_dict())
    x = torch.randn(2, 5, 4, 4)
    torch.testing.assert_close(residual(x), plain(x) + x)


def test_ese_weighs_each_map_by_one_gate():
    gate = ESE(4)
    x = torch.rand(2, 4, 3, 3) + 1
    ratio = gate(x) / x
    expected = F.hardsigmoid(
        F.linear(x.mean(dim=(2, 3)), gate.conv.weight.flatten(1), gate.conv.bias)
    )
    torch.testing.assert_close(ratio, expected[:, :, None, None].expand_as(x))
    assert 0 <= ratio.min() and ratio.max() <= 1


def test_version_2_puts_identity_and_ese_where_the_authors_do():
    network = on_meta(vovnet57, identity=True, ese=True)
    for stage, modules in zip(network.stages, (1, 1, 4, 3), strict=True):
        assert [module.identity for module in stage] == [False] + [True] * (modules - 1)
        assert [module.ese is not None for module in stage] == [False] * (modules - 1) + [True]


# --- Any valid configuration ---------------------------------------------------------------------


@given(
    stages=st.lists(st.tuples(*[st.integers(1, 3)] * 3), min_size=1, max_size=3),
    stem=st.lists(st.integers(1, 4), min_size=2, max_size=3),
    num_layers=st.integers(1, 3),
    small_inputs=st.booleans(),
    version_2=st.booleans(),
    in_channels=st.integers(1, 3),
    extra=st.tuples(st.integers(0, 3), st.integers(0, 3)),
)
def test_any_configuration_gives_logits_and_gradients(
    stages, stem, num_layers, small_inputs, version_2, in_channels, extra
):
    channels, out_channels, block_config = zip(*stages, strict=True)
    network = VoVNet(
        stem,
        channels,
        out_channels,
        block_config,
        num_layers,
        num_classes=4,
        small_inputs=small_inputs,
        identity=version_2,
        ese=version_2,
        in_channels=in_channels,
    )
    height, width = (network.minimum_size + more for more in extra)
    logits = network(torch.randn(2, in_channels, height, width))
    assert logits.shape == (2, 4)
    F.cross_entropy(logits, torch.tensor([0, 1])).backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize("small_inputs", [True, False])
@pytest.mark.parametrize("stages", [1, 2, 4])
def test_smallest_image(small_inputs, stages):
    """The smallest height and width leave one pixel in the last stage, and no less will do."""
    sizes = {"stem_channels": (2, 2), "num_layers": 1, "small_inputs": small_inputs}
    network = VoVNet(
        channels=(2,) * stages, out_channels=(2,) * stages, block_config=(1,) * stages, **sizes
    )
    smallest = {True: {1: 1, 2: 2, 4: 8}, False: {1: 1, 2: 5, 4: 29}}[small_inputs][stages]
    assert network.minimum_size == smallest
    image = torch.zeros(2, 3, smallest, smallest)
    assert network.features(image).shape == (2, 2, 1, 1)
    if smallest > 1:
        message = rf"x must be at least {smallest} pixels high and wide, got \(2, 3, {smallest}, "
        with pytest.raises(ValueError, match=message):
            network(torch.zeros(2, 3, smallest, smallest - 1))


def test_the_layers_convolve_then_normalise_then_activate():
    layer = ConvLayer(2, 3)
    x = torch.randn(4, 2, 5, 5)
    torch.testing.assert_close(layer(x), F.relu(layer.norm(layer.conv(x))))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"stem_channels": (8,)}, "stem_channels must list at least 2 numbers, got (8,)"),
        ({"stem_channels": 8}, "stem_channels must list at least 2 numbers, got 8"),
        ({"stem_channels": (8, 0)}, "stem_channels[1] must be an integer of at least 1, got 0"),
        ({"block_config": ()}, "block_config must list at least one number, got ()"),
        ({"block_config": (1, 1, 2, 0)}, "block_config[3] must be an integer of at least 1, got 0"),
        ({"channels": (8, 8)}, "channels must have a number for each of 4 stages, got (8, 8)"),
        ({"out_channels": (8,) * 3}, "out_channels must have a number for each of 4 stages"),
        ({"num_layers": 0}, "num_layers must be an integer of at least 1, got 0"),
    ],
)
def test_bad_configurations(options, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        VoVNet(**options)


def test_identity_needs_equal_widths():
    message = "identity must be False where 4 maps enter and 6 leave, got True"
    with pytest.raises(ValueError, match=message):
        OSAModule(4, 3, 6, identity=True)
