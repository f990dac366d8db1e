"""What people do to a network never gives a silently wrong result.

A way that goes round the modules runs only if every part is exactly as built. Here a table of
changes goes through every way of running, in training and in evaluation, in float64, beside the
plain modules with the same change: equal in all that can be observed, or refused in one line.
"""

import copy
import functools
import types
from collections.abc import Callable

import pytest
import torch
from networks import cumulative_average, draw_norms, norms_of
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from densenet_from_scratch import DenseNet, FrozenDenseNet, internals
from densenet_from_scratch.dense import BottleneckLayer, DenseBlock, DenseLayer
from densenet_from_scratch.efficient import BLOCK_TYPES, as_built
from densenet_from_scratch.transition import Transition

WAYS = ["checkpoint", "selective", "shared", "shared-recompute"]
ways = pytest.mark.parametrize("way", WAYS)
SEEN: list[str] = []  # what hooks and own forwards note


def build(way: bool | str = False, **options) -> DenseNet:
    torch.manual_seed(0)
    sizes = {"growth_rate": 3, "block_config": (2, 3), "num_init_features": 4, "num_classes": 3}
    network = DenseNet(**sizes | options, efficient=way).double()
    draw_norms(network)
    return network


def images(count: int = 4, channels: int = 3) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(count, channels, 13, 11, dtype=torch.float64)


def step(network: nn.Module, x: Tensor | None = None) -> dict:
    """A forward and a backward pass; return all that can be observed."""
    SEEN.clear()
    torch.manual_seed(2)
    network.zero_grad()
    x = (images() if x is None else x).clone().requires_grad_()
    logits = network(x)
    F.cross_entropy(logits, torch.arange(len(x)) % 3).backward()
    return {
        "logits": logits.detach().clone(),
        "images": x.grad,
        **{name: p.grad for name, p in network.named_parameters() if p.grad is not None},
        **{name: buffer.clone() for name, buffer in network.named_buffers()},
        "random state": torch.get_rng_state(),
        "seen": torch.tensor([len(SEEN)]),
    }


def assert_equal(actual, expected) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


# --- What people do ------------------------------------------------------------------------------


def layer_of(network: DenseNet) -> BottleneckLayer:
    return network.blocks[1].layers[1]


def pruned_convolutions(network: DenseNet) -> None:
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            prune.l1_unstructured(part, "weight", amount=0.5)


def pruned_for_good(network: DenseNet) -> None:
    """``prune.remove`` deletes a parameter and sets it again: it is the last one then."""
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            prune.random_unstructured(part, "weight", amount=0.3)
            prune.remove(part, "weight")


def masked_structurally(network: DenseNet) -> None:
    prune.ln_structured(layer_of(network).conv1, "weight", amount=0.5, n=2, dim=0)


