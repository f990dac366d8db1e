"""The whole DenseNet: the paper's sizes, torchvision's numbers, and any valid configuration."""

import copy
import inspect
import math
import pickle
import re

import numpy
import pytest
import torch
import torch.fx
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from networks import on_meta, outcome
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.feature_extraction import create_feature_extractor

from densenet_from_scratch import (
    DenseNet,
    densenet121,
    densenet161,
    densenet169,
    densenet201,
    densenet264,
    densenet_cifar,
    from_torchvision,
    to_torchvision,
)
from densenet_from_scratch.dense import DenseBlock
from densenet_from_scratch.efficient import BLOCK_TYPES
from densenet_from_scratch.measure import architecture, count_macs, count_parameters
from densenet_from_scratch.stem import ImageNetStem, SmallStem


def layers_counted(network: nn.Module) -> int:
    """Convolutions and linear layers. Each lies on the longest path from image to logits."""
    return sum(isinstance(part, nn.Conv2d | nn.Linear) for part in network.modules())


# --- The paper's networks ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, parameters, gmacs, depth",
    [
        (densenet121, 7_978_856, 2.834, 121),
        (densenet161, 28_681_000, 7.728, 161),
        (densenet169, 14_149_480, 3.360, 169),
        (densenet201, 20_013_928, 4.291, 201),
        # Table 1's row of DenseNet-264 adds up to 265 layers: 1 + 2 (6 + 12 + 64 + 48) + 3 + 1.
        (densenet264, 33_337_704, 5.752, 265),
    ],
)
def test_imagenet_networks(make, parameters, gmacs, depth):
    network = on_meta(make)
    assert count_parameters(network) == parameters
    assert round(count_macs(network, (1, 3, 224, 224)) / 1e9, 3) == gmacs
    assert network.depth == layers_counted(network) == depth


@pytest.mark.parametrize(
    "depth, growth_rate, variant, parameters",
    [
        (40, 12, "plain", 1_019_722),
        (100, 12, "plain", 6_979_642),
        (100, 24, "plain", 27_249_082),
        (100, 12, "BC", 769_162),
        (250, 24, "BC", 15_324_406),
        (190, 40, "BC", 25_624_430),
    ],
)
def test_cifar_networks(depth, growth_rate, variant, parameters):
    options = {"plain": {"bottleneck": False, "compression": 1}, "BC": {}}[variant]
    network = on_meta(densenet_cifar, depth, growth_rate, **options)
    assert count_parameters(network) == parameters
    assert network.depth == layers_counted(network) == depth


@pytest.mark.parametrize(
    "bottleneck, compression, k_0",
    [(False, 1, 16), (True, 1, 16), (False, 0.5, 16), (True, 0.5, 24)],
    ids=["plain", "B", "C", "BC"],
)
def test_only_bc_starts_with_two_k_maps(bottleneck, compression, k_0):
    network = on_meta(densenet_cifar, 22, 12, bottleneck, compression)
    assert network.stem.conv.out_channels == k_0
    assert network.depth == layers_counted(network) == 22


def test_table_1_sizes_of_the_feature_maps():
    names = ["stem", "transitions.0", "transitions.1", "transitions.2", "blocks.3", "classifier"]
    rows = architecture(on_meta(densenet121), (1, 3, 224, 224), names)
    sizes = [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7), (1024, 7, 7), (1000,)]
    assert [row.output_shape[1:] for row in rows] == sizes


def test_the_default_network_is_bc_100_12():
    default, named = on_meta(DenseNet), on_meta(densenet_cifar, 100, 12)
    shapes = [{k: v.shape for k, v in n.state_dict().items()} for n in (default, named)]
    assert shapes[0] == shapes[1]


def test_call_sites_of_the_memory_efficient_implementation_work():
    parameters = inspect.signature(DenseNet).parameters
    assert [(name, p.default) for name, p in list(parameters.items())[:9]] == [
        ("growth_rate", 12),
        ("block_config", (16, 16, 16)),
        ("compression", 0.5),
        ("num_init_features", 24),
        ("bn_size", 4),
        ("drop_rate", 0),
        ("num_classes", 10),
        ("small_inputs", True),
        ("efficient", False),
    ]


