"""Bad input: every public function answers in one line that names argument, value and range."""

import math

import pytest
import torch

from densenet_from_scratch import (
    BottleneckLayer,
    DenseBlock,
    DenseLayer,
    DenseNet,
    OSAModule,
    PlainLayer,
    PlainNet,
    ResidualLayer,
    ResidualNet,
    Transition,
    VoVNet,
    densenet121,
    densenet161,
    densenet169,
    densenet201,
    densenet264,
    densenet_cifar,
    load_data,
    vovnet27_slim,
    vovnet39,
    vovnet57,
)
from densenet_from_scratch.arguments import check_device
from densenet_from_scratch.course.plots import connectivity, image_grid
from densenet_from_scratch.data import make_loader, stratified_split, stratified_subset
from densenet_from_scratch.measure import architecture, count_macs, peak_bytes, strength_by_source
from densenet_from_scratch.osa import ESE, ConvLayer
from densenet_from_scratch.plain import initialise
from densenet_from_scratch.residual import PreActivationBlock, ResNet
from densenet_from_scratch.stem import ImageNetStem, SmallStem
from densenet_from_scratch.train import Recipe, evaluate, train

DIGITS = load_data()


def assert_refused(function, arguments, name, allowed, value):
    """``function`` raises a ValueError of one line with its three parts."""
    with pytest.raises(ValueError) as caught:
        function(**arguments)
    message = str(caught.value)
    assert message.startswith(f"{name} must ")
    assert allowed in message
    assert message.endswith(f"got {value!r}")
    assert "\n" not in message


# What is called, its arguments that count something, and the others that it needs.
COUNTS = [
    (PlainLayer, {"channels": 1}, {}),
    (ResidualLayer, {"channels": 1}, {}),
    (PlainNet, {"num_layers": 1, "channels": 1, "in_channels": 1, "num_classes": 1}, {}),
    (ResidualNet, {"num_layers": 1, "channels": 1, "in_channels": 1, "num_classes": 1}, {}),
    (PreActivationBlock, {"in_channels": 1, "out_channels": 1, "stride": 1}, {}),
    (ResNet, {"width": 1, "num_classes": 1, "in_channels": 1}, {"depth": 8}),
    (DenseLayer, {"in_channels": 1, "growth_rate": 1}, {}),
    (BottleneckLayer, {"in_channels": 1, "growth_rate": 1, "bn_size": 1}, {}),
    (DenseBlock, {"num_layers": 1, "in_channels": 1, "growth_rate": 1, "bn_size": 1}, {}),
    (Transition, {"in_channels": 1}, {"compression": 1.0}),
    (
        DenseNet,
        {"growth_rate": 1, "num_init_features": 1, "bn_size": 1, "num_classes": 1},
        {"block_config": (1,)},
    ),
    (DenseNet, {"in_channels": 1}, {"block_config": (1,)}),
    (
        DenseBlock,
        {"bn_size": 1},
        {"num_layers": 1, "in_channels": 1, "growth_rate": 1, "bottleneck": False},
    ),
    *[(stem, {"in_channels": 1, "out_channels": 1}, {}) for stem in (SmallStem, ImageNetStem)],
    (densenet_cifar, {"growth_rate": 1, "num_classes": 1, "in_channels": 1}, {"depth": 10}),
    *[
        (make, {"num_classes": 1}, {})
        for make in (densenet121, densenet161, densenet169, densenet201, densenet264)
    ],
    (ConvLayer, {"in_channels": 1, "out_channels": 1, "kernel_size": 1, "stride": 1}, {}),
    (ESE, {"channels": 1}, {}),
    (OSAModule, {"in_channels": 1, "channels": 1, "out_channels": 1, "num_layers": 1}, {}),
    (VoVNet, {"num_layers": 1, "num_classes": 1, "in_channels": 1}, {}),
    *[(make, {"num_classes": 1}, {}) for make in (vovnet27_slim, vovnet39, vovnet57)],
    (Recipe, {"epochs": 1, "batch_size": 1}, {}),
    (make_loader, {"batch_size": 1}, {"dataset": DIGITS.test}),
    (image_grid, {"per_class": 1}, {"data": DIGITS}),
    (connectivity, {"num_layers": 1}, {"kind": "dense"}),
]