class Adapter(nn.Module):
    """A convolution with something learned beside it, as libraries for fine-tuning insert it."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv, self.dropout = conv, nn.Dropout(0.5)
        self.down = nn.Conv2d(conv.in_channels, 2, 1, bias=False).double()
        self.up = nn.Conv2d(2, conv.out_channels, 1, bias=False).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.up(self.down(self.dropout(x)))


def an_adapter_with_dropout(network: DenseNet) -> None:
    for block in network.blocks:
        for layer in block.layers:
            layer.conv1 = Adapter(layer.conv1)


def dropout_inside_a_part(network: DenseNet) -> None:
    layer_of(network).conv1 = nn.Sequential(layer_of(network).conv1, nn.Dropout2d(0.5))


def an_adapter_in_the_transition(network: DenseNet) -> None:
    network.transitions[0].conv = Adapter(network.transitions[0].conv)


def own_forward(part: nn.Module) -> None:
    original = part.forward

    def forward(x: Tensor) -> Tensor:
        SEEN.append("forward")
        return 1.5 * original(x)

    part.forward = forward


def hook(part: nn.Module) -> None:
    def double(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        SEEN.append("hook")
        return 2 * output

    part.register_forward_hook(double)


def hook_before(part: nn.Module) -> None:
    def double(module: nn.Module, inputs: tuple) -> Tensor:
        SEEN.append("before")
        return 2 * inputs[0]

    part.register_forward_pre_hook(double)


def hook_on_gradients(part: nn.Module) -> None:
    def double(module: nn.Module, grad_in: tuple, grad_out: tuple) -> tuple:
        SEEN.append("backward")
        return tuple(None if g is None else 2 * g for g in grad_in)

    part.register_full_backward_hook(double)


def hook_before_gradients(part: nn.Module) -> None:
    def double(module: nn.Module, grad_out: tuple) -> tuple:
        SEEN.append("before backward")
        return tuple(2 * g for g in grad_out)

    part.register_full_backward_pre_hook(double)


def compiled_call(part: nn.Module) -> None:
    part.compile(backend="eager")


PLACES: dict[str, Callable[[DenseNet], nn.Module]] = {
    "stem": lambda n: n.stem,
    "stem.conv": lambda n: n.stem.conv,
    "block": lambda n: n.blocks[0],
    "last block": lambda n: n.blocks[1],
    "layer": layer_of,
    "norm1": lambda n: layer_of(n).norm1,
    "conv1": lambda n: layer_of(n).conv1,
    "norm2": lambda n: layer_of(n).norm2,
    "conv2": lambda n: layer_of(n).conv2,
    "transition": lambda n: n.transitions[0],
    "transition.norm": lambda n: n.transitions[0].norm,
    "transition.conv": lambda n: n.transitions[0].conv,
    "norm": lambda n: n.norm,
    "features": lambda n: n.features,
    "classifier": lambda n: n.classifier,
}
INTRUSIONS = [own_forward, hook, hook_before, hook_on_gradients, hook_before_gradients]


def at(place: str, intrusion: Callable[[nn.Module], None]) -> Callable[[DenseNet], None]:
    return lambda network: intrusion(PLACES[place](network))


def statistics_not_tracked(network: DenseNet) -> None:
    for norm in norms_of(network):
        norm.track_running_stats = False


def one_norm_does_not_track(network: DenseNet) -> None:
    layer_of(network).norm2.track_running_stats = False


def norms_without_statistics(network: DenseNet) -> None:
    layer_of(network).norm1 = nn.BatchNorm2d(8, track_running_stats=False).double()
    network.transitions[0].norm = nn.BatchNorm2d(10, track_running_stats=False).double()


def norms_without_affine(network: DenseNet) -> None:
    layer_of(network).norm1 = nn.BatchNorm2d(8, affine=False).double()
    network.norm = nn.BatchNorm2d(14, affine=False).double()


def a_norm_whose_weights_were_taken(network: DenseNet) -> None:
    network.blocks[0].layers[0].norm1.weight = None
    network.blocks[0].layers[0].norm1.bias = None


def frozen_norms(network: DenseNet) -> None:
    """Fine-tuning's habit: statistics stay, in whatever mode the network is."""
    for norm in norms_of(network):
        norm.train = types.MethodType(lambda self, mode=True: self, norm)
        norm.training = False


def one_frozen_norm(network: DenseNet) -> None:
    norm = layer_of(network).norm2
    norm.train = types.MethodType(lambda self, mode=True: self, norm)
    norm.training = False


def one_norm_that_always_learns(network: DenseNet) -> None:
    norm = layer_of(network).norm1
    norm.train = types.MethodType(lambda self, mode=True: self, norm)


def other_momenta(network: DenseNet) -> None:
    for number, norm in enumerate(norms_of(network)):
        norm.momentum = 0.01 * number


def other_eps(network: DenseNet) -> None:
    for number, norm in enumerate(norms_of(network)):
        norm.eps = 10.0 ** -(1 + number % 3)


def group_norms(network: DenseNet) -> None:
    layer_of(network).norm1 = nn.GroupNorm(2, 8).double()
    layer_of(network).norm2 = nn.GroupNorm(3, 12).double()
    network.norm = nn.GroupNorm(7, 14).double()


def instance_norms(network: DenseNet) -> None:
    network.transitions[0].norm = nn.InstanceNorm2d(10, affine=True).double()


def no_norm(network: DenseNet) -> None:
    layer_of(network).norm2 = nn.Identity()


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def norms_of_a_subclass(network: DenseNet) -> None:
    network.blocks[0].layers[1].norm1 = OwnNorm(7).double()
    network.norm = OwnNorm(14).double()


def other_convolution(**changes) -> Callable[[DenseNet], None]:
    def change(network: DenseNet) -> None:
        torch.manual_seed(3)
        settings = {"kernel_size": 3, "padding": 1, "bias": False} | changes
        layer_of(network).conv2 = nn.Conv2d(12, 3, **settings).double()

    return change