@pytest.mark.parametrize("efficient", BLOCK_TYPES)
def test_named_networks_pass_their_options_on(efficient):
    imagenet = on_meta(densenet121, 7, efficient=efficient)
    cifar = on_meta(
        densenet_cifar, 10, 4, drop_rate=0.2, num_classes=7, efficient=efficient, in_channels=1
    )
    for network in (imagenet, cifar):
        assert network.classifier.out_features == 7
        assert {type(block) for block in network.blocks} == {BLOCK_TYPES[efficient]}
    assert cifar.stem.conv.in_channels == 1
    assert cifar.blocks[0].layers[0].drop_rate == 0.2


@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
def test_initialisation(mode):
    network = DenseNet(growth_rate=16, block_config=(3, 3), num_init_features=64, init_mode=mode)
    for name, part in network.named_modules():
        if isinstance(part, nn.Conv2d):
            channels = part.in_channels if mode == "fan_in" else part.out_channels
            fan = channels * math.prod(part.kernel_size)
            deviation = part.weight.std(correction=0).item()
            tolerance = 5 / math.sqrt(2 * part.weight.numel())  # five standard errors
            assert deviation == pytest.approx(math.sqrt(2 / fan), rel=tolerance), name
        elif isinstance(part, nn.BatchNorm2d):
            assert (part.weight == 1).all() and (part.bias == 0).all()
    assert (network.classifier.bias == 0).all()


def test_where_dropout_works():
    once = densenet_cifar(16, 4, drop_rate=0.3)
    everywhere = densenet_cifar(16, 4, drop_rate=0.3, drop_after="convolution")
    assert [part.drop_rate for part in once.transitions] == [0.0] * 2
    assert [part.drop_rate for part in everywhere.transitions] == [0.3] * 2
    for network, rate in ((once, 0.0), (everywhere, 0.3)):
        layers = [layer for block in network.blocks for layer in block.layers]
        assert {(layer.drop_rate, layer.bottleneck_drop_rate) for layer in layers} == {(0.3, rate)}


# --- The same as torchvision ---------------------------------------------------------------------


def assert_same(ours: nn.Module, theirs: nn.Module, images: Tensor) -> None:
    """Two networks with equal weights do the same in float64, in training and then evaluation."""
    for training in (True, False):
        for network in (ours, theirs):
            network.double().zero_grad()
            network.train(training)
        expected = outcome(theirs, images.double(), from_torchvision)
        actual = outcome(ours, images.double())
        # Their head sums the pixels in another order: equal up to rounding.
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["densenet121", "densenet169"])
@pytest.mark.slow
def test_torchvisions_weights_give_torchvisions_results(name):
    theirs = getattr(torchvision.models, name)(num_classes=10)
    ours = {"densenet121": densenet121, "densenet169": densenet169}[name](10)
    ours.load_state_dict(from_torchvision(theirs.state_dict()))
    assert_same(ours, theirs, torch.randn(2, 3, 64, 64))


def torchvision_cifar(drop_rate: float) -> nn.Module:
    """Torchvision's class as DenseNet-BC (22, 4), with the stem for small images."""
    network = torchvision.models.DenseNet(
        growth_rate=4,
        block_config=(3, 3, 3),
        num_init_features=8,
        drop_rate=drop_rate,
        num_classes=10,
    )
    network.features.conv0 = nn.Conv2d(3, 8, kernel_size=3, padding=1, bias=False)
    for name in ("norm0", "relu0", "pool0"):
        setattr(network.features, name, nn.Identity())
    return network


@pytest.mark.parametrize("drop_rate", [0.0, 0.2])
def test_our_weights_give_the_same_results_in_torchvision(drop_rate):
    ours, theirs = densenet_cifar(22, 4, drop_rate=drop_rate), torchvision_cifar(drop_rate)
    theirs.load_state_dict(to_torchvision(ours.state_dict()))
    assert_same(ours, theirs, torch.randn(3, 3, 16, 12))