@pytest.mark.parametrize(
    "function, others, name",
    [
        pytest.param(function, others | counts, name, id=f"{function.__name__}-{name}")
        for function, counts, others in COUNTS
        for name in counts
    ],
)
def test_counts_are_positive_integers(function, others, name):
    with torch.device("meta"):  # the smallest allowed values work; no weights are drawn
        function(**others)
    for bad in (0, -1, True, 1.5, "3", None):
        arguments = others | {name: bad}
        assert_refused(function, arguments, name, "an integer of at least 1", bad)


SMALL_NET = {"block_config": (1, 1), "growth_rate": 4}
OUTSIDE = (-0.1, 1.5, math.nan, True, "0.5", None)

# What is called, the fraction, which of the ends is allowed, and what else it needs.
FRACTIONS = [
    (DenseLayer, "drop_rate", "[0, 1)", {"in_channels": 1, "growth_rate": 1}),
    (BottleneckLayer, "drop_rate", "[0, 1)", {"in_channels": 1, "growth_rate": 1}),
    (DenseBlock, "drop_rate", "[0, 1)", {"num_layers": 1, "in_channels": 1, "growth_rate": 1}),
    (DenseNet, "drop_rate", "[0, 1)", SMALL_NET),
    (densenet_cifar, "drop_rate", "[0, 1)", {"depth": 10, "growth_rate": 1}),
    (Transition, "drop_rate", "[0, 1)", {"in_channels": 4}),
    (Transition, "compression", "(0, 1]", {"in_channels": 4}),
    (DenseNet, "compression", "(0, 1]", SMALL_NET),
    (DenseNet, "compression", "(0, 1]", {"block_config": (1,)}),
    (Recipe, "momentum", "[0, 1)", {"nesterov": False}),
    (stratified_split, "fraction", "(0, 1)", {"dataset": DIGITS.test}),
    (stratified_subset, "fraction", "(0, 1]", {"dataset": DIGITS.test}),
]


@pytest.mark.parametrize("function, name, interval, others", FRACTIONS)
def test_fractions_stay_in_their_interval(function, name, interval, others):
    inside = [0.5] + [0] * interval.startswith("[") + [1] * interval.endswith("]")
    outside = OUTSIDE + (0,) * interval.startswith("(") + (1,) * interval.endswith(")")
    for good in inside:
        function(**others, **{name: good})
    for bad in outside:
        assert_refused(function, others | {name: bad}, name, f"a number in {interval}", bad)