def settings_changed_in_place(network: DenseNet) -> None:
    layer_of(network).conv2.dilation, layer_of(network).conv2.padding = (2, 2), (2, 2)
    network.transitions[0].conv.stride = (2, 2)
    network.transitions[0].conv.padding = (1, 1)


def a_bias_set_later(network: DenseNet) -> None:
    layer_of(network).conv1.bias = nn.Parameter(torch.linspace(-1, 1, 12, dtype=torch.float64))
    conv = network.transitions[0].conv
    conv.bias = nn.Parameter(torch.linspace(-1, 1, 5, dtype=torch.float64))


def weight_normalised(network: DenseNet) -> None:
    parametrizations.weight_norm(layer_of(network).conv1)
    parametrizations.weight_norm(network.transitions[0].conv)


def orthogonal(network: DenseNet) -> None:
    parametrizations.orthogonal(network.blocks[0].layers[0].conv1)


def weight_normalised_as_before(network: DenseNet) -> None:
    nn.utils.weight_norm(layer_of(network).conv2)


def a_weight_computed_from_another(network: DenseNet) -> None:
    conv = layer_of(network).conv1
    conv.base = nn.Parameter(conv.weight.detach().clone())
    del conv.weight
    conv.register_forward_pre_hook(lambda m, _: setattr(m, "weight", m.base.tanh()))


def tied_weights(network: DenseNet) -> None:
    network.blocks[1].layers[0].conv2.weight = network.blocks[0].layers[0].conv2.weight


def one_module_twice(network: DenseNet) -> None:
    network.blocks[1].layers[0].conv2 = network.blocks[0].layers[0].conv2


def frozen_weights(network: DenseNet) -> None:
    for name, parameter in network.named_parameters():
        parameter.requires_grad_("norm1" not in name and not name.startswith("blocks.0"))


def gradient_hooks_on_tensors(network: DenseNet) -> None:
    def double(gradient: Tensor) -> Tensor:
        SEEN.append("tensor")
        return 2 * gradient

    for parameter in network.parameters():
        parameter.register_hook(double)


def narrower_bottleneck(network: DenseNet) -> None:
    torch.manual_seed(3)
    network.blocks[1].layers[1] = BottleneckLayer(8, 3, bn_size=2).double()


def a_basic_layer(network: DenseNet) -> None:
    torch.manual_seed(3)
    network.blocks[1].layers[1] = DenseLayer(8, 3).double()


class Residual(BottleneckLayer):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x[:, -3:]


def a_layer_of_a_subclass(network: DenseNet) -> None:
    torch.manual_seed(3)
    network.blocks[1].layers[1] = Residual(8, 3).double()


def one_layer_more(network: DenseNet) -> None:
    torch.manual_seed(3)
    network.blocks[1].layers.append(BottleneckLayer(14, 3).double())
    network.norm, network.classifier = nn.BatchNorm2d(17).double(), nn.Linear(17, 3).double()


def a_wider_last_layer(network: DenseNet) -> None:
    torch.manual_seed(3)
    network.blocks[1].layers[2] = BottleneckLayer(11, 4).double()
    network.norm, network.classifier = nn.BatchNorm2d(15).double(), nn.Linear(15, 3).double()


