"""Evaluation without gradients takes a faster path, which gives what the modules give."""

import copy
import pickle

import pytest
import torch
import torchvision
from torch import nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from densenet_from_scratch import (
    DenseNet,
    FrozenDenseNet,
    densenet121,
    from_torchvision,
    shared,
)
from densenet_from_scratch import model as model_module

NETWORKS = {
    "small images": {},
    "ImageNet": {"small_inputs": False},
    "basic layers": {"bottleneck": False, "compression": 1.0},
    "one block": {"block_config": (3,)},
    "dropout": {"drop_rate": 0.3},
}


def used(network: DenseNet, monkeypatch, images: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return the logits without gradients, and how often the fast path ran."""
    calls = []
    infer = model_module.infer

    def counted(*arguments):
        calls.append(1)
        return infer(*arguments)

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(model_module, "infer", counted)
        return network(images), len(calls)


def trained(**options) -> DenseNet:
    """A network whose norms all differ from fresh ones, in evaluation."""
    torch.manual_seed(0)
    options = {"growth_rate": 3, "block_config": (2, 3), "num_init_features": 5} | options
    network = DenseNet(**options).double()
    for name, value in network.state_dict().items():
        if "norm" in name and value.is_floating_point():
            value.uniform_(0.5, 2.0)
    return network.eval()


def images(count: int = 2, channels: int = 3) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(count, channels, 13, 11, dtype=torch.float64)


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("count", [1, 3])
def test_it_gives_what_the_modules_give(options, memory_format, count, monkeypatch):
    network = trained(**options).to(memory_format=memory_format)
    x = images(count).contiguous(memory_format=memory_format)
    logits, calls = used(network, monkeypatch, x)
    assert calls == 1
    torch.testing.assert_close(logits, network(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("numbers", [1, 30, 100])
def test_the_size_of_the_pieces_changes_nothing(numbers, monkeypatch):
    network, x = trained(), images()
    monkeypatch.setattr(shared, "PIECE", numbers)
    logits, calls = used(network, monkeypatch, x)
    assert calls == 1
    torch.testing.assert_close(logits, network(x), rtol=1e-12, atol=1e-12)


def test_norms_may_differ_in_eps(monkeypatch):
    network = trained()
    network.blocks[0].layers[1].norm2.eps = 0.1
    network.transitions[0].norm.eps = 0.2
    logits, calls = used(network, monkeypatch, images())
    assert calls == 1
    torch.testing.assert_close(logits, network(images()), rtol=1e-12, atol=1e-12)


def test_it_gives_what_torchvision_gives(monkeypatch):
    torch.manual_seed(0)
    theirs = torchvision.models.densenet121(num_classes=10).double().eval()
    for name, value in theirs.state_dict().items():
        if "norm" in name and value.is_floating_point():
            value.uniform_(0.5, 1.5)
    ours = densenet121(num_classes=10).double().eval()
    ours.load_state_dict(from_torchvision(theirs.state_dict()))
    x = torch.randn(1, 3, 65, 64, dtype=torch.float64)
    logits, calls = used(ours, monkeypatch, x)
    assert calls == 1
    with torch.no_grad():
        torch.testing.assert_close(logits, theirs(x), rtol=1e-9, atol=1e-9)


def test_new_weights_are_seen_however_they_came(monkeypatch):
    """Nothing is remembered between calls that a change of the weights could outdate."""
    network = trained()
    used(network, monkeypatch, images())
    network.blocks[0].layers[0].norm1.weight.data.mul_(3)
    network.norm.running_mean.add_(1)
    network.blocks[1].layers[2].conv1.weight = nn.Parameter(
        torch.randn_like(network.blocks[1].layers[2].conv1.weight)
    )
    logits, _ = used(network, monkeypatch, images())
    torch.testing.assert_close(logits, network(images()), rtol=1e-12, atol=1e-12)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        torch.testing.assert_close(used(twin, monkeypatch, images())[0], logits)


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) + 1


def test_the_modules_run_where_the_difference_would_show(monkeypatch):
    x = images()
    network = trained()
    network.blocks[0].layers[0].register_forward_hook(lambda *_: None)
    assert used(network, monkeypatch, x)[1] == 0, "a hook waits inside"
    network = trained()
    network.blocks[0].layers[0].norm1 = OwnNorm(5).double().eval()
    logits, calls = used(network, monkeypatch, x)
    assert calls == 0, "a part of another kind"
    torch.testing.assert_close(logits, network(x))
    network = trained()
    network.transitions[0] = nn.Conv2d(11, 5, 3, stride=2, padding=1).double()
    logits, calls = used(network, monkeypatch, x)
    assert calls == 0, "a transition of another kind"
    torch.testing.assert_close(logits, network(x))
    network = trained()
    network.blocks[0].layers[0].norm1.train()
    assert used(network, monkeypatch, x)[1] == 0, "a norm uses the batch"
    assert used(trained().train(), monkeypatch, x)[1] == 0, "training"
    network = trained().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert used(network, monkeypatch, x.float())[1] == 0, "autocast chooses types"
    compiled = torch.compile(trained(), backend="eager", fullgraph=True)
    assert used(compiled, monkeypatch, x)[1] == 0, "a compiler records"


def test_an_ensemble_runs_under_vmap():
    """Several networks as one, as PyTorch's tutorial on ensembles does it."""
    x, networks = images(), [trained() for _ in range(2)]
    networks[1].classifier.bias.data.add_(1)
    stacked = torch.func.stack_module_state(networks)

    def run(parameters, buffers):
        return torch.func.functional_call(networks[0], (parameters, buffers), (x,))

    with torch.no_grad():
        logits = torch.vmap(run)(*stacked)
        expected = torch.stack([network(x) for network in networks])
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's own use of it
def test_forward_mode_derivatives_are_right():
    network, x, direction = trained(), images(), torch.randn_like(images())
    step = 1e-6
    with torch.no_grad():
        _, found = torch.func.jvp(network, (x,), (direction,))
        difference = (network(x + step * direction) - network(x - step * direction)) / (2 * step)
        with forward_ad.dual_level():
            dual = forward_ad.unpack_dual(network(forward_ad.make_dual(x, direction))).tangent
    torch.testing.assert_close(found, difference, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(dual, found, rtol=1e-12, atol=1e-12)


def test_a_hook_on_the_whole_network_keeps_the_fast_path(monkeypatch):
    network, seen = trained(), []
    network.register_forward_hook(lambda *_: seen.append(1))
    assert used(network, monkeypatch, images())[1] == 1
    assert seen == [1]


def test_gradients_in_evaluation_stay(monkeypatch):
    network, x = trained(), images().requires_grad_()
    network(x).sum().backward()
    assert x.grad.abs().sum() > 0


class Products(TorchDispatchMode):
    """Count multiplications and additions of pairs. (A FlopCounterMode hooks into all modules.)"""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        options = options or {}
        if operation.overloadpacket not in flop_registry:
            with self:
                decomposed = operation.decompose(*arguments, **options)
            if decomposed is not NotImplemented:
                return decomposed
        result = operation(*arguments, **options)
        if count := flop_registry.get(operation.overloadpacket):
            self.count += count(*arguments, out_val=result) // 2
        return result


def test_transitions_do_a_quarter_of_the_products():
    network = trained(block_config=(2, 2), small_inputs=True)
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    counts = []
    for gradients in (True, False):
        with Products() as products, torch.set_grad_enabled(gradients):
            network(x)
        counts.append(products.count)
    conv = network.transitions[0].conv
    assert counts[0] - counts[1] == conv.weight.numel() * (8 * 8 - 4 * 4)


def test_a_hook_on_all_modules_sees_all_modules(monkeypatch):
    with FlopCounterMode(display=False) as counter:
        assert used(trained(), monkeypatch, images())[1] == 0
    assert "DenseNet.blocks.1.layers.2.conv2" in counter.get_flop_counts()


def test_the_result_is_a_tensor_like_any_other(monkeypatch):
    """Inference tensors cannot be used where gradients are wanted later."""
    network = trained()
    logits, calls = used(network, monkeypatch, images())
    assert calls == 1 and not logits.is_inference()
    seen = []
    network.classifier.register_forward_pre_hook(lambda module, inputs: seen.extend(inputs))
    used(network, monkeypatch, images())
    assert not seen[0].is_inference()
    nn.functional.linear(seen[0], network.classifier.weight).sum().backward()


def another_pooling(stem: nn.Module, seen: list) -> None:
    stem[3] = nn.AvgPool2d(3, stride=2, padding=1)


def a_hook(stem: nn.Module, seen: list) -> None:
    stem.relu.register_forward_hook(lambda *_: seen.append(1))


def a_norm_that_uses_the_batch(stem: nn.Module, seen: list) -> None:
    stem.norm.train()
    stem.norm.momentum = 0.0


@pytest.mark.parametrize("change", [another_pooling, a_hook, a_norm_that_uses_the_batch])
def test_a_changed_stem_runs_as_it_is(change, monkeypatch):
    network, seen = trained(small_inputs=False), []
    change(network.stem, seen)
    logits, calls = used(network, monkeypatch, images())
    assert calls == 1
    assert len(seen) == (change is a_hook)
    torch.testing.assert_close(logits, network(images()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("count", [1, 3])
def test_a_frozen_network_gives_what_the_network_gives(options, count):
    network = trained(**options)
    x = images(count)
    expected = network(x).detach()
    frozen = FrozenDenseNet(network.train())
    assert network.training, "the original is left alone"
    for _ in range(2):
        logits = frozen(x.clone().requires_grad_())
        assert not logits.requires_grad
        torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(frozen.train()(x), expected, rtol=1e-12, atol=1e-12)
    network.norm.bias.data.add_(1)
    torch.testing.assert_close(frozen(x), expected, rtol=1e-12, atol=1e-12)


def test_a_frozen_network_follows_its_own_weights():
    network, other, x = trained(), trained(), images()
    other.blocks[0].layers[0].norm2.weight.data.mul_(2)
    frozen = FrozenDenseNet(network)
    frozen.load_state_dict(FrozenDenseNet(other).state_dict())
    torch.testing.assert_close(frozen(x), other(x), rtol=1e-12, atol=1e-12)
    single = FrozenDenseNet(network).float()
    torch.testing.assert_close(single(x.float()), network.float()(x.float()))
    for twin in (copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen))):
        torch.testing.assert_close(twin(x), other(x), rtol=1e-12, atol=1e-12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert single(x.float()).dtype == torch.float32


def test_a_frozen_network_does_not_mind_a_hook_of_its_stem_that_goes():
    network, x = trained(small_inputs=False), images()
    network.stem.relu.register_forward_hook(lambda *_: None)
    frozen = FrozenDenseNet(network)
    frozen.network.stem.relu._forward_hooks.clear()
    torch.testing.assert_close(frozen(x), network(x), rtol=1e-12, atol=1e-12)


def test_a_frozen_network_refuses_what_it_cannot_run():
    network = trained()
    network.blocks[0].layers[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="network must be a DenseNet"):
        FrozenDenseNet(network)
    with pytest.raises(ValueError, match=r"network must be a DenseNet .* got Linear"):
        FrozenDenseNet(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="x must"):
        FrozenDenseNet(trained())(torch.randn(1, 2, 8, 8, dtype=torch.float64))