# What is called, with what, and the three parts of the answer.
OTHERS = [
    (load_data, {"name": "cifar"}, "name", "'digits', 'fashion-mnist', 'cifar10'", "cifar"),
    (load_data, {"augment": True}, "augment", "False for 'digits'", True),
    (stratified_split, {"dataset": DIGITS.test, "fraction": 0.01}, "fraction", "10 images", 0.01),
    (stratified_split, {"dataset": DIGITS.test, "fraction": 0.99}, "fraction", "10 images", 0.99),
    (make_loader, {"dataset": DIGITS.test, "num_workers": -1}, "num_workers", "at least 0", -1),
    (make_loader, {"dataset": []}, "dataset", "at least one image", 0),
    (make_loader, {"dataset": DIGITS.test, "shuffle": "x"}, "shuffle", "False, True", "x"),
    (image_grid, {"data": DIGITS, "per_class": 999}, "per_class", "at most 126 for 'digits'", 999),
    (count_macs, {"module": PlainNet(1), "input_shape": (1, 0, 8, 8)}, "input_shape[1]", "1", 0),
    (
        architecture,
        {"network": PlainNet(1), "input_shape": (1, 1, 8, 8), "names": ["layers.1"]},
        "names",
        "modules of the network",
        "layers.1",
    ),
    (
        architecture,
        {"network": PlainNet(1), "input_shape": (1, 1, -8, 8)},
        "input_shape[2]",
        "at least 1",
        -8,
    ),
    (count_macs, {"module": PlainNet(1), "input_shape": 32}, "input_shape", "list sizes", 32),
    (
        architecture,
        {"network": PlainNet(1), "input_shape": (1, 1, 8, 8), "names": "norm"},
        "names",
        "a list of names",
        "norm",
    ),
    (
        strength_by_source,
        {"weight": torch.zeros(2, 3), "widths": (3, 0)},
        "widths[1]",
        "an integer of at least 1",
        0,
    ),
    (
        strength_by_source,
        {"weight": torch.zeros(3), "widths": (3,)},
        "weight",
        "a tensor (out, in)",
        (3,),
    ),
    (
        strength_by_source,
        {"weight": torch.zeros(2, 3), "widths": (3,), "gamma": torch.ones(1)},
        "gamma",
        "a tensor (3,)",
        (1,),
    ),
    (ResNet, {"depth": 2}, "depth", "at least 8", 2),
    (ResNet, {"depth": 110.0}, "depth", "an integer", 110.0),
    (ResNet, {"depth": 21}, "depth", "6n + 2 (nearest: 20 and 26)", 21),
    (Transition, {"in_channels": 3, "compression": 0.3}, "compression", "one of 3 maps", 0.3),
    (DenseNet, {"block_config": ()}, "block_config", "at least one block", ()),
    (DenseNet, {"block_config": 3}, "block_config", "at least one block", 3),
    (DenseNet, {"block_config": (2, 0)}, "block_config[1]", "at least 1", 0),
    (DenseNet, {"efficient": "magic"}, "efficient", "False, True, 'checkpoint'", "magic"),
    (DenseNet, {"efficient": 1}, "efficient", "False, True, 'checkpoint'", 1),
    *[
        (make, others | {"drop_after": "block"}, "drop_after", "'layer', 'convolution'", "block")
        for make, others in (
            (BottleneckLayer, {"in_channels": 1, "growth_rate": 1}),
            (DenseBlock, {"num_layers": 1, "in_channels": 1, "growth_rate": 1}),
            (
                DenseBlock,
                {"num_layers": 1, "in_channels": 1, "growth_rate": 1, "bottleneck": False},
            ),
            (DenseNet, {}),
            (densenet_cifar, {"depth": 10, "growth_rate": 1}),
        )
    ],
    (DenseNet, {"small_inputs": "False"}, "small_inputs", "True, False", "False"),
    (DenseNet, {"bottleneck": "False"}, "bottleneck", "True, False", "False"),
    (
        densenet_cifar,
        {"depth": 10, "growth_rate": 1, "bottleneck": "no"},
        "bottleneck",
        "True, False",
        "no",
    ),
    *[(VoVNet, {name: "no"}, name, "True, False", "no") for name in ("small_inputs", "ese")],
    *[
        (
            OSAModule,
            {"in_channels": 1, "channels": 1, "out_channels": 1, name: "no"},
            name,
            "True, False",
            "no",
        )
        for name in ("identity", "ese")
    ],
    (DenseNet, {"init_mode": "fan"}, "init_mode", "'fan_in', 'fan_out'", "fan"),
    (initialise, {"module": PlainNet(1), "mode": "in"}, "mode", "'fan_in', 'fan_out'", "in"),
    (densenet_cifar, {"depth": 4, "growth_rate": 12}, "depth", "at least 10", 4),
    (densenet_cifar, {"depth": 40.0, "growth_rate": 12}, "depth", "an integer", 40.0),
    (densenet_cifar, {"depth": 41, "growth_rate": 12}, "depth", "6n + 4", 41),
    (
        densenet_cifar,
        {"depth": 41, "growth_rate": 12, "bottleneck": False, "compression": 1},
        "depth",
        "3n + 4 with no bottleneck (nearest: 40 and 43)",
        41,
    ),
    (Recipe, {"learning_rate": 0}, "learning_rate", "above 0", 0),
    (Recipe, {"learning_rate": math.inf}, "learning_rate", "finite", math.inf),
    (Recipe, {"learning_rate": "0.1"}, "learning_rate", "number", "0.1"),
    (Recipe, {"weight_decay": -1e-4}, "weight_decay", "at least 0", -1e-4),
    (Recipe, {"weight_decay": None}, "weight_decay", "number", None),
    (Recipe, {"momentum": 0}, "nesterov", "False where momentum is 0", True),
    (Recipe, {"schedule": "cosine"}, "schedule", "'one-cycle', 'step', 'constant'", "cosine"),
    (Recipe, {"seed": -1}, "seed", "at least 0", -1),
    (connectivity, {"kind": "sparse", "num_layers": 3}, "kind", "'plain', 'residual'", "sparse"),
    *[
        (
            connectivity,
            {"kind": "dense", "num_layers": 3, "highlight": layer},
            "highlight",
            "from 1 to 3",
            layer,
        )
        for layer in (0, 4, 1.5)
    ],
    (check_device, {"device": "gpu"}, "device", "'auto', 'cpu' or 'cuda'", "gpu"),
    (check_device, {"device": None}, "device", "'auto', 'cpu' or 'cuda'", None),
]