def attention_behind_a_block(network: DenseNet) -> None:
    torch.manual_seed(3)
    gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(10, 10, 1), nn.Sigmoid()).double()

    class Gated(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.block, self.gate = block, gate

        def forward(self, x: Tensor) -> Tensor:
            y = self.block(x)
            return y * self.gate(y)

    network.blocks[0] = Gated(network.blocks[0])


def another_transition(network: DenseNet) -> None:
    torch.manual_seed(3)
    network.transitions[0] = nn.Conv2d(10, 5, 3, stride=2, padding=1).double()


def a_transition_of_a_subclass(network: DenseNet) -> None:
    class MaxPooling(Transition):
        def forward(self, x: Tensor) -> Tensor:
            return F.max_pool2d(self.conv(F.relu(self.norm(x))), 2)

    torch.manual_seed(3)
    network.transitions[0] = MaxPooling(10).double()


def other_dropout(network: DenseNet) -> None:
    layer_of(network).drop_rate = 0.7
    layer_of(network).bottleneck_drop_rate = 0.4
    network.transitions[0].drop_rate = 0.3


def another_stem(network: DenseNet) -> None:
    torch.manual_seed(3)
    network.stem = nn.Sequential(nn.Conv2d(3, 4, 5, padding=2), nn.GELU()).double()


def another_classifier(network: DenseNet) -> None:
    torch.manual_seed(3)
    network.classifier = nn.Sequential(nn.Dropout(0.4), nn.Linear(14, 3)).double()


def other_features(network: DenseNet) -> None:
    torch.manual_seed(3)
    network.features = nn.Sequential(nn.Conv2d(3, 14, 3), nn.GELU()).double()


def another_norm_first(network: DenseNet) -> None:
    network.blocks[0].layers[0].norm1 = nn.GroupNorm(2, 4).double()


def nothing_but_dropout(network: DenseNet) -> None:
    for block in network.blocks:
        for layer in block.layers:
            layer.drop_rate = 1.0


def weights_of_another_type(network: DenseNet) -> None:
    network.transitions[0].conv.float()
    network.transitions[0].norm.register_forward_hook(lambda m, i, y: y.float())
    network.transitions[0].register_forward_hook(lambda m, i, y: y.double())


CHANGES: dict[str, Callable[[DenseNet], None]] = {
    "nothing": lambda network: None,
    **{
        f"{intrusion.__name__} of {place}": at(place, intrusion)
        for place in PLACES
        for intrusion in INTRUSIONS
    },
    **{f"compiled_call of {p}": at(p, compiled_call) for p in ("layer", "block", "transition")},
    **{
        f"conv2 with {', '.join(changes)}": other_convolution(**changes)
        for changes in (
            {"bias": True},
            {"dilation": 2, "padding": 2},
            {"groups": 3},
            {"kernel_size": 1, "padding": 0},
            {"padding_mode": "reflect"},
            {"padding": "same"},
        )
    },
    **{
        change.__name__: change
        for change in (
            pruned_convolutions,
            pruned_for_good,
            masked_structurally,
            an_adapter_with_dropout,
            dropout_inside_a_part,
            an_adapter_in_the_transition,
            statistics_not_tracked,
            one_norm_does_not_track,
            norms_without_statistics,
            norms_without_affine,
            a_norm_whose_weights_were_taken,
            frozen_norms,
            one_frozen_norm,
            one_norm_that_always_learns,
            cumulative_average,
            other_momenta,
            other_eps,
            group_norms,
            instance_norms,
            no_norm,
            norms_of_a_subclass,
            settings_changed_in_place,
            a_bias_set_later,
            weight_normalised,
            orthogonal,
            weight_normalised_as_before,
            a_weight_computed_from_another,
            tied_weights,
            one_module_twice,
            frozen_weights,
            gradient_hooks_on_tensors,
            narrower_bottleneck,
            a_basic_layer,
            a_layer_of_a_subclass,
            one_layer_more,
            a_wider_last_layer,
            attention_behind_a_block,
            another_transition,
            a_transition_of_a_subclass,
            other_dropout,
            another_stem,
            another_classifier,
            other_features,
            another_norm_first,
            nothing_but_dropout,
            weights_of_another_type,
        )
    },
}
changes = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)


def two_steps(way: bool | str, change: Callable[[DenseNet], None]) -> list[dict]:
    network = build(way, drop_rate=0.2)
    torch.manual_seed(3)
    change(network)
    return [step(network) for _ in range(2)]


def evaluated(way: bool | str, change: Callable[[DenseNet], None]) -> list:
    """With gradients, as in an attack or a saliency map, and without."""
    network = build(way)
    torch.manual_seed(3)
    change(network)
    network.eval()
    with_gradients = step(network)
    with torch.no_grad():
        return [with_gradients, network(images())]


@functools.cache
def of_the_modules(run: Callable, change: Callable[[DenseNet], None]) -> list:
    """What every way must give: a change in the plain network, computed once for all of them."""
    return run(False, change)


@pytest.mark.slow
@ways
@changes
def test_training_gives_what_the_modules_give(way, change):
    assert_equal(two_steps(way, change), of_the_modules(two_steps, change))


@pytest.mark.slow
@ways
@changes
@pytest.mark.slow
def test_evaluation_gives_what_the_modules_give(way, change):
    assert_equal(evaluated(way, change), of_the_modules(evaluated, change))


@changes
def test_a_frozen_copy_gives_what_the_modules_give_or_says_why_not(change):
    network = build()
    change(network)
    network.eval()
    if reason := network.why_not_as_built():
        assert "\n" not in reason
        with pytest.raises(ValueError, match="network must be a DenseNet as built, but ") as caught:
            network.frozen()
        assert reason in str(caught.value)
    else:
        with torch.no_grad():
            assert_equal(network.frozen()(images()), network(images()))