def test_the_downloadable_files_spelling_of_the_names():
    """Torchvision's files say ``denselayer1.norm.1`` where its class says ``denselayer1.norm1``."""
    weights = on_meta(torchvision.models.densenet121).state_dict()
    old = {re.sub(r"(layer\d+\.(?:norm|conv))(\d)", r"\1.\2", k): v for k, v in weights.items()}
    assert "features.denseblock4.denselayer16.norm.2.running_mean" in old
    assert from_torchvision(old) == from_torchvision(weights)


@pytest.mark.parametrize("rename", [from_torchvision, to_torchvision])
def test_weights_have_names(rename):
    with pytest.raises(ValueError, match=r"state_dict must map names to tensors, got the key 1$"):
        rename({1: torch.zeros(1)})


def test_features_that_were_taken_away_are_missed_in_one_line():
    network = DenseNet(2, (1, 1))
    network.features = None
    with pytest.raises(ValueError, match=r"^features must be a module, .* got None$"):
        network(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match="features is replaced"):
        network.frozen()


@pytest.mark.parametrize("rename", [from_torchvision, to_torchvision])
@pytest.mark.parametrize("wrong", [None, "weights.pth", ["weights"], nn.Linear(1, 1)])
def test_weights_are_a_mapping(rename, wrong):
    with pytest.raises(
        ValueError, match=rf"state_dict must map names .* got a {type(wrong).__name__}"
    ):
        rename(wrong)


def test_renaming_shares_the_tensors():
    network = on_meta(densenet_cifar, 10, 2)
    weights = network.state_dict()
    assert to_torchvision(weights)["features.norm5.weight"] is weights["norm.weight"]


# --- Any valid configuration ---------------------------------------------------------------------

configurations = st.fixed_dictionaries(
    {
        "growth_rate": st.integers(1, 5),
        "block_config": st.lists(st.integers(1, 3), min_size=1, max_size=3),
        "compression": st.sampled_from([0.25, 0.5, 0.8, 1]),
        "num_init_features": st.integers(16, 20),  # so that no transition compresses to nothing
        "bn_size": st.integers(1, 3),
        "drop_rate": st.sampled_from([0, 0.3]),
        "num_classes": st.integers(2, 4),
        "small_inputs": st.booleans(),
        "efficient": st.sampled_from(list(BLOCK_TYPES)),
        "bottleneck": st.booleans(),
        "in_channels": st.integers(1, 3),
    }
)


@given(configuration=configurations, extra=st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_any_configuration_gives_logits_and_gradients(configuration, extra):
    network = DenseNet(**configuration)
    height, width = (network.minimum_size + more for more in extra)
    images = torch.randn(2, configuration["in_channels"], height, width)
    logits = network(images)
    assert logits.shape == (2, configuration["num_classes"])
    F.cross_entropy(logits, torch.tensor([0, 1])).backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())
    assert network.depth == layers_counted(network)

    channels = configuration["num_init_features"]
    for block, num_layers in zip(network.blocks, configuration["block_config"], strict=True):
        assert block.layers[0].norm1.num_features == channels
        assert block.out_channels == channels + num_layers * configuration["growth_rate"]
        channels = math.floor(block.out_channels * configuration["compression"])
    assert len(network.transitions) == len(network.blocks) - 1
    assert network.norm.num_features == network.classifier.in_features == block.out_channels


@given(configuration=configurations)
@pytest.mark.slow
def test_weights_load_whichever_way_the_blocks_run(configuration):
    """Each way beside plain modules, with gradients, where blocks run in ways of their own."""
    network = DenseNet(**configuration | {"efficient": False}).double().eval()
    images = torch.randn(2, configuration["in_channels"], 29, 29, dtype=torch.float64)
    expected = network(images)
    gradients = torch.autograd.grad(expected.square().sum(), list(network.parameters()))
    for efficient in BLOCK_TYPES:
        other = DenseNet(**configuration | {"efficient": efficient}).double().eval()
        other.load_state_dict(network.state_dict())
        logits = other(images)
        torch.testing.assert_close(logits, expected)
        found = torch.autograd.grad(logits.square().sum(), list(other.parameters()))
        torch.testing.assert_close(found, gradients)
        with torch.no_grad():
            torch.testing.assert_close(other(images), expected)