@pytest.mark.parametrize("function, arguments, name, allowed, value", OTHERS)
def test_other_bad_arguments(function, arguments, name, allowed, value):
    assert_refused(function, arguments, name, allowed, value)


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert check_device("auto") == torch.device("cpu")
    run = {"train_set": DIGITS.train, "eval_set": DIGITS.test, "device": "cuda"}
    calls = [
        (train, {"model": PlainNet(1), **run}),
        (evaluate, {"model": PlainNet(1), "data": DIGITS.test, "device": "cuda"}),
        (peak_bytes, {"run": lambda: None, "device": "cuda"}),
    ]
    for function, arguments in calls:
        assert_refused(function, arguments, "device", "PyTorch finds 0 CUDA GPUs", "cuda")


def test_the_second_gpu_of_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert check_device("cuda") == torch.device("cuda")
    assert_refused(check_device, {"device": "cuda:1"}, "device", "finds 1 CUDA GPUs", "cuda:1")


NETWORKS = [
    PlainNet(1, channels=2, in_channels=3),
    ResidualNet(1, channels=2, in_channels=3),
    ResNet(8, width=2),
    DenseNet(growth_rate=2, block_config=(1,)),
    DenseNet(growth_rate=2, block_config=(1,), small_inputs=False),
    VoVNet((2,), (2,), (2,), (1,), small_inputs=True),
]


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: type(network).__name__)
@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 4, 8, 8), (3, 8, 8), (2, 3, 8)])
def test_images_of_the_wrong_shape(network, shape):
    images = {"x": torch.zeros(shape)}
    assert_refused(network.forward, images, "x", "shape (N, 3, H, W)", shape)


def test_images_that_are_no_tensor():
    with pytest.raises(ValueError, match=r"x must be a tensor \(N, 1, H, W\), got ndarray"):
        PlainNet(1)(torch.zeros(2, 1, 8, 8).numpy())


@pytest.mark.parametrize("small_inputs", [True, False])
@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_smallest_image(small_inputs, blocks):
    """The smallest height and width leave one pixel after every transition, and no less will do."""
    network = DenseNet(
        growth_rate=2, block_config=(1,) * blocks, num_init_features=4, small_inputs=small_inputs
    )
    smallest = {True: {1: 1, 2: 2, 4: 8}, False: {1: 1, 2: 5, 4: 29}}[small_inputs][blocks]
    assert network.minimum_size == smallest
    for mode in (True, False):
        assert network.train(mode)(torch.zeros(2, 3, smallest, smallest)).shape == (2, 10)
    if smallest > 1:
        shape = (2, 3, smallest, smallest - 1)
        images = {"x": torch.zeros(shape)}
        assert_refused(network.forward, images, "x", f"at least {smallest} pixels", shape)


@pytest.mark.parametrize("device", ["meta", "xla", "mps"])
def test_a_device_that_is_not_here_is_refused(device, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(ValueError, match=rf"^device must exist: PyTorch finds no '{device}' here$"):
        check_device(device)