NOT_GONE_ROUND = [
    "nothing",
    "other_momenta",
    "other_eps",
    "cumulative_average",
    "tied_weights",
    "one_module_twice",
    "frozen_weights",
    "gradient_hooks_on_tensors",
    "pruned_for_good",
    "one_layer_more",
    "other_dropout",
    "nothing_but_dropout",
    "another_stem",
    "another_classifier",
    "frozen_norms",
    "one_frozen_norm",
    "one_norm_that_always_learns",
]


@changes
def test_the_reason_is_told_where_a_part_is_gone_round(change):
    """Stem and classifier run as they are; else only what computes the same may be changed."""
    network = build()
    change(network)
    [name] = [name for name, value in CHANGES.items() if value is change]
    harmless = name in NOT_GONE_ROUND or name.endswith(("of stem", "of stem.conv", "of classifier"))
    assert (network.why_not_as_built() is None) == harmless


def test_the_reason_names_the_part():
    network = build()
    prune.l1_unstructured(layer_of(network).conv1, "weight", amount=0.5)
    hook(network.transitions[0].norm)
    found = network.why_not_as_built()
    assert found == "transitions.0.norm has a hook, or was compiled"
    network.transitions[0].norm._forward_hooks.clear()
    assert network.why_not_as_built() == "blocks.1.layers.1.conv1 has a hook, or was compiled"
    prune.remove(layer_of(network).conv1, "weight")
    assert network.why_not_as_built() is None
    network.blocks[0].layers[0].norm1.track_running_stats = False
    expected = "blocks.0.layers.0.norm1 has track_running_stats False, not True"
    assert network.why_not_as_built() == expected


def test_a_class_changed_for_all_is_noticed(monkeypatch):
    plain, other = build(), build(True)
    original = BottleneckLayer.forward
    monkeypatch.setattr(BottleneckLayer, "forward", lambda self, x: 2 * original(self, x))
    assert_equal(step(other), step(plain))
    assert plain.why_not_as_built() == "blocks.0.layers.0 has a forward of its own"


def test_nothing_is_gone_round_needlessly(monkeypatch):
    """As built, shared normalisation runs: else the tests above would prove nothing."""
    from densenet_from_scratch import efficient

    calls, pooled = [], []
    for function, noted in (
        (efficient.SharedNormalisation, calls),
        (efficient.ActivateAndPool, pooled),
    ):
        original = function.apply
        monkeypatch.setattr(
            function, "apply", lambda *a, own=original, noted=noted: noted.append(1) or own(*a)
        )
    network = build(True)
    for change in ("nothing", "other_momenta", "tied_weights", "frozen_weights", "one_layer_more"):
        network = build(True)
        CHANGES[change](network)
        calls.clear()
        pooled.clear()
        step(network)
        assert len(calls) == len(pooled) == len(network.blocks), change
    calls.clear()
    network = build(True)
    hook(layer_of(network))
    step(network)
    assert len(calls) == 1, "the block without the hook"


# --- Ways of calling -----------------------------------------------------------------------------


@ways
def test_hooks_fire_as_often_as_in_the_plain_network(way):
    counts = []
    for network in (build(), build(way)):
        seen: dict[str, int] = {}
        for name, part in network.named_modules():

            def note(*_, name=name, seen=seen):
                seen[name] = seen.get(name, 0) + 1

            part.register_forward_hook(note)
        step(network)
        counts.append(seen)
    assert counts[1] == counts[0]
    assert counts[0]["blocks.1.layers.1.conv2"] == 1


@ways
@pytest.mark.parametrize("kind", ["parameters", "tensors", "computed"])
def test_functional_call_uses_the_weights_it_is_given(way, kind):
    others = build(num_init_features=4)
    with torch.no_grad():
        for value in others.parameters():
            value.add_(torch.rand_like(value))
    weights = dict(others.named_parameters())
    if kind == "tensors":
        weights = {name: w.detach().clone().requires_grad_() for name, w in weights.items()}
    found = []
    for network in (build(), build(way)):
        given = {name: 2 * w for name, w in weights.items()} if kind == "computed" else weights
        buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
        logits = torch.func.functional_call(network, (given, buffers), (images(),))
        gradients = torch.autograd.grad(logits.square().sum(), list(weights.values()))
        found.append((logits, gradients, buffers, dict(network.named_buffers())))
    assert_equal(found[1], found[0])