@given(configuration=configurations)
def test_renaming_there_and_back_changes_nothing(configuration):
    weights = on_meta(DenseNet, **configuration).state_dict()
    renamed = to_torchvision(weights)
    assert all(name.startswith(("features.", "classifier.")) for name in renamed)
    assert from_torchvision(renamed) == weights


# --- A good citizen ------------------------------------------------------------------------------

every_way = pytest.mark.parametrize("efficient", BLOCK_TYPES)


def tiny(efficient: bool | str = False, **options) -> DenseNet:
    torch.manual_seed(0)
    sizes = {"growth_rate": 3, "block_config": (2, 2), "num_init_features": 4, "num_classes": 3}
    return DenseNet(**sizes | options, efficient=efficient)


@every_way
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("small_inputs", [True, False])
def test_symbolic_tracing_sees_the_modules(efficient, training, small_inputs):
    network = tiny(efficient, small_inputs=small_inputs).train(training)
    traced = torch.fx.symbolic_trace(network)
    x = torch.randn(4, 3, 9, 9)
    torch.testing.assert_close(copy.deepcopy(traced)(x), copy.deepcopy(network)(x))
    called = {node.target for node in traced.graph.nodes if node.op == "call_module"}
    assert {"stem.conv", "blocks.1.layers.1.conv2", "transitions.0.norm", "classifier"} <= called


@every_way
def test_torchvisions_feature_extractor(efficient):
    network = tiny(efficient).eval()
    names = ["stem.conv", "blocks.0.layers.1.conv1", "transitions.0.conv", "norm"]
    extract = create_feature_extractor(network, names)
    x = torch.randn(2, 3, 8, 8)
    found = extract(x)
    torch.testing.assert_close(found["norm"], network.features(x))
    torch.testing.assert_close(found["stem.conv"], network.stem(x))
    assert found["transitions.0.conv"].shape == (2, 5, 8, 8)


@every_way
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Conv2d(1, 4, 5, padding=2),
        lambda: nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 4, 1)),
        lambda: nn.Sequential(nn.Identity(), nn.Conv2d(1, 4, 3, padding=1)),
        lambda: SmallStem(1, 4),
        lambda: ImageNetStem(1, 4),
    ],
)
def test_another_stem_with_another_number_of_channels(efficient, training, make):
    network = tiny(efficient).train(training)
    network.stem = make()
    x = torch.randn(2, 1, 16, 16)
    assert network(x).shape == (2, 3)
    with torch.no_grad():
        torch.testing.assert_close(network.eval().frozen()(x), network(x))
    with pytest.raises((ValueError, RuntimeError), match=r"channels|shape"):
        network(torch.randn(2, 3, 16, 16))


def test_the_first_convolution_may_be_replaced_in_the_stem():
    """One channel in place of three, as one does with weights for colour images."""
    network = tiny(True, small_inputs=False)
    network.stem.conv = nn.Conv2d(1, 4, 7, stride=2, padding=3, bias=False)
    assert network(torch.randn(2, 1, 16, 16)).shape == (2, 3)
    with pytest.raises(ValueError, match=r"x must have shape \(N, 1, H, W\)"):
        network(torch.randn(2, 3, 16, 16))


def test_a_hook_may_change_the_image_before_the_stem():
    network = tiny()
    network.stem.register_forward_pre_hook(lambda stem, inputs: inputs[0].expand(-1, 3, -1, -1))
    assert network(torch.randn(2, 1, 8, 8)).shape == (2, 3)


class Doubled(DenseNet):
    """Overrides ``features`` and uses the one it overrides."""

    def features(self, x: Tensor) -> Tensor:
        return 2 * super().features(x)