@ways
def test_weights_changed_before_the_backward_pass_are_noticed(way):
    for network in (build(), build(way)):
        loss = network(images()).sum()
        with torch.no_grad():
            layer_of(network).conv1.weight.mul_(2)
            layer_of(network).norm1.weight.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@ways
def test_settings_changed_before_the_backward_pass_do_not_matter(way):
    """A schedule of drop rates between two passes, another eps, another mode."""
    gradients = []
    for network in (build(drop_rate=0.3), build(way, drop_rate=0.3)):
        torch.manual_seed(0)
        logits = network(images())
        for part in network.modules():
            if hasattr(part, "drop_rate"):
                part.drop_rate = 0.6
            if isinstance(part, nn.BatchNorm2d):
                part.eps, part.momentum = 0.1, None
        network.eval()
        gradients.append(torch.autograd.grad(logits.square().sum(), list(network.parameters())))
        for part in network.modules():
            assert getattr(part, "eps", 0.1) == 0.1 and getattr(part, "drop_rate", 0.6) == 0.6
            assert not part.training
    assert_equal(gradients[1], gradients[0])


@pytest.mark.parametrize("way", [False, *WAYS])
def test_an_optimiser_may_step_within_the_backward_pass(way):
    """As it does to need no room for all gradients at once."""
    network, expected = build(way), build()
    step(expected)
    taken = []

    def take(parameter: nn.Parameter) -> None:
        taken.append(parameter.grad.clone())
        with torch.no_grad():
            parameter.sub_(0.1 * parameter.grad)
        parameter.grad = None

    for parameter in network.parameters():
        parameter.register_post_accumulate_grad_hook(take)
    step(network)
    for parameter, original in zip(network.parameters(), expected.parameters(), strict=True):
        assert_equal(parameter.detach(), (original - 0.1 * original.grad).detach())
    assert len(taken) == len(list(network.parameters()))


@pytest.mark.parametrize("way", [False, *WAYS])
def test_batched_gradients_are_right_or_refused(way):
    plain, network = build(), build(way)
    batch = torch.eye(3, dtype=torch.float64)

    def gradients(model: DenseNet) -> tuple:
        weights = list(model.parameters())
        return torch.autograd.grad(model(images()).sum(0), weights, batch, is_grads_batched=True)

    if way in ("shared", "shared-recompute"):
        with pytest.raises(RuntimeError, match=r"no batched gradients .* efficient="):
            gradients(network)
    else:
        assert_equal(gradients(network), gradients(plain))


class Louder(DenseNet):
    def up_to_last_block(self, x: Tensor) -> Tensor:
        return 2 * super().up_to_last_block(x)


@pytest.mark.parametrize("way", [False, *WAYS])
def test_every_method_of_a_subclass_counts(way):
    torch.manual_seed(0)
    sizes = {"growth_rate": 3, "block_config": (2, 3), "num_init_features": 4, "num_classes": 3}
    louder = Louder(**sizes, efficient=way).double()
    plain = Louder(**sizes).double()
    plain.load_state_dict(louder.state_dict())
    assert_equal(step(louder), step(plain))
    assert louder.why_not_as_built() == "up_to_last_block is overridden"
    network = build(way)
    network.up_to_last_block = lambda x: x
    assert network.why_not_as_built() == "up_to_last_block is overridden"


@ways
@pytest.mark.parametrize("where, name", [(F, "relu"), (nn.Conv2d, "_conv_forward")])
def test_a_function_replaced_for_all_is_used(way, where, name, monkeypatch):
    plain, other = build(), build(way)
    frozen, original = build().eval().frozen(), getattr(where, name)
    monkeypatch.setattr(where, name, lambda *a, **o: 0.9 * original(*a, **o))
    assert_equal(step(other), step(plain))
    if where is F:
        with torch.no_grad():
            assert_equal(frozen(images()), build().eval()(images()))


def test_features_can_be_frozen_like_torchvisions():
    network = build(True)
    names = {id(p): name for name, p in network.named_parameters()}
    found = {names[id(p)] for p in network.features.parameters()}
    assert found == {name for name in names.values() if not name.startswith("classifier")}
    network.features.requires_grad_(False)
    step(network)
    assert [n for n, p in network.named_parameters() if p.grad is not None] == [
        "classifier.weight",
        "classifier.bias",
    ]
    network.features.eval()
    assert not any(norm.training for norm in norms_of(network)) and network.classifier.training
    network.train()
    assert all(part.training for part in network.modules())


@pytest.mark.parametrize("kind", [lambda n: n, DenseNet.frozen], ids=["network", "frozen"])
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_scripting_is_refused_in_one_line(kind):
    with pytest.raises(TypeError, match=r"^torch.jit.script cannot read this network: use [^\n]*$"):
        torch.jit.script(kind(build()))


@ways
def test_statistics_moved_before_the_backward_pass_do_not_matter(way):
    """BatchNorm moves them without a trace; what is recomputed uses those of its time."""
    plain, other = build().eval(), build(way).eval()
    logits = other(images())
    for block in other.blocks:
        for layer in block.layers:
            layer.norm1.running_mean.data.add_(1)
    found = torch.autograd.grad(logits.sum(), list(other.parameters()))
    assert_equal(found, torch.autograd.grad(plain(images()).sum(), list(plain.parameters())))


@pytest.mark.parametrize("way", [False, *WAYS])
def test_transforms_of_torch_func_see_the_modules(way):
    plain, network = build().eval(), build(way).eval()
    x, direction = images(), torch.rand_like(images())
    parameters = {name: p.detach() for name, p in network.named_parameters()}

    def loss(weights: dict, model: DenseNet, image: Tensor) -> Tensor:
        return torch.func.functional_call(model, weights, (image[None],)).square().sum()

    def per_sample(model: DenseNet) -> dict:
        gradients = torch.func.grad(lambda weights, image: loss(weights, model, image))
        return torch.vmap(gradients, in_dims=(None, 0))(parameters, x)

    assert_equal(per_sample(network), per_sample(plain))
    found = torch.func.jvp(network, (x,), (direction,))
    assert_equal(found, torch.func.jvp(plain, (x,), (direction,)))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, direction)
        found = torch.autograd.forward_ad.unpack_dual(network(dual)).tangent
    assert_equal(found, torch.func.jvp(plain, (x,), (direction,))[1])


@ways
def test_gradients_of_torch_func_in_training(way):
    gradients = []
    for network in (build(), build(way)):
        weights = {name: p.detach() for name, p in network.named_parameters()}

        def loss(weights: dict, network=network) -> Tensor:
            buffers = {name: b.clone() for name, b in network.named_buffers()}
            call = torch.func.functional_call(network, (weights, buffers), (images(),))
            return call.square().sum()

        gradients.append(torch.func.grad(loss)(weights))
    assert_equal(gradients[1], gradients[0])


@ways
@pytest.mark.parametrize("count, size", [(0, (13, 11)), (1, (4, 4)), (1, (2, 2))])
def test_few_values(way, count, size):
    """None at all, one image, one value per channel: as the plain network, error or not."""
    results = []
    for network in (build(), build(way)):
        x = torch.randn(count, 3, *size, dtype=torch.float64).fill_(0.5)
        try:
            logits = network(x)
            logits.sum().backward()
            results.append((logits, dict(network.named_buffers())))
        except ValueError as error:
            results.append(str(error).split(", got")[0])
    if isinstance(results[0], str):
        assert results[0] == results[1]
    else:
        torch.testing.assert_close(results[1], results[0], equal_nan=True)


@ways
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_other_types_of_numbers(way, dtype):
    truth = step(build())
    found = []
    for network in (build().to(dtype), build(way).to(dtype)):
        found.append(step(network, images().to(dtype)))
        assert found[-1]["logits"].dtype == dtype
        assert {p.grad.dtype for p in network.parameters()} == {dtype}
    names = [name for name, _ in build().named_parameters()] + ["logits"]
    plain, other = (torch.cat([(r[n] - truth[n]).flatten() for n in names]).norm() for r in found)
    assert other < 1.5 * plain + 1e-6


@ways
def test_a_network_of_mixed_types_does_what_the_plain_one_does(way):
    """Half precision with norms in single, as older recipes have it."""
    results = []
    for network in (build().bfloat16(), build(way).bfloat16()):
        for norm in norms_of(network):
            norm.float()
        try:
            results.append(network(images().bfloat16()))
        except RuntimeError as error:
            results.append(str(error))
    assert type(results[0]) is type(results[1])
    torch.testing.assert_close(results[1], results[0])


@ways
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_the_default_device_changes_nothing(way, device):
    plain, other = build(), build(way)
    x = images()
    expected = step(plain, x)
    torch.set_default_device(device)
    try:
        torch.manual_seed(2)
        logits = other(x)
        logits.sum().backward()
        frozen = build_frozen_from(other)
        frozen(x)
    finally:
        torch.set_default_device(None)
    assert_equal(logits.detach(), expected["logits"])