@every_way
@pytest.mark.parametrize("training", [True, False])
def test_overridden_features_are_used(efficient, training):
    plain = tiny().train(training)
    torch.manual_seed(0)
    sizes = {"growth_rate": 3, "block_config": (2, 2), "num_init_features": 4, "num_classes": 3}
    doubled = Doubled(**sizes, efficient=efficient).train(training)
    assert doubled.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(4, 3, 8, 8)
    features = plain.features(x)
    expected = plain.classifier(F.relu(2 * features).mean(dim=(2, 3)))
    torch.testing.assert_close(doubled(x), expected)
    assert doubled.why_not_as_built() == "features is overridden"


@every_way
@pytest.mark.parametrize("target", ["features", "norm", "last block", "last layer"])
def test_a_class_activation_map(efficient, target):
    """Grad-CAM: the maps and their gradients at a target, from a hook and from its tensor."""
    maps = []
    for network in (tiny(), tiny(efficient)):
        network.eval()
        part = {
            "features": network.features,
            "norm": network.norm,
            "last block": network.blocks[-1],
            "last layer": network.blocks[-1].layers[-1],
        }[target]
        kept = []
        part.register_forward_hook(lambda module, inputs, output, kept=kept: kept.append(output))
        torch.manual_seed(1)
        logits = network(torch.randn(1, 3, 8, 8))
        assert len(kept) == 1
        [gradient] = torch.autograd.grad(logits[0, 1], kept)
        weights = gradient.mean(dim=(2, 3), keepdim=True)
        maps.append(F.relu((weights * kept[0]).sum(dim=1)))
    torch.testing.assert_close(maps[1], maps[0])


def test_a_backward_hook_on_the_features_meets_no_in_place_operation():
    network = tiny()
    seen = []
    network.features.register_full_backward_hook(lambda *args: seen.append(args[2][0].shape))
    network(torch.randn(2, 3, 8, 8)).sum().backward()
    assert seen == [(2, 11, 4, 4)]


def test_features_set_the_mode_of_what_they_run():
    network = densenet_cifar(10, 4)
    parts = [network.stem, *network.blocks.modules(), *network.transitions.modules(), network.norm]
    assert network.features.eval() is network.features
    assert not any(part.training for part in parts)
    assert network.training and network.classifier.training
    network.features.train()
    assert all(part.training for part in parts)


@pytest.mark.parametrize(
    "build",
    [DenseNet, densenet_cifar, densenet121, densenet161, densenet169, densenet201, densenet264],
)
def test_a_network_is_plain_unless_it_is_asked_for_more(build):
    assert inspect.signature(build).parameters["efficient"].default is False


def test_features_leave_no_trace_in_weights_copies_and_files(tmp_path):
    network = tiny()
    assert not [name for name in network.state_dict() if name.startswith("features")]
    x = torch.randn(2, 3, 8, 8)
    torch.save(network, tmp_path / "network.pt")
    loaded = torch.load(tmp_path / "network.pt", weights_only=False)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network)), loaded):
        twin.stem.conv.weight.data.mul_(2)
        assert not torch.allclose(twin.features(x), network.features(x))
        torch.testing.assert_close(twin.norm.weight, network.norm.weight)


def test_numpys_integers_are_integers():
    network = tiny(growth_rate=numpy.int64(3), num_classes=numpy.int64(5))
    assert network(torch.randn(2, 3, 8, 8)).shape == (2, 5)
    assert densenet_cifar(numpy.int64(10), numpy.int32(4)).depth == 10


def test_smaller_images_where_a_transition_keeps_the_size():
    network = tiny(block_config=(1, 1, 1))
    assert network.minimum_size == 4
    network.transitions[1] = nn.Conv2d(network.transitions[1].norm.num_features, 3, 1)
    network.blocks[2] = DenseBlock(1, 3, 3)
    network.norm, network.classifier = nn.BatchNorm2d(6), nn.Linear(6, 3)
    assert network.minimum_size == 2
    assert network(torch.randn(2, 3, 2, 2)).shape == (2, 3)