def build_frozen_from(network: DenseNet) -> FrozenDenseNet:
    return copy.deepcopy(network).frozen()


@ways
def test_a_mode_sees_every_operation(way):
    """A counter on all operations counts the plain network's; by module, too."""
    from torch.utils.flop_counter import FlopCounterMode

    counts = []
    for network in (build(), build(way)):
        with FlopCounterMode(display=False) as counter:
            network(images()).sum().backward()
        counts.append(counter.get_flop_counts())
    for name in ("Global", "DenseNet.blocks.1.layers.1.conv2", "DenseNet.transitions.0.conv"):
        assert counts[1][name] == counts[0][name], name


def test_a_hook_on_all_modules_sees_them_all():
    counts = []
    for network in (build(), build(True)):
        seen = []
        handle = nn.modules.module.register_module_forward_hook(
            lambda module, *_, seen=seen: seen.append(type(module).__name__)
        )
        try:
            step(network)
        finally:
            handle.remove()
        counts.append(sorted(name for name in seen if name in ("BatchNorm2d", "Conv2d")))
    assert counts[0] == counts[1]


@ways
def test_activation_checkpointing_around_it(way):
    from torch.utils.checkpoint import checkpoint

    plain, other = build(), build(way)
    x = images().requires_grad_()
    found = []
    for network in (plain, other):
        logits = checkpoint(network, x, use_reentrant=False)
        found.append(torch.autograd.grad(logits.square().sum(), list(network.parameters())))
    assert_equal(found[1], found[0])


# --- Private names -------------------------------------------------------------------------------


PRIVATE = [
    (internals.global_hooks, "_has_any_global_hook"),
    (internals.dispatch, "_get_current_dispatch_mode"),
    (torch.overrides, "_get_current_function_mode_stack"),
]


@pytest.mark.parametrize("place, name", PRIVATE, ids=[name for _, name in PRIVATE])
def test_a_private_name_may_go(place, name, monkeypatch):
    """Without it nobody can tell whether somebody watches: so the modules run."""
    expected = step(build())
    monkeypatch.delattr(place, name)
    assert internals.watcher()
    assert_equal(step(build(True)), expected)
    with torch.no_grad():
        network = build().eval()
        assert_equal(network.frozen()(images()), network(images()))


def test_a_module_that_no_longer_tells_of_hooks_is_taken_as_watched(monkeypatch):
    monkeypatch.setattr(internals, "HOOKS", (*internals.HOOKS, "_a_later_name"))
    assert build().why_not_as_built()
    assert_equal(step(build(True)), step(build()))


def test_a_module_that_keeps_its_tensors_elsewhere_is_asked_in_public(monkeypatch):
    norm = nn.BatchNorm2d(3)
    expected = internals.own_tensors_and_parts(norm)
    monkeypatch.setattr(internals, "vars", lambda module: {}, raising=False)
    found = internals.own_tensors_and_parts(norm)
    assert [dict(every) for every in found] == [dict(every) for every in expected]
    assert [set(every) for every in found] == [
        {"weight", "bias"},
        {"running_mean", "running_var", "num_batches_tracked"},
        set(),
    ]


def test_private_names_stand_in_one_file():
    import ast
    from pathlib import Path

    folder = Path(internals.__file__).parent
    for path in folder.rglob("*.py"):
        if path.stem == "internals":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Attribute) or not node.attr.startswith("_"):
                continue
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            dunder = node.attr.startswith("__") and node.attr.endswith("__")
            named_tuple = node.attr in ("_replace", "_fields", "_asdict")
            own = own or f"def {node.attr}(" in path.read_text()
            own = own or ast.unparse(node) in ("sys._getframe", "sys._current_frames")  # documented
            assert own or dunder or named_tuple, f"{path.name}: {ast.unparse(node)}"


def test_as_built_says_what_a_fresh_part_is():
    for part in (DenseLayer(3, 2), BottleneckLayer(3, 2), Transition(4), nn.BatchNorm2d(3)):
        assert as_built.why_not_as_built(part) is None
    assert as_built.why_not_as_built(nn.Linear(2, 2)) == "it is a Linear"
    assert {type(block(1, 2, 2)) for block in BLOCK_TYPES.values()} >= {DenseBlock}
